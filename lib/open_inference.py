# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol (KServe V2) over HTTP: requests and answers as bytes, JSON and binary tensors.

Sources: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and Triton's extension for
binary data, in which a body is a JSON header followed by the tensors' bytes, and the HTTP header
`Inference-Header-Content-Length` says where the JSON ends.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import WireError
from .tensors import DATATYPES, Tensors, datatype_of

__all__ = [
    "ENCODED_IMAGES",
    "HEADER_LENGTH",
    "Answer",
    "Request",
    "decode_answer",
    "decode_request",
    "encode_answer",
    "encode_request",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that says how many bytes of JSON come before the binary tensors."""

ENCODED_IMAGES = "encoded_images"
"""The extension's name, in a server's metadata, by which an input may be BYTES that hold an image file.

The tensor's parameter `content_type` says the format: `jpeg`, `png` or `webp`.
"""

_MOST_TENSORS, _MOST_AXES, _LONGEST_AXIS = 64, 16, 2**40
_MOST_ELEMENTS = 1 << 16  # each becomes an object, which takes time and many times its bytes
_CACHED_HEADERS, _CACHED_BYTES = 256, 4096
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Parameters
    ----------
    inputs
        Tensors by name.
    id
        Given back in the answer.
    outputs
        Names of the outputs that are wanted; empty for all.
    binary
        Whether outputs are wanted as binary tensors: one truth for all, or the names of those that are.
    parameters
        What the client says beside.
    encodings
        Inputs that are files rather than tensors, such as images: the format's name by the input's.
    """

    inputs: Tensors
    id: str = ""
    outputs: tuple[str, ...] = ()
    binary: bool | frozenset[str] = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    encodings: Mapping[str, str] = field(default_factory=dict)

    def wants_binary(self, name: str) -> bool:
        """Tell whether an output goes back as a binary tensor."""
        return self.binary if isinstance(self.binary, bool) else name in self.binary


@dataclass(frozen=True)
class Answer:
    """What a server answers: tensors by name, and which model made them."""

    outputs: Tensors
    model: str
    version: str = ""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """One tensor of a header: `count` numbers in `size` bytes behind it, or `data` in it."""

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    count: int
    size: int | None
    data: Any
    encoding: str | None


@dataclass(frozen=True)
class _Header:
    entries: tuple[_Entry, ...]
    id: str
    outputs: tuple[str, ...]
    binary: bool | frozenset[str]
    parameters: Mapping[str, Any]
    encodings: Mapping[str, str]
    model: str
    version: str


def encode_request(request: Request, *, binary: bool = True) -> tuple[bytes, int | None]:
    """Return a request's body, and the length of its JSON header where binary tensors follow it.

    Parameters
    ----------
    request
        The request.
    binary
        Whether inputs are sent as binary tensors; JSON is larger and slower, and every server understands it.
    """
    entries, blobs = _encode(request.inputs, lambda _: binary)
    for entry in entries:
        if entry["name"] in request.encodings:
            entry.setdefault("parameters", {})["content_type"] = request.encodings[entry["name"]]
    document: dict[str, Any] = {"inputs": entries}
    if request.id:
        document["id"] = request.id
    parameters = dict(request.parameters)
    if request.outputs:
        document["outputs"] = [
            {"name": name, "parameters": {"binary_data": request.wants_binary(name)}} for name in request.outputs
        ]
    elif request.binary is True:
        parameters["binary_data_output"] = True
    if parameters:
        document["parameters"] = parameters
    return _joined(document, blobs)


def decode_request(body: bytes | memoryview, header_length: int | None = None) -> Request:
    """Return the request in a body.

    Parameters
    ----------
    body
        As it came; tensors in it are views of it, read-only.
    header_length
        The HTTP header `Inference-Header-Content-Length`; None where the whole body is JSON.

    Raises
    ------
    WireError
        If it does not follow the protocol; the message says what was expected.
    """
    header, tensors = _decode(body, header_length, "inputs")
    request = object.__new__(Request)
    # What a frozen dataclass's own __init__ does, at a tenth of the time of decoding the rest.
    vars(request).update(
        inputs=tensors,
        id=header.id,
        outputs=header.outputs,
        binary=header.binary,
        parameters=header.parameters,
        encodings=header.encodings,
    )
    return request


def encode_answer(answer: Answer, request: Request) -> tuple[bytes, int | None]:
    """Return an answer's body in the form that the request asks for, and the length of its JSON header.

    Raises
    ------
    WireError
        If an output cannot be sent in that form; the message says what can be done.
    """
    if request.binary is True and answer.outputs and not answer.parameters:
        return _encode_binary(answer)
    entries, blobs = _encode(answer.outputs, request.wants_binary)
    document: dict[str, Any] = {"model_name": answer.model}
    if answer.version:
        document["model_version"] = answer.version
    if answer.id:
        document["id"] = answer.id
    if answer.parameters:
        document["parameters"] = dict(answer.parameters)
    document["outputs"] = entries
    return _joined(document, blobs)


def _encode_binary(answer: Answer) -> tuple[bytes, int]:
    """Encode the answer that most clients ask for: binary tensors alone, whose header is that of the last one."""
    forms: list[tuple[str, str, tuple[int, ...], int]] = []
    blobs: list[Any] = []
    for name, value in answer.outputs.items():
        datatype = datatype_of(value.dtype)
        if datatype == "BYTES":
            blobs.append(_packed(value))
            forms.append((name, datatype, value.shape, len(blobs[-1])))
        else:
            plain = np.ascontiguousarray(value, DATATYPES[datatype])
            blobs.append(plain)
            forms.append((name, datatype, value.shape, plain.nbytes))
    before, after = _binary_header(answer.model, answer.version, tuple(forms))
    header = b'%b,"id":%b%b' % (before, json.dumps(answer.id).encode(), after) if answer.id else before + after
    return b"".join([header, *blobs]), len(header)


@lru_cache(maxsize=_CACHED_HEADERS)
def _binary_header(
    model: str, version: str, forms: tuple[tuple[str, str, tuple[int, ...], int], ...]
) -> tuple[bytes, bytes]:
    """Return what comes before an answer's id in its header, and what comes after it."""
    outputs = [
        {"name": name, "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}}
        for name, datatype, shape, size in forms
    ]
    head = {"model_name": model, "model_version": version} if version else {"model_name": model}
    before = json.dumps(head, separators=(",", ":")).encode()[:-1]
    return before, b',"outputs":' + json.dumps(outputs, separators=(",", ":")).encode() + b"}"


def decode_answer(body: bytes | memoryview, header_length: int | None = None) -> Answer:
    """Return the answer in a body; see `decode_request`."""
    header, tensors = _decode(body, header_length, "outputs")
    return Answer(tensors, header.model, header.version, header.id, header.parameters)


def _joined(document: Mapping[str, Any], blobs: Sequence[bytes | memoryview]) -> tuple[bytes, int | None]:
    try:
        header = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise WireError("NaN or infinity cannot be sent as JSON; send, or ask for, binary tensors") from error
    return (header, None) if not blobs else (b"".join([header, *blobs]), len(header))


def _encode(tensors: Tensors, binary: Any) -> tuple[list[dict[str, Any]], list[bytes | memoryview]]:
    entries, blobs = list[dict[str, Any]](), list[bytes | memoryview]()
    for name, value in tensors.items():
        datatype = datatype_of(value.dtype)
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "datatype": datatype}
        if binary(name) or datatype == "FP16":  # which JSON has no form for
            blob = _packed(value) if datatype == "BYTES" else _bytes_of(value, datatype)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif datatype == "BYTES":
            entry["data"] = [_text(item) for item in value.ravel().tolist()]
        else:
            entry["data"] = value.ravel().tolist()
        entries.append(entry)
    return entries, blobs


def _bytes_of(value: NDArray[Any], datatype: str) -> memoryview:
    plain = np.ascontiguousarray(value, DATATYPES[datatype]).reshape(-1)
    return plain.view(np.uint8).data


def _packed(value: NDArray[Any]) -> bytes:
    items = [item.encode() if isinstance(item, str) else item for item in value.ravel().tolist()]
    if not all(isinstance(item, bytes) for item in items):
        raise WireError("an array of objects has other than text and bytes in it, and cannot be sent")
    return b"".join(part for item in items for part in (_LENGTH.pack(len(item)), item))


def _text(item: Any) -> str:
    try:
        return item.decode() if isinstance(item, bytes) else str(item)
    except UnicodeDecodeError as error:
        raise WireError("bytes that are no UTF-8 text cannot be sent as JSON; ask for binary outputs") from error


def _decode(body: bytes | memoryview, header_length: int | None, key: str) -> tuple[_Header, dict[str, NDArray[Any]]]:
    size = len(body)
    if not size:
        raise WireError(f"the body is empty; expected a JSON object with {key!r}")
    length = size if header_length is None else header_length
    if not 0 < length <= size:
        raise WireError(f"{HEADER_LENGTH} is {header_length}, expected 1 to {size}, the body's length")
    text = bytes(body[:length])
    binary_only = header_length is not None and length <= _CACHED_BYTES
    header = _cached_header(text, key) if binary_only else _parsed_header(text, key)
    tensors: dict[str, NDArray[Any]] = {}  # written out: `dict[str, …]()` takes longer than all the rest
    offset = length
    for entry in header.entries:
        if entry.size is None:
            tensors[entry.name] = _from_json(entry)
            continue
        end = offset + entry.size
        if end > size:
            raise WireError(f"{entry.name!r} says binary_data_size {entry.size}, and {size - offset} bytes are left")
        tensors[entry.name] = _from_binary(entry, body, offset)
        offset = end
    if offset != size:
        raise WireError(f"{size - offset} bytes are left over after the last binary tensor")
    return header, tensors


def _parsed_header(text: bytes, key: str) -> _Header:
    try:
        document = _read_json(text.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"the body's header is no JSON ({error}); expected an object with {key!r}") from error
    if not isinstance(document, dict) or not isinstance(document.get(key), list):
        raise WireError(f"expected a JSON object with a list {key!r}")
    given = document[key]
    if len(given) > _MOST_TENSORS:
        raise WireError(f"{key!r} has {len(given)} tensors; expected at most {_MOST_TENSORS}")
    entries = tuple(_entry(item, key) for item in given)
    if len({entry.name for entry in entries}) != len(entries):
        raise WireError(f"{key!r} has two tensors of one name")
    parameters = _mapping(document, "parameters")
    outputs, binary = _wanted(document, parameters) if key == "inputs" else ((), False)
    return _Header(
        entries=entries,
        id=_string(document, "id"),
        outputs=outputs,
        binary=binary,
        parameters=parameters,
        encodings={entry.name: entry.encoding for entry in entries if entry.encoding is not None},
        model=_string(document, "model_name"),
        version=_string(document, "model_version"),
    )


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; send binary tensors")


_read_json = json.JSONDecoder(parse_constant=_no_number).decode

# Most requests of a client differ in their tensors' bytes alone, and parsing the header is most of decoding one.
_cached_header = lru_cache(maxsize=_CACHED_HEADERS)(_parsed_header)


def _wanted(
    document: Mapping[str, Any], parameters: Mapping[str, Any]
) -> tuple[tuple[str, ...], bool | frozenset[str]]:
    everything = parameters.get("binary_data_output") is True
    asked = document.get("outputs", [])
    if not isinstance(asked, list) or len(asked) > _MOST_TENSORS:
        raise WireError(f"'outputs' is not a list of at most {_MOST_TENSORS} outputs")
    names, binary = list[str](), set[str]()
    for item in asked:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise WireError("each of 'outputs' is an object with a 'name'")
        names.append(item["name"])
        if _mapping(item, "parameters").get("binary_data", everything) is True:
            binary.add(item["name"])
    return tuple(names), (frozenset(binary) if names else everything)


def _entry(item: Any, key: str) -> _Entry:
    if not isinstance(item, dict):
        raise WireError(f"each of {key!r} is an object with name, shape and datatype")
    name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
    if not isinstance(name, str) or not name:
        raise WireError(f"each of {key!r} has a 'name' that is text")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise WireError(f"{name!r} has the datatype {datatype!r}, expected one of {', '.join(DATATYPES)}")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(map(_is_length, shape)):
        raise WireError(f"{name!r} has the shape {str(shape)[:80]}, expected a list of whole numbers from 0")
    parameters = _mapping(item, "parameters")
    size, encoding = parameters.get("binary_data_size"), parameters.get("content_type")
    if size is not None and (type(size) is not int or size < 0):
        raise WireError(f"{name!r} has binary_data_size {size!r}, expected a whole number from 0")
    if (size is None) == ("data" not in item):
        raise WireError(f"{name!r} needs either 'data' or parameters.binary_data_size")
    entry = _Entry(
        name=name,
        datatype=datatype,
        dtype=DATATYPES[datatype],
        shape=tuple(shape),
        count=math.prod(shape),
        size=size,
        data=item.get("data"),
        encoding=encoding if isinstance(encoding, str) else None,
    )
    if datatype == "BYTES" and entry.count > _MOST_ELEMENTS:
        raise WireError(f"{name!r} has {entry.count} elements of BYTES; expected at most {_MOST_ELEMENTS}")
    if size is not None and datatype != "BYTES" and entry.count * entry.dtype.itemsize != size:
        raise WireError(
            f"{name!r} of {datatype} and shape {shape} has {entry.count * entry.dtype.itemsize} bytes, "
            f"and binary_data_size says {size}"
        )
    return entry


def _is_length(axis: Any) -> bool:
    return type(axis) is int and 0 <= axis < _LONGEST_AXIS


def _from_binary(entry: _Entry, body: bytes | memoryview, offset: int) -> NDArray[Any]:
    size = entry.size or 0
    if entry.datatype == "BYTES":
        return _unpacked(entry, memoryview(body)[offset : offset + size], math.prod(entry.shape))
    found = np.frombuffer(body, entry.dtype, entry.count, offset).reshape(entry.shape) if size else _nothing(entry)
    if entry.datatype == "BOOL" and size and int(found.view(np.uint8).max()) > 1:
        raise WireError(f"{entry.name!r} is BOOL and has bytes other than 0 and 1")
    return found


def _nothing(entry: _Entry) -> NDArray[Any]:
    try:
        return np.empty(entry.shape, entry.dtype)
    except ValueError as error:  # no numbers, and yet an axis beyond what NumPy counts
        raise WireError(f"{entry.name!r} has the shape {list(entry.shape)}, which no array has") from error


def _unpacked(entry: _Entry, data: memoryview, count: int) -> NDArray[Any]:
    items, offset = list[bytes](), 0
    while offset < len(data) and len(items) < count:
        end = offset + _LENGTH.size
        length = _LENGTH.unpack_from(data, offset)[0] if end <= len(data) else len(data)
        if end + length > len(data):
            raise WireError(f"{entry.name!r}: an element of its BYTES is cut off")
        items.append(bytes(data[end : end + length]))
        offset = end + length
    if len(items) != count or offset != len(data):
        raise WireError(
            f"{entry.name!r} has shape {list(entry.shape)}, and its bytes are not those of {count} elements"
        )
    return _objects(items, entry.shape)


def _objects(items: Sequence[bytes], shape: tuple[int, ...]) -> NDArray[Any]:
    out = np.empty(len(items), object)
    out[:] = items
    return out.reshape(shape)


def _from_json(entry: _Entry) -> NDArray[Any]:
    flat = _flat(entry)
    if len(flat) != math.prod(entry.shape):
        raise WireError(
            f"{entry.name!r} has shape {list(entry.shape)}, which is {math.prod(entry.shape)} values, and {len(flat)} "
            f"in its data"
        )
    if entry.datatype == "BYTES":
        if not all(isinstance(item, str) for item in flat):
            raise WireError(f"{entry.name!r} is BYTES and has data other than text")
        return _objects([item.encode() for item in flat], entry.shape)
    return _numbers(entry, flat).reshape(entry.shape)


def _flat(entry: _Entry) -> list[Any]:
    """Return the data as one flat list; nested lists are allowed."""
    data = entry.data
    if not isinstance(data, list):
        raise WireError(f"{entry.name!r} has data that is no list")
    depth = 0
    while data and isinstance(data[0], list):
        depth += 1
        if depth >= _MOST_AXES or not all(isinstance(item, list) for item in data):
            raise WireError(f"{entry.name!r} has data whose lists are nested unevenly")
        data = [value for item in data for value in item]
    return data


def _numbers(entry: _Entry, flat: list[Any]) -> NDArray[Any]:
    dtype = DATATYPES[entry.datatype]
    kinds = set(map(type, flat))
    floats, whole = dtype.kind == "f", dtype.kind in "iu"
    wanted: set[type] = {int, float} if floats else {int} if whole else {bool}
    if not kinds <= wanted:
        other = next(item for item in flat if type(item) not in wanted)
        raise WireError(f"{entry.name!r} is {entry.datatype} and has {str(other)[:40]!r} in its data")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype)
    except (OverflowError, ValueError) as error:
        raise WireError(f"{entry.name!r} is {entry.datatype} and has a value out of its range") from error


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise WireError(f"{key!r} is no object")
    return value


def _string(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise WireError(f"{key!r} is {str(value)[:40]!r}, expected text")
    return value
