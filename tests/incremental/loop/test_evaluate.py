# SPDX-License-Identifier: Apache-2.0
"""Two models on the same samples, in a process of its own, and what trainings get."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.errors import WireError
from solar_corona.core.incremental_spec import Replay
from solar_corona.incremental.loop.evaluate import EvaluationTask, SampleEntry, load_result, main
from solar_corona.incremental.loop.trainings import mixture
from solar_corona.lib.sample_coding import encode_sample
from solar_corona.lib.sample_records import sample_id_of

CLASSES = 4


@pytest.fixture
def folder(tmp_path, write_linear):
    write_linear(tmp_path / "right.onnx", 9 * np.eye(CLASSES))
    write_linear(tmp_path / "swapped.onnx", 9 * np.eye(CLASSES)[:, [1, 0, 2, 3]])
    write_linear(tmp_path / "wider.onnx", np.hstack([9 * np.eye(CLASSES), np.full((CLASSES, 1), -9.0)]))
    write_linear(tmp_path / "nan.onnx", np.full((CLASSES, CLASSES), np.nan))
    write_linear(tmp_path / "other.onnx", np.eye(CLASSES + 1))
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    return tmp_path


def asked(folder, candidate, samples=None, **changes):
    """Evaluate, and return the result, the answers and the exit code's zero."""
    samples = samples or [encode_sample(np.eye(CLASSES, dtype=np.float32)[n % CLASSES]) for n in range(20)]
    entries, begin = [], 0
    for number, each in enumerate(samples):
        size = len(each.content)
        entries.append(
            SampleEntry(
                set="new",
                sample=sample_id_of(each.content),
                begin=begin,
                size=size,
                media_type=each.media_type,
                label=number % CLASSES,
            )
        )
        begin += size
    (folder / "contents").write_bytes(b"".join(each.content for each in samples))
    fields = {
        "serving": str(folder / "right.onnx"),
        "candidate": str(folder / candidate),
        "pre_fun": None,
        "base": str(folder),
        "samples": entries,
        "contents": str(folder / "contents"),
        "old_data": None,
        "most_old": 10,
        "result": str(folder / "result"),
        **changes,
    }
    (folder / "task.json").write_text(EvaluationTask.model_validate(fields).model_dump_json())
    return main([str(folder / "task.json")])


def test_both_models_answer_the_same_samples(folder):
    assert asked(folder, "swapped.onnx") == 0
    result, arrays = load_result(folder / "result")
    assert (arrays["new_serving"].argmax(1) == arrays["new_truth"]).all()
    assert (arrays["new_candidate"].argmax(1) == arrays["new_truth"]).mean() == 0.5
    assert result.latency > 0
    assert result.failed == 0


def test_a_candidate_may_know_more_classes(folder):
    assert asked(folder, "wider.onnx") == 0
    assert load_result(folder / "result")[1]["new_candidate"].shape == (20, CLASSES + 1)


@pytest.mark.parametrize("candidate", ["nan.onnx", "other.onnx"])
def test_a_candidate_without_an_answer_has_none_and_is_no_error(folder, candidate):
    assert asked(folder, candidate) == 0
    result, arrays = load_result(folder / "result")
    assert result.failed == 20
    assert not np.isfinite(arrays["new_candidate"]).any()


def test_a_candidate_that_cannot_be_loaded_is_told_as_a_result(folder):
    assert asked(folder, "broken.onnx") == 0
    assert "broken.onnx" in load_result(folder / "result")[0].candidate_error


def test_samples_go_through_the_jobs_own_function(folder):
    (folder / "prepared_by_me.py").write_text("def backwards(sample):\n    return sample[::-1]\n")
    assert asked(folder, "right.onnx", pre_fun="prepared_by_me:backwards") == 0
    arrays = load_result(folder / "result")[1]
    assert (arrays["new_serving"].argmax(1) == CLASSES - 1 - arrays["new_truth"]).all()


