# SPDX-License-Identifier: Apache-2.0
"""A whole job in one process: the edges' scripts as threads, a queue for a SuperLink.

For tests, notebooks and studies with many edges. The round loop, the codec and the counted bytes are the same as over
a SuperLink; only what carries the messages differs.
"""

from __future__ import annotations

import ast
import logging
import os
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition, Lock, Thread
from types import CodeType
from typing import Any, NoReturn

from flwr.app import Message
from flwr.serverapp import Grid

from ..core.context_document import ContextDocument
from ..core.errors import ExitCode, JobFailedError, SolarCoronaError
from ..core.job_file import JobFile
from ..core.plan import plan
from ..core.preparation import local_placement
from ..core.run_folder import Phase, RunFolder, RunState, process_start_of
from ..core.script_failure import error_of, failure_of
from ..core.settings import quiet_engines
from ..lib import context
from ..lib.flower_objects import identify_as_server
from ..lib.links import using_link
from .job import ServerJob
from .progress import RunView

__all__ = ["InProcessGrid", "InProcessLink", "run_in_process"]

_TICK = 0.05
_LEFT_WITHIN = 2.0


class InProcessGrid(Grid):
    """A grid whose nodes are threads of this process."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inboxes: dict[int, deque[Message]] = {}
        self._replies: dict[str, Message] = {}
        self._failure: str | None = None
        self._raised = False

    def join(self) -> int:
        """Add a node and return its id."""
        with self._changed:
            node_id = uuid.uuid4().int >> 65
            self._inboxes[node_id] = deque()
            self._changed.notify_all()
            return node_id

    def leave(self, node_id: int) -> None:
        """Remove a node."""
        with self._changed:
            self._inboxes.pop(node_id, None)
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """Make the server's next call raise: an edge failed, maybe before it could say so itself."""
        with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def _check(self) -> None:
        # Once: after that the server tells the other edges, over this grid.
        if self._failure is not None and not self._raised:
            self._raised = True
            raise JobFailedError(self._failure)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are here."""
        with self._changed:
            self._check()
            return list(self._inboxes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Put messages into their nodes' inboxes; the ids come back in order, empty where a node is gone."""
        ids = []
        with self._changed:
            self._check()
            for message in messages:
                inbox = self._inboxes.get(message.metadata.dst_node_id)
                message_id = uuid.uuid4().hex if inbox is not None else ""
                if inbox is not None:
                    message.metadata.__dict__["_message_id"] = message_id
                    inbox.append(message)
                ids.append(message_id)
            self._changed.notify_all()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come."""
        with self._changed:
            self._check()
            return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def wait(self, seconds: float) -> None:
        """Wait until a reply may be there, at most so long."""
        with self._changed:
            if not self._replies:
                self._changed.wait(seconds)

    def receive(self, node_id: int) -> Message | None:
        """Return a node's next message."""
        with self._changed:
            inbox = self._inboxes.get(node_id)
            return inbox.popleft() if inbox else None

    def wait_for_message(self, node_id: int, seconds: float) -> None:
        """Wait until a node has a message, at most so long."""
        with self._changed:
            if not self._inboxes.get(node_id):
                self._changed.wait(seconds)

    def reply(self, message: Message) -> None:
        """Take a node's reply."""
        with self._changed:
            self._replies[message.metadata.reply_to_message_id] = message
            self._changed.notify_all()

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        del args, kwargs
        raise NotImplementedError("the in-process grid carries the round loop's messages only")

    set_run = create_message = send_and_receive = _refuse
    run = property(_refuse)


class InProcessLink:
    """An edge's end of an `InProcessGrid`."""

    warm = True

    def __init__(self, grid: InProcessGrid, *, on_connect: Callable[[], None] = lambda: None) -> None:
        self._grid = grid
        self._node_id = 0
        self._on_connect = on_connect

    def connect(self) -> None:
        """Join the grid."""
        self._node_id = self._grid.join()
        self._on_connect()

    def receive(self) -> Message | None:
        """Return the next message, or None."""
        return self._grid.receive(self._node_id)

    def reply(self, message: Message) -> None:
        """Send a reply."""
        self._grid.reply(message)

    def wait(self, seconds: float) -> None:
        """Wait for a message, at most so long."""
        self._grid.wait_for_message(self._node_id, seconds)

    def close(self) -> None:
        """Leave the grid."""
        self._grid.leave(self._node_id)


def run_in_process(file: JobFile, folder: RunFolder, show: Callable[[RunView], None]) -> RunView:
    """Run a job with its edges as threads of this process.

    Raises
    ------
    SolarCoronaError
        If the job failed.
    """
    quiet_engines()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    _save(file, folder, "running")
    try:
        view = _run(file, folder, show)
    except KeyboardInterrupt:
        _save(file, folder, "stopped", "stopped on request", ExitCode.INTERRUPTED)
        raise
    except BaseException as error:
        code = error.exit_code if isinstance(error, SolarCoronaError) else ExitCode.INTERNAL
        _save(file, folder, "failed", str(error), code)
        raise
    _save(file, folder, "succeeded", code=ExitCode.OK)
    return view


