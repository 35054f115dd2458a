# SPDX-License-Identifier: Apache-2.0
"""The edge node's daemon: it owns the node's datasets, its models, and the outbox of samples."""

__all__: list[str] = []
