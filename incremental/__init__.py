# SPDX-License-Identifier: Apache-2.0
"""The more a model is used, the better it gets: hard samples, the hub, labels, triggers, training, gate and rollout.

In a script, `solar_corona.incremental` is this package; its names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lib.hard_samples.detector import HardSampleDetector as HardSampleDetector
    from ..lib.hard_samples.detector import Seen as Seen
    from ..lib.hard_samples.detector import Verdict as Verdict
    from ..lib.hard_samples.subjects import subject as subject
    from .checks import check_hard_sample_detector as check_hard_sample_detector
    from .disagreement import Disagreement as Disagreement
    from .drift_checks import check_drift_detector as check_drift_detector
    from .embedding_distance import EmbeddingDistance as EmbeddingDistance
    from .entropy import Entropy as Entropy
    from .labelling.checks import check_labelling_source as check_labelling_source
    from .labels import report_label as report_label
    from .labels import sample_id as sample_id
    from .margin import Margin as Margin
    from .mixed import Mixed as Mixed
    from .threshold import Threshold as Threshold

_PLACES = {
    "Disagreement": ".disagreement",
    "EmbeddingDistance": ".embedding_distance",
    "Entropy": ".entropy",
    "HardSampleDetector": "..lib.hard_samples.detector",
    "Margin": ".margin",
    "Mixed": ".mixed",
    "Seen": "..lib.hard_samples.detector",
    "Threshold": ".threshold",
    "Verdict": "..lib.hard_samples.detector",
    "check_drift_detector": ".drift_checks",
    "check_hard_sample_detector": ".checks",
    "check_labelling_source": ".labelling.checks",
    "report_label": ".labels",
    "sample_id": ".labels",
    "subject": "..lib.hard_samples.subjects",
}

__all__ = [
    "Disagreement",
    "EmbeddingDistance",
    "Entropy",
    "HardSampleDetector",
    "Margin",
    "Mixed",
    "Seen",
    "Threshold",
    "Verdict",
    "check_drift_detector",
    "check_hard_sample_detector",
    "check_labelling_source",
    "report_label",
    "sample_id",
    "subject",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
