# SPDX-License-Identifier: Apache-2.0
"""Tasks that are processes, found again by whoever comes after the one that started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.local_tasks import LocalTasks
from solar_corona.core.run_folder import is_alive
from solar_corona.core.workers import Worker

pytestmark = pytest.mark.system


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


@pytest.fixture
def tasks(tmp_path):
    made = LocalTasks(tmp_path / "tasks", cwd=tmp_path)
    yield made
    made.stop("t")


def python(name, code, **more):
    return Worker(name=name, role="cloud", command=(sys.executable, "-S", "-c", code), context=None, **more)


def ended(tasks, name):
    return until(lambda: tasks.state(name) if tasks.state(name).phase not in ("unknown", "running") else None)


def test_a_task_that_ended_well_is_known_to_another_launcher(tasks, tmp_path):
    tasks.start(python("t", "print('hello')"))
    assert ended(tasks, "t").phase == "succeeded"
    again = LocalTasks(tmp_path / "tasks", cwd=tmp_path)
    assert again.state("t").phase == "succeeded"
    assert again.log("t").read_text() == "hello\n"


def test_a_script_that_fails_tells_its_last_words_and_is_not_taken_for_killed(tasks):
    tasks.start(python("t", "raise SystemExit('no such thing')"))
    state = ended(tasks, "t")
    assert (state.phase, state.killed) == ("failed", False)
    assert "exit status 1" in state.error
    assert "no such thing" in state.error


def test_a_command_that_is_not_there_is_a_failure_that_says_so(tasks):
    tasks.start(Worker(name="t", role="cloud", command=("/no/such/python",), context=None))
    state = ended(tasks, "t")
    assert state.phase == "failed"
    assert "/no/such/python" in state.error


def test_a_killed_script_may_be_tried_again(tasks):
    tasks.start(python("t", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    state = ended(tasks, "t")
    assert (state.phase, state.killed) == ("failed", True)
    assert "SIGKILL" in state.error


def test_a_killed_guard_takes_its_script_along_and_counts_as_killed(tasks, tmp_path):
    tasks.start(
        python("t", f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    )
    pid = until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    guard = json.loads((tmp_path / "tasks" / "t" / "began.json").read_text())["pid"]
    os.kill(guard, signal.SIGKILL)
    state = ended(tasks, "t")
    assert (state.phase, state.killed) == ("failed", True)
    assert "killed" in state.error
    until(lambda: not is_alive(int(pid)))


def test_a_task_outlives_a_killed_launcher_and_is_never_started_twice(tasks, tmp_path):
    count = tmp_path / "count"
    code = f"import time; open({str(count)!r}, 'a').write('x'); time.sleep(60)"
    launcher = (
        "import os, sys; from pathlib import Path\n"
        "from solar_corona.core.local_tasks import LocalTasks\n"
        "from solar_corona.core.workers import Worker\n"
        f"LocalTasks(Path({str(tmp_path / 'tasks')!r}), cwd=Path('/')).start("
        f"Worker(name='t', role='cloud', command=(sys.executable, '-S', '-c', {code!r}), context=None))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", launcher], check=False).returncode == -9
    # At once, perhaps before the first guard has got so far as to leave a word.
    tasks.start(python("t", code))
    again = LocalTasks(tmp_path / "tasks", cwd=tmp_path)
    until(lambda: count.exists() and tasks.state("t").phase == "running")
    again.start(python("t", code))
    assert again.state("t").phase == "running"
    again.stop("t")
    assert again.state("t").phase == "unknown"
    assert count.read_text() == "x"


def test_stopping_ends_a_script_that_does_not_want_to_end(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr("solar_corona.core.local_tasks._END_WITHIN", 0.2)
    ready = tmp_path / "ready"
    tasks.start(
        python(
            "t", f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(60)"
        )
    )
    until(ready.exists)
    tasks.stop("t")
    assert tasks.state("t").phase == "unknown"
    tasks.start(python("t", "pass"))
    assert ended(tasks, "t").phase == "succeeded"


def test_what_a_script_left_running_ends_with_it(tasks, tmp_path):
    pid = tmp_path / "pid"
    code = f"import subprocess; open({str(pid)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))"
    tasks.start(python("t", code))
    assert ended(tasks, "t").phase == "succeeded"
    left = pid.read_text()
    until(lambda: not is_alive(int(left)))


def test_a_script_gets_its_context_and_what_it_raised_is_told_in_its_words(tasks, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import solar_corona\nraise ValueError(solar_corona.context.get_parameters('epochs'))\n")
    context = ContextDocument(
        job="j",
        kind="IncrementalLearningJob",
        run="r",
        role="cloud",
        worker="t",
        run_folder=str(tmp_path / "run"),
        parameters={"epochs": 3},
    )
    command = (sys.executable, "-m", "solar_corona.lib.script_worker", str(script))
    tasks.start(Worker(name="t", role="cloud", command=command, context=context))
    state = ended(tasks, "t")
    assert (state.phase, state.killed) == ("failed", False)
    assert state.error.startswith("ValueError: 3 (log: ")
