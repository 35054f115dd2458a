# SPDX-License-Identifier: Apache-2.0
"""An ordinary Flower app with Keras, after Flower's TensorFlow quickstart."""
