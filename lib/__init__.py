# SPDX-License-Identifier: Apache-2.0
"""What a script uses: context, datasets, model formats, losses, metrics, optimizers."""
