# SPDX-License-Identifier: Apache-2.0
"""Models that are opened to run: every format, what is wrong with a file, and what a small edge has to load."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import ModelError
from solar_corona.core.files import sha256_of
from solar_corona.core.spec import ModelSource
from solar_corona.lib import context
from solar_corona.lib.model_cards import make_card, write_card
from solar_corona.lib.runners.checks import check_runner
from solar_corona.lib.runners.opening import open_runner
from solar_corona.tests.lib.runners.networks import CLASSES, IMAGES, SHAPE, routers, write_onnx

FORMATS = {"m.keras": "keras", "m": "tensorflow_savedmodel", "m.tflite": "litert", "m.onnx": "onnx"}
TASKS = np.array([0, 1, 1, 0, 1, 0], np.int32)


def _answer(path, images=IMAGES, **options):
    runner = open_runner(path, **options)
    try:
        (value,) = runner.run({"image": images}).values()
    finally:
        runner.close()
    return value


def _refusal(path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        open_runner(path, **options)
    return str(caught.value)


def _python(code: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# Every format


@pytest.mark.parametrize("name", [*FORMATS, "single.keras", "single", "single.tflite", "single.onnx", "four.onnx"])
def test_every_format_keeps_the_contract(models, name):
    check_runner(models / name, IMAGES)


def test_a_quantized_model_keeps_the_contract_with_integers_of_its_own(models):
    check_runner(models / "quantized.tflite", IMAGES.astype(np.uint8))


@pytest.mark.parametrize("kind", ["learned", "attribute"])
@pytest.mark.parametrize("form", [".keras", "", ".tflite"])
def test_a_model_of_several_tasks_keeps_the_contract_and_routes_in_every_format(models, kind, form):
    inputs = {"x": IMAGES} | ({"task": TASKS} if kind == "attribute" else {})
    check_runner(models / f"{kind}{form}", inputs)
    (found,) = open_runner(models / f"{kind}{form}").run(inputs).values()
    (wanted,) = open_runner(models / f"{kind}.keras").run(inputs).values()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    tasks = TASKS if kind == "attribute" else routers()["learned"].route(IMAGES)
    assert set(tasks) == {0, 1}, "each task must have samples, or nothing is routed here"
    (only,) = open_runner(models / "m.keras").run({"image": IMAGES}).values()
    np.testing.assert_allclose(found[tasks == 0], only[tasks == 0], atol=1e-4)
    assert not np.allclose(found[tasks == 1], only[tasks == 1], atol=1e-2)


def test_one_network_answers_the_same_in_every_format(models):
    wanted = _answer(models / "m.keras")
    assert wanted.shape == (6, CLASSES)
    assert len(set(wanted.argmax(1))) > 1, "a network that always says the same hides differences"
    for name in (*FORMATS, "single.keras", "single", "single.tflite", "single.onnx", "four.onnx"):
        np.testing.assert_allclose(_answer(models / name), wanted, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("name", "platform"), FORMATS.items())
def test_a_runner_says_its_format_and_what_it_takes_and_gives(models, name, platform):
    runner = open_runner(models / name)
    (given,), (made,) = runner.inputs, runner.outputs
    assert runner.platform == platform
    assert (given.name, given.datatype, given.shape) == ("image", "FP32", (-1, *SHAPE))
    assert (made.name, made.datatype, made.shape) == ("output_0", "FP32", (-1, CLASSES))


def test_a_quantized_model_says_what_its_integers_stand_for(models):
    runner = open_runner(models / "quantized.tflite")
    assert {spec.datatype for spec in (*runner.inputs, *runner.outputs)} == {"UINT8"}
    given, made = runner.quantization["image"], runner.quantization["output_0"]
    steps = np.round(IMAGES / given.scale + given.zero_point).clip(0, 255).astype(np.uint8)
    (found,) = runner.run({"image": steps}).values()
    probabilities = made.scale * (found.astype(float) - made.zero_point)
    np.testing.assert_allclose(probabilities, _answer(models / "m.tflite"), atol=0.1)


def test_weights_that_are_no_numbers_give_answers_that_are_none(models, tmp_path):
    import keras

    model = keras.saving.load_model(models / "m.keras")
    model.layers[-1].bias.assign([np.nan] * CLASSES)
    model.save(tmp_path / "nan.keras")
    assert np.isnan(_answer(tmp_path / "nan.keras")).all()


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_keras_file_runs_on_another_backend_too(models, backend):
    pytest.importorskip(backend)
    code = (
        "import sys; import numpy as np\n"
        "from solar_corona.lib.runners.checks import check_runner\n"
        "from solar_corona.lib.runners.opening import open_runner\n"
        "x = np.load(sys.argv[2])\n"
        "check_runner(sys.argv[1], x)\n"
        "print(open_runner(sys.argv[1]).run({'image': x})['output_0'].tolist())\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    images = models.parent / f"{backend}.npy"
    np.save(images, IMAGES)
    found = json.loads(_python(code, models / "m.keras", images, KERAS_BACKEND=backend))
    np.testing.assert_allclose(found, _answer(models / "m.keras"), atol=1e-5)


def test_a_model_with_several_inputs_and_outputs_has_their_names_in_its_order(tmp_path):
    import keras

    a, b = keras.Input((4,), name="z"), keras.Input((3,), dtype="int32", name="b")
    both = keras.layers.Concatenate()([a, keras.layers.Embedding(5, 2)(b)[:, 0]])
    outputs = [keras.layers.Dense(3, name="second")(both), keras.layers.Dense(2, name="first")(both)]
    keras.Model([a, b], outputs).save(tmp_path / "m.keras")
    runner = open_runner(tmp_path / "m.keras")
    assert [spec.name for spec in runner.inputs] == ["z", "b"]
    assert [spec.name for spec in runner.outputs] == ["second", "first"]
    check_runner(runner, {"z": np.ones((3, 4), np.float32), "b": np.ones((3, 3), np.int32)})


def test_one_layer_called_twice_gives_two_outputs(tmp_path):
    import keras

    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    dense = keras.layers.Dense(2, name="d")
    keras.Model([a, b], [dense(a), dense(b)]).save(tmp_path / "m.keras")
    runner = open_runner(tmp_path / "m.keras")
    assert [spec.name for spec in runner.outputs] == ["d_0", "d_1"]
    check_runner(runner, {"a": np.ones((2, 4), np.float32), "b": np.zeros((2, 4), np.float32)})


@pytest.mark.parametrize("form", [".keras", ""])
def test_a_model_of_texts_takes_bytes(tmp_path, form):
    import keras

    texts = keras.Input((1,), dtype="string", name="text")
    model = keras.Model(texts, keras.layers.StringLookup(vocabulary=["cat", "dog"])(texts))
    path = tmp_path / f"m{form}"
    model.save(path) if form else model.export(str(path), verbose=False)
    runner = open_runner(path)
    assert runner.inputs[0].datatype == "BYTES"
    texts = np.array([[b"dog"], [b"cow"], [b"cat"]], object)
    (found,) = runner.run({"text": texts}).values()
    assert found.tolist() == [[2], [0], [1]]
    check_runner(runner, texts)


def test_a_model_is_opened_from_a_url_and_checked_against_the_card_there(models):
    target = fsspec.filesystem("memory")
    target.pipe("/opening/m.tflite", (models / "m.tflite").read_bytes())
    np.testing.assert_allclose(_answer("memory://opening/m.tflite"), _answer(models / "m.keras"), atol=1e-5)
    target.pipe("/opening/m.tflite.card.json", _card_text(models / "m.tflite", sha256="0" * 64))
    assert "its card says 000" in _refusal("memory://opening/m.tflite")


def test_a_saved_model_folder_is_opened_from_a_url(models):
    target = fsspec.filesystem("memory")
    target.put(str(models / "m"), "/opening/folder", recursive=True)
    np.testing.assert_allclose(_answer("memory://opening/folder"), _answer(models / "m.keras"), atol=1e-5)


# What is wrong with a file


def _card_text(path: Path, **changes) -> bytes:
    card = make_card(path, path, "tflite", round=None, metrics={}, versions={})
    return card.model_copy(update=changes).model_dump_json().encode()


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_that_is_not_there_is_missed_by_name(models, name):
    near = models / f"x{name}"
    assert _refusal(near).startswith(f"{near}: there is no such model; beside it there is {name}")


@pytest.mark.parametrize("name", FORMATS)
def test_a_wrong_checksum_is_refused_in_every_format(models, name):
    path = models / name
    open_runner(path, sha256=sha256_of(path).upper()).close()
    message = _refusal(path, sha256="0" * 64)
    assert f"{path}: has the SHA-256 {sha256_of(path)}, and sha256 says 000" in message
    assert "fetch it anew" in message


def test_the_current_folder_is_no_model_and_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"expected|SavedModel"):
        open_runner(".")


def test_a_damaged_model_is_refused_by_its_card_and_by_the_jobs_fingerprint(models, tmp_path):
    path = Path(shutil.copy(models / "m.tflite", tmp_path))
    write_card(path, make_card(path, path, "tflite", round=None, metrics={}, versions={}))
    open_runner(path).close()
    right = sha256_of(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "its card says" in _refusal(path)
    document = ContextDocument(
        job="j",
        kind="JointInferenceService",
        run="r",
        role="edge",
        worker="e",
        run_folder="/r",
        model=ModelSource(path=str(path), sha256=right),
    )
    with context.using(document):
        assert "the job says" in _refusal(path)


CONTENTS = {
    "m.keras": "a Keras model",
    "m.tflite": "a LiteRT model",
    "m.onnx": "an ONNX model",
}


@pytest.mark.parametrize("said", CONTENTS)
@pytest.mark.parametrize("real", CONTENTS)
def test_a_file_of_another_format_than_its_name_says_is_refused_with_its_real_one(models, tmp_path, said, real):
    path = tmp_path / f"x{Path(said).suffix}"
    shutil.copy(models / real, path)
    if said == real:
        open_runner(path).close()
        return
    message = _refusal(path)
    assert f"{path}: is {CONTENTS[real]} ({Path(real).suffix}) by what is in it" in message
    assert "give it that ending" in message


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_a_known_format_without_its_ending_says_how_to_name_it(models, tmp_path, name):
    shutil.copy(models / name, tmp_path / "x.model")
    message = _refusal(tmp_path / "x.model")
    assert ".model is no form of a model that runs here; expected .keras, .tflite, .onnx" in message
    assert f"it is {CONTENTS[name]} ({Path(name).suffix}): rename it" in message


def test_an_ending_in_capitals_is_another_one(models, tmp_path):
    shutil.copy(models / "m.keras", tmp_path / "M.KERAS")
    assert ".KERAS is no form of a model that runs here" in _refusal(tmp_path / "M.KERAS")


@pytest.mark.parametrize("ending", [".keras", ".tflite", ".onnx"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; fetch or save the model anew"),
        (b"<!DOCTYPE html><html>Not found</html>", "is a web page, not a model.*fetch the model's own address"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer.*run git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "old HDF5 form.*save it as .keras"),
        (pickle.dumps({"w": 1}), "is a pickle, which can run any code"),
        (b"\x00" * 5000, "is not .* or is damaged; fetch or save it anew"),
        (b"GIF89a" + bytes(64), "is not .* or is damaged; fetch or save it anew"),
    ],
    ids=["empty", "web page", "git lfs", "hdf5", "pickle", "zeros", "picture"],
)
def test_what_is_often_found_instead_of_a_model_is_named(tmp_path, ending, content, message):
    path = tmp_path / f"m{ending}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"{path}: .*{message}" if "empty" not in message else message):
        open_runner(path)


def test_an_archive_that_holds_no_keras_model_is_none(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "is not a Keras model (.keras), or is damaged" in _refusal(tmp_path / "m.keras")


@pytest.mark.parametrize("name", ["m.keras", "m.tflite", "m.onnx"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_one_clear_error(models, tmp_path, name, share):
    data = (models / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    message = _refusal(path)
    assert message.startswith(f"{path}: ")
    assert "anew" in message


@pytest.mark.parametrize("part", ["saved_model.pb", "variables/variables.data-00000-of-00001", "variables"])
def test_a_saved_model_without_one_of_its_parts_is_one_clear_error(models, tmp_path, part):
    folder = tmp_path / "m"
    shutil.copytree(models / "m", folder)
    gone = folder / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    message = _refusal(folder)
    assert message.startswith(f"{folder}: ")
    assert "expected a SavedModel folder" in message or "cannot be loaded" in message


def test_a_truncated_saved_model_is_one_clear_error(models, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(models / "m", folder)
    file = folder / "saved_model.pb"
    file.write_bytes(file.read_bytes()[:-100])
    assert _refusal(folder).startswith(f"{folder}: cannot be loaded")


@pytest.mark.parametrize(
    ("name", "module", "engine", "extra"),
    [
        ("m.keras", "keras", "Keras", "tensorflow"),
        ("m", "tensorflow", "TensorFlow", "tensorflow"),
        ("m.tflite", "ai_edge_litert.interpreter", "LiteRT", "litert"),
        ("m.onnx", "onnxruntime", "ONNX Runtime", "onnx"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(models, name, module, engine, extra):
    code = (
        "import sys; from solar_corona.lib.runners.opening import open_runner\n"
        "sys.modules[sys.argv[2]] = None\n"
        "try: open_runner(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
    )
    message = _python(code, models / name, module)
    assert f"needs {engine} (" in message
    assert f"pip install 'solar-corona[{extra}]'" in message


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_below_one_is_refused(models, threads):
    assert f"threads is {threads}, expected a whole number from 1" in _refusal(models / "m.onnx", threads=threads)


def test_code_in_a_keras_file_is_not_run(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "m.keras")
    assert "is a lambda, code inside the file, which is not run" in _refusal(tmp_path / "m.keras")


def test_a_class_that_is_not_registered_is_given_by_name(tmp_path):
    import keras

    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    keras.Sequential([keras.Input((2,), name="x"), Doubled()]).save(tmp_path / "m.keras")
    assert "custom_objects={'Doubled'" in _refusal(tmp_path / "m.keras")
    runner = open_runner(tmp_path / "m.keras", custom_objects={"Doubled": Doubled})
    (found,) = runner.run({"x": np.ones((1, 2), np.float32)}).values()
    assert found.tolist() == [[2, 2]]


# ONNX


def _two_numbers(path: Path, *, kind: str = "FLOAT", shape=("n", 2), weights=()) -> Path:
    from onnx import TensorProto, helper

    kind = getattr(TensorProto, kind)
    return write_onnx(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", kind, shape)],
        outputs=[helper.make_tensor_value_info("y", kind, shape)],
        weights=weights,
    )


@pytest.mark.parametrize("kind", ["BOOL", "UINT8", "INT16", "INT64", "FLOAT16", "DOUBLE", "STRING"])
def test_an_onnx_model_takes_every_datatype(tmp_path, kind):
    path = _two_numbers(tmp_path / "m.onnx", kind=kind)
    spec = open_runner(path).inputs[0]
    values = np.array([[b"a", b""], [b"b", b"c"]], object) if kind == "STRING" else np.array([[0, 1], [1, 1]])
    inputs = values.astype(spec.dtype)
    check_runner(path, inputs)
    (found,) = open_runner(path).run({"x": inputs}).values()
    assert found.tolist() == inputs.tolist()


def test_texts_are_given_as_bytes_or_as_python_has_them(tmp_path):
    runner = open_runner(_two_numbers(tmp_path / "m.onnx", kind="STRING"))
    for texts in (np.array([["ä", "b"]]), np.array([["ä".encode(), b"b"]], object)):
        (found,) = runner.run({"x": texts}).values()
        assert found.tolist() == [["ä".encode(), b"b"]]
    with pytest.raises(ModelError, match="'x' has bytes that are no UTF-8 text, and ONNX models take text"):
        runner.run({"x": np.array([[b"\xff", b""]], object)})


def test_an_onnx_model_that_takes_what_the_protocol_cannot_send_is_refused(tmp_path):
    message = _refusal(_two_numbers(tmp_path / "m.onnx", kind="BFLOAT16"))
    assert "its input 'x' is tensor(bfloat16), expected a tensor of one of bool, float16" in message


def test_an_onnx_model_without_a_batch_axis_is_refused(tmp_path):
    message = _refusal(_two_numbers(tmp_path / "m.onnx", shape=()))
    assert "its input 'x' is a single number; save it anew with a batch as the first axis" in message


def test_an_onnx_model_that_gives_no_tensor_is_refused(tmp_path):
    from onnx import TensorProto, helper

    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    path = write_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        outputs=[sequence],
    )
    message = _refusal(path)
    assert "its output 'y' is seq(tensor(float)), expected a tensor" in message
    assert "without ZipMap" in message


def test_an_onnx_model_of_an_operation_that_is_not_known_is_refused(tmp_path):
    from onnx import TensorProto, helper

    path = write_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("NoSuchOperation", ["x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    message = _refusal(path)
    assert "NoSuchOperation" in message
    assert "export it for an opset that onnxruntime" in message


def _with_weights_outside(folder: Path, location: str) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnx.external_data_helper import set_external_data

    weight = numpy_helper.from_array(np.full((2, 2), 3, np.float32), "w")
    raw = weight.raw_data
    set_external_data(weight, location, offset=0, length=len(raw))
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    path = write_onnx(
        folder / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        weights=[weight],
    )
    if not location.startswith(("/", "..")):
        (folder / location).write_bytes(raw)
    return path


def test_an_onnx_model_with_weights_beside_it_runs(tmp_path):
    (found,) = open_runner(_with_weights_outside(tmp_path, "w.data")).run({"x": np.ones((1, 2), np.float32)}).values()
    assert found.tolist() == [[6, 6]]


def test_a_fingerprint_that_does_not_cover_the_weights_is_refused(tmp_path):
    path = _with_weights_outside(tmp_path, "w.data")
    message = _refusal(path, sha256=sha256_of(path))
    assert "keeps weights in w.data, which the fingerprint (sha256's) does not cover; save it in one file" in message


def test_an_onnx_model_whose_weights_are_missing_says_which_file(tmp_path):
    path = _with_weights_outside(tmp_path, "w.data")
    (tmp_path / "w.data").unlink()
    assert "keeps weights in 'w.data', which is not beside it; put it there" in _refusal(path)


@pytest.mark.parametrize("location", ["../w.data", "/etc/passwd"])
def test_an_onnx_model_that_reaches_out_of_its_folder_is_not_loaded(tmp_path, location):
    folder = tmp_path / "in"
    folder.mkdir()
    message = _refusal(_with_weights_outside(folder, location))
    assert f"wants weights from {location!r}, outside its folder; it is not loaded" in message


# LiteRT and SavedModel


def _two_signatures(folder: Path, *names: str) -> Path:
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
        def doubled(self, x):
            return {"y": 2 * x}

        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
        def halved(self, x):
            return {"y": x / 2}

    module = Module()
    tf.saved_model.save(module, str(folder), signatures=dict(zip(names, [module.doubled, module.halved], strict=True)))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=list(names))
    path = folder.with_suffix(".tflite")
    path.write_bytes(converter.convert())
    return path


def test_of_several_signatures_the_one_for_serving_runs(tmp_path):
    path = _two_signatures(tmp_path / "m", "other", "serving_default")
    for each in (path, tmp_path / "m"):
        (found,) = open_runner(each).run({"x": np.ones((3, 2), np.float32)}).values()
        assert found.tolist() == [[0.5, 0.5]] * 3


def test_several_signatures_of_which_none_is_for_serving_are_listed(tmp_path):
    path = _two_signatures(tmp_path / "m", "one", "two")
    assert "has the signatures 'one', 'two', expected one of them to be 'serving_default'" in _refusal(path)
    assert "has the signatures 'one', 'two', expected 'serving_default'" in _refusal(tmp_path / "m")


def test_a_litert_model_without_a_signature_has_its_tensors_names(models, tmp_path):
    import tensorflow as tf

    function = tf.function(tf.nn.relu).get_concrete_function(tf.TensorSpec((None, 2), tf.float32, name="x"))
    data = bytearray(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    path = tmp_path / "m.tflite"
    path.write_bytes(data)
    from ai_edge_litert.interpreter import Interpreter

    assert Interpreter(model_path=str(path)).get_signature_list() == {}
    runner = open_runner(path)
    assert [spec.name for spec in runner.inputs] == ["x"]
    check_runner(runner, np.array([[-1, 1], [2, -2]], np.float32))


def test_an_input_that_the_engine_refuses_leaves_the_model_as_it_was(tmp_path):
    import tensorflow as tf

    weights = tf.constant(np.full((2, 2), 3, np.float32))
    function = tf.function(lambda x: tf.matmul(x, weights))
    function = function.get_concrete_function(tf.TensorSpec((None, None), tf.float32, name="x"))
    path = tmp_path / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    runner = open_runner(path)
    (spec,) = runner.inputs
    assert spec.shape == (-1, -1)
    good = {spec.name: np.ones((3, 2), np.float32)}
    for wrong in (3, 5, 3):
        with pytest.raises(ModelError, match=f"{path}: failed on a batch of 3: RuntimeError: "):
            runner.run({spec.name: np.ones((3, wrong), np.float32)})
        (found,) = runner.run(good).values()
        assert found.tolist() == [[6, 6]] * 3


# What a small edge has to load


EDGE = """
import sys
import numpy as np
import solar_corona
from solar_corona.lib.runners.opening import open_runner
runner = open_runner(sys.argv[1])
runner.run({"image": np.zeros((1, 8, 8, 1), np.float32)})
for name in ("tensorflow", "keras", "torch", "jax", "flwr", "pydantic", "fastapi", "pandas", "scipy", "onnxruntime",
             "ai_edge_litert", "fsspec", "aiohttp", "stamina", "httpx", "rich", "yaml"):
    if name in sys.modules:
        print(name)
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of the memory")
@pytest.mark.parametrize(
    ("name", "engine", "mebibytes"), [("m.tflite", "ai_edge_litert", 80), ("m.onnx", "onnxruntime", 100)]
)
def test_an_edge_loads_the_engine_of_its_model_alone_and_stays_small(models, name, engine, mebibytes):
    # Coverage of the process would count as the edge's own memory.
    *engines, kibibytes = _python(EDGE, models / name, COVERAGE_PROCESS_START="", COVERAGE_PROCESS_CONFIG="").split()
    assert engines == [engine]
    assert int(kibibytes) / 1024 <= mebibytes


def test_a_closed_keras_model_is_freed(models):
    runner = open_runner(models / "m.keras")
    model = weakref.ref(runner.model)
    runner.close()
    gc.collect()
    assert model() is None
