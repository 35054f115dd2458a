# SPDX-License-Identifier: Apache-2.0
"""One small network in every format, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from solar_corona.tests.lib.runners.networks import as_litert, as_onnx, multitask, network, routers


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("SOLAR_CORONA_CONTEXT", raising=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Return a folder with the network in every format; tests must not write to it."""
    folder = tmp_path_factory.mktemp("models")
    model = network()
    model.save(folder / "m.keras")
    model.export(str(folder / "m"), verbose=False)
    as_litert(folder / "m", folder / "m.tflite")
    as_litert(folder / "m", folder / "quantized.tflite", quantized=True)
    as_onnx(model, folder / "m.onnx")
    single = network(batch=1)
    single.save(folder / "single.keras")
    single.export(str(folder / "single"), verbose=False)
    as_litert(folder / "single", folder / "single.tflite")
    as_onnx(model, folder / "single.onnx", batch=1)
    as_onnx(model, folder / "four.onnx", batch=4)
    for kind, router in routers().items():
        made = multitask(router)
        made.save(folder / f"{kind}.keras")
        made.export(str(folder / kind), verbose=False)
        as_litert(folder / kind, folder / f"{kind}.tflite")
    return folder
