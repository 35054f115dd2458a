# SPDX-License-Identifier: Apache-2.0
"""Runs saved models for inference, each format behind one protocol."""
