# SPDX-License-Identifier: Apache-2.0
"""Answers inference requests: a plain ASGI callable, because a framework's routing costs as much again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ...core.errors import RefusedRequestError, WireError
from ...lib.open_inference import HEADER_LENGTH, Answer, Request, decode_request, encode_answer
from .batcher import Outputs, Work
from .bodies import (
    BodyBudget,
    BodyShare,
    ClientGoneError,
    compressed,
    decompressed,
    read_body,
    stated_length,
    too_large,
)
from .images import decoded_images
from .questions import deadline_of, encoded_inputs, rows_of, shapes_of
from .refusals import Pacer, linger, send_refusal

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from starlette.types import Receive, Scope, Send

    from .metrics import Metrics
    from .models import ModelRepository, ServedModel
    from .options import ServiceOptions

__all__ = ["GONE", "InferRoute", "is_infer", "target_of"]

GONE = "solar_corona.gone"
"""Key of the ASGI scope: tells whether the request's client has gone. Servers other than ours need not have it."""

_SAID_EVERY = 5.0
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_CLOSE = (b"connection", b"close")
_BINARY = (b"content-type", b"application/octet-stream")
_JSON = (b"content-type", b"application/json")
_log = logging.getLogger(__name__)


def is_infer(scope: Scope) -> bool:
    """Tell whether a request is one for `InferRoute`."""
    path: str = scope["path"]
    return scope["method"] == "POST" and path.endswith("/infer") and path.startswith("/v2/models/")


@dataclass(slots=True)
class _Call:
    """One request on its way."""

    headers: Mapping[bytes, bytes]
    receive: Receive
    send: Send
    share: BodyShare
    deadline: float
    gone: Callable[[], bool]
    id: bytes
    model: ServedModel | None = None
    body_read: bool = False


