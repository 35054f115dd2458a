# SPDX-License-Identifier: Apache-2.0
"""The models that are served, by name and version, and how one takes another's place with nothing lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...core.errors import ModelError, RefusedRequestError, SolarCoronaError
from .batcher import Batcher
from .model_folder import Fingerprint, ModelPlace, find_models, fingerprint

if TYPE_CHECKING:
    from ...lib.runners.runner import Runner
    from ...lib.tensors import TensorSpec
    from .metrics import Metrics, ModelCounts
    from .options import ServiceOptions

__all__ = ["ModelRepository", "Opener", "ServedModel"]

Opener = Callable[[Path], "Runner"]
"""Loads the model at a path."""

_SHOWN_NAMES = 20
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class ServedModel:
    """One version of a model, loaded.

    Parameters
    ----------
    name, version
        Under which it is asked for.
    inputs, outputs
        What it takes and gives.
    max_batch
        Samples in one request.
    varying
        Whether inputs may differ in shape beyond the batch axis.
    users
        Requests that hold it now; it is closed when there are none.
    """

    name: str
    version: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    varying: bool
    batcher: Batcher
    counts: ModelCounts
    files: tuple[Path, Fingerprint]
    users: int = 0
    retired: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def leave(self) -> None:
        """Say that a request is done with it; each one adds to `users` when it begins."""
        self.users -= 1
        if self.retired and not self.users:
            self.idle.set()

    async def retire(self) -> None:
        """Close it when the requests that hold it are answered."""
        self.retired = True
        if self.users:
            await self.idle.wait()
        await self.batcher.close()


@dataclass(frozen=True)
class Entry:
    """One line of the repository's index."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = ""


