# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, on real disks that fill up."""

from __future__ import annotations

import doctest
import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import fsspec
import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core import files
from solar_corona.core.errors import PlatformError, TemporaryError
from solar_corona.core.files import atomic_write, local_copy, sha256_of, shown, write_bytes_atomic

if TYPE_CHECKING:
    from pathlib import Path


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path):
    path = tmp_path / "new" / "state.json"
    write_bytes_atomic(path, b"old")
    write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert _names(path.parent) == ["state.json"]


def test_the_temporary_path_has_the_same_ending_and_folder(tmp_path):
    with atomic_write(tmp_path / "model.keras") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".keras")
        temporary.touch()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "state.json"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["state.json"]


def test_a_folder_replaces_a_folder_and_a_file_as_a_whole(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"a file")
    for content in ("one", "two"):
        with atomic_write(path) as temporary:
            (temporary / content).mkdir(parents=True)
    assert _names(path) == ["two"]
    assert _names(tmp_path) == ["model"]


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "state"
    write_bytes_atomic(path, b"a" * 100_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for letter in (b"a", b"b"):
                write_bytes_atomic(path, letter * 100_000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            data = path.read_bytes()
            assert data in (b"a" * 100_000, b"b" * 100_000)
    finally:
        stop.set()
        writer.join()


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"old")
    script = (
        "import os, signal, sys; from solar_corona.core.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == -9
    assert path.read_bytes() == b"old"


_FILL = """
import sys
from solar_corona.core.errors import PlatformError
from solar_corona.core.files import write_bytes_atomic
if sys.argv[2:]:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_bytes_atomic(sys.argv[1], bytes(1_000_000))
except PlatformError as error:
    print(error, end="")
"""


def test_a_file_over_the_limit_says_so_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"old")
    told = subprocess.run([sys.executable, "-c", _FILL, path, "65536"], check=True, capture_output=True, text=True)
    assert told.stdout.startswith(f"{path}: the disk is full, or a quota is reached; free some space in")
    assert _names(tmp_path) == ["state"]


def _can_mount() -> bool:
    return (
        subprocess.run(
            ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"],
            check=False,
            capture_output=True,
        ).returncode
        == 0
    )


@pytest.mark.skipif(sys.platform != "linux" or not _can_mount(), reason="needs user namespaces")
def test_a_full_disk_says_so_and_leaves_the_old_file(tmp_path):
    shell = (
        'mount -t tmpfs -o size=64k none $1 && printf old > $1/state && $2 -c "$3" $1/state '
        "&& echo && cat $1/state && echo && ls -A $1"
    )
    told = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, "sh", tmp_path, sys.executable, _FILL],
        check=True,
        capture_output=True,
        text=True,
    )
    message, content, names = told.stdout.splitlines()
    assert "the disk is full" in message
    assert (content, names) == ("old", "state")


def test_a_folder_that_cannot_be_made_says_so_before_the_block_runs(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PlatformError, match=r"cannot be written .*choose a folder"):
        write_bytes_atomic(tmp_path / "file" / "state", b"")


@given(data=st.binary(max_size=1000))
def test_a_files_sha256_is_that_of_its_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hashed"
    path.write_bytes(data)
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()


def test_a_folders_sha256_is_that_of_its_sha256sum_listing(tmp_path):
    for name in ("b", "a/c", "a-b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    command = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum -z | sha256sum"
    told = subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert sha256_of(tmp_path) == told.stdout.split()[0]


def test_a_folders_sha256_changes_with_names_and_contents(tmp_path):
    seen = set()
    for name, text in [("a", "1"), ("a", "2"), ("b", "2"), ("c/b", "2")]:
        folder = tmp_path / f"{len(seen)}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
        seen.add(sha256_of(folder))
    assert len(seen) == 4


def test_a_remote_folder_is_copied_and_the_copy_removed():
    memory = fsspec.filesystem("memory")
    memory.pipe({"/copies/a/1.txt": b"1", "/copies/a/b/2.txt": b"2"})
    with local_copy("memory://copies/a", folder=True) as folder:
        assert (folder / "1.txt").read_bytes() == b"1"
        assert (folder / "b" / "2.txt").read_bytes() == b"2"
    assert not folder.exists()
    with pytest.raises(FileNotFoundError), local_copy("memory://copies/none", folder=True):
        pass


def test_a_local_path_is_not_copied(tmp_path):
    path = tmp_path / "a b.txt"
    path.write_text("x")
    for name in (path, str(path), f"file://{path}"):
        with local_copy(name) as local:
            assert local == path


@pytest.fixture
def unsteady_server():
    """Answer each path's first requests with the statuses in its name: /503-503-200."""
    seen: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            statuses = self.path[1:].split("?")[0].split("-")
            number = seen[self.path] = seen.get(self.path, -1) + 1
            self.send_response(int(statuses[min(number, len(statuses) - 1)]))
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"data")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_fails_for_a_moment_is_asked_again(unsteady_server):
    with local_copy(f"{unsteady_server}/503-500-200") as path:
        assert path.read_bytes() == b"data"


@pytest.mark.parametrize(
    ("path", "error"), [("404", FileNotFoundError), ("403", PermissionError), ("410", FileNotFoundError)]
)
def test_a_server_that_refuses_is_not_asked_again(unsteady_server, path, error):
    with pytest.raises(error), local_copy(f"{unsteady_server}/{path}-200"):
        pass


def test_a_server_that_does_not_recover_is_a_temporary_error_without_secrets(unsteady_server):
    with (
        stamina.set_testing(True, attempts=2),
        pytest.raises(TemporaryError, match=r"503.*check the address") as told,
        local_copy(f"{unsteady_server}/503?key=secret"),
    ):
        pass
    assert "secret" not in str(told.value)


def test_a_server_that_is_not_there_is_a_temporary_error():
    with (
        stamina.set_testing(True, attempts=2),
        pytest.raises(TemporaryError, match="cannot be fetched"),
        local_copy("http://127.0.0.1:9/a.npz"),
    ):
        pass


def test_messages_show_no_password_and_no_signature():
    assert shown("s3://key:secret@bucket/a.npz?X-Amz-Signature=abc") == "s3://bucket/a.npz"
    assert shown("data/a?b.npz") == "data/a?b.npz"


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(files).failed == 0


def test_file_rights_are_those_of_an_ordinary_new_file(tmp_path):
    write_bytes_atomic(tmp_path / "ours", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
