# SPDX-License-Identifier: Apache-2.0
"""What LocalControllers ask; see `core/hub_messages.py`."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from ...core.errors import DatasetError, RefusedRequestError
from ...core.hub_messages import (
    PIECE,
    Heartbeat,
    Labels,
    ModelOffer,
    Observation,
    Observations,
    Orders,
    Receipts,
)
from ..tables import Edge, ModelVersion, ObservationEntry
from .contents import OffsetError
from .database import insert_for
from .hub import Hub
from .ingest import Ingest
from .labels import GivenLabel, LabelBook
from .model_versions import serving_version
from .requests import FromEdge, TheHub, read_body, read_message

__all__ = ["orders_for", "router"]

router = APIRouter(prefix="/v1")

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")
_HEARTBEATS_A_SECOND = 200
_LARGEST_INTEGER = (1 << 31) - 1
_LARGEST_COUNT = (1 << 63) - 1


@router.post("/samples")
async def take_samples(request: Request, edge: FromEdge, hub: TheHub) -> Receipts:
    """Take a frame of samples in."""
    frame = await read_body(request, hub.settings.limits.frame)
    return await run_in_threadpool(_ingest_of(request).take, edge, frame)


@router.head("/contents/{name}")
def how_much_came(name: str, edge: FromEdge, hub: TheHub) -> Response:
    """Tell how many bytes of a large content have come."""
    del edge
    offset = hub.samples.offset(name)
    return Response(status_code=200 if offset else 404, headers={"upload-offset": str(offset)})


@router.patch("/contents/{name}")
async def take_piece(name: str, request: Request, edge: FromEdge) -> Response:
    """Take the next bytes of a large content in."""
    offset, length = (_number(request, header) for header in ("upload-offset", "upload-length"))
    data = await read_body(request, PIECE)
    try:
        came = await run_in_threadpool(_ingest_of(request).piece, edge, name, offset, data, length=length)
    except OffsetError as error:
        return Response(str(error), status_code=409, headers={"upload-offset": str(error.offset)})
    return Response(status_code=204, headers={"upload-offset": str(came)})


@router.post("/labels")
async def take_labels(request: Request, edge: FromEdge, hub: TheHub) -> Receipts:
    """Take labels in that an edge learned later."""
    message = await read_message(request, Labels)
    given = [
        GivenLabel(
            sample=label.sample,
            source="edge",
            by=f"{edge}:{label.by}"[:200] if label.by else edge,
            value=label.value,
            at=label.at,
            edge=edge,
        )
        for label in message.labels
    ]
    return Receipts(receipts=await run_in_threadpool(LabelBook(hub).put, given))


@router.post("/heartbeat")
async def take_heartbeat(request: Request, edge: FromEdge, hub: TheHub) -> Orders:
    """Note how an edge stands, and tell it what is wanted of it."""
    message = await read_message(request, Heartbeat)
    _same_edge(edge, message.edge)
    return await run_in_threadpool(hub.database.write, lambda session: _heard(session, message, hub))


@router.post("/observations", status_code=204)
async def take_observations(request: Request, edge: FromEdge, hub: TheHub) -> None:
    """Keep what a canary observed, each once."""
    message = await read_message(request, Observations)
    _same_edge(edge, message.edge)
    for each in message.observations:
        if each.seq > _LARGEST_COUNT or not (0 <= each.version <= _LARGEST_INTEGER >= each.reference >= 0):
            raise RefusedRequestError(422, f"observation {each.seq} has a number that is out of range")
    if message.observations:
        await run_in_threadpool(hub.database.write, lambda session: _observed(session, edge, message.observations))


@router.get("/models/{version}/file")
def give_model(version: int, request: Request, edge: FromEdge, hub: TheHub) -> Response:
    """Give a model's file, from any byte on."""
    del edge
    if not 0 < version <= _LARGEST_INTEGER:
        raise RefusedRequestError(404, f"there is no version {version}")
    row = hub.database.read(lambda session: session.get(ModelVersion, version))
    size = hub.models.size(row.sha256) if row is not None else None
    if row is None or size is None:
        raise RefusedRequestError(404, f"there is no version {version}, or its file is gone")
    headers = {"accept-ranges": "bytes", "etag": f'"{row.sha256}"'}
    begin, end, status = 0, size, 200
    if (asked := request.headers.get("range")) is not None:
        found = _RANGE.fullmatch(asked.strip())
        begin = int(found[1]) if found else 0
        end = min(int(found[2]) + 1 if found and found[2] else size, size)
        if found is None or begin >= end:
            return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        status = 206
        headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
    headers["content-length"] = str(end - begin)
    return StreamingResponse(
        hub.models.pieces(row.sha256, begin, end), status, headers, media_type="application/octet-stream"
    )


def orders_for(session: Session, hub: Hub, edge: Edge) -> Orders:
    """Return what the hub wants of an edge: the version that the rollout chose for it, else the promoted one."""
    wanted = session.get(ModelVersion, edge.wanted_version) if edge.wanted_version is not None else None
    wanted = wanted or serving_version(session)
    shadow = session.get(ModelVersion, edge.shadow_version) if edge.shadow_version is not None else None
    count = session.scalar(select(func.count()).select_from(Edge)) or 1
    return Orders(
        model=_offer(wanted),
        shadow=_offer(shadow),
        next_heartbeat=max(hub.settings.heartbeat, count / _HEARTBEATS_A_SECOND),
    )


def _offer(row: ModelVersion | None) -> ModelOffer | None:
    if row is None:
        return None
    return ModelOffer(version=row.version, file=row.file, size=row.size, sha256=row.sha256, signature=row.signature)


def _heard(session: Session, message: Heartbeat, hub: Hub) -> Orders:
    now = hub.clock()
    row = session.get(Edge, message.edge, with_for_update=True)
    if row is None:
        row = Edge(name=message.edge, seen_at=now, heartbeat={}, clock_ahead=0.0)
        session.add(row)
    row.seen_at, row.clock_ahead = now, message.sent_at - now
    row.heartbeat = message.model_dump(mode="json")
    session.flush()
    return orders_for(session, hub, row)


def _observed(session: Session, edge: str, observations: list[Observation]) -> None:
    insert = insert_for(session)
    rows = [
        {
            "edge": edge,
            "seq": each.seq,
            "version": each.version,
            "reference": each.reference,
            "value": each.model_dump(mode="json"),
        }
        for each in observations
    ]
    session.execute(insert(ObservationEntry).on_conflict_do_nothing(index_elements=["edge", "seq"]), rows)


def _ingest_of(request: Request) -> Ingest:
    ingest: Ingest = request.app.state.ingest
    return ingest


def _same_edge(edge: str, told: str) -> None:
    if edge != told:
        raise RefusedRequestError(403, f"the message says edge {told!r}, and the token is edge {edge!r}'s")


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not text.isdigit() or len(text) > 18:
        raise DatasetError(f"the header {header} is {text[:40]!r}; expected a count of bytes")
    return int(text)
