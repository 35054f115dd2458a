# SPDX-License-Identifier: Apache-2.0
"""Flower strategies: streaming aggregation, the registry of plug-ins, and their contract test."""

from __future__ import annotations

from .checks import check_strategy
from .fedavg import FedAvg
from .registry import available, create, resolve

__all__ = ["FedAvg", "available", "check_strategy", "create", "resolve"]
