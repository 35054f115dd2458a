# SPDX-License-Identifier: Apache-2.0
"""Flower strategies: streaming aggregation, the registry of plug-ins, and their contract test."""

from __future__ import annotations

from .checks import check_strategy
from .extensions import AsksEdges, PerEdge, TellsEvents
from .fedavg import FedAvg
from .grouped import GroupedStrategy
from .registry import available, create, resolve

__all__ = [
    "AsksEdges",
    "FedAvg",
    "GroupedStrategy",
    "PerEdge",
    "TellsEvents",
    "available",
    "check_strategy",
    "create",
    "resolve",
]
