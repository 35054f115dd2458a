# SPDX-License-Identifier: Apache-2.0
"""Deep models that answer elsewhere: a service that speaks a known dialect, or a Python callable."""