class ModelRepository:
    """All models of a service.

    Parameters
    ----------
    arguments
        What the command line names; see `find_models`.
    options
        Limits of each model's queue.
    metrics
        Where models are counted.
    opener
        Loads a model.
    """

    def __init__(self, arguments: Sequence[str], *, options: ServiceOptions, metrics: Metrics, opener: Opener) -> None:
        self._arguments, self._options, self._metrics, self._opener = tuple(arguments), options, metrics, opener
        self._places = {place.name: place for place in find_models(arguments)}
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._found: dict[tuple[str, str], ServedModel] = {}
        self._reasons: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    # --- what is served

    def find(self, name: str, version: str = "") -> ServedModel:
        """Return a version of a model, by default the one with the highest number.

        Raises
        ------
        RefusedRequestError
            With status 404, if there is none.
        """
        model = self._found.get((name, version))
        if model is not None:
            return model
        versions = self._models.get(name)
        if versions is None:
            raise RefusedRequestError(404, f"there is no model {name[:80]!r}; there are: {_listed(self._models)}")
        raise RefusedRequestError(
            404,
            f"model {name!r} has no version {version[:40]!r}; it has: {_listed(versions) or 'none: it is unloaded'}",
        )

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that are served, lowest first."""
        return list(self._models.get(name, ()))

    def index(self) -> Iterator[Entry]:
        """Return what is known of each model."""
        for name in sorted(self._places.keys() | self._models.keys()):
            versions = self._models.get(name)
            if not versions:
                yield Entry(name, "", "UNAVAILABLE", self._reasons.get(name, "unloaded"))
            for version in versions or ():
                yield Entry(name, version, "READY")

    # --- what changes it

    async def load_all(self) -> None:
        """Load every model; one that cannot be loaded is an error."""
        for name in self._places:
            await self.load(name)

    async def load(self, name: str) -> None:
        """Serve what is on disk now under a name: new and changed versions come, those that are gone go.

        Requests in flight are answered by the version that they found. Where a version cannot be loaded, all stays
        as it was.

        Raises
        ------
        ModelError
            If a version cannot be loaded.
        RefusedRequestError
            With status 404, if there is no such model on disk.
        """
        async with self._changing:
            place = self._place(name)
            before = self._models.get(name, {})
            try:
                after, added = await self._loaded(place, before)
            except SolarCoronaError as error:
                self._reasons[name] = str(error)
                raise
            self._put(name, after)
            for model in added:
                _log.info("serving %s version %s", name, model.version)
            for version, model in before.items():
                if after.get(version) is not model:
                    self._retire(model)

    async def unload(self, name: str) -> None:
        """Serve no version of a model any more.

        Raises
        ------
        RefusedRequestError
            With status 404, if there is no such model.
        """
        async with self._changing:
            if name not in self._models:
                self.find(name)
            before = self._models[name]
            self._put(name, {})
            self._reasons[name] = "unloaded"
            for model in before.values():
                self._retire(model)

    async def close(self) -> None:
        """Answer what is in flight, then free all models."""
        async with self._changing:
            for versions in self._models.values():
                for model in versions.values():
                    self._retire(model)
            self._models, self._found = {}, {}
        if self._retiring:
            await asyncio.wait(self._retiring)

    def _place(self, name: str) -> ModelPlace:
        place = self._places.get(name)
        if place is None:
            place = {each.name: each for each in find_models(self._arguments)}.get(name)
        if place is None:
            raise RefusedRequestError(
                404, f"there is no model {name[:80]!r} on disk; there are: {_listed(self._places)}"
            )
        self._places[name] = place
        return place

    async def _loaded(
        self, place: ModelPlace, before: Mapping[str, ServedModel]
    ) -> tuple[dict[str, ServedModel], list[ServedModel]]:
        after, added = dict[str, ServedModel](), list[ServedModel]()
        try:
            for version, path in place.versions().items():
                old = before.get(version)
                files = (path, fingerprint(path))
                if old is not None and old.files == files:
                    after[version] = old
                    continue
                runner = await asyncio.get_running_loop().run_in_executor(None, self._opened, path)
                after[version] = self._served(place.name, version, runner, files)
                added.append(after[version])
        except BaseException:
            for model in added:
                self._retire(model)
            raise
        return after, added

    def _opened(self, path: Path) -> Runner:
        runner = self._opener(path)
        for spec in (*runner.inputs, *runner.outputs):
            if not spec.shape:
                raise ModelError(f"{path}: {spec.name!r} is a single number; expected a batch as its first axis")
        _warm_up(runner, path)
        return runner

    def _served(self, name: str, version: str, runner: Runner, files: tuple[Path, Fingerprint]) -> ServedModel:
        options = self._options
        fixed = [spec.shape[0] for spec in runner.inputs if spec.shape[0] > 0]
        max_batch = fixed[0] if fixed else options.max_batch
        counts = self._metrics.of(name, version)
        batcher = Batcher(
            runner,
            max_batch=max_batch,
            max_queue=max(options.max_queue, max_batch),
            batch_wait=options.batch_wait,
            counts=counts,
            path=str(files[0]),
        )
        counts.waiting = lambda: batcher.waiting
        return ServedModel(
            name=name,
            version=version,
            platform=runner.platform,
            inputs=tuple(runner.inputs),
            outputs=tuple(runner.outputs),
            max_batch=max_batch,
            varying=any(-1 in spec.shape[1:] for spec in runner.inputs),
            batcher=batcher,
            counts=counts,
            files=files,
        )

    def _put(self, name: str, versions: Mapping[str, ServedModel]) -> None:
        self._models[name] = dict(versions)
        found = {key: model for key, model in self._found.items() if key[0] != name}
        for version, model in versions.items():
            found[name, version] = found[name, ""] = model  # versions come lowest first: the last one stays
        self._found = found

    def _retire(self, model: ServedModel) -> None:
        task = asyncio.get_running_loop().create_task(model.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(list(names)[:_SHOWN_NAMES]) + (", …" if len(names) > _SHOWN_NAMES else "")


def _warm_up(runner: Runner, path: Path) -> None:
    """Run the model once, so that its first request does not pay for what engines put off until then."""
    if any(-1 in spec.shape[1:] or spec.datatype == "BYTES" for spec in runner.inputs):
        return
    try:
        runner.run({spec.name: np.zeros([abs(axis) for axis in spec.shape], spec.dtype) for spec in runner.inputs})
    except Exception as error:  # noqa: BLE001  # a model need not like zeros
        _log.warning("%s raised %s for a sample of zeros: %s", path, type(error).__name__, error)
