"""records and change log

The five stored kinds, the change log (`changes`) and its head with the identity of this database.

Times are microseconds since 1970 (BIGINT). JSON is TEXT on SQLite: a column declared JSON has numeric affinity there
and would turn the JSON text `1e2` into the integer 100.

Revision: 0001
Follows: nothing
Made: 2026-11-21
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def json_column(name: str) -> sa.Column:
    return sa.Column(name, sa.JSON().with_variant(sa.Text(), "sqlite"), nullable=False)


def record_table(name: str, *columns: sa.Column | sa.Constraint) -> None:
    op.create_table(
        name,
        sa.Column("namespace", sa.String(200), nullable=False),
        sa.Column("id", sa.String(256), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("namespace", "id", name=f"pk_{name}"),
    )


def episode_columns(table: str) -> tuple[sa.Column, sa.Constraint]:
    return (
        sa.Column("episode_id", sa.String(256), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "episode_id"],
            ["episodes.namespace", "episodes.id"],
            name=f"fk_{table}_namespace_episode_id_episodes",
            ondelete="CASCADE",
        ),
    )


def index(table: str, *columns: str) -> None:
    names = ["namespace", *columns]
    op.create_index(f"ix_{table}_{'_'.join(names)}", table, names)


def upgrade() -> None:
    record_table(
        "episodes",
        sa.Column("task_type", sa.String(256), nullable=False),
        sa.Column("domain", sa.String(256), nullable=False),
        json_column("context"),
        sa.Column("status", sa.String(256), nullable=False),
        sa.Column("success_rate", sa.Float()),
        sa.Column("reward_score", sa.Float()),
        sa.Column("completed_at", sa.BigInteger()),
        sa.Column("reflection", sa.Text()),
        json_column("metadata"),
    )
    index("episodes", "domain", "created_at")
    index("episodes", "status")
    index("episodes", "created_at")
    index("episodes", "task_type")

    record_table(
        "steps",
        *episode_columns("steps"),
        sa.Column("step_number", sa.BigInteger(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.Column("duration_ms", sa.BigInteger()),
        sa.Column("success", sa.Boolean()),
        sa.Column("timestamp", sa.BigInteger()),
        sa.Column("tool_name", sa.String(256)),
        sa.UniqueConstraint("namespace", "episode_id", "step_number", name="uq_steps_namespace_episode_id_step_number"),
    )
    index("steps", "timestamp")
    index("steps", "tool_name")

    record_table(
        "patterns",
        sa.Column("pattern_type", sa.String(256), nullable=False),
        json_column("pattern_data"),
        sa.Column("domain", sa.String(256)),
        sa.Column("success_rate", sa.Float(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.Column("usage_count", sa.BigInteger(), nullable=False),
        sa.Column("last_used", sa.BigInteger()),
        json_column("metadata"),
    )
    index("patterns", "pattern_type", "success_rate")
    index("patterns", "usage_count")
    index("patterns", "domain")

    record_table(
        "embeddings",
        *episode_columns("embeddings"),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.Column("model_name", sa.String(256), nullable=False),
        sa.Column("vector_dim", sa.BigInteger(), nullable=False),
    )
    index("embeddings", "episode_id")
    index("embeddings", "model_name")

    record_table(
        "spatiotemporal_index",
        *episode_columns("spatiotemporal_index"),
        sa.Column("spatial_key", sa.String(256), nullable=False),
        sa.Column("temporal_key", sa.String(256), nullable=False),
        sa.Column("diversity_score", sa.Float()),
    )
    index("spatiotemporal_index", "episode_id")
    index("spatiotemporal_index", "spatial_key", "temporal_key")
    index("spatiotemporal_index", "diversity_score")

    head = op.create_table(
        "head",
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.Column("store_id", sa.String(32), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("shard", name="pk_head"),
    )
    op.create_table(
        "changes",
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("namespace", sa.String(200), nullable=False),
        sa.Column("key", sa.String(256)),
        sa.Column("parent", sa.String(256)),
        sa.Column("operation", sa.String(16), nullable=False),
        sa.Column("revision", sa.BigInteger()),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.Column("image", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("shard", "position", "idx", name="pk_changes"),
    )
    # Which database this is: a saved cache of another one must never be used, whatever its position.
    op.bulk_insert(head, [{"shard": 0, "position": 0, "nonce": 0, "store_id": uuid.uuid4().hex, "epoch": 1}])


def downgrade() -> None:
    for table in ("changes", "head", "spatiotemporal_index", "embeddings", "patterns", "steps", "episodes"):
        op.drop_table(table)
