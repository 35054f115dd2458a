# SPDX-License-Identifier: Apache-2.0
"""Bodies are bounded, compressed or not."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import RefusedRequestError, SpecError
from solar_corona.joint_inference.service.bodies import (
    BodyBudget,
    BodyShare,
    ClientGoneError,
    compressed,
    decompressed,
    read_body,
    stated_length,
)
from solar_corona.joint_inference.service.options import ServiceOptions, read_tokens
from solar_corona.joint_inference.service.refusals import Pacer


def _receive(*parts: bytes, whole=True):
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if whole:
        messages[-1]["more_body"] = False
    else:
        messages.append({"type": "http.disconnect"})
    left = iter(messages)

    async def receive():
        return next(left)

    return receive


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
async def test_a_body_is_the_sum_of_its_parts(parts):
    budget = BodyBudget(1000)
    share = BodyShare(budget)
    assert await read_body(_receive(*parts), limit=1000, share=share) == b"".join(parts)
    assert budget.used == len(b"".join(parts))
    share.release()
    assert budget.used == 0


async def test_a_body_is_cut_off_at_the_limit():
    with pytest.raises(RefusedRequestError, match="more than 10 bytes") as refused:
        await read_body(_receive(b"12345", b"67890", b"1", b"never read"), limit=10, share=BodyShare(BodyBudget(99)))
    assert refused.value.status == 413


async def test_bodies_share_the_memory():
    budget = BodyBudget(10)
    first, second = BodyShare(budget), BodyShare(budget)
    first.grow_to(6)
    with pytest.raises(RefusedRequestError, match="hold 9 of 10 bytes; try again later") as refused:
        await read_body(_receive(b"123", b"45"), limit=10, share=second)
    assert (refused.value.status, refused.value.retry_after) == (503, 1)
    second.release()
    first.release()
    assert budget.used == 0


async def test_a_client_that_goes_half_way_is_told_from_one_that_is_done():
    with pytest.raises(ClientGoneError):
        await read_body(_receive(b"123", whole=False), limit=10, share=BodyShare(BodyBudget(99)))


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({b"content-length": b"10000000000"}, 413, "content-length is 10000000000, expected at most 100 bytes"),
        ({b"content-type": b"text/html"}, 415, "'text/html', expected application/json or application/octet-stream"),
        ({b"content-type": b"multipart/form-data; boundary=x"}, 415, "'multipart/form-data'"),
        ({b"content-encoding": b"br"}, 415, "'br', expected gzip, deflate or none"),
    ],
)
def test_headers_alone_can_refuse_a_body(headers, status, says):
    with pytest.raises(RefusedRequestError, match=says) as refused:
        stated_length(headers, 100)
    assert refused.value.status == status


def test_usual_headers_are_let_in():
    assert stated_length({}, 100) is None
    headers = {
        b"content-length": b"7",
        b"content-type": b"application/json; charset=utf-8",
        b"content-encoding": b"gzip",
    }
    assert stated_length(headers, 100) == 7


@given(st.binary(max_size=3000), st.sampled_from([gzip.compress, zlib.compress]))
def test_a_compressed_body_comes_back(body, how):
    assert decompressed(how(body), 3000) == body


def test_a_body_that_swells_is_cut_off():
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    with pytest.raises(RefusedRequestError, match="decompressed it has more than 1000 bytes") as refused:
        decompressed(bomb, 1000)
    assert refused.value.status == 413


@pytest.mark.parametrize("body", [b"", b"garbage", gzip.compress(b"x" * 99)[:-4], gzip.compress(b"x") + b"more"])
def test_a_damaged_compressed_body_is_told(body):
    with pytest.raises(RefusedRequestError) as refused:
        decompressed(body, 1000)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"deflate, gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"GZIP;q=0.5", b"gzip"),
        (b"gzip;q=0, deflate;q=0.1", b"deflate"),
        (b"gzip; q=0", b""),
        (b"gzip;q=x", b""),
        (b"br, identity", b""),
        (b"", b""),
    ],
)
def test_an_answer_is_compressed_as_the_client_asks(accept, coding):
    body = bytes(range(256)) * 20
    found, used = compressed(body, accept)
    assert used == coding
    plain = {b"gzip": gzip.decompress, b"deflate": zlib.decompress, b"": lambda b: b}[coding](found)
    assert plain == body


def test_the_first_refusals_go_out_at_once_and_later_ones_are_held():
    pacer = Pacer(rate=10, burst=3, longest=1.0)
    delays = [pacer.delay() for _ in range(50)]
    assert delays[:3] == [0, 0, 0]
    assert 0 < delays[4] < delays[6] <= 1.0
    assert max(delays) <= 1.0


# --- options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_batch": 0}, "max-batch is 0"),
        ({"timeout": -1.0}, "timeout is -1"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"batch_wait": float("nan")}, "batch-wait is nan"),
        ({"max_queue": 3, "max_batch": 4}, "a batch has to fit into the queue"),
        ({"max_body": 1 << 28}, "at least twice max-body"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, says):
    with pytest.raises(SpecError, match=says):
        ServiceOptions(**options)


def test_a_token_file_has_one_token_a_line(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("a" * 16 + "\n\n  " + "b" * 20 + " \n")
    assert read_tokens(path) == (b"a" * 16, b"b" * 20)


@pytest.mark.parametrize("text", ["", "\n", "short\n", "a" * 16 + "\nshort\n", "x" * 70_000])
def test_a_token_file_that_protects_nothing_is_refused(tmp_path, text):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(SpecError):
        read_tokens(path)
    with pytest.raises(SpecError, match="cannot be read"):
        read_tokens(tmp_path / "nothing")
