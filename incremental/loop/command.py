# SPDX-License-Identifier: Apache-2.0
"""The process of the hub: takes samples in, has them labelled, and carries the loop on."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import PlatformError
from ...core.incremental_plan import ADMIN_TOKEN, SIGNING_KEY, edge_token
from ...core.incremental_spec import IncrementalLearningJob
from ...core.job_file import JobFile
from ...core.local_tasks import LocalTasks
from ...core.settings import quiet_engines
from ...core.sources import is_absolute, joined, model_source
from ...core.tasks import TaskLauncher
from .. import drift
from ..hub.accounts import Accounts
from ..hub.app import serve
from ..hub.hub import Hub, HubSettings, LabelSpace
from ..labelling.desk import Desk, audits_of
from ..labelling.page_routes import Labelling
from ..labelling.registry import create
from ..labelling.source import Setting
from .machine import Loop, LoopParts
from .registry import Registry
from .service import LoopService
from .status import LoopStatus, read_status
from .trainings import Workplace
from .triggers import Triggers

__all__ = ["HubPlace", "left_status", "open_hub", "serve_hub"]

_LOOPBACK, _SQLITE = "127.0.0.1", "sqlite:///"


@dataclass(frozen=True)
class HubPlace:
    """Where a job's hub is.

    Parameters
    ----------
    base
        What relative paths of the job file are relative to.
    state
        Folder of what outlives a run.
    keys
        Folder of tokens, keys and certificates.
    """

    base: Path
    state: Path
    keys: Path


def serve_hub(
    file: JobFile[IncrementalLearningJob],
    *,
    base: Path,
    state: Path,
    keys: Path,
    run: Path,
    host: str,
    port: int,
    tasks: TaskLauncher | None = None,
) -> None:
    """Serve a job's hub until SIGTERM.

    Parameters
    ----------
    file
        The job.
    base, state, keys
        See `HubPlace`.
    run
        Folder of the run; the logs of trainings and evaluations are in it.
    host, port
        Where to listen.
    tasks
        What runs trainings; by default processes of this machine.

    Raises
    ------
    SpecError
        If the job names a detector, schedule or labelling source that there is not.
    ModelError
        If the job's model cannot be used.
    PlatformError
        If a key is missing, or the state folder cannot be written.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "httpcore", "alembic", "stamina"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    quiet_engines()
    # What the job names as module:Class stands beside the job file.
    sys.path.insert(0, str(base))
    place, spec = HubPlace(base, state, keys), file.job.spec
    tls = spec.security.tls
    with closing(open_hub(file, place)) as hub:
        accounts = _accounts(file, keys)
        labelling = spec.labelling
        setting = Setting(
            job=file.job.metadata.name,
            labels=hub.settings.labels,
            agreement=labelling.agreement,
            audits=audits_of(hub),
            callback=f"{'https' if tls else 'http'}://{_reached(host)}:{port}/v1/labelling/callback",
            callback_secret=accounts.webhook_secret(labelling.source),
        )
        desk = Desk(hub, labelling.source, create(labelling.source, labelling.options, setting))
        launcher = tasks or LocalTasks(state / "tasks", cwd=base, logs=run / "logs")
        service = LoopService(
            hub,
            _loop(file, hub, place, launcher),
            labelling=lambda: "" if (found := desk.status()).well else found.message,
            labels_come=labelling.source != "api",
        )
        serve(
            hub,
            accounts,
            host=host,
            port=port,
            certificate=keys / "server.pem" if tls else None,
            key=keys / "server.key" if tls else None,
            extensions=[Labelling(hub, desk), service],
        )


def open_hub(file: JobFile[IncrementalLearningJob], place: HubPlace) -> Hub:
    """Return a job's hub; its caller closes it."""
    spec = file.job.spec
    storage = spec.storage or str(place.state / "storage")
    return Hub(
        HubSettings(
            job=file.job.metadata.name,
            database=_database(file, place),
            storage=storage if is_absolute(storage) else joined(str(place.base), storage),
            labels=LabelSpace(classes=tuple(spec.model.classes)),
            agreement=spec.labelling.agreement,
            retention=spec.hard_samples.retention,
        )
    )


def left_status(file: JobFile[IncrementalLearningJob], place: HubPlace) -> LoopStatus | None:
    """Return where the loop of a job that does not run stands; None where it never ran."""
    url = _database(file, place)
    if url.startswith(_SQLITE) and not Path(url.removeprefix(_SQLITE)).exists():
        return None
    with closing(open_hub(file, place)) as hub:
        return read_status(hub, [], labels_come=False).model_copy(update={"running": False})


def _database(file: JobFile[IncrementalLearningJob], place: HubPlace) -> str:
    return file.job.spec.database or f"{_SQLITE}{(place.state / 'hub.db').absolute()}"


def _loop(file: JobFile[IncrementalLearningJob], hub: Hub, place: HubPlace, tasks: TaskLauncher) -> Loop:
    spec = file.job.spec
    registry = Registry(hub, model=spec.model.name, key=place.keys / SIGNING_KEY, folder=place.state / "models")
    # At once, so that a job whose model cannot be used ends with that, and does not wait for ever.
    registry.import_first(model_source(file, spec.model.source, str(place.base), "spec.model"))
    return Loop(
        LoopParts(
            hub=hub,
            file=file,
            registry=registry,
            tasks=tasks,
            place=Workplace(folder=place.state / "work", base=str(place.base), python=sys.executable),
            triggers=Triggers(spec.trigger, drift.create, classes=spec.model.classes),
        )
    )


def _accounts(file: JobFile[IncrementalLearningJob], keys: Path) -> Accounts:
    names = {edge.name: edge_token(edge.name) for edge in file.job.spec.inference.edges}
    return Accounts(_token(keys / ADMIN_TOKEN), {edge: _token(keys / name) for edge, name in names.items()})


def _token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise PlatformError(
            f"{path}: the token cannot be read ({error.strerror}); `solar-corona run` makes it"
        ) from error


def _reached(host: str) -> str:
    """Return under which name this machine itself reaches what listens on `host`."""
    return _LOOPBACK if host in ("0.0.0.0", "::", "") else host  # noqa: S104
