# SPDX-License-Identifier: Apache-2.0
"""The hub: takes samples in, keeps them and their labels, and makes versions of data sets from them."""
