"""log kept by triggers, idempotency keys

Plain SQL that changes records is logged by triggers, so that caches and other followers see it. A transaction of the
library logs its changes itself, with more to say, and claims the log first: it sets `head.writing`, which the triggers
look at, and takes it back before its commit, so no committed head has it set.

Each row that plain SQL changes gets a position of its own: a trigger cannot know where its transaction ends. Where an
UPDATE leaves the revision as it is, the trigger raises it, so that a compare-and-swap on it notices.

Revision: 0002
Follows: 0001
Made: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PARENTS = {
    "episodes": ("episode", None),
    "steps": ("step", "episode_id"),
    "patterns": ("pattern", None),
    "embeddings": ("embedding", "episode_id"),
    "spatiotemporal_index": ("spatiotemporal", "episode_id"),
}
"""Table: kind in the log, column of the episode a part belongs to."""

NEW_POSITION = "UPDATE head SET position = position + 1, nonce = random() & 9223372036854775807 WHERE shard = 0;"


def log(kind: str, parent: str | None, row: str, operation: str, revision: str) -> str:
    owner = "NULL" if parent is None else f"{row}.{parent}"
    return (
        f"{NEW_POSITION} INSERT INTO changes (shard, position, idx, kind, namespace, key, parent, operation, revision, "
        f"actor, at, nonce, image) SELECT 0, position, 0, '{kind}', {row}.namespace, {row}.id, {owner}, "
        f"'{operation}', {revision}, 'sql', CAST(strftime('%s', 'now') AS INTEGER) * 1000000, nonce, NULL "
        "FROM head WHERE shard = 0;"
    )


def triggers(table: str, kind: str, parent: str | None) -> list[str]:
    place = ["namespace", "id"] if parent is None else ["namespace", "id", parent]
    moved = " OR ".join(f"OLD.{column} IS NOT NEW.{column}" for column in place)
    by_others = "WHEN (SELECT writing FROM head WHERE shard = 0) = 0"
    one = "namespace = NEW.namespace AND id = NEW.id"
    return [
        f"CREATE TRIGGER log_{table}_insert AFTER INSERT ON {table} {by_others} BEGIN "
        f"{log(kind, parent, 'NEW', 'insert', 'NEW.revision')} END",
        f"CREATE TRIGGER log_{table}_delete AFTER DELETE ON {table} {by_others} BEGIN "
        f"{log(kind, parent, 'OLD', 'delete', 'OLD.revision')} END",
        # Two for an update, since a statement in a trigger has no condition. The newest trigger fires first: the move
        # is made last, so that it is logged first, as the library does.
        # With the log claimed, raising the revision fires no trigger, whatever `recursive_triggers` says.
        f"CREATE TRIGGER log_{table}_update AFTER UPDATE ON {table} {by_others} BEGIN "
        f"UPDATE head SET writing = 1 WHERE shard = 0; "
        f"UPDATE {table} SET revision = OLD.revision + 1 WHERE {one} AND revision <= OLD.revision; "
        f"UPDATE head SET writing = 0 WHERE shard = 0; "
        f"{log(kind, parent, 'NEW', 'update', 'max(NEW.revision, OLD.revision + 1)')} END",
        f"CREATE TRIGGER log_{table}_move AFTER UPDATE ON {table} {by_others} AND ({moved}) BEGIN "
        f"{log(kind, parent, 'OLD', 'move', 'OLD.revision')} END",
    ]


def upgrade() -> None:
    op.add_column("head", sa.Column("writing", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.create_table(
        "idempotency",
        sa.Column("namespace", sa.String(200), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("id", sa.String(256), nullable=False),
        sa.Column("stored", sa.LargeBinary(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "key", name="pk_idempotency"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for table, (kind, parent) in PARENTS.items():
            for statement in triggers(table, kind, parent):
                op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for table in PARENTS:
            for event in ("insert", "delete", "move", "update"):
                op.execute(f"DROP TRIGGER log_{table}_{event}")
    op.drop_table("idempotency")
    with op.batch_alter_table("head") as head:
        head.drop_column("writing")
