# SPDX-License-Identifier: Apache-2.0
"""Joint inference: a shallow model answers on the edge, and sends hard samples to a deep one within a budget."""
