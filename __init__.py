# SPDX-License-Identifier: Apache-2.0
"""Solar Corona: edge-cloud AI for the training script you already have.

Public names are loaded when they are first used, so that importing the package needs neither TensorFlow nor Flower.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import incremental as incremental
    from . import joint_inference as joint_inference
    from .fl_client import collaborative_training as collaborative_training
    from .joint_inference.loading import load_model as load_model
    from .lib import context as context
    from .lib import losses as losses
    from .lib import metrics as metrics
    from .lib import optimizers as optimizers
    from .lib.datasets import load_dataset as load_dataset
    from .lib.datasets import load_eval_dataset as load_eval_dataset
    from .lib.datasets import load_train_dataset as load_train_dataset
    from .lib.models import load_weights as load_weights
    from .lib.models import save_model as save_model
    from .lib.multitask import make_multitask as make_multitask
    from .lib.routers import AttributeRouter as AttributeRouter
    from .lib.routers import GaussianRouter as GaussianRouter
    from .lib.runners.checks import check_runner as check_runner
    from .lib.runners.opening import open_runner as open_runner
    from .lib.trainable import Trainable as Trainable
    from .strategies.checks import check_strategy as check_strategy

__version__ = "0.1.0"

# Where each public name lives; None as the attribute means the module itself.
_PLACES: dict[str, tuple[str, str | None]] = {
    "AttributeRouter": (".lib.routers", "AttributeRouter"),
    "GaussianRouter": (".lib.routers", "GaussianRouter"),
    "Trainable": (".lib.trainable", "Trainable"),
    "check_runner": (".lib.runners.checks", "check_runner"),
    "check_strategy": (".strategies.checks", "check_strategy"),
    "collaborative_training": (".fl_client.collaborative_training", None),
    "context": (".lib.context", None),
    "incremental": (".incremental", None),
    "joint_inference": (".joint_inference", None),
    "load_dataset": (".lib.datasets", "load_dataset"),
    "load_eval_dataset": (".lib.datasets", "load_eval_dataset"),
    "load_model": (".joint_inference.loading", "load_model"),
    "load_train_dataset": (".lib.datasets", "load_train_dataset"),
    "load_weights": (".lib.models", "load_weights"),
    "losses": (".lib.losses", None),
    "make_multitask": (".lib.multitask", "make_multitask"),
    "metrics": (".lib.metrics", None),
    "open_runner": (".lib.runners.opening", "open_runner"),
    "optimizers": (".lib.optimizers", None),
    "save_model": (".lib.models", "save_model"),
}

__all__ = [
    "AttributeRouter",
    "GaussianRouter",
    "Trainable",
    "check_runner",
    "check_strategy",
    "collaborative_training",
    "context",
    "incremental",
    "joint_inference",
    "load_dataset",
    "load_eval_dataset",
    "load_model",
    "load_train_dataset",
    "load_weights",
    "losses",
    "make_multitask",
    "metrics",
    "open_runner",
    "optimizers",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'solar_corona' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    loaded = import_module(module, __name__)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
