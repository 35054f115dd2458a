# SPDX-License-Identifier: Apache-2.0
"""How requests become batches, and what becomes of those that nobody waits for."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from solar_corona.core.errors import ModelError, RefusedRequestError
from solar_corona.joint_inference.service.batcher import Batcher, Work
from solar_corona.joint_inference.service.metrics import ModelCounts


@pytest.fixture
async def make(steered):
    made = []

    def batcher(*, max_batch=4, max_queue=100, batch_wait=0.0) -> Batcher:
        counts = ModelCounts("m", "1")
        made.append(Batcher(steered, max_batch=max_batch, max_queue=max_queue, batch_wait=batch_wait, counts=counts))
        return made[-1]

    yield batcher
    steered.go.set()
    for each in made:
        await each.close()
    assert all(each.waiting == 0 for each in made)


def _work(rows=1, *, value=0.0, seconds=20.0, gone=lambda: False, shapes=None) -> Work:
    x = np.full((rows, 2), value, np.float32)
    done = asyncio.get_running_loop().create_future()
    return Work({"x": x}, rows, shapes, time.monotonic() + seconds, gone, done)


def _submit(batcher: Batcher, work: Work) -> asyncio.Future:
    batcher.reserve(work.rows)
    batcher.submit(work)
    return work.done


async def _entered(steered) -> None:
    assert await asyncio.to_thread(steered.entered.acquire, timeout=20)


async def test_a_batch_is_what_came_while_the_last_one_ran(make, steered):
    batcher = make()
    steered.go.clear()
    first = _submit(batcher, _work(value=7))
    await _entered(steered)
    rest = [_submit(batcher, _work(value=value)) for value in range(6)]
    steered.go.set()
    answers = await asyncio.gather(first, *rest)
    assert [len(batch) for batch in steered.batches] == [1, 4, 2]
    assert [float(answer["y"][0, 0]) for answer in answers] == [8, 1, 2, 3, 4, 5, 6]


async def test_work_that_would_overfill_a_batch_begins_the_next(make, steered):
    batcher = make(max_batch=4)
    steered.go.clear()
    futures = [_submit(batcher, _work())]
    await _entered(steered)
    futures += [_submit(batcher, _work(rows, value=rows)) for rows in (3, 2, 2, 1)]
    steered.go.set()
    answers = await asyncio.gather(*futures)
    assert [len(batch) for batch in steered.batches] == [1, 3, 4, 1]
    assert [answer["y"].tolist() for answer in answers[1:]] == [[[r + 1, r + 1]] * r for r in (3, 2, 2, 1)]


async def test_work_of_another_shape_is_not_mixed_in(make, steered):
    batcher = make()
    steered.go.clear()
    futures = [_submit(batcher, _work())]
    await _entered(steered)
    futures += [_submit(batcher, _work(shapes=shapes)) for shapes in (((2,),), ((2,),), ((3,),))]
    steered.go.set()
    await asyncio.gather(*futures)
    assert [len(batch) for batch in steered.batches] == [1, 2, 1]


async def test_a_batch_waits_for_more_only_as_long_as_it_may(make, steered):
    batcher = make(max_batch=2, batch_wait=30.0)
    first = _submit(batcher, _work())
    await asyncio.sleep(0)
    second = _submit(batcher, _work())
    await asyncio.wait_for(asyncio.gather(first, second), 20)
    assert [len(batch) for batch in steered.batches] == [2]
    quick = make(max_batch=2, batch_wait=0.01)
    await asyncio.wait_for(_submit(quick, _work()), 20)


async def test_a_full_queue_refuses_and_says_when_to_come_back(make, steered):
    batcher = make(max_queue=4)
    await _submit(batcher, _work())
    steered.go.clear()
    futures = [_submit(batcher, _work(2)), _submit(batcher, _work(2))]
    assert batcher.full
    with pytest.raises(RefusedRequestError, match="queue is full") as refused:
        batcher.reserve(1)
    assert refused.value.status == 503
    assert refused.value.retry_after > 0
    steered.go.set()
    await asyncio.gather(*futures)
    assert not batcher.full


async def test_work_whose_client_has_gone_or_whose_deadline_passed_is_not_run(make, steered):
    batcher = make()
    steered.go.clear()
    first = _submit(batcher, _work())
    await _entered(steered)
    gone = _submit(batcher, _work(value=5, gone=lambda: True))
    late = _submit(batcher, _work(value=6, seconds=-1))
    wanted = _submit(batcher, _work(value=7))
    steered.go.set()
    await asyncio.gather(first, gone, wanted)
    with pytest.raises(RefusedRequestError, match="deadline") as refused:
        await late
    assert refused.value.status == 504
    assert [batch[0, 0] for batch in steered.batches] == [0, 7]


async def test_a_model_that_hangs_costs_its_requests_their_deadline_and_no_more(make, steered):
    batcher = make()
    steered.go.clear()
    with pytest.raises(RefusedRequestError, match="deadline"):
        await asyncio.wait_for(_submit(batcher, _work(seconds=0.01)), 20)
    steered.go.set()
    assert (await _submit(batcher, _work(value=1)))["y"][0, 0] == 2


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ValueError("no such thing"), 500, "raised ValueError: no such thing"),
        (ModelError("'x' is out of range"), 422, "out of range"),
        (SystemExit(3), 500, "raised SystemExit"),
        (MemoryError(), 500, "raised MemoryError"),
    ],
)
async def test_one_bad_sample_does_not_cost_its_neighbours_their_answers(make, steered, error, status, says):
    steered.fault = lambda x: error if (x == 13).any() else None
    batcher = make()
    steered.go.clear()
    first = _submit(batcher, _work())
    await _entered(steered)
    good, bad, other = (_submit(batcher, _work(value=value)) for value in (1, 13, 2))
    steered.go.set()
    await first
    assert (await good)["y"][0, 0] == 2
    assert (await other)["y"][0, 0] == 3
    with pytest.raises(RefusedRequestError, match=says) as refused:
        await bad
    assert refused.value.status == status


async def test_an_output_without_the_batch_is_an_error_and_nobody_gets_anothers_rows(make, steered):
    steered.answer = lambda x: x[:1]
    with pytest.raises(RefusedRequestError, match="expected the batch to be its first axis"):
        await _submit(make(), _work(2))


async def test_closing_answers_what_is_queued_and_frees_the_model(make, steered):
    batcher = make()
    futures = [_submit(batcher, _work(value=value)) for value in range(9)]
    await batcher.close()
    assert [float((await each)["y"][0, 0]) for each in futures] == [*range(1, 10)]
    assert steered.closed
