"""records and change log

The five stored kinds, the change log (`changes`) and its head with the identity of this database.

Times are microseconds since 1970 (BIGINT). JSON is TEXT on SQLite: a column declared JSON has numeric affinity there
and would turn the JSON text `1e2` into the integer 100; on PostgreSQL it is `json`, which keeps the text as it is. Text
sorts by its bytes on both.

The head has one row on SQLite, whose writers share one lock anyway. On PostgreSQL it has `-x heads=N` of them, 16 when
nothing is said: namespaces are spread over them by a hash, and those of different heads do not wait for each other.

Revision: 0001
Follows: nothing
Made: 2026-11-21
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import context, op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


MOST_HEADS = 256
"""The shard of a namespace is taken from one byte of its hash."""


def by_bytes(type_: sa.String) -> sa.String:
    return type_.with_variant(sa.Text(collation="C"), "postgresql")


def short(length: int = 256) -> sa.String:
    return by_bytes(sa.String(length))


def long() -> sa.String:
    return by_bytes(sa.Text())


def heads() -> int:
    """Return how many heads the database gets; it cannot be changed later, for positions are counted a head."""
    if op.get_context().dialect.name == "sqlite":
        return 1
    given = context.get_x_argument(as_dictionary=True).get("heads") or context.config.attributes.get("heads") or 16
    if not (str(given).isascii() and str(given).isdigit() and 1 <= int(given) <= MOST_HEADS):
        raise ValueError(f"heads must be a number from 1 to {MOST_HEADS}, got {given!r}")
    return int(given)


def json_column(name: str) -> sa.Column:
    return sa.Column(name, sa.JSON().with_variant(sa.Text(), "sqlite"), nullable=False)


def record_table(name: str, *columns: sa.Column | sa.Constraint, indexes: list[list[str]]) -> None:
    """Make a table, its indexes (each begins with the namespace), and its primary key, on a server as the last one.

    Of indexes that would cost the same, as all do while a table is nearly empty, PostgreSQL takes the newest one, and
    keeps the plan while the table grows: a record looked up by way of all records of its namespace.
    """
    key, on_server = ("namespace", "id"), op.get_context().dialect.name != "sqlite"
    op.create_table(
        name,
        sa.Column("namespace", short(200), nullable=False),
        sa.Column("id", short(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        *columns,
        *([] if on_server else [sa.PrimaryKeyConstraint(*key, name=f"pk_{name}")]),
    )
    for names in indexes:
        op.create_index(f"ix_{name}_namespace_{'_'.join(names)}", name, ["namespace", *names])
    if on_server:
        op.create_primary_key(f"pk_{name}", name, key)


def episode_columns(table: str) -> tuple[sa.Column, sa.Constraint]:
    return (
        sa.Column("episode_id", short(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "episode_id"],
            ["episodes.namespace", "episodes.id"],
            name=f"fk_{table}_namespace_episode_id_episodes",
            ondelete="CASCADE",
        ),
    )


def upgrade() -> None:
    record_table(
        "episodes",
        sa.Column("task_type", short(), nullable=False),
        sa.Column("domain", short(), nullable=False),
        json_column("context"),
        sa.Column("status", short(), nullable=False),
        sa.Column("success_rate", sa.Float()),
        sa.Column("reward_score", sa.Float()),
        sa.Column("completed_at", sa.BigInteger()),
        sa.Column("reflection", long()),
        json_column("metadata"),
        indexes=[["domain", "created_at"], ["status"], ["created_at"], ["task_type"]],
    )

    record_table(
        "steps",
        *episode_columns("steps"),
        sa.Column("step_number", sa.BigInteger(), nullable=False),
        sa.Column("action", long(), nullable=False),
        sa.Column("result", long()),
        sa.Column("duration_ms", sa.BigInteger()),
        sa.Column("success", sa.Boolean()),
        sa.Column("timestamp", sa.BigInteger()),
        sa.Column("tool_name", short()),
        sa.UniqueConstraint("namespace", "episode_id", "step_number", name="uq_steps_namespace_episode_id_step_number"),
        indexes=[["timestamp"], ["tool_name"]],
    )

    record_table(
        "patterns",
        sa.Column("pattern_type", short(), nullable=False),
        json_column("pattern_data"),
        sa.Column("domain", short()),
        sa.Column("success_rate", sa.Float(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.Column("usage_count", sa.BigInteger(), nullable=False),
        sa.Column("last_used", sa.BigInteger()),
        json_column("metadata"),
        indexes=[["pattern_type", "success_rate"], ["usage_count"], ["domain"]],
    )

    record_table(
        "embeddings",
        *episode_columns("embeddings"),
        sa.Column("content", long(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.Column("model_name", short(), nullable=False),
        sa.Column("vector_dim", sa.BigInteger(), nullable=False),
        indexes=[["episode_id"], ["model_name"]],
    )

    record_table(
        "spatiotemporal_index",
        *episode_columns("spatiotemporal_index"),
        sa.Column("spatial_key", short(), nullable=False),
        sa.Column("temporal_key", short(), nullable=False),
        sa.Column("diversity_score", sa.Float()),
        indexes=[["episode_id"], ["spatial_key", "temporal_key"], ["diversity_score"]],
    )

    head = op.create_table(
        "head",
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.Column("store_id", short(32), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("shard", name="pk_head"),
    )
    op.create_table(
        "changes",
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("kind", short(64), nullable=False),
        sa.Column("namespace", short(200), nullable=False),
        sa.Column("key", short()),
        sa.Column("parent", short()),
        sa.Column("operation", short(16), nullable=False),
        sa.Column("revision", sa.BigInteger()),
        sa.Column("actor", short(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.Column("image", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("shard", "position", "idx", name="pk_changes"),
    )
    # Which database this is: a saved cache of another one must never be used, whatever its position.
    same = {"position": 0, "nonce": 0, "store_id": uuid.uuid4().hex, "epoch": 1}
    op.bulk_insert(head, [{"shard": shard, **same} for shard in range(heads())])


def downgrade() -> None:
    for table in ("changes", "head", "spatiotemporal_index", "embeddings", "patterns", "steps", "episodes"):
        op.drop_table(table)
