# SPDX-License-Identifier: Apache-2.0
"""Keeps the samples that a model has yet to learn: which, within which budget, and their way to the node's store."""