class InferRoute:
    """Answers `POST /v2/models/NAME[/versions/VERSION]/infer`.

    Parameters
    ----------
    models
        What is served.
    options
        Limits.
    metrics
        Where refusals are counted.
    budget
        Bytes that requests may hold.
    workers
        Threads for what would stop the event loop: images and compressed bodies.
    draining
        Tells whether the service is about to stop, and connections are closed after their answers.
    """

    def __init__(
        self,
        models: ModelRepository,
        *,
        options: ServiceOptions,
        metrics: Metrics,
        budget: BodyBudget,
        workers: Executor,
        draining: Callable[[], bool],
    ) -> None:
        self._models, self._options, self._metrics, self._budget = models, options, metrics, budget
        self._workers, self._draining = workers, draining
        self._pacer = Pacer()
        self._said, self._unsaid = float("-inf"), 0

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, *, headers: Mapping[bytes, bytes], request_id: bytes
    ) -> None:
        """Answer one request.

        Parameters
        ----------
        scope, receive, send
            As ASGI has them.
        headers
            The scope's headers as a mapping.
        request_id
            Goes into the answer's headers as it is.
        """
        begin = time.monotonic()
        call = _Call(
            headers=headers,
            receive=receive,
            send=send,
            share=BodyShare(self._budget),
            deadline=begin + self._options.timeout,
            gone=scope.get(GONE, _never),
            id=request_id,
        )
        try:
            model = self._models.find(*target_of(scope["path"]))
            model.users += 1
            call.model = model
            await self._send(call, *await self._answer(call, model))
            model.counts.answers[200] += 1
            model.counts.seconds.add(time.monotonic() - begin)
        except RefusedRequestError as refusal:
            await self._refuse(call, refusal)
        except ClientGoneError:
            self._metrics.refused[499] += 1
        finally:
            call.share.release()
            if call.model is not None:
                call.model.leave()

    async def _answer(self, call: _Call, model: ServedModel) -> tuple[bytes, int | None, bytes]:
        """Return the answer's body, the length of its JSON header, and its coding."""
        request = await self._request(call, model)
        outputs = await self._outputs(call, model, request)
        if request.outputs:
            outputs = {name: outputs[name] for name in request.outputs}
        try:
            body, length = encode_answer(Answer(outputs, model.name, model.version, request.id), request)
        except WireError as error:
            raise RefusedRequestError(422, str(error)) from error
        accept = call.headers.get(b"accept-encoding")
        if accept is None or accept == b"identity":
            return body, length, b""
        body, coding = compressed(body, accept)
        return body, length, coding

    async def _request(self, call: _Call, model: ServedModel) -> Request:
        headers, options = call.headers, self._options
        length = stated_length(headers, options.max_body)
        if model.batcher.full:
            model.batcher.reserve(1)
        if length is not None:
            call.share.grow_to(length)
        body = await read_body(call.receive, limit=options.max_body, share=call.share)
        call.body_read = True
        coding = headers.get(b"content-encoding")
        if coding is not None and coding.strip().lower() != b"identity":
            run = asyncio.get_running_loop().run_in_executor
            body = await run(self._workers, decompressed, body, options.max_body)
            call.share.grow_to(len(body))
        text = headers.get(_HEADER_LENGTH)
        header_length = None if text is None else _whole_number(text)
        json_length = len(body) if header_length is None else header_length
        if json_length > options.max_json:
            raise too_large(options.max_json, f"{json_length} bytes of JSON (send binary tensors)")
        try:
            return decode_request(body, header_length)
        except WireError as error:
            raise RefusedRequestError(400, str(error)) from error

    async def _outputs(self, call: _Call, model: ServedModel, request: Request) -> Outputs:
        rows = rows_of(model, request)
        deadline = deadline_of(request.parameters, call.deadline) if request.parameters else call.deadline
        files = encoded_inputs(model, request) if request.encodings else ()
        batcher = model.batcher
        batcher.reserve(rows)
        try:
            inputs = request.inputs
            for spec, form in files:
                decode = partial(decoded_images, inputs[spec.name], form, spec, max_pixels=self._options.max_pixels)
                pixels = await asyncio.get_running_loop().run_in_executor(self._workers, decode)
                inputs = {**inputs, spec.name: pixels}
            done: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
            work = Work(inputs, rows, shapes_of(model, inputs), deadline, call.gone, done)
        except BaseException:
            batcher.release(rows)
            raise
        batcher.submit(work)
        return await done

    async def _send(self, call: _Call, body: bytes, header_length: int | None, coding: bytes) -> None:
        headers = [(b"content-length", b"%d" % len(body)), (b"x-request-id", call.id)]
        if header_length is None:
            headers.append(_JSON)
        else:
            headers += (_BINARY, (_HEADER_LENGTH, b"%d" % header_length))
        if coding:
            headers.append((b"content-encoding", coding))
        if self._draining():
            headers.append(_CLOSE)
        await call.send({"type": "http.response.start", "status": 200, "headers": headers})
        await call.send({"type": "http.response.body", "body": body})

    async def _refuse(self, call: _Call, refusal: RefusedRequestError) -> None:
        self.note(refusal, call.id, call.model)
        if refusal.status == 503 and not self._draining():
            delay = self._pacer.delay()
            if delay:
                await asyncio.sleep(delay)
        # A rest of known length is read and thrown away; of any other, the end cannot be waited for.
        length = call.headers.get(b"content-length")
        known = length is not None and int(length) <= self._options.max_body and b"expect" not in call.headers
        last = call.body_read or known
        headers = [(b"x-request-id", call.id)]
        if not last or self._draining():
            headers.append(_CLOSE)
        await send_refusal(call.send, refusal, headers=headers, last=last)
        if not last:
            await linger(call.receive, call.send)

    def note(self, refusal: RefusedRequestError, request_id: bytes, model: ServedModel | None) -> None:
        """Count and log a refusal; those of an overload, of which there are many, every few seconds as one."""
        counts = self._metrics.refused if model is None else model.counts.answers
        counts[refusal.status] += 1
        said = {"status": refusal.status, "model": "" if model is None else model.name}
        if refusal.status != 503:
            level = logging.WARNING if refusal.status >= 500 else logging.INFO
            _log.log(level, "refused: %s", refusal, extra={"request_id": request_id.decode("latin-1"), **said})
            return
        self._unsaid += 1
        now = time.monotonic()
        if now - self._said >= _SAID_EVERY:
            _log.warning("overloaded: %s", refusal, extra={"refused": self._unsaid, **said})
            self._said, self._unsaid = now, 0


def _never() -> bool:
    return False


def target_of(path: str) -> tuple[str, str]:
    """Return the model's name and version in a path."""
    parts = path.split("/")
    if len(parts) == 5:
        return parts[3], ""
    if len(parts) == 7 and parts[4] == "versions" and parts[5]:
        return parts[3], parts[5]
    raise RefusedRequestError(404, f"there is no {path[:200]!r}; expected /v2/models/NAME[/versions/VERSION]/infer")


def _whole_number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 12:
        raise RefusedRequestError(
            400, f"{HEADER_LENGTH} is {text.decode('latin-1')[:40]!r}, expected the JSON header's length in bytes"
        )
    return int(text)
