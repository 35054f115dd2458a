# SPDX-License-Identifier: Apache-2.0
"""All routes but inference: metadata, health, the model repository, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ...core.errors import RefusedRequestError, SolarCoronaError

if TYPE_CHECKING:
    from ...lib.tensors import TensorSpec
    from .metrics import Metrics
    from .models import ModelRepository, ServedModel

__all__ = ["control_routes"]

NAME = "solar-corona"
_EXTENSIONS = ("binary_tensor_data", "model_repository")


def control_routes(
    models: ModelRepository, metrics: Metrics, *, version: str, model_control: bool, ready: Callable[[], bool]
) -> FastAPI:
    """Return the routes as an ASGI application.

    Parameters
    ----------
    models
        What is served.
    metrics
        What is counted.
    version
        The server's.
    model_control
        Whether clients may load and unload models.
    ready
        Tells whether the service takes requests.
    """
    app = FastAPI(title=NAME, version=version, openapi_url=None, docs_url=None, redoc_url=None)
    _errors(app)
    _health(app, models, ready)
    _metadata(app, models, version)
    _repository(app, models, model_control=model_control)

    @app.get("/metrics")
    async def _metrics(request: Request) -> Response:
        text, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        text = f"there is no {request.method} {request.url.path[:200]}" if error.status_code == 404 else error.detail
        if error.status_code == 405:
            text = f"{request.method} is not for {request.url.path[:200]}"
        return JSONResponse({"error": f"{text}; see GET /v2"}, error.status_code, error.headers)

    @app.exception_handler(RefusedRequestError)
    async def _refused(request: Request, error: RefusedRequestError) -> Response:  # noqa: ARG001
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(SolarCoronaError)
    async def _ours(request: Request, error: SolarCoronaError) -> Response:  # noqa: ARG001
        return JSONResponse({"error": str(error)}, 422)


def _health(app: FastAPI, models: ModelRepository, ready: Callable[[], bool]) -> None:
    @app.get("/v2/health/live")
    async def _live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def _ready(response: Response) -> dict[str, bool]:
        response.status_code = 200 if ready() else 503
        return {"ready": ready()}

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def _model_ready(request: Request) -> dict[str, Any]:
        return {"name": _asked(models, request).name, "ready": ready()}


def _metadata(app: FastAPI, models: ModelRepository, version: str) -> None:
    @app.get("/v2")
    @app.get("/v2/", include_in_schema=False)
    async def _server() -> dict[str, Any]:
        return {"name": NAME, "version": version, "extensions": _EXTENSIONS}

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def _model(request: Request) -> dict[str, Any]:
        model = _asked(models, request)
        return _described(model, models.versions(model.name))


def _asked(models: ModelRepository, request: Request) -> ServedModel:
    return models.find(request.path_params["name"], request.path_params.get("version", ""))


def _described(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": versions,
        "platform": model.platform,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
        "parameters": {"max_batch_size": model.max_batch},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _repository(app: FastAPI, models: ModelRepository, *, model_control: bool) -> None:
    def allowed() -> None:
        if not model_control:
            raise RefusedRequestError(
                403, "models are not loaded by clients here; start the service with --model-control"
            )

    @app.post("/v2/repository/index")
    async def _index(request: Request) -> list[dict[str, Any]]:
        only_ready = (await _object(request)).get("ready") is True
        return [asdict(entry) for entry in models.index() if entry.state == "READY" or not only_ready]

    @app.post("/v2/repository/models/{name}/load")
    async def _load(request: Request, name: str) -> dict[str, Any]:
        allowed()
        if (await _object(request)).get("parameters"):
            raise RefusedRequestError(400, "parameters are not taken; a model is loaded as it is on the server's disk")
        await models.load(name)
        return {"name": name, "versions": models.versions(name)}

    @app.post("/v2/repository/models/{name}/unload")
    async def _unload(name: str) -> dict[str, Any]:
        allowed()
        await models.unload(name)
        return {"name": name}


async def _object(request: Request) -> dict[str, Any]:
    body = await request.body()
    try:
        found = json.loads(body) if body else {}
    except (ValueError, RecursionError) as error:
        raise RefusedRequestError(400, f"the body is no JSON ({error}); expected an object") from error
    if not isinstance(found, dict):
        raise RefusedRequestError(400, "the body is no JSON object")
    return found
