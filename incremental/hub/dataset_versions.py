# SPDX-License-Identifier: Apache-2.0
"""Sets of labelled samples that never change, for trainings and for the gate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from ...core.errors import DatasetError
from ..tables import DatasetVersion, DatasetVersionSample, LabelEntry, Sample
from .hub import Hub

__all__ = ["DatasetVersions", "Member", "Split", "digest_of", "split_of"]

Split = Literal["train", "gate"]
"""What a sample is for: trainings, or judging candidates on what none of them has seen."""

_AT_ONCE = 1_000


@dataclass(frozen=True)
class Member:
    """A sample in a dataset version, with the label that it had then."""

    sample: str
    split: Split
    label: Any
    media_type: str = ""
    edge: str = ""
    reason: str = ""


def split_of(sample: str, reason: str, gate_share: float) -> Split:
    """Return what a sample is for, by its id alone, so that it stays so in every version.

    Only samples drawn at random are for the gate: hard ones would make every model look worse than it is.

    >>> split_of("00" * 32, "hard", gate_share=1.0)
    'train'
    """
    if reason != "random":
        return "train"
    drawn = int.from_bytes(hashlib.sha256(b"gate:" + sample.encode()).digest()[:8], "big") / 2**64
    return "gate" if drawn < gate_share else "train"


def digest_of(members: Iterable[Member]) -> str:
    """Return the SHA-256 of a version's list: a line with id, split and label for each, sorted."""
    lines = sorted(f"{each.sample} {each.split} {json.dumps(each.label, sort_keys=True)}\n" for each in members)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class DatasetVersions:
    """Makes dataset versions, and reads them.

    Parameters
    ----------
    hub
        What it works on.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def make(self) -> int:
        """Return the version of all that is labelled now: a new one, or the one that is the same.

        A sample for the gate is in it only if a person labelled it: a model's word judges no model.

        Raises
        ------
        DatasetError
            If nothing is labelled.
        """
        return self._hub.database.write(self._make)

    def get(self, version: int) -> DatasetVersion:
        """Return what is known of a version.

        Raises
        ------
        DatasetError
            If there is none.
        """
        found = self._hub.database.read(lambda session: session.get(DatasetVersion, version))
        if found is None:
            raise DatasetError(f"there is no dataset version {version}")
        return found

    def members(self, version: int, split: Split | None = None) -> Iterator[Member]:
        """Yield a version's samples, sorted by id.

        Raises
        ------
        DatasetError
            If there is no such version, or it is not what it was when it was made; samples that had to be deleted
            everywhere are told by `DatasetVersion.missing` and are no error.
        """
        known = self.get(version)
        found = self._hub.database.read(lambda session: _members(session, version))
        if not known.missing and digest_of(found) != known.digest:
            raise DatasetError(
                f"dataset version {version} is not what it was made as; restore the database from a copy, and train "
                f"on a new version until then"
            )
        yield from (member for member in found if split is None or member.split == split)

    def counts(self, version: int) -> dict[Split, int]:
        """Return how many samples a version has for each purpose."""
        splits = [member.split for member in self.members(version)]
        return {"train": splits.count("train"), "gate": splits.count("gate")}

    def _make(self, session: Session) -> int:
        members = self._labelled(session)
        if not members:
            raise DatasetError(
                "no sample has a label, so there is nothing to make a dataset version of; label some first"
            )
        digest = digest_of(members)
        same = session.scalar(select(DatasetVersion.version).where(DatasetVersion.digest == digest))
        if same is not None:
            return same
        row = DatasetVersion(digest=digest, made_at=self._hub.clock(), count=len(members), missing=0)
        session.add(row)
        session.flush()
        for begin in range(0, len(members), _AT_ONCE):
            part = members[begin : begin + _AT_ONCE]
            session.execute(
                insert(DatasetVersionSample),
                [
                    {"version": row.version, "sample": each.sample, "split": each.split, "label": each.label}
                    for each in part
                ],
            )
        return row.version

    def _labelled(self, session: Session) -> list[Member]:
        by_person = select(LabelEntry.sample).where(LabelEntry.confidence.is_(None), LabelEntry.skipped.is_(False))
        people = set(session.scalars(by_person))
        query = select(Sample.id, Sample.reason, Sample.label).where(Sample.state == "labelled").order_by(Sample.id)
        found = []
        for sample, reason, label in session.execute(query):
            split = split_of(sample, reason, self._hub.settings.gate_share)
            if split == "train" or sample in people:
                found.append(Member(sample, split, label, reason=reason))
        return found


def _members(session: Session, version: int) -> list[Member]:
    query = (
        select(DatasetVersionSample, Sample.media_type, Sample.edge, Sample.reason)
        .join(Sample, Sample.id == DatasetVersionSample.sample, isouter=True)
        .where(DatasetVersionSample.version == version)
        .order_by(DatasetVersionSample.sample)
    )
    return [
        Member(
            row.sample,
            "gate" if row.split == "gate" else "train",
            row.label,
            media_type or "",
            edge or "",
            reason or "",
        )
        for row, media_type, edge, reason in session.execute(query)
    ]
