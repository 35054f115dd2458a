# SPDX-License-Identifier: Apache-2.0
"""A job's plan as Kubernetes objects, and the image that its workers run in."""

from __future__ import annotations

from .manifests import render, to_yaml

__all__ = ["render", "to_yaml"]
