# SPDX-License-Identifier: Apache-2.0
"""The server of federated learning: round loop, roster, checkpoints, and the ServerApp around them."""
