# SPDX-License-Identifier: Apache-2.0
"""The shared vocabulary: specs, plan, launchers' protocol, errors, settings, stores, security."""