def test_a_function_that_is_not_there_is_told(folder, capsys):
    assert asked(folder, "right.onnx", pre_fun="prepared_by_nobody:backwards") != 0
    assert "spec.model.preFun names prepared_by_nobody:backwards, which is not there" in capsys.readouterr().err


def test_samples_that_the_model_in_use_does_not_take_point_to_pre_fun(folder, capsys):
    images = [encode_sample(np.zeros((8, 8), np.uint8))] * 4
    assert asked(folder, "right.onnx", images) != 0
    assert "if scripts give load_model a pre_fun, name it in spec.model.preFun" in capsys.readouterr().err


def test_a_sample_that_cannot_be_read_is_left_out_and_counted(folder):
    good = [encode_sample(np.eye(CLASSES, dtype=np.float32)[n % CLASSES]) for n in range(8)]
    good[3] = type(good[3])(b"poison", good[3].media_type)
    assert asked(folder, "right.onnx", good) == 0
    result, arrays = load_result(folder / "result")
    assert result.unreadable == 1
    assert len(arrays["new_truth"]) == 7


def test_held_out_data_of_the_job_are_the_old_samples(folder):
    y = np.arange(30) % CLASSES
    np.savez(folder / "old.npz", x=np.eye(CLASSES, dtype=np.float32)[y], y=y)
    assert asked(folder, "right.onnx", old_data={"path": str(folder / "old.npz")}) == 0
    assert len(load_result(folder / "result")[1]["old_truth"]) == 10


def test_a_result_that_is_not_whole_is_told_as_such(folder):
    asked(folder, "right.onnx")
    (folder / "result" / "answers.npz").write_bytes(b"PK")
    with pytest.raises(WireError, match="result is not whole"):
        load_result(folder / "result")


@given(
    new=st.integers(2, 300),
    old=st.integers(0, 3_000),
    ratio=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    buffer=st.integers(0, 500),
)
def test_old_samples_have_their_share_and_none_that_is_held_out_is_learned(new, old, ratio, buffer):
    rows = mixture(new, old, Replay(ratio=ratio, buffer=buffer), seed=1)
    assert not set(rows.new) & set(rows.new_held_out)
    assert not set(rows.old) & set(rows.old_held_out)
    assert set(rows.new) | set(rows.new_held_out) == set(range(new))
    if ratio == 0:
        assert len(rows.old) == 0
        return
    free = old - len(rows.old_held_out)
    assert len(rows.old) >= min(buffer, free)
    if len(rows.old):
        share = len(rows.old) / (len(rows.old) + len(rows.new))
        assert share <= ratio + 0.02
        if len(rows.old) < free:
            assert share == pytest.approx(ratio, abs=0.02)


class TestTrainings:
    def test_new_samples_and_drawn_old_ones_come_as_one_dataset(self, make_world, tmp_path):
        y = np.arange(100) % CLASSES
        np.savez(tmp_path / "base.npz", x=np.eye(CLASSES, dtype=np.float32)[y], y=y)
        world = make_world(training={"script": "train.py", "baseData": "base.npz", "replay": {"buffer": 0}})
        world.tasks.by_itself = False
        world.add(40, reason="hard")
        world.until("training")
        world.loop.step()
        context = world.tasks.workers["training-1-1"].context
        with np.load(context.train_data.path) as train, np.load(context.eval_data.path) as held_out:
            assert train["x"].shape == (72, CLASSES)
            assert (train["x"].argmax(1) == train["y"]).all()
            assert len(held_out["x"]) == 8

    def test_base_data_of_another_form_is_told(self, make_world, tmp_path):
        np.savez(tmp_path / "base.npz", x=np.zeros((50, 8, 8), np.uint8), y=np.zeros(50, int))
        world = make_world(training={"script": "train.py", "baseData": "base.npz"})
        world.add(40, reason="hard")
        world.until("training")
        world.until("collecting")
        assert "samples are floats of shape [4], and base data is bytes" in world.decisions()[-1][1]
