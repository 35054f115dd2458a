# SPDX-License-Identifier: Apache-2.0
"""Scripts as users write them, with each framework that `fit()` takes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.system

# ruff: noqa: E501
# The shape of script that must run unchanged; only the helpers that it leaves undefined are added.
HELPERS = '''
import keras
import tensorflow as tf
import solar_corona

def normalize(x, x_test):
    return x / 255.0, x_test / 255.0

def prepare_cifar(x, y):
    return tf.cast(x, tf.float32), tf.one_hot(tf.reshape(tf.cast(y, tf.int32), ()), 10)

@keras.saving.register_keras_serializable(package="test")
class VGG16(keras.Model):
    """A user's own subclass; small."""

    def __init__(self, shape, **options):
        super().__init__(**options)
        self.shape = list(shape)
        self.body = keras.Sequential([
            keras.Input(self.shape), keras.layers.Conv2D(4, 3, strides=4), keras.layers.Flatten(),
            keras.layers.Dense(10),
        ])

    def call(self, x):
        return self.body(x)

    def get_config(self):
        return {**super().get_config(), "shape": self.shape}
'''
SCRIPT = """
(x, y) = solar_corona.load_train_dataset()
(x_test, y_test) = solar_corona.load_eval_dataset()
x, x_test = normalize(x, x_test)
epochs = solar_corona.context.get_parameters('epochs')
batch_size = solar_corona.context.get_parameters('batch_size')
aggregation_algorithm = solar_corona.context.get_parameters('aggregation_algorithm')
train_loader = tf.data.Dataset.from_tensor_slices((x, y))
train_loader = train_loader.map(prepare_cifar).shuffle(50000).batch(batch_size)
test_loader = tf.data.Dataset.from_tensor_slices((x_test, y_test))
test_loader = test_loader.map(prepare_cifar).shuffle(10000).batch(batch_size)
model = VGG16([32, 32, 3])                       # the user's own Keras model
loss = solar_corona.losses.ADifferentCategoricalCrossentropy()       # or keras.losses.CategoricalCrossentropy(from_logits=True)
metric = solar_corona.metrics.ADifferentCategoricalAccuracy()        # or keras.metrics.CategoricalAccuracy()
optimizer = solar_corona.optimizers.ADifferentAdam(learning_rate=0.0001)   # or keras.optimizers.Adam(…)
model = solar_corona.collaborative_training.fit(train_loader=train_loader, test_loader=test_loader, model=model,
    loss=loss, metric=metric, optimizer=optimizer, batch_size=batch_size, epochs=epochs,
    aggregation_algorithm=aggregation_algorithm)
solar_corona.save_model(model)
"""
LOAD = """
import sys, runpy, keras
import solar_corona
exec(open("helpers.py").read())
model = solar_corona.load_model(sys.argv[1])
print(type(model).__name__, model.count_params())
"""


def test_the_issues_script_runs_unchanged_over_a_superlink_and_its_model_loads_elsewhere(make_job):
    job = make_job(edges=2, rounds=2, roundDeadline="100s", startDeadline="150s")
    job.change(
        lambda spec: spec.update(
            parameters={"epochs": 1, "batch_size": 8, "aggregation_algorithm": "fedadam"},
            output={"model": "out/vgg.keras"},
        )
    )
    rng = np.random.default_rng(1)
    for path in (job.folder / "data").glob("*.npz"):
        np.savez(path, x=rng.integers(0, 255, (24, 32, 32, 3), dtype=np.uint8), y=rng.integers(0, 10, (24, 1)))
    (job.folder / "train.py").write_text(HELPERS + SCRIPT)
    (job.folder / "helpers.py").write_text(HELPERS)
    done = job.run(timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr + job.logs()
    assert job.rounds() == [1, 2]
    started = job.events("job-started")[0]
    assert started.algorithm == "fedadam"
    assert (job.run_folder().path / "edges/edge-0/vgg.keras").exists()
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, "out/vgg.keras"], capture_output=True, text=True, cwd=job.folder, check=False
    )
    assert loaded.stdout.startswith("VGG16 "), loaded.stderr


KERAS = """
import keras
import numpy as np
import solar_corona

x, y = solar_corona.load_train_dataset()
x_test, y_test = solar_corona.load_eval_dataset()
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
model.compile(
    optimizer=solar_corona.optimizers.ADifferentAdam(0.05),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
seen = []
note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
model = solar_corona.collaborative_training.fit(
    (x, y), (x_test, y_test), model, batch_size=16, epochs=2, callbacks=[note]
)
assert seen, "the callback was not called"
solar_corona.save_model(model)
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_a_compiled_keras_model_of_each_backend_learns(make_job, backend):
    pytest.importorskip(backend)
    job = make_job(edges=2, rounds=3)
    job.change(lambda spec: spec.update(output={"model": "out/model.keras"}))
    (job.folder / "train.py").write_text(KERAS)
    done = subprocess.run(
        [sys.executable, "-m", "solar_corona.cli", "run", "job.yaml", "--in-process"],
        capture_output=True,
        text=True,
        cwd=job.folder,
        env={**os.environ, "KERAS_BACKEND": backend},
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = {e.round: e.metrics["accuracy"] for e in job.events("round-evaluated")}
    assert accuracy[3] > accuracy[0]
    assert (job.folder / "out/model.keras").exists()


def test_a_script_without_a_job_trains_alone_and_says_so(make_job):
    job = make_job()
    script = job.folder / "train.py"
    text = script.read_text()
    begin, end = text.index("x, y = solar_corona.load_train"), text.index("model = Softmax(x")
    script.write_text(
        text[:begin]
        + "x, y = x_test, y_test = solar_corona.load_dataset('data/edge-0.npz')\n"
        + text[end:].replace("solar_corona.save_model(model)", "solar_corona.save_model(model, 'alone.npz')")
    )
    done = subprocess.run(
        [sys.executable, "train.py"], capture_output=True, text=True, cwd=job.folder, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "trains alone on this machine" in done.stderr
    assert (job.folder / "alone.npz").exists()


def test_a_hundred_edges_train_in_one_process(make_job):
    job = make_job(edges=100, rounds=2, minEdges=80, fraction=0.9)
    done = job.run("--in-process", "--json")
    assert done.returncode == 0, done.stderr
    replied = [e.replied for e in job.events("round-finished")]
    assert replied == [90, 90]
    assert yaml.safe_load(job.run_folder().job_file.read_text())["kind"] == "FederatedLearningJob"
