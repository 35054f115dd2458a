# SPDX-License-Identifier: Apache-2.0
"""Keras files that LiteRT runs: only where it answers the same, and once for each file."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from solar_corona.core.errors import ModelError, PlatformError
from solar_corona.core.files import sha256_of
from solar_corona.lib.runners import conversion
from solar_corona.lib.runners.batches import BatchRunner
from solar_corona.lib.runners.checks import check_runner
from solar_corona.lib.runners.conversion import conversion_path, difference
from solar_corona.lib.runners.conversion_apart import convert_apart
from solar_corona.lib.runners.opening import open_runner
from solar_corona.lib.tensors import TensorSpec
from solar_corona.tests.lib.runners.networks import IMAGES


@pytest.fixture
def path(models, tmp_path):
    return shutil.copy(models / "m.keras", tmp_path / "m.keras")


def _answer(runner):
    (value,) = runner.run({"image": IMAGES}).values()
    return value


def _kept(folder):
    return sorted(each.name for each in folder.iterdir() if ".tflite" in each.name)


def test_a_converted_model_answers_the_same_by_the_same_names(path):
    plain, converted = open_runner(path), open_runner(path, convert=True)
    assert (plain.platform, converted.platform) == ("keras", "litert")
    assert (plain.inputs, plain.outputs) == (converted.inputs, converted.outputs)
    np.testing.assert_allclose(_answer(converted), _answer(plain), atol=1e-5)
    check_runner(converted, IMAGES)


def test_the_conversion_is_kept_beside_the_model_and_the_next_start_needs_no_keras(path):
    wanted = _answer(open_runner(path, convert=True))
    kept = conversion_path(path, sha256_of(path))
    assert _kept(path.parent) == [kept.name, f"{kept.name}.json"]
    assert kept.name.startswith("m.keras.")
    code = (
        "import json, sys; import numpy as np\n"
        "from solar_corona.lib.runners.opening import open_runner\n"
        "runner = open_runner(sys.argv[1], convert=True)\n"
        "print(json.dumps(runner.run({'image': np.load(sys.argv[2])})['output_0'].tolist()))\n"
        "assert not {'keras', 'tensorflow', 'pydantic'} & set(sys.modules)\n"
    )
    np.save(path.parent / "x.npy", IMAGES)
    done = subprocess.run(
        [sys.executable, "-c", code, path, path.parent / "x.npy"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    np.testing.assert_array_equal(json.loads(done.stdout), wanted)


def test_the_order_of_inputs_and_outputs_stays_the_models(tmp_path):
    import keras

    a, b = keras.Input((4,), name="z"), keras.Input((4,), name="b")
    outputs = [keras.layers.Dense(3, name="second")(a), keras.layers.Dense(2, name="first")(b)]
    keras.Model([a, b], outputs).save(tmp_path / "m.keras")
    for _ in range(2):
        runner = open_runner(tmp_path / "m.keras", convert=True)
        assert runner.platform == "litert"
        assert [spec.name for spec in runner.inputs] == ["z", "b"]
        assert [spec.name for spec in runner.outputs] == ["second", "first"]


@pytest.mark.parametrize("kind", ["learned", "attribute"])
def test_a_model_of_several_tasks_is_converted_with_its_routing(models, tmp_path, kind):
    path = shutil.copy(models / f"{kind}.keras", tmp_path)
    runner = open_runner(path, convert=True)
    assert runner.platform == "litert"
    inputs = {"x": IMAGES} | ({"task": np.array([0, 1, 1, 0, 1, 0], np.int32)} if kind == "attribute" else {})
    (found,), (wanted,) = runner.run(inputs).values(), open_runner(path).run(inputs).values()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def _change(path, sign):
    import keras

    model = keras.saving.load_model(path)
    model.layers[-1].kernel.assign(sign * model.layers[-1].kernel)
    model.save(path)


def test_another_model_in_its_place_is_converted_anew_and_the_old_conversion_goes(path):
    before = _answer(open_runner(path, convert=True))
    old = _kept(path.parent)
    _change(path, -1)
    after = _answer(open_runner(path, convert=True))
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, _answer(open_runner(path)), atol=1e-5)
    assert len(_kept(path.parent)) == 2
    assert not set(old) & set(_kept(path.parent))


@pytest.mark.parametrize("damage", ["conversion", "record", "no record", "record of a list"])
def test_a_damaged_conversion_is_made_anew(path, caplog, damage):
    wanted = _answer(open_runner(path, convert=True))
    kept = conversion_path(path, sha256_of(path))
    record = kept.with_name(f"{kept.name}.json")
    if damage == "conversion":
        data = bytearray(kept.read_bytes())
        data[len(data) // 2] ^= 1
        kept.write_bytes(data)
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("[1]" if damage == "record of a list" else "{")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(_answer(open_runner(path, convert=True)), wanted, atol=1e-6)
    assert ("it is made anew" in caplog.text) == (damage == "conversion")
    assert json.loads(record.read_text())["sha256"] == sha256_of(kept)


def test_a_model_that_cannot_be_converted_stays_a_keras_model_with_a_note(tmp_path, caplog):
    import keras

    model = keras.Sequential([keras.Input((5, 3), name="x"), keras.layers.LSTM(4), keras.layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    with caplog.at_level(logging.WARNING):
        runner = open_runner(tmp_path / "m.keras", convert=True)
    assert runner.platform == "keras"
    assert f"{tmp_path / 'm.keras'}: stays a Keras model, which answers more slowly than LiteRT: " in caplog.text
    assert "it cannot be converted (ConverterError" in caplog.text
    assert _kept(tmp_path) == []
    check_runner(runner, np.random.default_rng(1).normal(size=(3, 5, 3)).astype(np.float32))


def test_a_conversion_that_answers_otherwise_is_not_used(path, caplog, monkeypatch):
    real = conversion._converted

    def of_another(runner):
        kernel = runner.model.layers[-1].kernel
        kernel.assign(-kernel)
        try:
            return real(runner)
        finally:
            kernel.assign(-kernel)

    monkeypatch.setattr(conversion, "_converted", of_another)
    wanted = _answer(open_runner(path))
    with caplog.at_level(logging.WARNING):
        runner = open_runner(path, convert=True)
    assert runner.platform == "keras"
    assert "LiteRT does not answer the same: output 'output_0' differs by up to" in caplog.text
    np.testing.assert_allclose(_answer(runner), wanted, atol=1e-6)
    assert _kept(path.parent) == []


def test_the_users_samples_are_compared_too(tmp_path, caplog, monkeypatch):
    import keras

    @keras.saving.register_keras_serializable()
    class Guarded(keras.layers.Layer):
        def call(self, x):
            return keras.ops.where(keras.ops.sum(x, axis=-1, keepdims=True) > 10_000, self.far(x), x)

        def far(self, x):
            return 2 * x

    keras.Sequential([keras.Input((2,), name="x"), Guarded()]).save(tmp_path / "m.keras")
    real = conversion._converted

    def another_far_away(runner):
        monkeypatch.setattr(Guarded, "far", lambda _self, x: 3 * x)
        return real(runner)

    monkeypatch.setattr(conversion, "_converted", another_far_away)
    assert open_runner(tmp_path / "m.keras", convert=True).platform == "litert", "random samples see no difference"
    for each in _kept(tmp_path):
        (tmp_path / each).unlink()
    monkeypatch.setattr(Guarded, "far", lambda _self, x: 2 * x)
    with caplog.at_level(logging.WARNING):
        runner = open_runner(tmp_path / "m.keras", convert=True, samples={"x": np.full((2, 2), 9e5, np.float32)})
    assert runner.platform == "keras"
    assert "LiteRT does not answer the same" in caplog.text


def test_where_litert_is_not_installed_the_keras_model_runs(path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "solar_corona.lib.runners.litert_runner", None)
    with caplog.at_level(logging.WARNING):
        runner = open_runner(path, convert=True)
    assert runner.platform == "keras"
    assert "stays a Keras model" in caplog.text


def test_a_conversion_that_fills_the_disk_is_used_all_the_same(path, caplog, monkeypatch):
    real = conversion.atomic_write

    def full(target):
        if str(target).endswith(".tflite"):
            raise PlatformError(f"{target}: the disk is full")
        return real(target)

    monkeypatch.setattr(conversion, "atomic_write", full)
    with caplog.at_level(logging.WARNING):
        assert open_runner(path, convert=True).platform == "litert"
    assert "the conversion is not kept, so that it is made anew at the next start" in caplog.text
    assert _kept(path.parent) == []


def test_a_wrong_checksum_is_refused_before_a_kept_conversion_is_looked_for(path):
    open_runner(path, convert=True)
    with pytest.raises(ModelError, match="has the SHA-256"):
        open_runner(path, convert=True, sha256="0" * 64)


# What counts as the same


def _fixed(value) -> BatchRunner:
    value = np.asarray(value)
    specs = (TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, *value.shape[1:])),)
    return BatchRunner(lambda _inputs: {"y": value}, inputs=specs[0], outputs=specs[1], model="m")


def _differ(one, other) -> str | None:
    length = len(one)
    return difference(_fixed(one), _fixed(other), iter([{"x": np.zeros((length, 1), np.float32)}]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([[0.2, 0.8]], [[0.2000001, 0.7999999]]),
        ([[0.5, 0.5]], [[0.5, 0.50001]]),
        ([[np.nan, 1.0]], [[np.nan, 1.0]]),
        ([[np.inf, 1.0]], [[np.inf, 1.0]]),
        ([[1, 2]], [[1, 2]]),
        ([[0.0, 0.0]], [[0.0, 1e-10]]),
    ],
)
def test_answers_that_differ_by_rounding_alone_are_the_same(one, other):
    assert _differ(one, other) is None


@pytest.mark.parametrize(
    ("one", "other", "problem"),
    [
        ([[0.2, 0.8]], [[0.2, 0.81]], r"output 'y' differs by up to 0.01, and 0.0008 is allowed"),
        ([[0.2, 0.8]], [[0.2, np.nan]], r"output 'y' differs by up to .*, and 0.0008 is allowed"),
        ([[np.nan, 0.8]], [[0.2, 0.8]], r"output 'y' differs by up to"),
        ([[1, 2]], [[1, 3]], "output 'y' differs"),
        ([[1.0, 2.0]], [[1.0, 2.0, 3.0]], r"output 'y' has shape \[1, 3\] instead of \[1, 2\]"),
    ],
)
def test_answers_that_differ_by_more_are_not(one, other, problem):
    assert re.match(problem, _differ(one, other) or "the same")


def test_a_largest_number_elsewhere_is_a_difference_only_where_it_stands_out():
    assert _differ([[1.0, 1.0005]], [[1.0005, 1.0]]) is None
    assert _differ([[1000.0, 1.0, 1.2]], [[1000.0, 1.2, 1.0]]) is None


def test_a_process_of_its_own_converts_so_that_this_one_needs_no_keras(path, caplog):
    caplog.set_level(logging.INFO)
    path = Path(path)
    assert not convert_apart(path, "0" * 64)
    assert "has the SHA-256" in caplog.text
    assert _kept(path.parent) == []
    assert convert_apart(path, sha256_of(path))
    (kept, _) = _kept(path.parent)
    made = (path.parent / kept).stat().st_mtime_ns
    assert convert_apart(path)
    assert open_runner(path, convert=True).platform == "litert"
    assert (path.parent / kept).stat().st_mtime_ns == made


def test_what_is_no_keras_file_is_not_converted_apart(tmp_path):
    assert not convert_apart(tmp_path / "m.onnx")
    assert not convert_apart(tmp_path / "missing.keras")
