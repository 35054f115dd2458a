# SPDX-License-Identifier: Apache-2.0
"""The tables of the first release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "consumed_labels",
        sa.Column("sample", sa.String(length=64), nullable=False),
        sa.Column("training", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("sample"),
    )
    with op.batch_alter_table("consumed_labels", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_consumed_labels_training"), ["training"], unique=False)

    op.create_table(
        "dataset_versions",
        sa.Column("version", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("missing", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("what", sa.String(length=40), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "edges",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("heartbeat", sa.JSON(), nullable=False),
        sa.Column("clock_ahead", sa.Double(), nullable=False),
        sa.Column("wanted_version", sa.Integer(), nullable=True),
        sa.Column("shadow_version", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "gone_samples",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("why", sa.String(length=16), nullable=False),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("source", sa.String(length=100), nullable=True),
        sa.Column("task", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("gone_samples", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_gone_samples_pending"), ["pending"], unique=False)

    op.create_table(
        "label_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("sample", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("source", sa.String(length=100), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("value", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("label_events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_label_events_sample"), ["sample"], unique=False)

    op.create_table(
        "labels",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("sample", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=100), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("value", sa.JSON(), nullable=True),
        sa.Column("skipped", sa.Boolean(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sample", "source", "by"),
    )
    with op.batch_alter_table("labels", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_labels_sample"), ["sample"], unique=False)

    op.create_table(
        "loop_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("training", sa.Integer(), nullable=True),
        sa.Column("candidate", sa.Integer(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("triggers", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "model_versions",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("training", sa.Integer(), nullable=True),
        sa.Column("dataset", sa.Integer(), nullable=True),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("file", sa.String(length=200), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.Column("promoted_at", sa.Double(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("version"),
    )
    with op.batch_alter_table("model_versions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_model_versions_state"), ["state"], unique=False)

    op.create_table(
        "observations",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("edge", sa.String(length=63), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("reference", sa.Integer(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("edge", "seq"),
    )
    with op.batch_alter_table("observations", schema=None) as batch_op:
        batch_op.create_index("observations_of", ["version", "id"], unique=False)

    op.create_table(
        "samples",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("edge", sa.String(length=63), nullable=False),
        sa.Column("model", sa.Integer(), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("media_type", sa.String(length=100), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=True),
        sa.Column("hardness", sa.Double(), nullable=True),
        sa.Column("prediction", sa.JSON(), nullable=True),
        sa.Column("probabilities", sa.JSON(), nullable=True),
        sa.Column("embedding", sa.JSON(), nullable=True),
        sa.Column("subject", sa.String(length=200), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_at", sa.Double(), nullable=False),
        sa.Column("source", sa.String(length=100), nullable=True),
        sa.Column("task", sa.String(length=200), nullable=True),
        sa.Column("label", sa.JSON(), nullable=True),
        sa.Column("labelled_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("samples", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_samples_edge"), ["edge"], unique=False)
        batch_op.create_index(batch_op.f("ix_samples_labelled_at"), ["labelled_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_samples_received_at"), ["received_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_samples_state"), ["state"], unique=False)
        batch_op.create_index(batch_op.f("ix_samples_subject"), ["subject"], unique=False)

    op.create_table(
        "training_runs",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number"),
    )
    with op.batch_alter_table("training_runs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_training_runs_state"), ["state"], unique=False)

    op.create_table(
        "dataset_version_samples",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sample", sa.String(length=64), nullable=False),
        sa.Column("split", sa.String(length=8), nullable=False),
        sa.Column("label", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["version"],
            ["dataset_versions.version"],
        ),
        sa.PrimaryKeyConstraint("version", "sample"),
    )
    with op.batch_alter_table("dataset_version_samples", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_dataset_version_samples_sample"), ["sample"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("dataset_version_samples", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_dataset_version_samples_sample"))

    op.drop_table("dataset_version_samples")
    with op.batch_alter_table("training_runs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_training_runs_state"))

    op.drop_table("training_runs")
    with op.batch_alter_table("samples", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_samples_subject"))
        batch_op.drop_index(batch_op.f("ix_samples_state"))
        batch_op.drop_index(batch_op.f("ix_samples_received_at"))
        batch_op.drop_index(batch_op.f("ix_samples_labelled_at"))
        batch_op.drop_index(batch_op.f("ix_samples_edge"))

    op.drop_table("samples")
    with op.batch_alter_table("observations", schema=None) as batch_op:
        batch_op.drop_index("observations_of")

    op.drop_table("observations")
    with op.batch_alter_table("model_versions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_model_versions_state"))

    op.drop_table("model_versions")
    op.drop_table("loop_state")
    with op.batch_alter_table("labels", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_labels_sample"))

    op.drop_table("labels")
    with op.batch_alter_table("label_events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_label_events_sample"))

    op.drop_table("label_events")
    with op.batch_alter_table("gone_samples", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_gone_samples_pending"))

    op.drop_table("gone_samples")
    op.drop_table("edges")
    op.drop_table("decisions")
    op.drop_table("dataset_versions")
    with op.batch_alter_table("consumed_labels", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_consumed_labels_training"))

    op.drop_table("consumed_labels")
