# SPDX-License-Identifier: Apache-2.0
"""All routes but inference: metadata, health, the model repository, metrics.

They are Starlette's, on which FastAPI is built: its models and OpenAPI pages would be of no use here, and cost a server
that is meant to fit into 100 MiB another 15.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...core.errors import RefusedRequestError, SolarCoronaError
from ...lib.open_inference import ENCODED_IMAGES

if TYPE_CHECKING:
    from starlette.requests import Request

    from ...lib.tensors import TensorSpec
    from .metrics import Metrics
    from .models import ModelRepository, ServedModel

__all__ = ["control_routes"]

_NAME = "solar-corona"
_EXTENSIONS = ("binary_tensor_data", ENCODED_IMAGES, "model_repository")


def control_routes(
    models: ModelRepository, metrics: Metrics, *, version: str, model_control: bool, ready: Callable[[], bool]
) -> Starlette:
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
    answers = _Answers(models, metrics, version, model_control, ready)
    model = "/v2/models/{name}"
    routes = [
        Route("/v2", answers.server),
        Route("/v2/", answers.server),
        Route("/v2/health/live", answers.live),
        Route("/v2/health/ready", answers.ready),
        Route(model, answers.model),
        Route(model + "/versions/{version}", answers.model),
        Route(model + "/ready", answers.model_ready),
        Route(model + "/versions/{version}/ready", answers.model_ready),
        Route("/v2/repository/index", answers.index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", answers.load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", answers.unload, methods=["POST"]),
        Route("/metrics", answers.metrics),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http, RefusedRequestError: _refused, SolarCoronaError: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


class _Answers:
    def __init__(
        self,
        models: ModelRepository,
        metrics: Metrics,
        version: str,
        model_control: bool,
        is_ready: Callable[[], bool],
    ) -> None:
        self._models, self._metrics, self._version = models, metrics, version
        self._model_control, self._is_ready = model_control, is_ready

    async def server(self, _: Request) -> Response:
        return JSONResponse({"name": _NAME, "version": self._version, "extensions": _EXTENSIONS})

    async def live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, _: Request) -> Response:
        return self._readiness()

    async def model_ready(self, request: Request) -> Response:
        return self._readiness(name=self._asked(request).name)

    async def model(self, request: Request) -> Response:
        model = self._asked(request)
        return JSONResponse(_described(model, self._models.versions(model.name)))

    async def index(self, request: Request) -> Response:
        only_ready = (await _object(request)).get("ready") is True
        return JSONResponse([asdict(e) for e in self._models.index() if e.state == "READY" or not only_ready])

    async def load(self, request: Request) -> Response:
        name = self._controlled(request)
        if (await _object(request)).get("parameters"):
            raise RefusedRequestError(400, "parameters are not taken; a model is loaded as it is on the server's disk")
        await self._models.load(name)
        return JSONResponse({"name": name, "versions": self._models.versions(name)})

    async def unload(self, request: Request) -> Response:
        name = self._controlled(request)
        await self._models.unload(name)
        return JSONResponse({"name": name})

    async def metrics(self, request: Request) -> Response:
        text, content_type = self._metrics.exposition(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    def _readiness(self, **said: str) -> Response:
        is_ready = self._is_ready()
        return JSONResponse({**said, "ready": is_ready}, 200 if is_ready else 503)

    def _asked(self, request: Request) -> ServedModel:
        return self._models.find(request.path_params["name"], request.path_params.get("version", ""))

    def _controlled(self, request: Request) -> str:
        if not self._model_control:
            raise RefusedRequestError(
                403, "models are not loaded by clients here; start the service with --model-control"
            )
        name: str = request.path_params["name"]
        return name


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    wrong = "there is no" if error.status_code == 404 else "not allowed:"
    message = f"{wrong} {request.method} {request.url.path[:200]}; GET /v2 tells what this server is"
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedRequestError)
    return JSONResponse({"error": str(error)}, error.status)


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


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


async def _object(request: Request) -> dict[str, Any]:
    body = await request.body()
    try:
        found = json.loads(body) if body else {}
    except (ValueError, RecursionError) as error:
        raise RefusedRequestError(400, f"the body is no JSON ({error}); expected an object") from error
    if not isinstance(found, dict):
        raise RefusedRequestError(400, "the body is no JSON object")
    return found
