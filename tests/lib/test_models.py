# SPDX-License-Identifier: Apache-2.0
"""Models that are saved, checked, sent and loaded: Keras files, SavedModel folders, torch weights."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import ModelError, PlatformError
from solar_corona.core.spec import ModelSource
from solar_corona.lib import context
from solar_corona.lib.models import (
    card_path,
    check_saveable,
    load_model,
    load_weights,
    model_bytes,
    read_card,
    remember,
    save_model,
    write_model_bytes,
)

ONE = np.ones((1, 2), np.float32)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("SOLAR_CORONA_CONTEXT", raising=False)


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="out")])


def _built(model):
    model(ONE)
    return model


def _document(**given) -> ContextDocument:
    return ContextDocument(
        job="digits",
        kind="FederatedLearningJob",
        run="r1",
        role="server",
        worker="server",
        run_folder="/",
        **given,
    )


def _same(one, other) -> None:
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


# Saving


@pytest.mark.parametrize("name", ["m.keras", "new/m.keras"])
def test_a_keras_model_comes_back_with_its_weights(tmp_path, model, name):
    path = save_model(model, tmp_path / name)
    assert path == tmp_path / name
    _same(model, load_model(path))


def test_a_saved_model_folder_serves_and_replaces_an_older_one(tmp_path, model):
    for _ in range(2):
        path = save_model(model, tmp_path / "served")
    loaded = load_model(path)
    np.testing.assert_allclose(loaded.serve(ONE), model(ONE), rtol=1e-6)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["served", "served.card.json"]


def test_the_card_beside_a_model_says_where_it_comes_from(tmp_path, model):
    remember(model, round=7, metrics={"accuracy": np.float32(0.5), "loss": float("nan")})
    with context.using(_document(output_model=str(tmp_path / "m.keras"))):
        path = save_model(model)
    card = read_card(path)
    assert (card.name, card.job, card.run, card.worker, card.round) == ("m", "digits", "r1", "server", 7)
    assert (card.metrics["accuracy"], str(card.metrics["loss"])) == (0.5, "nan")
    assert (card.format, card.bytes) == ("keras", path.stat().st_size)
    assert card.created.endswith("+00:00")
    assert {"python", "solar_corona", "keras"} <= set(card.versions)
    # Any JSON reader can read it, also where a metric is no number.
    json.loads(card_path(path).read_text(), parse_constant=pytest.fail)


def test_metrics_and_round_given_win_over_those_remembered(tmp_path, model):
    remember(model, round=7, metrics={"a": 1.0})
    card = read_card(save_model(model, tmp_path / "m.keras", metrics={"b": 2.0}, round=8))
    assert (card.round, card.metrics) == (8, {"b": 2.0})


def test_without_a_path_and_a_job_save_model_asks_for_a_path(model):
    with pytest.raises(ModelError, match=r"the script runs alone; give one: save_model\(model, 'model\.keras'\)"):
        save_model(model)
    with context.using(_document()), pytest.raises(ModelError, match="job 'digits' wants no model of this worker"):
        save_model(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.h5", r"cannot be saved as \.h5; expected a name that ends in \.keras"),
        ("m.pkl", r"m\.pkl: \.pkl files are pickles, and loading a pickle can run any code"),
    ],
)
def test_other_endings_are_refused_and_nothing_is_written(tmp_path, model, name, message):
    with pytest.raises(ModelError, match=message):
        save_model(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="models are saved on this machine"):
        save_model(model, "s3://bucket/m.keras")


class _FullDisk:
    def save(self, path: str) -> None:
        Path(path).write_bytes(b"half")
        Path("/dev/full").write_bytes(b"the rest")


def test_a_full_disk_leaves_the_old_model_and_its_card(tmp_path):
    path = write_model_bytes(b"old", tmp_path / "m.own")
    with pytest.raises(PlatformError, match="the disk is full"):
        save_model(_FullDisk(), path)
    assert load_card_matches(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.own", "m.own.card.json"]


def load_card_matches(path: Path) -> bool:
    return path.read_bytes() == b"old" and read_card(path).bytes == 3


def test_an_object_with_a_save_of_its_own_is_saved_by_it(tmp_path):
    class Own:
        def save(self, path):
            Path(path).write_text("mine")

    class Forgets:
        def save(self, path):
            pass

    assert save_model(Own(), tmp_path / "m.txt").read_text() == "mine"
    check_saveable(Own(), "m.txt")
    with pytest.raises(ModelError, match="wrote nothing"):
        save_model(Forgets(), tmp_path / "n.txt")
    with pytest.raises(ModelError, match=r"a dict cannot be saved; expected a Keras model"):
        save_model({}, tmp_path / "n.txt")


# Loading


def test_a_changed_model_is_not_loaded(tmp_path, model):
    path = save_model(model, tmp_path / "m.keras")
    good = read_card(path).sha256
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match=rf"has the SHA-256 .*, and its card says {good}; .* not loaded"):
        load_model(path)
    card_path(path).unlink()
    with pytest.raises(ModelError, match=r"and sha256 says 000"):
        load_model(path, sha256="0" * 64)
    source = ModelSource(path=str(path), sha256="1" * 64)
    with context.using(_document(model=source)), pytest.raises(ModelError, match="and the job says 111"):
        load_model(context.get_model_path())


def test_a_changed_file_in_a_saved_model_folder_is_found(tmp_path, model):
    path = save_model(model, tmp_path / "m")
    (path / "extra").touch()
    with pytest.raises(ModelError, match="and its card says"):
        load_model(path)


def test_a_model_is_loaded_from_the_web_and_checked_against_its_card(tmp_path, model):
    path = save_model(model, tmp_path / "m.keras")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        _same(model, load_model(f"{url}/m.keras?key=secret"))
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(ModelError, match=r"m\.keras: has the SHA-256") as told:
            load_model(f"{url}/m.keras?key=secret")
        assert "secret" not in str(told.value)
        with pytest.raises(ModelError, match=r"none\.keras: there is no such model"):
            load_model(f"{url}/none.keras")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_saved_model_folder_is_loaded_from_a_store(tmp_path, model):
    path = save_model(model, tmp_path / "m")
    fsspec.filesystem("memory").put(str(path), "/models/", recursive=True)
    loaded = load_model("memory://models/m")
    np.testing.assert_allclose(loaded.serve(ONE), model(ONE), rtol=1e-6)


def test_a_missing_model_is_told_with_its_near_names(tmp_path, model):
    save_model(model, tmp_path / "digits.keras")
    with pytest.raises(ModelError, match=r"there is no such model; beside it there is digits\.keras"):
        load_model(tmp_path / "digit.keras")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.pt", r"\.pt files are pickles.*use \.npz for a torch module"),
        ("m.npz", r"holds weights alone.*load_weights\(module, path\)"),
        ("m.txt", r"\.txt is no form of a model"),
    ],
)
def test_files_of_other_forms_are_not_loaded(tmp_path, name, message):
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"PK no zip", None])
def test_a_damaged_file_or_an_empty_folder_is_told(tmp_path, model, data):
    path = tmp_path / "m.keras"
    path.write_bytes(model_bytes(model, ".keras")[:-100] if data is None else data)
    with pytest.raises(ModelError, match=r"m\.keras: is no \.keras file, or is damaged"):
        load_model(path)
    with pytest.raises(ModelError, match=r"expected a SavedModel folder with saved_model\.pb"):
        load_model(tmp_path)


def test_a_lambda_in_a_file_is_never_run(tmp_path):
    unsafe = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1, name="plus")])
    unsafe.compile(loss=lambda y, p: p)
    with pytest.warns(UserWarning, match="lambda"):
        unsafe.save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match=r"Lambda 'plus' is a lambda, code inside the file, which is not run"):
        load_model(tmp_path / "m.keras")


_SCRIPT = """
import sys, keras, numpy as np
from solar_corona.lib.models import check_saveable, load_model, save_model

