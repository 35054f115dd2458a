# SPDX-License-Identifier: Apache-2.0
"""IBT: image-level and box-level thresholds, for detectors and classifiers."""

from __future__ import annotations

from typing import Any

from ..core.errors import ModelError
from ..lib.scores import Scores
from .credit import BoundedCredit, Hold, is_share
from .offload import Decision
from .ranks import Ranks

__all__ = ["IBT"]

_BOX = 0.7
_IMAGE = 0.5
# How unsure all boxes are together decides between images with as many unsure boxes.
_TIE = 1e-3


class IBT:
    """Image-level and box-level thresholds (the rule of KubeEdge Sedna), or its boxes at an upload ratio.

    With thresholds, an image is uploaded if at least 1 − `threshold_img` of its boxes have a score up to
    `threshold_box`. With a ratio, the hardest images go: h = #{boxes with score ≤ threshold_box} + 10⁻³·Σ(1 − score),
    which ranked images better than the fraction in a study of our own. An image without boxes is easy: calling it hard
    was worse than chance. A classifier's best class counts as its one box.

    Parameters
    ----------
    upload_ratio
        Share of the images to upload; None uses the thresholds.
    threshold_box
        Score up to which a box is unsure.
    threshold_img
        The larger, the fewer boxes have to be unsure.
    hold
        How closely a ratio is held: `strict`, `default` or `relaxed`.

    Raises
    ------
    ModelError
        If a threshold or the ratio is no share.
    """

    def __init__(
        self,
        upload_ratio: float | None = None,
        *,
        threshold_box: float = _BOX,
        threshold_img: float = _IMAGE,
        hold: Hold = "default",
    ) -> None:
        for name, value in (("threshold_box", threshold_box), ("threshold_img", threshold_img)):
            if not is_share(value):
                raise ModelError(f"{name} is {value!r}, expected a number from 0 to 1")
        self._credit = BoundedCredit(upload_ratio, hold=hold) if upload_ratio is not None else None
        self._box, self._image, self._hold = float(threshold_box), float(threshold_img), hold
        self._ratio = None if upload_ratio is None else float(upload_ratio)
        self._ranks = Ranks()

    def decide(self, scores: Scores) -> Decision:
        """Decide on the next image."""
        values = scores.values.tolist()
        if not scores.boxes:
            values = [max(values)] if values else []
        unsure = sum(value <= self._box for value in values)
        share = unsure / len(values) if values else 0.0
        if self._credit is None:
            upload = bool(values) and share >= 1 - self._image
            return Decision(upload, 1 - share, f"{unsure} of {len(values)} boxes are unsure")
        hardness = unsure + _TIE * sum(1 - value for value in values)
        upload = self._credit.take(self._ranks.place(hardness / (1 + hardness)))
        told = "hard among its like" if upload else "easy among its like, or the ratio is spent"
        return Decision(upload, 1 - share, f"{unsure} of {len(values)} boxes are unsure: {told}")

    def describe(self) -> dict[str, Any]:
        """Return the name and the parameters."""
        told: dict[str, Any] = {"name": "ibt", "threshold_box": self._box}
        if self._credit is None:
            return {**told, "threshold_img": self._image}
        return {**told, "upload_ratio": self._ratio, "hold": self._hold}
