# SPDX-License-Identifier: Apache-2.0
"""Measurements against a peer or a physical limit, both taken in the same run."""