def _run(file: JobFile, folder: RunFolder, show: Callable[[RunView], None]) -> RunView:
    workers = plan(file, local_placement(file, folder, address="in-process:0")).workers
    documents = [w.context.model_copy(update={"superlink": None}) for w in workers if w.context is not None]
    server = next(d for d in documents if d.role == "server")
    edges = [d for d in documents if d.role == "edge"]
    base = file.path.resolve().parent
    script = base / (file.job.spec.script or "train.py")
    grid, errors = InProcessGrid(), list[BaseException]()
    identify_as_server(1)
    os.chdir(base)
    sys.path.insert(0, str(base))
    code = compile(script.read_bytes(), str(script), "exec")

    def serve() -> None:
        try:
            with context.using(server):
                ServerJob(server).run(lambda: (grid, {}))
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            errors.append(error)

    beginnings = Lock()
    threads = [
        Thread(target=_run_script, args=(d, grid, script, code, _Turn(beginnings)), name=d.worker, daemon=True)
        for d in edges
    ]
    main = Thread(target=serve, name="server", daemon=True)
    view, offset = RunView(), 0
    with _one_syntax_tree_at_a_time():
        for thread in [main, *threads]:
            thread.start()
        while main.is_alive() or (not errors and any(t.is_alive() for t in threads)):
            events, offset = folder.events_from(offset)
            view.take(events)
            show(view)
            time.sleep(_TICK)
    view.take(folder.events_from(offset)[0])
    show(view)
    if errors:
        raise _cause(folder, threads) or errors[0]
    return view


def _cause(folder: RunFolder, threads: list[Thread]) -> JobFailedError | None:
    """Return the error of the script that failed, or None if the server failed of something else."""
    end = time.monotonic() + _LEFT_WITHIN
    for thread in threads:
        failure = folder.read_failure(thread.name)
        if failure is None:  # it has told the server, and has not written its report yet, or hears of it just now
            thread.join(max(0.0, end - time.monotonic()))
            failure = folder.read_failure(thread.name)
        if failure is not None and not failure.told:
            return error_of(thread.name, failure, folder.log(thread.name))
    return None


@contextmanager
def _one_syntax_tree_at_a_time() -> Iterator[None]:
    """Keep threads from parsing Python at the same moment.

    CPython before 3.11.8 and 3.12.2 counts the depth of all threads' syntax trees in one place (python/cpython#106905)
    and raises SystemError. TensorFlow parses a script's functions when it traces them, which edges do side by side.
    """
    parse, lock = ast.parse, Lock()

    def one_by_one(*arguments: Any, **options: Any) -> Any:
        with lock:
            return parse(*arguments, **options)

    ast.parse = one_by_one
    try:
        yield
    finally:
        ast.parse = parse


class _Turn:
    """The scripts' beginnings, one after the other as far as `fit()`.

    What they do there is not made for threads: imports, and frameworks' global seeds and names. A script that takes
    long before `fit()` does not hold up the others for ever.
    """

    _LONGEST = 60.0

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._held = False

    def begin(self) -> None:
        self._held = self._lock.acquire(timeout=self._LONGEST)

    def end(self) -> None:
        held, self._held = self._held, False
        if held:
            self._lock.release()


def _run_script(document: ContextDocument, grid: InProcessGrid, script: Path, code: CodeType, turn: _Turn) -> None:
    """Run the user's script as one edge, in this thread."""
    with context.using(document), using_link(InProcessLink(grid, on_connect=turn.end)):
        turn.begin()
        try:
            # Not runpy, which swaps sys.modules["__main__"] and so can run one script at a time.
            exec(code, {"__name__": "__main__", "__file__": str(script)})  # noqa: S102 - the user's own script
        except BaseException as error:  # noqa: BLE001 - reported as the job's failure
            if not isinstance(error, SystemExit) or error.code not in (None, 0):
                _report(document, grid, error)
        finally:
            turn.end()


def _report(document: ContextDocument, grid: InProcessGrid, error: BaseException) -> None:
    """Leave the traceback in the edge's log and a report in the run folder, as a process would, and end the job."""
    failure, folder = failure_of(error), RunFolder(Path(document.run_folder))
    with suppress(OSError):  # The job fails of the script's own error.
        folder.log(document.worker).write_text(failure.traceback or f"{failure.error}\n", encoding="utf-8")
        folder.write_failure(document.worker, failure)
    if not failure.told:  # The server told it; the server's word is the one that is reported.
        grid.fail(f"{document.worker}'s script failed: {failure.error}")


def _save(
    file: JobFile, folder: RunFolder, phase: Phase, error: str | None = None, code: ExitCode | None = None
) -> None:
    state = RunState(
        job=file.job.metadata.name,
        run=folder.path.name,
        phase=phase,
        pid=os.getpid(),
        process_start=process_start_of(os.getpid()),
        error=error,
        exit_code=int(code) if code is not None else None,
    )
    with suppress(SolarCoronaError):  # The run's own outcome matters more than its record.
        folder.write_state(state)
