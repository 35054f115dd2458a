# SPDX-License-Identifier: Apache-2.0
"""What the hub's tests have, for labelling too."""

from __future__ import annotations

from ..hub.conftest import client_of, clock, hub, make_hub, samples

__all__ = ["client_of", "clock", "hub", "make_hub", "samples"]
