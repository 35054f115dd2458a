# SPDX-License-Identifier: Apache-2.0
"""Accuracy against uploads: what each share of uploads brings when the hardest samples go first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["accuracy_curve", "area_under_curve", "oracle_hardness"]

_Bools = NDArray[np.bool_]


def accuracy_curve(hardness: NDArray[np.float64], shallow_right: _Bools, deep_right: _Bools) -> NDArray[np.float64]:
    """Return the accuracy when the k hardest of n samples are uploaded, for k from 0 to n: n + 1 numbers.

    Parameters
    ----------
    hardness
        By which samples are ranked, n; larger is harder. Samples of one hardness go in their order.
    shallow_right, deep_right
        Whether each model is right on each sample: n bool.

    Examples
    --------
    >>> accuracy_curve(np.array([0.9, 0.1]), np.array([False, True]), np.array([True, True])).tolist()
    [0.5, 1.0, 1.0]
    """
    order = np.argsort(-hardness, kind="stable")
    gains = deep_right[order].astype(np.float64) - shallow_right[order]
    right: NDArray[np.float64] = shallow_right.sum() + np.concatenate([[0.0], np.cumsum(gains)])
    return right / max(len(order), 1)


def area_under_curve(hardness: NDArray[np.float64], shallow_right: _Bools, deep_right: _Bools) -> float:
    """Return the mean accuracy over all shares of uploads from 0 to 1 (trapezoids)."""
    curve = accuracy_curve(hardness, shallow_right, deep_right)
    return float((curve[:-1] + curve[1:]).mean() / 2)


def oracle_hardness(shallow_right: _Bools, deep_right: _Bools) -> NDArray[np.float64]:
    """Return the ranking of who knows both models' errors: first where the deep model helps, last where it harms."""
    return deep_right.astype(np.float64) - shallow_right
