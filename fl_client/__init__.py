# SPDX-License-Identifier: Apache-2.0
"""The edge of federated learning: `fit()`, the warm node, and the ClientApp for stock SuperNodes."""
