# SPDX-License-Identifier: Apache-2.0
"""The server's state after each round, so that a killed server repeats at most one."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from ..core.errors import WireError
from ..lib.records import arrays_in, configs_in
from ..lib.sealed import read_sealed, write_sealed

__all__ = ["Checkpoint", "Checkpoints"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The global model after `round`, the strategy's state, and the run at the SuperLink."""

    round: int
    arrays: ArrayRecord
    strategy: RecordDict
    run_id: int


class Checkpoints:
    """Writes checkpoints into a folder beside the rounds' work, and reads the newest whole one.

    Two are kept, so that a damaged newest one costs a round and no more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint in the background; an error of the one before is raised here."""
        self.flush()
        self._pending = self._writer.submit(self._write, checkpoint)

    def flush(self) -> None:
        """Wait until the last checkpoint is on the disk; raise `PlatformError` if it cannot be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last write, whatever became of it."""
        self._writer.shutdown(wait=True)

    def _write(self, checkpoint: Checkpoint) -> None:
        record = RecordDict({"arrays": checkpoint.arrays})
        for key, value in checkpoint.strategy.items():
            record[f"strategy/{key}"] = value
        record["about"] = ConfigRecord({"round": checkpoint.round, "run-id": str(checkpoint.run_id)})
        write_sealed(self._path(checkpoint.round), record)
        for old in sorted(self._folder.glob("round-*.bin"))[:-2]:
            old.unlink(missing_ok=True)

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:06d}.bin"

    def load(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None."""
        for path in sorted(self._folder.glob("round-*.bin"), reverse=True):
            try:
                return _checkpoint(read_sealed(path))
            except (WireError, OSError, KeyError, ValueError) as error:
                log.warning("checkpoint %s is left out: %s", path.name, error)
        return None


def _checkpoint(record: RecordDict) -> Checkpoint:
    about = configs_in(record)["about"]
    strategy = RecordDict({k.removeprefix("strategy/"): v for k, v in record.items() if k.startswith("strategy/")})
    return Checkpoint(
        round=int(str(about["round"])),
        arrays=arrays_in(record)["arrays"],
        strategy=strategy,
        run_id=int(str(about["run-id"])),
    )
