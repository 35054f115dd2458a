# SPDX-License-Identifier: Apache-2.0
"""Where labels come from: our own page, Label Studio, a deep model, or truth that arrives later."""
