# SPDX-License-Identifier: Apache-2.0
"""Joint inference: a shallow model answers on the edge, and sends hard samples to a deep one within a budget.

In a script, `solar_corona.joint_inference` is this package; its names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lib.scores import Scores as Scores
    from .calibrated import Calibrated as Calibrated
    from .checks import check_offload_algorithm as check_offload_algorithm
    from .edge_model import EdgeModel as EdgeModel
    from .entropy import Entropy as Entropy
    from .ibt import IBT as IBT
    from .inference import Inference as Inference
    from .learned import Learned as Learned
    from .loading import get_big_model_endpoint as get_big_model_endpoint
    from .margin import Margin as Margin
    from .offload import Decision as Decision
    from .offload import OffloadAlgorithm as OffloadAlgorithm
    from .threshold import Threshold as Threshold
    from .uploads import UploadForm as UploadForm

_PLACES = {
    "Calibrated": "calibrated",
    "Decision": "offload",
    "EdgeModel": "edge_model",
    "Entropy": "entropy",
    "IBT": "ibt",
    "Inference": "inference",
    "Learned": "learned",
    "Margin": "margin",
    "OffloadAlgorithm": "offload",
    "Scores": "offload",
    "Threshold": "threshold",
    "UploadForm": "uploads",
    "check_offload_algorithm": "checks",
    "get_big_model_endpoint": "loading",
}

__all__ = [
    "IBT",
    "Calibrated",
    "Decision",
    "EdgeModel",
    "Entropy",
    "Inference",
    "Learned",
    "Margin",
    "OffloadAlgorithm",
    "Scores",
    "Threshold",
    "UploadForm",
    "check_offload_algorithm",
    "get_big_model_endpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
