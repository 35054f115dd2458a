# SPDX-License-Identifier: Apache-2.0
"""What an administrator asks: how samples stand, labels by program, deletion, export."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from ...core.errors import DatasetError, RefusedRequestError
from ...core.hub_messages import Labels, Receipts
from ..tables import DatasetVersion, Sample
from .dataset_versions import DatasetVersions
from .hub import Hub
from .labels import GivenLabel, LabelBook
from .requests import Admin, TheHub, accounts_of, read_message
from .retention import Retention

__all__ = ["counts", "router"]

router = APIRouter(prefix="/v1/admin")

_PAD = 512


class _Subject(BaseModel):
    subject: str = Field(min_length=1, max_length=200)


class _Person(BaseModel):
    name: str = Field(min_length=1, max_length=100)


def counts(hub: Hub) -> dict[str, Any]:
    """Return how many samples there are: in all, in each state, and of each edge."""

    def work(session: Session) -> dict[str, Any]:
        states = session.execute(select(Sample.state, func.count()).group_by(Sample.state)).all()
        edges = session.execute(
            select(Sample.edge, func.count(), func.sum(Sample.size)).group_by(Sample.edge).order_by(Sample.edge)
        ).all()
        return {
            "samples": sum(count for _, count in states),
            "states": {row[0]: row[1] for row in states},
            "edges": {edge: {"samples": count, "bytes": int(size or 0)} for edge, count, size in edges},
        }

    return hub.database.read(work)


@router.get("/counts")
def give_counts(admin: Admin, hub: TheHub) -> dict[str, Any]:
    """Tell how many samples there are."""
    del admin
    return counts(hub)


@router.get("/samples")
def list_samples(
    admin: Admin,
    hub: TheHub,
    state: Literal["waiting", "out", "labelled", "conflict", "skipped"] | None = None,
    edge: Annotated[str | None, Query(max_length=63)] = None,
    after: Annotated[str, Query(pattern=r"^[0-9a-f]{0,64}$")] = "",
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> dict[str, Any]:
    """List samples by id; `after` is the last one's id of the page before."""
    del admin
    query = select(Sample).where(Sample.id > after).order_by(Sample.id).limit(limit)
    if state is not None:
        query = query.where(Sample.state == state)
    if edge is not None:
        query = query.where(Sample.edge == edge)
    rows = hub.database.read(lambda session: list(session.scalars(query)))
    return {"samples": [_shown(row) for row in rows]}


@router.get("/samples/{name}")
def give_sample(name: str, admin: Admin, hub: TheHub) -> dict[str, Any]:
    """Tell all that is known of a sample."""
    del admin
    row = hub.database.read(lambda session: session.get(Sample, name))
    if row is None:
        raise RefusedRequestError(404, f"there is no sample {name[:80]}")
    history = [
        {"at": event.at, "what": event.what, "source": event.source, "by": event.by, "value": event.value}
        for event in LabelBook(hub).history(name)
    ]
    return {**_shown(row), "probabilities": row.probabilities, "history": history}


@router.get("/samples/{name}/content")
def give_content(name: str, admin: Admin, hub: TheHub) -> Response:
    """Give a sample's content, as a file."""
    del admin
    return Response(
        hub.samples.get(name),
        media_type="application/octet-stream",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


@router.post("/labels")
async def take_labels(request: Request, admin: Admin, hub: TheHub) -> Receipts:
    """Take labels in that a program knows."""
    message = await read_message(request, Labels)
    given = [
        GivenLabel(sample=each.sample, source="api", by=each.by or admin.name, value=each.value, at=each.at)
        for each in message.labels
    ]
    return Receipts(receipts=await run_in_threadpool(LabelBook(hub).put, given))


@router.post("/forget")
async def forget(request: Request, admin: Admin, hub: TheHub) -> dict[str, Any]:
    """Delete all samples of a person."""
    del admin
    message = await read_message(request, _Subject)
    deleted = await run_in_threadpool(Retention(hub).forget_subject, message.subject)
    return {"samples": deleted.samples, "versions": list(deleted.versions)}


@router.post("/labellers")
async def invite(request: Request, admin: Admin) -> dict[str, str]:
    """Give the link with which a person labels under a name, and can do nothing else."""
    del admin
    message = await read_message(request, _Person)
    key = accounts_of(request).labeller_key(message.name)
    return {"link": str(request.url_for("login").include_query_params(key=key))}


@router.get("/datasets")
def list_datasets(admin: Admin, hub: TheHub) -> dict[str, Any]:
    """List the dataset versions."""
    del admin
    query = select(DatasetVersion).order_by(DatasetVersion.version)
    rows = hub.database.read(lambda session: list(session.scalars(query)))
    return {
        "datasets": [
            {
                "version": row.version,
                "digest": row.digest,
                "madeAt": row.made_at,
                "count": row.count,
                "missing": row.missing,
            }
            for row in rows
        ]
    }


@router.get("/datasets/{version}/export")
def export(version: int, admin: Admin, hub: TheHub) -> StreamingResponse:
    """Give a dataset version as a .tar: `samples.jsonl`, and each content under `contents/`."""
    del admin
    if not 0 < version < 1 << 31:
        raise RefusedRequestError(404, f"there is no dataset version {version}")
    try:
        DatasetVersions(hub).get(version)
    except DatasetError as error:
        raise RefusedRequestError(404, str(error)) from error
    headers = {"content-disposition": f'attachment; filename="{hub.settings.job}-dataset-{version}.tar"'}
    return StreamingResponse(_tar(hub, version), media_type="application/x-tar", headers=headers)


def _tar(hub: Hub, version: int) -> Iterator[bytes]:
    members = list(DatasetVersions(hub).members(version))
    lines = (
        json.dumps(
            {
                "id": each.sample,
                "split": each.split,
                "label": each.label,
                "mediaType": each.media_type,
                "edge": each.edge,
            }
        )
        for each in members
    )
    yield _tar_entry("samples.jsonl", "".join(f"{line}\n" for line in lines).encode())
    for each in members:
        yield _tar_entry(f"contents/{each.sample}", hub.samples.get(each.sample))
    yield bytes(2 * _PAD)


def _tar_entry(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return b"".join((info.tobuf(), BytesIO(content).getvalue(), bytes(-len(content) % _PAD)))


def _shown(row: Sample) -> dict[str, Any]:
    return {
        "id": row.id,
        "edge": row.edge,
        "model": row.model,
        "takenAt": row.taken_at,
        "receivedAt": row.received_at,
        "reason": row.reason,
        "mediaType": row.media_type,
        "size": row.size,
        "confidence": row.confidence,
        "hardness": row.hardness,
        "prediction": row.prediction,
        "state": row.state,
        "source": row.source,
        "label": row.label,
        "labelledAt": row.labelled_at,
    }
