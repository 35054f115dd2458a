# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

# Behind all else, so that only `benchmarks` is found there: tests use its federation in one thread.
sys.path.append(str(Path(__file__).parents[1]))

# Nothing is reported to anybody, and TensorFlow keeps quiet, in every test and every process a test starts.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# How long one example takes says more about what else the machine does.
settings.register_profile("solar-corona", deadline=None)
settings.load_profile("solar-corona")
