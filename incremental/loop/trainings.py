# SPDX-License-Identifier: Apache-2.0
"""What a training gets: new samples, old ones repeated against forgetting, and the model in use to begin with."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from ...core.context_document import ContextDocument
from ...core.errors import DatasetError, WireError
from ...core.files import atomic_write, sha256_of
from ...core.incremental_spec import IncrementalLearningJob, Replay
from ...core.job_file import JobFile
from ...core.sources import dataset_source, joined
from ...core.spec_parts import DatasetSource, ModelSource
from ...core.workers import Worker
from ...lib.datasets import load_dataset
from ...lib.sample_coding import decode_sample
from ..hub.dataset_versions import DatasetVersions, Member
from ..hub.hub import Hub
from ..tables import ModelVersion, TrainingRun
from .registry import Registry

__all__ = ["Trainings", "Workplace", "mixture"]

_log = logging.getLogger(__name__)
_HELD_OUT, _MOST_HELD_OUT = 0.1, 500
_Array = NDArray[Any]


@dataclass(frozen=True)
class Workplace:
    """Where trainings and evaluations work.

    Parameters
    ----------
    folder
        Their own folder.
    base
        What relative paths of the job file are relative to.
    python
        How Python is started there.
    """

    folder: Path
    base: str
    python: str


@dataclass(frozen=True)
class Mixture:
    """Rows of new and old samples that a training learns from, in order, and those on which it may look at itself."""

    new: NDArray[np.int64]
    old: NDArray[np.int64]
    new_held_out: NDArray[np.int64]
    old_held_out: NDArray[np.int64]


def mixture(new: int, old: int, replay: Replay, *, seed: int) -> Mixture:
    """Return which new and old samples a training gets.

    A tenth of the new ones is held out, at most 500, and as many old ones. Of the others, old ones are drawn as
    `replay` says, at least its buffer where there are so many; new ones are repeated until the shares are right.

    Parameters
    ----------
    new, old
        How many there are.
    replay
        Share of old samples, and how many different ones at least.
    seed
        The same gives the same rows.

    Examples
    --------
    >>> rows = mixture(200, 5_000, Replay(ratio=0.5, buffer=1_000), seed=1)
    >>> len(set(rows.new.tolist())), len(rows.new), len(set(rows.old.tolist())), len(rows.new_held_out)
    (180, 1000, 1000, 20)
    """
    rng = np.random.default_rng(seed)
    new_rows, old_rows = rng.permutation(new), rng.permutation(old)
    held = min(math.ceil(_HELD_OUT * new), _MOST_HELD_OUT) if new > 1 else 0
    old_held = min(held, old // 2)
    new_rows, new_held = new_rows[held:], new_rows[:held]
    old_rows, old_kept = old_rows[old_held:], old_rows[:old_held]
    if replay.ratio == 0 or not len(old_rows):
        return Mixture(new_rows, old_rows[:0], new_held, old_kept)
    share = replay.ratio / (1 - replay.ratio)
    drawn = min(max(round(len(new_rows) * share), replay.buffer), len(old_rows))
    wanted = max(round(drawn / share), len(new_rows))
    times = [rng.permutation(new_rows) for _ in range(math.ceil(wanted / len(new_rows)))] if len(new_rows) else []
    repeated = np.concatenate(times)[:wanted] if times else new_rows
    return Mixture(repeated, old_rows[:drawn], new_held, old_kept)


class Trainings:
    """Prepares trainings.

    Parameters
    ----------
    hub
        Where samples are.
    registry
        Where models are.
    file
        The job.
    place
        Where trainings work.
    """

    def __init__(self, hub: Hub, registry: Registry, file: JobFile[IncrementalLearningJob], place: Workplace) -> None:
        self._hub, self._registry, self._file, self._place = hub, registry, file, place

    @property
    def code(self) -> str | None:
        """SHA-256 of the training script; None where it is in an image."""
        script = self._file.job.spec.training.script
        path = Path(joined(self._place.base, script)) if script is not None else None
        return sha256_of(path) if path is not None and path.is_file() else None

    def name(self, run: TrainingRun) -> str:
        """Return the name of a training's worker, another one for each attempt."""
        return f"training-{run.number}-{run.attempt}"

    def output(self, run: TrainingRun) -> Path:
        """Return where the script's `save_model` writes."""
        parent = self._registry.path_of(run.parent)
        return self._folder(run) / f"model{parent.suffix}"

    def worker(self, run: TrainingRun) -> Worker:
        """Return what trains, and write what it reads. Whoever asks again gets the same.

        Raises
        ------
        DatasetError
            If there are no samples that it could learn from, or base data is of another form than new samples.
        """
        spec, folder, name = self._file.job.spec, self._folder(run), self.name(run)
        train, held_out = folder / "train.npz", folder / "eval.npz"
        if not (train.exists() and held_out.exists()):
            self._write(run, train, held_out)
        script = joined(self._place.base, spec.training.script or "train.py")
        command = spec.training.command or (self._place.python, "-m", "solar_corona.lib.script_worker", script)
        context = ContextDocument(
            job=self._file.job.metadata.name,
            kind=self._file.job.kind,
            run=name,
            role="cloud",
            worker=name,
            run_folder=str(folder / f"attempt-{run.attempt}"),
            state_folder=str(folder / "state"),
            parameters=spec.training.parameters,
            train_data=DatasetSource(path=str(train)),
            eval_data=DatasetSource(path=str(held_out)),
            model=ModelSource(path=str(self._registry.path_of(run.parent))),
            output_model=str(self.output(run)),
        )
        return Worker(name=name, role="cloud", command=tuple(command), context=context, env=spec.training.env)

    def _folder(self, run: TrainingRun) -> Path:
        return self._place.folder / f"training-{run.number}"

    def _write(self, run: TrainingRun, train: Path, held_out: Path) -> None:
        new, older = self._members(run)
        base = self._base()
        base_count = len(base[1]) if base is not None else 0
        rows = mixture(len(new), len(older) + base_count, self._file.job.spec.training.replay, seed=run.number)
        like = base[0] if base is not None else None
        decode = _Decoder(self._hub.samples.get, like)

        def old(places: NDArray[np.int64]) -> list[tuple[Any, Any]]:
            of_base = [place for place in places if place < base_count]
            pairs = [] if base is None else [(base[0][place], base[1][place]) for place in of_base]
            return pairs + decode.all([older[place - base_count] for place in places if place >= base_count])

        for path, new_rows, old_rows in (
            (held_out, rows.new_held_out, rows.old_held_out),
            (train, rows.new, rows.old),
        ):
            unique, back = np.unique(new_rows, return_inverse=True)
            decoded = decode.each([new[place] for place in unique])
            pairs = [pair for place in back if (pair := decoded[place]) is not None] + old(old_rows)
            if not pairs and path == train:
                raise DatasetError(
                    f"dataset version {run.dataset} has no sample that version {run.parent} was not trained on and "
                    f"that can be read; see the hub's log for those that cannot"
                )
            _save(path, pairs)

    def _members(self, run: TrainingRun) -> tuple[list[Member], list[Member]]:
        """Return samples that are new to the parent, and those that it, or its parents, learned from."""
        versions = DatasetVersions(self._hub)
        known: set[str] = set()
        parent = self._hub.database.read(lambda session: _dataset_of(session, run.parent))
        if parent is not None:
            known = {member.sample for member in versions.members(parent, "train")}
        all_of_it = list(versions.members(run.dataset, "train"))
        new = [member for member in all_of_it if member.sample not in known]
        return new, [member for member in all_of_it if member.sample in known]

    def _base(self) -> tuple[_Array, _Array] | None:
        source = self._file.job.spec.training.base_data
        if source is None:
            return None
        x, y = load_dataset(dataset_source(self._file, source, self._place.base, "spec.training.baseData"))
        if y is None:
            raise DatasetError("spec.training.baseData has no labels; expected x and y")
        return x, y