@keras.saving.register_keras_serializable("shop")
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.out = keras.layers.Dense(2)
    def call(self, x):
        return self.out(x)

if __name__ == "__main__":
    model = Net()
    model(np.ones((1, 2)))
    check_saveable(model, sys.argv[1])
    save_model(model, sys.argv[1])
"""


def test_a_registered_class_of_a_script_loads_elsewhere_once_its_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "their_script.py").write_text(_SCRIPT)
    # Another backend than here: it starts fast, and the file is the same.
    env = {**os.environ, "KERAS_BACKEND": "numpy"}
    path = tmp_path / "m.keras"
    subprocess.run([sys.executable, tmp_path / "their_script.py", path], check=True, capture_output=True, env=env)
    with pytest.raises(ModelError, match=r"needs the class 'shop>Net', which is not registered here; import the"):
        load_model(path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import their_script

    assert isinstance(load_model(path, custom_objects={}), their_script.Net)


# Checking before the first round


@keras.saving.register_keras_serializable("tests")
class Good(keras.Model):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.out = keras.layers.Dense(width)

    def call(self, x):
        return self.out(x)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("tests")
class NoConfig(keras.Model):
    def __init__(self, width, activation):
        super().__init__()
        self.out = keras.layers.Dense(width, activation=activation)

    def call(self, x):
        return self.out(x)


class NotRegistered(Good):
    pass


@keras.saving.register_keras_serializable("tests")
class Forgetful(Good):
    def __init__(self, width=3, **kwargs):
        super().__init__(width, **kwargs)

    def get_config(self):
        config = super().get_config()
        del config["width"]
        return config


@keras.saving.register_keras_serializable("tests")
class HalfConfig(Good):
    def get_config(self):
        return {"trainable": True}


@keras.saving.register_keras_serializable("tests")
class LateLayers(Good):
    def build(self, input_shape):
        self.built = True


@keras.saving.register_keras_serializable("tests")
class OwnLayer(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def _my_loss(truth, guess):
    return keras.ops.mean((truth - guess) ** 2)


@pytest.mark.parametrize("path", ["m.keras", "m", Path("far/away/m.keras")])
@pytest.mark.parametrize("kind", ["sequential", "subclass"])
def test_models_that_come_back_pass_and_leave_no_file(tmp_path, monkeypatch, model, path, kind):
    monkeypatch.chdir(tmp_path)
    check_saveable(model if kind == "sequential" else _built(Good(4)), path)
    assert list(tmp_path.iterdir()) == []


def test_a_trained_model_passes_whatever_its_optimizer_remembers(model):
    model.compile("adam", "mse")
    check_saveable(model, "m.keras")
    model.fit(ONE, np.ones((1, 3)), verbose=0)
    check_saveable(model, "m.keras")


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Good(4), ["has no weights yet", "call it on one batch first"]),
        (
            lambda: _built(NoConfig(4, "relu")),
            [
                "NoConfig has no get_config",
                "def __init__(self, width, activation, **kwargs):",
                'return {**super().get_config(), "width": self.width, "activation": self.activation}',
            ],
        ),
        (
            lambda: _built(NotRegistered(4)),
            ["Keras does not know the class NotRegistered", "add @keras.saving.register_keras_serializable()"],
        ),
        (lambda: _built(Forgetful(5)), ["can be saved but not loaded again", "def __init__(self, width, **kwargs):"]),
        (lambda: _built(HalfConfig(5)), ["can be saved but not loaded again", '"width": self.width']),
        (lambda: _built(LateLayers(2)), ["LateLayers", "write the class so"]),
    ],
    ids=["unbuilt", "no-config", "not-registered", "forgetful", "half-config", "late-layers"],
)
def test_a_class_that_does_not_come_back_is_told_what_to_add(make, parts):
    broken = make()
    with pytest.raises(ModelError) as told:
        check_saveable(broken, "m.keras")
    for part in parts:
        assert part in str(told.value)


def test_a_layer_without_a_config_is_named_rather_than_its_model():
    inner = keras.Sequential([keras.Input((2,)), OwnLayer(np.abs), keras.layers.Dense(1)])
    with pytest.raises(ModelError, match=r"(?s)OwnLayer.*def __init__\(self, function, \*\*kwargs\)"):
        check_saveable(inner, "m.keras")


def test_lambdas_and_unknown_functions_are_told_by_where_they_are(model):
    unsafe = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1, name="plus")])
    with pytest.raises(ModelError, match="has a lambda in Lambda 'plus'"):
        check_saveable(unsafe, "m.keras")
    model.compile(loss=_my_loss)
    with pytest.raises(ModelError, match=r"does not know the function _my_loss; add @keras"):
        check_saveable(model, "m.keras")
    check_saveable(model, "a_saved_model")


# Sending


@pytest.mark.parametrize("suffix", [".keras", ""])
def test_bytes_of_a_model_become_the_same_model_with_a_card(tmp_path, model, suffix):
    data = model_bytes(model, suffix)
    path = write_model_bytes(data, tmp_path / f"m{suffix}", round=3, metrics={"a": 1}, versions={"keras": "3"})
    assert model_bytes(path) == data
    card = read_card(path)
    assert (card.round, card.metrics, card.versions) == (3, {"a": 1.0}, {"keras": "3"})
    assert card.format == ("keras" if suffix else "saved_model")
    loaded = load_model(path)
    np.testing.assert_allclose(loaded(ONE) if suffix else loaded.serve(ONE), model(ONE), rtol=1e-6)


def test_the_server_unpacks_without_any_engine(tmp_path, model):
    (tmp_path / "sent").write_bytes(model_bytes(model, ""))
    script = (
        "import sys; from pathlib import Path; from solar_corona.lib.models import write_model_bytes\n"
        "write_model_bytes(Path(sys.argv[1]).read_bytes(), sys.argv[2])\n"
        "assert not {'keras', 'tensorflow', 'torch', 'jax', 'flwr'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "sent", tmp_path / "m"], check=True)
    assert (tmp_path / "m" / "saved_model.pb").is_file()


def _tar(*entries: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(bytes(entry.size)) if entry.isreg() else None)
    return buffer.getvalue()


def _entry(name: str, **given) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    for key, value in given.items():
        setattr(entry, key, value)
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        _entry("../out", size=1),
        _entry("a/../../out", size=1),
        _entry("link", type=tarfile.SYMTYPE, linkname="/etc"),
        _entry("link", type=tarfile.LNKTYPE, linkname="../out"),
        _entry("pipe", type=tarfile.FIFOTYPE),
        _entry("huge", type=tarfile.REGTYPE, pax_headers={"GNU.sparse.realsize": "9" * 12, "GNU.sparse.map": "0,1"}),
    ],
    ids=["up", "deep-up", "symlink", "hardlink", "pipe", "sparse"],
)
def test_a_hostile_folder_writes_nothing(tmp_path, entry):
    with pytest.raises(ModelError, match="nothing was written"):
        write_model_bytes(_tar(_entry("fine", size=1), entry), tmp_path / "in" / "m")
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_an_absolute_name_stays_inside_the_folder(tmp_path):
    target = tmp_path / "m"
    with suppress(ModelError):
        write_model_bytes(_tar(_entry(f"{tmp_path}/out", size=1)), target)
    assert not (tmp_path / "out").exists()


@given(data=st.binary(max_size=2000))
def test_bytes_that_are_no_model_write_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("sent")
    for name in ("m", "m.keras", "m.npz"):
        with pytest.raises(ModelError, match="nothing was written"):
            write_model_bytes(data, folder / name)
    assert list(folder.iterdir()) == []


def test_a_compressed_tar_is_refused(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(_entry("zeros", size=10_000_000), io.BytesIO(bytes(10_000_000)))
    with pytest.raises(ModelError, match="no model folder"):
        write_model_bytes(buffer.getvalue(), tmp_path / "m")


def test_a_process_killed_between_model_and_card_leaves_a_model_that_loads(tmp_path, model):
    path = save_model(model, tmp_path / "m.keras")
    (tmp_path / "sent").write_bytes(model_bytes(_built(Good(1)), ".keras"))
    script = (
        "import os, signal, sys; from pathlib import Path; from solar_corona.lib import models\n"
        "models.write_card = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "models.write_model_bytes(Path(sys.argv[1]).read_bytes(), sys.argv[2])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "sent", path], check=False)
    assert killed.returncode == -9
    assert load_model(path).width == 1


# Torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def _module(torch, width: int = 3):
    module = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))
    # np.savez would take this name for its own argument.
    module.register_buffer("file", torch.arange(2))
    return module


def test_weights_of_a_torch_module_come_back_without_pickle(tmp_path, torch):
    module, other = _module(torch), _module(torch)
    check_saveable(module, "m.npz")
    path = save_model(module, tmp_path / "m.npz")
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays.files) == set(module.state_dict())
    assert read_card(path).format == "npz"
    load_weights(other, path)
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert write_model_bytes(model_bytes(module, ".npz"), tmp_path / "n.npz").read_bytes() == path.read_bytes()


def test_weights_for_another_module_change_nothing(tmp_path, torch):
    path = save_model(_module(torch, 4), tmp_path / "m.npz")
    module = _module(torch)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ModelError, match=r"weight '0\.weight' has shape \(4, 2\), and this Sequential takes \(3, 2\)"):
        load_weights(module, path)
    with pytest.raises(ModelError, match=r"has no weight 'weight' for this Linear; it has '\d\.weight'"):
        load_weights(torch.nn.Linear(2, 4), path)
    with pytest.raises(ModelError, match=r"holds .* bytes of weights, and this module takes .* at most"):
        load_weights(torch.nn.Linear(1, 1), save_model(torch.nn.Linear(300, 300), tmp_path / "large.npz"))
    with pytest.raises(ModelError, match="and sha256 says"):
        load_weights(_module(torch, 4), path, sha256="0" * 64)
    path.write_bytes(path.read_bytes()[:-40])
    card_path(path).unlink()
    with pytest.raises(ModelError, match=r"no \.npz file of weights, or is damaged"):
        load_weights(_module(torch, 4), path)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_torch_modules_that_only_pickle_could_save_are_refused(tmp_path, torch):
    with pytest.raises(ModelError, match=r"\.pt files are pickles.*use \.npz"):
        save_model(_module(torch), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"\.pt files are pickles"):
        load_weights(_module(torch), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"cannot be saved as \.keras; expected a name that ends in \.npz"):
        check_saveable(_module(torch), "m.keras")
    with pytest.raises(ModelError, match=r"'0\.weight' \(torch\.bfloat16\) has no form in NumPy.*module\.float\(\)"):
        check_saveable(_module(torch).to(torch.bfloat16), "m.npz")


def test_a_zip_that_grows_a_hundredfold_is_no_config(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"{}")
        archive.filelist[0].file_size = 1 << 40
    with pytest.raises(ModelError, match=r"its config\.json is larger than"):
        load_model(path)
    assert path.stat().st_size < 1000
