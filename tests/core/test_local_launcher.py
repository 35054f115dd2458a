# SPDX-License-Identifier: Apache-2.0
"""Workers as processes: kept, restarted, and none left behind, however the launcher ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from solar_corona.core import local_launcher
from solar_corona.core.errors import ExitCode, JobFailedError, PlatformError
from solar_corona.core.local_launcher import LocalLauncher, check_port, free_port
from solar_corona.core.run_folder import RunFolder, is_alive
from solar_corona.core.workers import Plan, Worker

FOREVER = "import time; time.sleep(600)"
DONE = ""
FAILS = """
import sys, pathlib
from solar_corona.core.run_folder import RunFolder, WorkerFailure
RunFolder(pathlib.Path({folder!r})).write_failure({name!r}, WorkerFailure(error="ValueError: no", exit_code={code}))
sys.exit({code})
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(local_launcher, "_FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(local_launcher, "_TOLD_WITHIN", 0.5)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "digits" / "r1"
    path.mkdir(parents=True)
    return RunFolder(path)


def _worker(name, code, *, role="edge", restarts=20):
    return Worker(name, role, (sys.executable, "-c", textwrap.dedent(code)), None, restarts=restarts)


def _launcher(folder, *workers):
    return LocalLauncher(
        folder, Plan("digits", "r1", tls=False, address="127.0.0.1:9", workers=workers), cwd=folder.path
    )


def _pids(folder):
    state = folder.read_state()
    return {name: p.pid for name, p in state.workers.items()} if state else {}


def _none_left(folder):
    pids = _pids(folder)
    assert pids
    assert [name for name, pid in pids.items() if is_alive(pid)] == []


def _until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_the_job_is_over_when_the_server_is_and_nothing_stays(folder):
    _launcher(folder, _worker("superlink", FOREVER, role="superlink"), _worker("server", DONE, role="server")).run(
        tick=lambda: None, has_result=lambda name: False
    )
    assert folder.phase() == "succeeded"
    assert folder.read_state().exit_code == 0
    _none_left(folder)


def test_an_edge_with_its_result_is_given_the_time_to_end_by_itself(folder):
    code = "import time, pathlib; time.sleep(0.5); pathlib.Path('after').write_text('done')"
    _launcher(folder, _worker("server", DONE, role="server"), _worker("a", code)).run(
        tick=lambda: None, has_result=lambda name: True
    )
    assert (folder.path / "after").read_text() == "done"


def test_ctrl_c_ends_every_process_and_is_passed_on(folder):
    launcher = _launcher(folder, _worker("server", FOREVER, role="server"), _worker("a", FOREVER))
    ticks = []

    def tick():
        ticks.append(1)
        if len(ticks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.run(tick=tick, has_result=lambda name: False)
    assert folder.phase() == "stopped"
    assert folder.read_state().exit_code == ExitCode.INTERRUPTED
    _none_left(folder)


@pytest.mark.parametrize("server_ends_after", [0.0, 0.3])
def test_an_edge_that_the_job_went_on_without_does_not_fail_it(folder, server_ends_after):
    told = FAILS.format(folder=str(folder.path), name="a", code=1).replace("exit_code=1", "exit_code=1, told=True")
    server = f"""
    import pathlib, time
    while not pathlib.Path({str(folder.path / "failures" / "a.json")!r}).exists(): time.sleep(0.01)
    time.sleep({server_ends_after})
    """
    _launcher(folder, _worker("server", server, role="server"), _worker("a", told)).run(
        tick=lambda: None, has_result=lambda name: False
    )
    assert folder.phase() == "succeeded"
    _none_left(folder)


def test_a_worker_that_will_not_listen_is_killed_with_what_it_started(folder, monkeypatch):
    monkeypatch.setattr(local_launcher, "_END_WITHIN", 0.3)
    stubborn = """
    import os, signal, subprocess, sys, pathlib, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    pathlib.Path("child").write_text(str(child.pid))
    pathlib.Path("ready").touch()
    time.sleep(600)
    """
    server = "import pathlib, time\nwhile not pathlib.Path('ready').exists(): time.sleep(0.01)"
    _launcher(folder, _worker("server", server, role="server"), _worker("a", stubborn)).run(
        tick=lambda: None, has_result=lambda name: False
    )
    _none_left(folder)
    _until(lambda: not is_alive(int((folder.path / "child").read_text())))


def test_a_killed_worker_is_started_again_and_counted(folder):
    code = """
    import os, pathlib, signal, time
    runs = pathlib.Path("runs")
    count = int(runs.read_text()) if runs.exists() else 0
    runs.write_text(str(count + 1))
    if count < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
    """
    server = """
    import pathlib, time
    while not (pathlib.Path("runs").exists() and pathlib.Path("runs").read_text() == "3"):
        time.sleep(0.01)
    """
    _launcher(folder, _worker("server", server, role="server"), _worker("a", code)).run(
        tick=lambda: None, has_result=lambda name: False
    )
    assert folder.read_state().workers["a"].restarts == 2


def test_what_a_killed_worker_started_does_not_outlive_it(folder):
    code = """
    import os, pathlib, signal, subprocess, sys, time
    if pathlib.Path("child").exists():
        pathlib.Path("again").touch()
        time.sleep(600)
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    pathlib.Path("child").write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    server = "import pathlib, time\nwhile not pathlib.Path('again').exists(): time.sleep(0.01)"
    _launcher(folder, _worker("server", server, role="server"), _worker("a", code)).run(
        tick=lambda: None, has_result=lambda name: False
    )
    _until(lambda: not is_alive(int((folder.path / "child").read_text())))


def test_a_worker_that_never_comes_up_is_given_up_with_the_end_of_its_log(folder):
    code = "import sys; print('\\n'.join(str(i) for i in range(50))); print('port 9092 is taken'); sys.exit(7)"
    with pytest.raises(PlatformError) as caught:
        _launcher(folder, _worker("server", FOREVER, role="server"), _worker("superlink", code, role="superlink")).run(
            tick=lambda: None, has_result=lambda name: False
        )
    message = str(caught.value)
    assert message.startswith("superlink ended 3 times, the last time with exit status 7; its log ")
    assert message.endswith("48\n49\nport 9092 is taken")
    assert "\n10\n" not in message
    assert (folder.phase(), folder.read_state().exit_code) == ("failed", ExitCode.PLATFORM)
    _none_left(folder)


def test_a_worker_is_restarted_no_more_often_than_it_may(folder):
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(PlatformError, match="a ended 1 times, the last time with signal SIGKILL"):
        _launcher(folder, _worker("server", FOREVER, role="server"), _worker("a", killed, restarts=0)).run(
            tick=lambda: None, has_result=lambda name: False
        )


def test_a_script_that_raised_is_not_started_again_but_fails_the_job(folder):
    code = FAILS.format(folder=str(folder.path), name="a", code=3)
    with pytest.raises(JobFailedError, match=r"a's script failed: ValueError: no \(log: .*a\.log\)") as caught:
        _launcher(folder, _worker("server", FOREVER, role="server"), _worker("a", code)).run(
            tick=lambda: None, has_result=lambda name: False
        )
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert folder.read_state().exit_code == ExitCode.BAD_INPUT
    _none_left(folder)


def test_scripts_that_end_without_taking_part_fail_the_job_and_are_told_what_they_lack(folder, monkeypatch):
    monkeypatch.setattr(local_launcher, "_LEFT_WITHIN", 0.2)
    with pytest.raises(JobFailedError, match=r"the scripts of all edges ended before the job was done .*fit\(\)"):
        _launcher(folder, _worker("server", FOREVER, role="server"), _worker("a", DONE), _worker("b", DONE)).run(
            tick=lambda: None, has_result=lambda name: False
        )
    _none_left(folder)


def test_a_failed_server_fails_the_job_with_its_own_words(folder):
    code = FAILS.format(folder=str(folder.path), name="server", code=4)
    with pytest.raises(JobFailedError, match=r"^ValueError: no$"):
        _launcher(folder, _worker("server", code, role="server"), _worker("a", FOREVER)).run(
            tick=lambda: None, has_result=lambda name: False
        )
    _none_left(folder)


def test_a_command_that_does_not_exist_is_told(folder):
    lost = Worker("superlink", "superlink", ("no-such-superlink",), None)
    with pytest.raises(PlatformError, match=r"exit status 127; .*\nno-such-superlink: cannot be started: No such file"):
        _launcher(folder, lost, _worker("server", FOREVER, role="server")).run(
            tick=lambda: None, has_result=lambda name: False
        )
    _none_left(folder)


def test_an_error_while_showing_progress_leaves_no_process(folder):
    def tick():
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="terminal"):
        _launcher(folder, _worker("server", FOREVER, role="server")).run(tick=tick, has_result=lambda name: False)
    assert folder.phase() == "failed"
    _none_left(folder)


LAUNCH = """
import sys
from pathlib import Path
from solar_corona.core.local_launcher import LocalLauncher
from solar_corona.core.workers import Plan, Worker
from solar_corona.core.run_folder import RunFolder
forever = (sys.executable, "-S", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)")
roles = {"superlink": "superlink", "server": "server", "a": "edge"}
workers = tuple(Worker(name, role, forever, None) for name, role in roles.items())
folder = RunFolder(Path(sys.argv[1]))
plan = Plan("digits", "r1", False, "127.0.0.1:9", workers)
LocalLauncher(folder, plan, cwd=folder.path).run(tick=lambda: None, has_result=bool)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word to children is Linux's")
def test_a_launcher_killed_at_once_leaves_no_orphan(folder):
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, str(folder.path)])
    try:
        _until(lambda: len(_pids(folder)) == 3)
        pids = _pids(folder)
        # Bound, and become the command: before that the tether itself sees that its parent is gone.
        _until(lambda: not any(b"tether" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids.values()))
        assert folder.phase() == "running"
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    _until(lambda: not any(is_alive(pid) for pid in pids.values()))
    assert folder.phase() == "failed"


def test_a_worker_started_by_a_launcher_that_is_gone_already_ends_at_once():
    from solar_corona.core import tether

    orphan = subprocess.run(
        [sys.executable, "-S", tether.__file__, str(os.getpid() + 1), sys.executable, "-c", ""], check=False
    )
    assert orphan.returncode == (1 if sys.platform == "linux" else 0)


def test_a_port_in_use_is_told_from_a_free_one():
    port = free_port()
    check_port("127.0.0.1", port)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(PlatformError, match=rf"port {port} of 127\.0\.0\.1 is in use; give another with --port"),
    ):
        check_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_not_called_a_port_in_use(host):
    with pytest.raises(PlatformError, match=rf"cannot listen on {host} \(.+\); give an address of its own with --host"):
        check_port(host, free_port())
