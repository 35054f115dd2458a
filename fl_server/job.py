# SPDX-License-Identifier: Apache-2.0
"""The server of one job, from the first edge to the saved model; it outlives its SuperLink, and itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import stamina
from flwr.serverapp import Grid

from ..core.context_document import ContextDocument
from ..core.errors import ExitCode, InterruptedJobError, JobFailedError, SolarCoronaError, TemporaryError
from ..core.events import Event, JobFailed, JobFinished, JobStarted, RoundEvaluated, Warned
from ..core.run_folder import RunFolder
from ..lib import flower_run
from ..lib.models import write_model_bytes
from ..strategies import create
from ..strategies.state import restore, state_of
from .checkpoint import Checkpoint, Checkpoints
from .mail import Mail
from .roster import Roster
from .round_loop import ExportedModel, Limits, Progress, RoundLoop

__all__ = ["ServerJob"]

log = logging.getLogger(__name__)


class ServerJob:
    """Runs a job's rounds and leaves behind its model.

    Parameters
    ----------
    document
        The server's context document.
    """

    def __init__(self, document: ContextDocument) -> None:
        aggregation = document.aggregation
        assert aggregation is not None
        self._document = document
        self._folder = RunFolder(Path(document.run_folder))
        self._algorithm = aggregation.algorithm or "fedavg"
        self._limits = Limits(
            rounds=aggregation.rounds,
            min_edges=document.min_edges or len(document.edges),
            round_deadline=aggregation.round_deadline,
            start_deadline=aggregation.start_deadline,
            alone_epochs=aggregation.rounds if document.evaluation.alone else 0,
        )
        self._strategy = create(
            self._algorithm,
            aggregation.options,
            min_edges=self._limits.min_edges,
            fraction=aggregation.fraction,
            job={
                "rounds": aggregation.rounds,
                "compare_global": document.evaluation.alone,
                "discover": document.tasks.division == "discovery",
            },
        )
        self._compression = aggregation.model_coding
        self._checkpoints = Checkpoints(self._folder.checkpoint)
        self._progress = Progress()
        self._metrics: dict[str, float] = {}
        self._exported: ExportedModel | None = None
        self._run_id = 0
        self._started = time.monotonic()

    def run(self, open_grid: Callable[[], tuple[Grid, dict[int, str]]] | None = None) -> None:
        """Run the job to its end.

        Parameters
        ----------
        open_grid
            Gives a grid, with the edge of each node id where keys prove it; by default a new run at the
            job's SuperLink.

        Raises
        ------
        SolarCoronaError
            If the job failed; the events say so too.
        """
        try:
            self._resume()
            self._emit(
                JobStarted(
                    rounds=self._limits.rounds,
                    edges=self._document.edges,
                    algorithm=self._algorithm,
                    min_edges=self._limits.min_edges,
                    resumed_at=self._progress.round,
                )
            )
            self._rounds(open_grid or self._open_superlink)
            path = self._document.output_model
            self._emit(JobFinished(model=path, seconds=time.monotonic() - self._started))
        except SolarCoronaError as error:
            self._emit(JobFailed(error=str(error), exit_code=int(error.exit_code)))
            raise
        except Exception as error:
            self._emit(JobFailed(error=f"{type(error).__name__}: {error}", exit_code=int(ExitCode.INTERNAL)))
            raise
        finally:
            self._checkpoints.close()

    def _emit(self, event: Event) -> None:
        if isinstance(event, Warned):
            log.warning("%s", event.message)
        else:
            log.info("%s", event.model_dump_json(exclude={"time"}))
        if isinstance(event, RoundEvaluated):
            self._metrics = event.metrics
        self._folder.append(event)

    def _resume(self) -> None:
        checkpoint = self._checkpoints.load()
        if checkpoint is None:
            return
        self._progress.round, self._progress.arrays = checkpoint.round, checkpoint.arrays
        self._run_id = checkpoint.run_id
        restore(self._strategy, checkpoint.strategy)

    def _rounds(self, open_grid: Callable[[], tuple[Grid, dict[int, str]]]) -> None:
        """Run the loop; when the SuperLink is lost, run it again from where it was."""
        while True:
            grid, owners = open_grid()
            ttl = max(3600.0, 2 * self._limits.round_deadline)
            mail = Mail(grid, ttl=ttl, compression=self._compression, run=self._document.run)
            roster = Roster(mail, self._document.edges, algorithm=self._algorithm, owners=owners)
            loop = RoundLoop(
                mail,
                roster,
                self._strategy,
                limits=self._limits,
                progress=self._progress,
                emit=self._emit,
                after_round=self._checkpoint,
                on_export=self._export,
            )
            finish = getattr(grid, "finish", None)
            try:
                if self._folder.is_saved():  # this server, or one before it, was lost while it let the edges go
                    loop.let_go()
                else:
                    loop.run()
            except TemporaryError as error:
                self._emit(Warned(message=f"{error}; the server connects again and repeats the round"))
                continue
            except BaseException as error:
                # Who is only interrupted may be resumed: the edges wait for that.
                if not isinstance(error, InterruptedJobError):
                    self._tell(mail, roster, error)
                if finish is not None:
                    finish(succeeded=False, details=str(error))
                raise
            if finish is not None:
                finish(succeeded=True)
            if self._exported is not None:  # once more, with the metrics that the edges gave at the end
                self._save(self._exported)
            return

    @staticmethod
    def _tell(mail: Mail, roster: Roster, error: BaseException) -> None:
        """Tell the edges why the job ends, and give them a moment to hear it."""
        try:
            mail.tell([m.node_id for m in roster.members()], str(error) or "the server was stopped")
            end = time.monotonic() + 2.0
            while mail.outstanding() and time.monotonic() < end:
                for _ in mail.poll():
                    pass
                mail.wait(0.1)
        except SolarCoronaError as unreachable:
            log.warning("the edges could not be told: %s", unreachable)

    def _checkpoint(self, number: int) -> None:
        assert self._progress.arrays is not None
        self._checkpoints.save(Checkpoint(number, self._progress.arrays, state_of(self._strategy), self._run_id))

    def _open_superlink(self) -> tuple[Grid, dict[int, str]]:
        """Make a run at the job's SuperLink, waiting for it as long as for edges."""
        place = self._document.superlink
        if place is None:
            raise JobFailedError("the server's context names no SuperLink")
        ca = Path(place.root_certificates).read_bytes() if place.root_certificates else None
        secret = Path(place.runtime_secret).read_bytes() if place.runtime_secret else None
        keys = {edge: Path(path).read_bytes() for edge, path in self._document.edge_keys.items()}
        for attempt in stamina.retry_context(
            on=TemporaryError,
            attempts=None,
            timeout=self._limits.start_deadline,
            wait_initial=0.1,
            wait_max=2.0,
        ):
            with attempt:
                if self._run_id:
                    flower_run.stop_run(place.address, self._run_id, root_certificates=ca)
                owners = flower_run.register_nodes(place.address, keys, root_certificates=ca)
                self._run_id = flower_run.start_run(place.address, root_certificates=ca)
                return flower_run.acquire_run(place.address, self._run_id, root_certificates=ca, secret=secret), owners
        raise AssertionError("unreachable")

    def _export(self, exported: ExportedModel | None) -> None:
        self._checkpoints.flush()
        if self._document.output_model is not None:
            self._save(exported)
        self._folder.note_saved()

    def _save(self, exported: ExportedModel | None) -> None:
        output = self._document.output_model
        assert output is not None
        if exported is None:
            raise JobFailedError(
                f"the rounds are done, but no edge could save the model to {output}; its weights are in "
                f"{self._folder.checkpoint}, and `solar-corona run --resume` tries again"
            )
        self._exported = exported
        path = Path(output)
        models = {path.with_name(f"{path.stem}-{group}{path.suffix}"): data for group, data in exported.groups.items()}
        for place, data in {**models, path: exported.data}.items():
            write_model_bytes(
                data, place, round=self._progress.round, metrics=self._metrics, versions=exported.versions
            )
