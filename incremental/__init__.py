# SPDX-License-Identifier: Apache-2.0
"""The more a model is used, the better it gets: hard samples, the hub, labels, triggers, training, gate and rollout."""
