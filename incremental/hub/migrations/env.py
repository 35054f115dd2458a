# SPDX-License-Identifier: Apache-2.0
"""Run by Alembic for each command; the connection is handed over by `database.py`, or a new revision asks for one."""

from __future__ import annotations

from alembic import context

from solar_corona.incremental.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite can change little of a table that is there: Alembic makes a new one and copies.
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
