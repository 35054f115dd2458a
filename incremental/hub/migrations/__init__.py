# SPDX-License-Identifier: Apache-2.0
"""How a hub's database of an older release becomes one of this release; read by Alembic."""
