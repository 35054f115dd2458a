# SPDX-License-Identifier: Apache-2.0
"""Answers the most common inference requests on the connection itself: no ASGI, no task, one write.

That is a `POST` of binary tensors up to 64 KiB that the service can take at once. It nearly halves what such a request
costs beside the model. Whatever is not quite that goes through `InferRoute`, which can do all, before anything is done
for it; so does each request that is to be refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from ...core.errors import RefusedRequestError, WireError
from ...lib.open_inference import HEADER_LENGTH, Answer, decode_request, encode_answer
from .batcher import Work
from .bodies import BodyBudget, compressed
from .infer_route import target_of
from .questions import deadline_of, encoded_inputs, rows_of, shapes_of

if TYPE_CHECKING:
    import asyncio

    from ...lib.open_inference import Request
    from .batcher import Outputs
    from .models import ModelRepository, ServedModel
    from .options import ServiceOptions

__all__ = ["Express", "ExpressCycle"]

_LARGEST_BODY = 1 << 16
_MOST_TARGETS = 1024
_PLAIN_PATH = b"/v2/models/"
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_OTHER_WAYS = (b"transfer-encoding", b"content-encoding", b"expect", b"connection", b"upgrade")
_CONTENT_TYPES = (None, b"application/octet-stream")
_HEAD = (
    b"content-length: %d\r\nx-request-id: %b\r\ncontent-type: application/octet-stream\r\n"
    b"inference-header-content-length: %d\r\n"
)


class _Line(Protocol):
    """What a connection has to offer."""

    transport: asyncio.Transport

    def write_answer(self, status: int, head: bytes, body: bytes) -> None: ...


class ExpressCycle:
    """One request on its way; in uvicorn's place for its `RequestResponseCycle`, and in the batcher's for a future."""

    __slots__ = (
        "_begin",
        "_express",
        "_headers",
        "_line",
        "_model",
        "_request",
        "_size",
        "body",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
    )

    def __init__(
        self, express: Express, line: _Line, model: ServedModel, headers: Mapping[bytes, bytes], size: int
    ) -> None:
        self.body = bytearray()
        self.more_body = self.keep_alive = True
        self.disconnected = self.response_started = self.response_complete = False
        self._express, self._line, self._model, self._headers, self._size = express, line, model, headers, size
        self._begin = time.monotonic()
        self._request: Request | None = None
        model.users += 1
        express.budget.used += size

    # --- as uvicorn's cycle

    @property
    def message_event(self) -> ExpressCycle:
        """What uvicorn tells that something came, or that the client has gone."""
        return self

    def set(self) -> None:
        """Hear that; only a client that goes before its body is whole matters."""
        if self.disconnected and self._request is None and not self.response_complete:
            self._leave()

    def start(self) -> bool:
        """Queue the request, whose body is whole; return False where `InferRoute` has to answer it."""
        express, model = self._express, self._model
        try:
            request = decode_request(bytes(self.body), int(self._headers[_HEADER_LENGTH]))
            rows = rows_of(model, request)
            deadline = self._begin + express.options.timeout
            if request.parameters:
                deadline = deadline_of(request.parameters, deadline)
            if request.encodings and encoded_inputs(model, request):
                self._leave()
                return False
            work = Work(
                request.inputs, rows, shapes_of(model, request.inputs), deadline, self._line.transport.is_closing, self
            )
            model.batcher.reserve(rows)
        except (RefusedRequestError, WireError, ValueError):
            self._leave()  # the route says what is wrong
            return False
        self._request = request
        model.batcher.submit(work)
        return True

    # --- as the batcher's future

    def done(self) -> bool:
        """Whether it is answered."""
        return self.response_complete

    def set_result(self, outputs: Outputs) -> None:
        """Answer with the outputs."""
        request, model = self._request, self._model
        if request is None or self._line.transport.is_closing():
            self._leave()
            return
        if request.outputs:
            outputs = {name: outputs[name] for name in request.outputs}
        try:
            body, length = encode_answer(Answer(outputs, model.name, model.version, request.id), request)
        except WireError as error:
            self.set_exception(RefusedRequestError(422, str(error)))
            return
        name = self._express.request_id(self._headers)
        accept = self._headers.get(b"accept-encoding")
        coding = b""
        if accept is not None and accept != b"identity":
            body, coding = compressed(body, accept)
        if length is None:
            head = b"content-length: %d\r\nx-request-id: %b\r\ncontent-type: application/json\r\n" % (len(body), name)
        else:
            head = _HEAD % (len(body), name, length)
        if coding:
            head += b"content-encoding: %b\r\n" % coding
        model.counts.answers[200] += 1
        model.counts.seconds.add(time.monotonic() - self._begin)
        self._leave()
        self._line.write_answer(200, head, body)

    def set_exception(self, error: BaseException) -> None:
        """Answer with what went wrong."""
        refusal = error if isinstance(error, RefusedRequestError) else RefusedRequestError(500, str(error))
        name = self._express.request_id(self._headers)
        body = json.dumps({"error": str(refusal)}).encode()
        head = b"content-length: %d\r\nx-request-id: %b\r\ncontent-type: application/json\r\n" % (len(body), name)
        self._express.refused(refusal, name, self._model)
        self._leave()
        if not self._line.transport.is_closing():
            self._line.write_answer(refusal.status, head, body)

    def _leave(self) -> None:
        self.response_started = self.response_complete = True
        self._express.budget.used -= self._size
        self._model.leave()


class Express:
    """Decides which requests go this way.

    Parameters
    ----------
    models
        What is served.
    options
        Limits.
    budget
        Bytes that requests may hold.
    lets_in
        Tells whether a request's headers let it in.
    draining
        Tells whether the service is about to stop.
    request_id
        Returns the id of a request by its headers.
    refused
        Told of each request that the model could not answer, with its id.
    """

    def __init__(
        self,
        models: ModelRepository,
        *,
        options: ServiceOptions,
        budget: BodyBudget,
        lets_in: Callable[[Mapping[bytes, bytes]], bool],
        draining: Callable[[], bool],
        request_id: Callable[[Mapping[bytes, bytes]], bytes],
        refused: Callable[[RefusedRequestError, bytes, ServedModel], None],
    ) -> None:
        self.options, self.budget = options, budget
        self.request_id, self.refused = request_id, refused
        self._models, self._lets_in, self._draining = models, lets_in, draining
        self._targets: dict[bytes, tuple[str, str] | None] = {}

    def cycle(self, line: _Line, url: bytes, headers: list[tuple[bytes, bytes]]) -> ExpressCycle | None:
        """Return the way of a POST request of which the head is there, None if it is not for here."""
        target = self._target(url)
        if target is None or self._draining():
            return None
        found: dict[bytes, bytes] = dict(headers)
        length = found.get(b"content-length")
        if length is None or _HEADER_LENGTH not in found or len(length) > 5 or int(length) > _LARGEST_BODY:
            return None
        if found.get(b"content-type") not in _CONTENT_TYPES or any(name in found for name in _OTHER_WAYS):
            return None
        if not self._lets_in(found):
            return None
        try:
            model = self._models.find(*target)
        except RefusedRequestError:
            return None
        size = int(length)
        if model.batcher.full or size > self.options.max_body or self.budget.used + size > self.budget.limit:
            return None
        return ExpressCycle(self, line, model, found, size)

    def _target(self, url: bytes) -> tuple[str, str] | None:
        try:
            return self._targets[url]
        except KeyError:
            pass
        target = None
        if url.startswith(_PLAIN_PATH) and url.endswith(b"/infer") and b"%" not in url and b"?" not in url:
            try:
                target = target_of(url.decode("ascii"))
            except (RefusedRequestError, UnicodeDecodeError):
                target = None
        if len(self._targets) < _MOST_TARGETS:
            self._targets[url] = target
        return target
