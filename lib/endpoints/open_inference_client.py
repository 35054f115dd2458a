# SPDX-License-Identifier: Apache-2.0
"""A deep model behind the Open Inference Protocol: ours, Triton, KServe, MLServer, OpenVINO Model Server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ...core.errors import ModelError, TemporaryError, WireError
from ..open_inference import ENCODED_IMAGES, HEADER_LENGTH, Request, decode_answer, encode_request
from ..tensors import DATATYPES, Tensors, TensorSpec
from .endpoint import Description, Reply
from .http_client import HttpClient, HttpOptions

__all__ = ["OpenInferenceEndpoint"]

_MOST_TENSORS = 64
_BINARY = "binary_tensor_data"


class OpenInferenceEndpoint:
    """A model of a server that speaks the Open Inference Protocol (KServe V2) over HTTP.

    Parameters
    ----------
    url
        Base URL of the server, without `/v2`.
    model, version
        The model's name there; without a version the server chooses.
    options
        How the server is reached.
    binary
        Send and ask for binary tensors; None goes by the extensions that the server names when it is described, and
        is as True until then, or where it names none. MLServer has no binary tensors.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: str | None = None,
        options: HttpOptions | None = None,
        binary: bool | None = None,
    ) -> None:
        self._client = HttpClient(url, options)
        self._binary = binary
        self._path = f"/v2/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{quote(version, safe='')}"

    def describe(self, *, deadline: float) -> Description:
        """Return the model's inputs, as the server describes them, and whether the server reads image files."""
        document = self._client.get(self._path, deadline=deadline).json()
        # MLServer knows nothing of a model's inputs unless somebody wrote them down.
        inputs = document.get("inputs") or [] if isinstance(document, dict) and "name" in document else None
        if not isinstance(inputs, list) or len(inputs) > _MOST_TENSORS:
            raise ModelError(
                f"{self._client.url}{self._path}: answered {str(document)[:200]}; expected the model's name and inputs "
                f"as the Open Inference Protocol has them"
            )
        extensions = self._extensions(deadline)
        if self._binary is None and extensions is not None:
            self._binary = _BINARY in extensions
        return Description(tuple(self._input(item) for item in inputs), ENCODED_IMAGES in (extensions or ()))

    def _extensions(self, deadline: float) -> list[Any] | None:
        try:
            document = self._client.get("/v2", deadline=deadline).json()
        except ModelError:
            return None  # some servers tell what they are to nobody
        extensions = document.get("extensions") if isinstance(document, dict) else None
        return extensions if isinstance(extensions, list) else None

    def _input(self, item: Any) -> TensorSpec:
        fields: Mapping[str, Any] = item if isinstance(item, dict) else {}
        name, datatype, shape = fields.get("name"), fields.get("datatype"), fields.get("shape")
        axes = shape if isinstance(shape, list) and all(isinstance(axis, int) for axis in shape) else None
        if not isinstance(name, str) or not isinstance(datatype, str) or datatype not in DATATYPES or axes is None:
            raise ModelError(
                f"{self._client.url}{self._path}: describes an input as {str(item)[:200]}; expected its name, datatype "
                f"and shape"
            )
        return TensorSpec(name, datatype, tuple(axis if axis >= 0 else -1 for axis in axes))

    def infer(self, inputs: Tensors, *, deadline: float, encodings: Mapping[str, str] | None = None) -> Reply:
        """Return the outputs for a batch; see `Endpoint.infer`."""
        binary = self._binary is not False
        request = Request(inputs, binary=binary, encodings=encodings or {})
        body, length = encode_request(request, binary=binary)
        headers = {"content-type": "application/octet-stream" if length is not None else "application/json"}
        if length is not None:
            headers[HEADER_LENGTH] = str(length)
        found = self._client.post(f"{self._path}/infer", body, headers, deadline=deadline)
        answer_length = found.headers.get(HEADER_LENGTH.lower())
        try:
            answer = decode_answer(found.body, _length(answer_length))
        except WireError as error:
            raise TemporaryError(f"{self._client.url}: its answer cannot be read: {error}") from error
        return Reply(answer.outputs, answer.model, answer.version, bytes_up=len(body), bytes_down=len(found.body))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise WireError(f"{HEADER_LENGTH} is {text[:40]!r}, expected a number of bytes")
    return int(text)
