# SPDX-License-Identifier: Apache-2.0
"""The versions of the model: their files, fingerprints, signatures and lineage."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ...core.errors import ModelError
from ...core.files import atomic_write
from ...core.hub_messages import ModelOffer
from ...core.security import sign
from ...core.spec_parts import ModelSource
from ...lib.runners.formats import format_of
from ...lib.verification import suffix_of, verified
from ..hub.hub import Hub
from ..tables import ModelVersion

__all__ = ["Lineage", "Registry", "StoredModel"]

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes
_MOST_FILES = 10_000


@dataclass(frozen=True)
class StoredModel:
    """A model's file in the hub's storage; a folder is one .zip."""

    sha256: str
    size: int
    suffix: str


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from.

    Parameters
    ----------
    parent, training, dataset
        The version that it was trained on from, the training, and the dataset version.
    code
        SHA-256 of the training script.
    """

    parent: int | None = None
    training: int | None = None
    dataset: int | None = None
    code: str | None = None


class Registry:
    """Keeps versions, and brings their files to this machine.

    Parameters
    ----------
    hub
        What it works on.
    model
        The model's name.
    key
        File of the key that versions are signed with.
    folder
        Where files are unpacked.
    """

    def __init__(self, hub: Hub, *, model: str, key: Path, folder: Path) -> None:
        self._hub, self._model, self._key, self._folder = hub, model, key, folder

    def store(self, path: Path) -> StoredModel:
        """Take a model's file, or folder, into the storage; the same content is kept once.

        Raises
        ------
        ModelError
            If it is none that can be run.
        """
        format_of(path, name=str(path))
        if not path.is_dir():
            sha256 = self._hub.models.put_file(path)
            return StoredModel(sha256, path.stat().st_size, path.suffix)
        packed = self._folder / "packing" / f"{path.name}.zip"
        try:
            _pack(path, packed)
            return StoredModel(self._hub.models.put_file(packed), packed.stat().st_size, ".zip")
        finally:
            packed.unlink(missing_ok=True)

    def add(
        self,
        session: Session,
        stored: StoredModel,
        lineage: Lineage,
        *,
        state: str,
        metrics: Mapping[str, float] | None = None,
    ) -> ModelVersion:
        """Give a stored model the next version number, and sign it."""
        now = self._hub.clock()
        version = (session.scalar(select(func.max(ModelVersion.version))) or 0) + 1
        file = f"{self._model}-{version}{stored.suffix}"
        offer = ModelOffer(version=version, file=file, size=stored.size, sha256=stored.sha256, signature="")
        row = ModelVersion(
            version=version,
            parent=lineage.parent,
            training=lineage.training,
            dataset=lineage.dataset,
            code=lineage.code,
            file=file,
            size=stored.size,
            sha256=stored.sha256,
            signature=sign(self._key, offer.signed_text(self._hub.settings.job)),
            state=state,
            made_at=now,
            promoted_at=now if state == "promoted" else None,
            metrics=dict(metrics or {}),
        )
        session.add(row)
        return row

    def import_first(self, source: ModelSource) -> None:
        """Make the job's model version 1, unless there is one.

        Raises
        ------
        ModelError
            If there is no such model, or its fingerprint is another.
        """
        if self._hub.database.read(lambda session: session.get(ModelVersion, 1)) is not None:
            return
        with verified(source.path, source.sha256, folder=suffix_of(source.path) == "") as local:
            stored = self.store(local)

        def add(session: Session) -> None:
            if session.get(ModelVersion, 1) is None:
                self.add(session, stored, Lineage(), state="promoted")

        self._hub.database.write(add)

    def path_of(self, version: int) -> Path:
        """Return where a version is on this machine, as a file or folder that can be opened.

        Raises
        ------
        ModelError
            If there is no such version.
        """
        row = self._hub.database.read(lambda session: session.get(ModelVersion, version))
        if row is None:
            raise ModelError(f"there is no version {version} of model {self._model}")
        zipped = row.file.endswith(".zip")
        # By its content: a name alone may be another database's.
        place = self._folder / row.sha256[:16] / (self._model if zipped else row.file)
        if not place.exists():
            with atomic_write(place if not zipped else place.with_suffix(".zip")) as temporary:
                temporary.write_bytes(self._hub.models.get(row.sha256))
            if zipped:
                _unpack(place.with_suffix(".zip"), place)
        return place


def _pack(folder: Path, target: Path) -> None:
    with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())


def _unpack(packed: Path, folder: Path) -> None:
    with zipfile.ZipFile(packed) as archive, atomic_write(folder) as temporary:
        names = archive.namelist()
        odd = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
        if odd or len(names) > _MOST_FILES:
            raise ModelError(
                f"{packed}: is no model folder that was packed here; restore the hub's storage from a copy"
            )
        temporary.mkdir()
        archive.extractall(temporary)
    packed.unlink()
