# SPDX-License-Identifier: Apache-2.0
"""The loop: triggers, trainings, gate and rollout, each step durable before it is taken."""
