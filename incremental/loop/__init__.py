# SPDX-License-Identifier: Apache-2.0
"""The loop: triggers, trainings, the gate and the rollout, as a machine that goes on where it was killed."""
