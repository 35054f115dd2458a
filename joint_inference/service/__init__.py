# SPDX-License-Identifier: Apache-2.0
"""The cloud inference service: models by name and version behind the Open Inference Protocol."""
