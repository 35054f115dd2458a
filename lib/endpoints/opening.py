# SPDX-License-Identifier: Apache-2.0
"""Opens the deep model that a job or a script names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ...core.context_document import DeepModel
from ...core.errors import ModelError
from .callable_endpoint import CallableEndpoint, named_callable
from .endpoint import Endpoint
from .http_client import HttpOptions
from .open_inference_client import OpenInferenceEndpoint
from .tf_serving_client import TensorFlowServingEndpoint

__all__ = ["open_endpoint"]

_OPEN_INFERENCE = re.compile(r"(?P<base>.*)/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/?")
_SERVING = re.compile(r"(?P<base>.*)/v1/models/(?P<model>[^/:]+)(/versions/(?P<version>[^/:]+))?/?")
_LARGEST_TOKEN = 64 * 1024


def open_endpoint(what: str | DeepModel | Endpoint | Callable[[Any], Any]) -> Endpoint:
    """Return the endpoint that is meant; nothing is asked yet.

    Parameters
    ----------
    what
        A model's URL, such as `http://host:8000/v2/models/large` or `…/v1/models/large` (TensorFlow Serving); what a
        job says; a function that is called with a batch; or an endpoint, which is returned as it is.

    Raises
    ------
    ModelError
        If it is none of these, or its token or certificate cannot be read.
    """
    if isinstance(what, Endpoint):
        return what
    if isinstance(what, DeepModel):
        return _of_job(what)
    if isinstance(what, str):
        return _of_url(what)
    if callable(what):
        return CallableEndpoint(what)
    raise ModelError(
        f"big_model_endpoint is a {type(what).__name__}; expected get_big_model_endpoint(), a model's URL, a function, "
        f"or an object with the methods of Endpoint"
    )


def _of_url(url: str) -> Endpoint:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # no address of version 6, or no port
        raise ModelError(f"{url}: is no URL ({error}); expected such as http://HOST:PORT/v2/models/NAME") from error
    if not known:
        raise ModelError(f"{url}: is no URL of a model; expected such as http://HOST:PORT/v2/models/NAME")
    if parts.username or parts.password:
        raise ModelError("a URL with a password in it is not used, for it ends in logs; pass HttpOptions(token=…)")
    for form, kind in ((_OPEN_INFERENCE, OpenInferenceEndpoint), (_SERVING, TensorFlowServingEndpoint)):
        found = form.fullmatch(url)
        if found:
            version = found["version"]
            return kind(found["base"], unquote(found["model"]), version=unquote(version) if version else None)
    raise ModelError(f"{url}: names no model; add /v2/models/NAME (Open Inference Protocol) or /v1/models/NAME")


def _of_job(deep: DeepModel) -> Endpoint:
    if deep.callable is not None:
        return named_callable(deep.callable)
    if deep.url is None or deep.model is None:
        raise ModelError("the job names no deep model; add spec.cloudWorker or spec.endpoint")
    options = HttpOptions(
        token=_token(Path(deep.token_file)) if deep.token_file else None, ca=Path(deep.ca) if deep.ca else None
    )
    if deep.dialect == "tensorflow-serving":
        return TensorFlowServingEndpoint(deep.url, deep.model, version=deep.version, options=options)
    return OpenInferenceEndpoint(deep.url, deep.model, version=deep.version, options=options)


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_TOKEN).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: the token for the deep model cannot be read ({error}); put it there") from error
    if not text or any(c.isspace() for c in text):
        raise ModelError(f"{path}: holds no token; expected one line of text")
    return text
