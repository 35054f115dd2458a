# SPDX-License-Identifier: Apache-2.0
"""What every part of the hub works on: its database, its storage, its settings and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ...core.errors import DatasetError
from .contents import Contents
from .database import Database

__all__ = ["Hub", "HubSettings", "LabelSpace", "Limits", "storable"]

_MOST_CLASSES = 100_000
_MOST_BOXES = 10_000
_MOST_TEXT = 20_000


@dataclass(frozen=True)
class Limits:
    """What the hub takes at most.

    Parameters
    ----------
    frame, content
        Bytes of one request with samples, and of one sample.
    uploads
        Large contents that are under way at the same time.
    edge_bytes
        Bytes of samples of one edge that are in the storage at the same time.
    edge_per_hour
        Samples of one edge in an hour; an edge that was away for a week sends a week's.
    unknown_labels, unknown_age
        Labels that wait for their samples, and seconds for which they do.
    """

    frame: int = 64 << 20
    content: int = 256 << 20
    uploads: int = 256
    edge_bytes: int = 50 << 30
    edge_per_hour: int = 250_000
    unknown_labels: int = 100_000
    unknown_age: float = 30 * 86_400.0


@dataclass(frozen=True)
class LabelSpace:
    """What a label may be.

    Parameters
    ----------
    kind
        `classes`: one of them, as a name or its place; `boxes`: a list of `[x1, y1, x2, y2, class]`, in shares of width
        and height from 0 to 1; `text`.
    classes
        Their names, in the order of the model's outputs; where there are none, their numbers are their names.
    count
        How many classes there are, where they have no names.
    """

    kind: Literal["classes", "boxes", "text"] = "classes"
    classes: tuple[str, ...] = ()
    count: int | None = None

    @property
    def size(self) -> int | None:
        """How many classes there are; None where nobody says."""
        return len(self.classes) or self.count

    def names(self) -> list[str]:
        """Return the classes' names."""
        return list(self.classes) or [str(number) for number in range(self.count or 0)]

    def checked(self, value: Any) -> Any:
        """Return a label in the one form that is kept: a class's number, boxes of numbers, or a text.

        Raises
        ------
        DatasetError
            If it is none: of a class that there is not, out of range, or of another kind.

        Examples
        --------
        >>> LabelSpace(classes=("cat", "dog")).checked("dog")
        1
        """
        if self.kind == "classes":
            return self._class(value)
        if self.kind == "text":
            if not isinstance(value, str) or len(value) > _MOST_TEXT or not storable(value):
                raise DatasetError(f"label {_shown(value)} is no text of at most {_MOST_TEXT} characters")
            return value
        if not isinstance(value, list) or len(value) > _MOST_BOXES:
            raise DatasetError(f"label {_shown(value)} is no list of boxes [x1, y1, x2, y2, class]")
        return [self._box(box) for box in value]

    def _class(self, value: Any) -> int:
        if isinstance(value, str) and value in self.names():
            return self.names().index(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        size = self.size or _MOST_CLASSES
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size:
            return value
        known = ", ".join(self.names()[:10]) + (", …" if size > 10 else "")
        expected = f"expected 0 to {size - 1}" + (f", or one of {known}" if self.classes else "")
        raise DatasetError(f"label {_shown(value)} is no class of the model; {expected}")

    def _box(self, box: Any) -> list[float | int]:
        numbers = isinstance(box, list) and len(box) == 5 and all(type(each) in (int, float) for each in box[:4])
        if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise DatasetError(f"box {_shown(box)} is none; expected [x1, y1, x2, y2, class] with 0 ≤ x1 < x2 ≤ 1")
        return [*(float(each) for each in box[:4]), self._class(box[4])]


@dataclass(frozen=True)
class HubSettings:
    """What the job says that the hub has to know.

    Parameters
    ----------
    job
        Its name.
    database
        SQLAlchemy's URL.
    storage
        A folder, or a URL that fsspec opens.
    labels
        What a label may be.
    agreement
        People who have to agree on a label.
    retention
        Seconds after which samples that no dataset version holds are deleted; None keeps them.
    gate_share
        Share of the random samples on which candidates are judged, and which no training sees.
    heartbeat
        Seconds between two heartbeats of an edge.
    """

    job: str
    database: str
    storage: str
    labels: LabelSpace = field(default_factory=LabelSpace)
    agreement: int = 1
    retention: float | None = None
    gate_share: float = 0.5
    heartbeat: float = 5.0
    limits: Limits = field(default_factory=Limits)


class Hub:
    """The parts that every part of the hub works on.

    Opening it brings the database to this release's form.

    Parameters
    ----------
    settings
        What the job says.
    clock
        Returns seconds since 1970.
    patience
        Seconds for which a request waits for a database or a storage that is away.
    """

    def __init__(
        self, settings: HubSettings, *, clock: Callable[[], float] = time.time, patience: float = 10.0
    ) -> None:
        self.settings, self.clock = settings, clock
        self.database = Database(settings.database, patience=patience)
        self.samples = Contents(settings.storage, "samples", patience=patience)
        self.models = Contents(settings.storage, "models", patience=patience)
        self.database.migrate()

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def storable(*texts: str | None) -> bool:
    """Tell whether every database can keep these texts: no zero, no half of a surrogate pair."""
    return all(ord(c) and not 0xD800 <= ord(c) <= 0xDFFF for text in texts if text is not None for c in text)
