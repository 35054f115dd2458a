# SPDX-License-Identifier: Apache-2.0
"""One module for each step, never changed after a release: a change of the tables is a new module."""
