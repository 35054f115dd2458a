# SPDX-License-Identifier: Apache-2.0
"""Contents: whole or not at all, what they say they are, in a folder or an object store."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import DatasetError, PlatformError, SpecError
from solar_corona.incremental.hub import contents as module
from solar_corona.incremental.hub.contents import Contents, OffsetError


def id_of(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(params=["folder", "memory"])
def contents(request, tmp_path):
    return Contents(str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}", "samples")


def test_a_content_comes_back_as_it_was_and_can_be_deleted(contents):
    names = [id_of(each) for each in (b"one", b"", b"x" * 100_000)]
    contents.put(dict(zip(names, (b"one", b"", b"x" * 100_000), strict=True)))
    contents.put({names[0]: b"one"})
    assert [contents.get(name) for name in names] == [b"one", b"", b"x" * 100_000]
    assert b"".join(contents.pieces(names[2], 10, 20)) == b"x" * 10
    contents.delete(names[0])
    contents.delete(names[0])
    assert not contents.has(names[0])
    with pytest.raises(DatasetError, match="is not there; was it deleted"):
        contents.get(names[0])


def test_a_content_with_another_id_is_refused_and_none_of_its_company_is_kept(contents):
    with pytest.raises(DatasetError, match="its SHA-256 is another one"):
        contents.put({id_of(b"good"): b"good", "0" * 64: b"bad"})
    assert not contents.has(id_of(b"good"))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "/" * 64])
def test_what_is_no_id_reaches_no_file(contents, name):
    for call in (contents.get, contents.has, contents.delete, contents.offset):
        with pytest.raises(DatasetError, match="is no id of a content"):
            call(name)


def test_damage_is_found_when_a_content_is_read(tmp_path):
    contents = Contents(str(tmp_path), "samples")
    name = id_of(b"one")
    contents.put({name: b"one"})
    (tmp_path / "samples" / name[:2] / name).write_bytes(b"two")
    with pytest.raises(DatasetError, match=r"is damaged, .*restore it from a copy"):
        contents.get(name)


def test_a_full_disk_keeps_nothing_and_leaves_no_rests(tmp_path, monkeypatch):
    contents = Contents(str(tmp_path), "samples")

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "_sync", full)
        with pytest.raises(PlatformError, match=r"disk is full, .*free some space"):
            contents.put({id_of(b"one"): b"one"})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    contents.put({id_of(b"one"): b"one"})


def test_a_storage_that_nobody_knows_is_refused():
    with pytest.raises(SpecError, match="no storage of that kind"):
        Contents("nonsense://x", "samples")


@given(st.binary(min_size=1, max_size=60), st.data())
def test_an_upload_in_any_pieces_with_repeats_ends_whole(content, data):
    contents = Contents("memory://uploads", "samples")
    name, total = id_of(content), len(content)
    contents.delete(name)
    while contents.offset(name) < total:
        stands = contents.offset(name)
        sent = data.draw(st.integers(0, total))
        piece = content[sent : sent + data.draw(st.integers(1, 20))]
        if sent == stands:
            assert contents.append(name, sent, piece, length=total) == stands + len(piece)
        else:
            with pytest.raises(OffsetError) as refused:
                contents.append(name, sent, piece, length=total)
            assert refused.value.offset == stands
            piece = content[stands : stands + 20]
            contents.append(name, stands, piece, length=total)
    assert contents.get(name) == content


def test_an_upload_goes_on_after_a_restart(tmp_path):
    content = b"abcdef"
    Contents(str(tmp_path), "samples").append(id_of(content), 0, b"abc", length=6)
    later = Contents(str(tmp_path), "samples")
    assert later.offset(id_of(content)) == 3
    later.append(id_of(content), 3, b"def", length=6)
    assert later.get(id_of(content)) == content
