# SPDX-License-Identifier: Apache-2.0
"""A deep model behind TensorFlow Serving's REST API (https://www.tensorflow.org/tfx/serving/api_rest)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ModelError, TemporaryError
from ..tensors import Tensors, TensorSpec
from .endpoint import Description, Reply
from .http_client import HttpClient, HttpOptions

__all__ = ["TensorFlowServingEndpoint"]

_DATATYPES = {
    "DT_BOOL": "BOOL",
    "DT_UINT8": "UINT8",
    "DT_UINT16": "UINT16",
    "DT_UINT32": "UINT32",
    "DT_UINT64": "UINT64",
    "DT_INT8": "INT8",
    "DT_INT16": "INT16",
    "DT_INT32": "INT32",
    "DT_INT64": "INT64",
    "DT_HALF": "FP16",
    "DT_FLOAT": "FP32",
    "DT_DOUBLE": "FP64",
    "DT_STRING": "BYTES",
}


class TensorFlowServingEndpoint:
    """A model of TensorFlow Serving; its tensors travel as JSON, in the columnar form.

    Parameters
    ----------
    url
        Base URL of the server, without `/v1`.
    model, version
        The model's name there; without a version the server chooses.
    options
        How the server is reached.
    signature
        The signature to call.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: str | None = None,
        options: HttpOptions | None = None,
        signature: str = "serving_default",
    ) -> None:
        self._client, self._signature = HttpClient(url, options), signature
        self._model, self._version = model, version or ""
        self._path = f"/v1/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{quote(version, safe='')}"

    def describe(self, *, deadline: float) -> Description:
        """Return the inputs of the model's signature."""
        document = self._client.get(f"{self._path}/metadata", deadline=deadline).json()
        try:
            signatures = document["metadata"]["signature_def"]["signature_def"]
            inputs = signatures[self._signature]["inputs"]
            return Description(
                tuple(
                    TensorSpec(name, _DATATYPES[about["dtype"]], _shape(about["tensor_shape"]))
                    for name, about in inputs.items()
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelError(
                f"{self._client.url}{self._path}: has no signature {self._signature!r} that can be read; expected the "
                f"metadata of TensorFlow Serving"
            ) from error

    def infer(self, inputs: Tensors, *, deadline: float, encodings: Mapping[str, str] | None = None) -> Reply:
        """Return the outputs for a batch; see `Endpoint.infer`. Files are sent as base64."""
        del encodings
        columns = {name: _column(value) for name, value in inputs.items()}
        document = {
            "signature_name": self._signature,
            "inputs": columns if len(columns) > 1 else next(iter(columns.values())),
        }
        body = json.dumps(document, separators=(",", ":")).encode()
        headers = {"content-type": "application/json"}
        found = self._client.post(f"{self._path}:predict", body, headers, deadline=deadline)
        answer = found.json()
        outputs = answer.get("outputs") if isinstance(answer, dict) else None
        if outputs is None:
            raise TemporaryError(f"{self._client.url}: its answer has no 'outputs', as TensorFlow Serving's has")
        named = outputs if isinstance(outputs, dict) else {"output": outputs}
        return Reply(
            {name: self._array(name, value) for name, value in named.items()},
            self._model,
            self._version,
            bytes_up=len(body),
            bytes_down=len(found.body),
        )

    def _array(self, name: str, value: Any) -> NDArray[Any]:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise TemporaryError(f"{self._client.url}: its output {name!r} is no tensor: {error}") from error
        if array.dtype.kind not in "biufU":
            raise TemporaryError(f"{self._client.url}: its output {name!r} is no tensor of numbers or text")
        # JSON knows one kind of fraction; models give float32.
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _shape(about: Mapping[str, Any]) -> tuple[int, ...]:
    axes = (int(axis["size"]) for axis in about.get("dim", []))
    return tuple(axis if axis >= 0 else -1 for axis in axes)


def _column(value: NDArray[Any]) -> Any:
    if value.dtype.kind == "O":
        return [{"b64": base64.b64encode(item).decode()} for item in value.ravel().tolist()]
    return value.tolist()