def _dataset_of(session: Session, version: int) -> int | None:
    row = session.get(ModelVersion, version)
    return row.dataset if row is not None else None


class _Decoder:
    """Reads samples; those that cannot be read, or are of another form than the rest, are left out and logged."""

    def __init__(self, content: Callable[[str], bytes], like: _Array | None) -> None:
        self._content = content
        self._form: tuple[tuple[int, ...], str] | None = None
        if like is not None:
            self._form = (like.shape[1:], like.dtype.kind)

    def all(self, members: Sequence[Member]) -> list[tuple[Any, Any]]:
        return [pair for pair in self.each(members) if pair is not None]

    def each(self, members: Sequence[Member]) -> list[tuple[Any, Any] | None]:
        values = [self._sample(member) for member in members]
        forms = [_form(value) for value in values if value is not None]
        expected = self._form or (max(set(forms), key=forms.count) if forms else None)
        found: list[tuple[Any, Any] | None] = []
        for member, value in zip(members, values, strict=True):
            fits = value is not None and _form(value) == expected
            if value is not None and not fits:
                _log.warning("sample %s is left out: it is %s, expected %s", member.sample, _form(value), expected)
            found.append((value, _label(member.label)) if fits else None)
        if forms and not any(found) and self._form is not None:
            raise DatasetError(
                f"samples are {_told(forms[0])}, and base data is {_told(self._form)}; expected base data of the form "
                f"in which scripts hand samples to predict"
            )
        return found

    def _sample(self, member: Member) -> _Array | None:
        try:
            value = decode_sample(self._content(member.sample), member.media_type)
            return np.asarray(value)
        except (WireError, DatasetError, ValueError) as error:
            _log.warning("sample %s is left out: %s", member.sample, error)
            return None


def _form(value: _Array) -> tuple[tuple[int, ...], str]:
    return value.shape, value.dtype.kind


def _told(form: tuple[tuple[int, ...], str]) -> str:
    kinds = {"f": "floats", "u": "bytes or other unsigned numbers", "i": "whole numbers", "U": "texts"}
    return f"{kinds.get(form[1], 'values')} of shape {list(form[0])}"


def _label(label: Any) -> Any:
    """Return a class's number as it is, and boxes or what else there is as JSON: an array holds no lists."""
    return label if isinstance(label, int | float | str) else json.dumps(label)


def _save(path: Path, pairs: Sequence[tuple[Any, Any]]) -> None:
    x = np.stack([pair[0] for pair in pairs]) if pairs else np.zeros(0)
    y = np.asarray([pair[1] for pair in pairs])
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, x=x, y=y)
