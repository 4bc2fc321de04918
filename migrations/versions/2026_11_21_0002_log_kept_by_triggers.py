"""log kept by triggers, idempotency keys

Plain SQL that changes records is logged by triggers, so that caches and other followers see it. A transaction of the
library logs its changes itself, with more to say, and claims the log first: it sets `head.writing`, which the triggers
look at, and takes it back before its commit, so no committed head has it set.

On SQLite each row that plain SQL changes gets a position of its own: a trigger cannot know where its transaction ends.
Where an UPDATE leaves the revision as it is, the trigger raises it, so that a compare-and-swap on it notices.

PostgreSQL has triggers that run when a transaction commits: what plain SQL changed in one transaction is logged then,
at one new position in each shard it touched. A transaction of the library says that it logs for itself by
`set_config('memory_store.writing', 'on', true)`, for which no row is written and no lock taken.

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


PLAIN_SQL_LOCK = 7883953330219640934
"""Advisory lock of a transaction that is about to lock heads of several shards: one of them at a time, so that two
never wait for each other. (Sorting the shards is no way: a trigger learns them row by row.)"""

SHARD_OF = """
DO $do$ BEGIN
    EXECUTE format($$
        CREATE FUNCTION memory_store_shard(namespace text) RETURNS integer LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
        RETURN pg_catalog.mod(pg_catalog.get_byte(pg_catalog.sha256(pg_catalog.convert_to(namespace, 'UTF8')), 0), %s)
    $$, (SELECT count(*) FROM head));
END $do$"""
"""The number of heads is fixed when the database is made, so it is part of the function."""

NOW_US = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
NONCE = (
    "('x' || left(gen_random_uuid()::text, 8) || right(gen_random_uuid()::text, 8))::bit(64)::bigint"
    " & 9223372036854775807"
)
"""63 random bits: those ends of a UUID hold nothing else."""

LOG_CHANGE = f"""
CREATE FUNCTION memory_store_log_change(
    kind text, namespace text, id text, parent text, operation text, revision bigint
) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ours integer := memory_store_shard(namespace);
    -- Local to the transaction, and taken back with a savepoint just as the rows are: position, nonce, next idx.
    setting text := 'memory_store.logged_' || ours;
    state text := current_setting(setting, true);
    commit_position bigint;
    commit_nonce bigint;
    next_idx integer := 0;
BEGIN
    IF state IS NULL OR state = '' THEN
        PERFORM pg_advisory_xact_lock({PLAIN_SQL_LOCK});
        UPDATE head SET position = position + 1, nonce = {NONCE}
            WHERE shard = ours RETURNING position, nonce INTO STRICT commit_position, commit_nonce;
    ELSE
        commit_position := split_part(state, ',', 1);
        commit_nonce := split_part(state, ',', 2);
        next_idx := split_part(state, ',', 3);
    END IF;
    INSERT INTO changes
        (shard, position, idx, kind, namespace, key, parent, operation, revision, actor, at, nonce, image)
        VALUES (ours, commit_position, next_idx, $1, $2, $3, $4, $5, $6, 'sql', {NOW_US}, commit_nonce, NULL);
    PERFORM set_config(setting, commit_position || ',' || commit_nonce || ',' || next_idx + 1, true);
END $$"""

LOG_ROW = """
CREATE FUNCTION memory_store_log_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    kind text := TG_ARGV[0];
    is_part boolean := TG_ARGV[1];
    old_parent text;
    new_parent text;
BEGIN
    IF is_part AND TG_OP <> 'INSERT' THEN
        old_parent := OLD.episode_id;
    END IF;
    IF is_part AND TG_OP <> 'DELETE' THEN
        new_parent := NEW.episode_id;
    END IF;
    IF TG_OP = 'INSERT' THEN
        PERFORM memory_store_log_change(kind, NEW.namespace, NEW.id, new_parent, 'insert', NEW.revision);
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM memory_store_log_change(kind, OLD.namespace, OLD.id, old_parent, 'delete', OLD.revision);
    ELSE
        IF (OLD.namespace, OLD.id, old_parent) IS DISTINCT FROM (NEW.namespace, NEW.id, new_parent) THEN
            PERFORM memory_store_log_change(kind, OLD.namespace, OLD.id, old_parent, 'move', OLD.revision);
        END IF;
        PERFORM memory_store_log_change(kind, NEW.namespace, NEW.id, new_parent, 'update', NEW.revision);
    END IF;
    RETURN NULL;
END $$"""

RAISE_REVISION = """
CREATE FUNCTION memory_store_raise_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := OLD.revision + 1;
    RETURN NEW;
END $$"""

# A truncated table names no namespaces, and followers keep what they have by namespace: only a new epoch makes all of
# them drop it. Once a transaction is enough: a table with partitions runs this for each of them.
LOG_TRUNCATE = f"""
CREATE FUNCTION memory_store_log_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    next_epoch bigint;
BEGIN
    IF current_setting('memory_store.truncated', true) = 'on' THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock({PLAIN_SQL_LOCK});
    PERFORM 1 FROM head ORDER BY shard FOR UPDATE;
    SELECT max(epoch) + 1 INTO next_epoch FROM head;
    WITH begun AS (
        UPDATE head SET position = position + 1, epoch = next_epoch, nonce = {NONCE} RETURNING shard, position, nonce
    )
    INSERT INTO changes (shard, position, idx, kind, namespace, operation, actor, at, nonce)
        SELECT shard, position, 0, 'store', '', 'truncate', 'sql', {NOW_US}, nonce FROM begun;
    PERFORM set_config('memory_store.truncated', 'on', true);
    RETURN NULL;
END $$"""

FUNCTIONS = {
    "memory_store_shard(text)": SHARD_OF,
    "memory_store_log_change(text, text, text, text, text, bigint)": LOG_CHANGE,
    "memory_store_log_row()": LOG_ROW,
    "memory_store_raise_revision()": RAISE_REVISION,
    "memory_store_log_truncate()": LOG_TRUNCATE,
}

# With the caller's rights, in the tables' own schema, and found there whatever the caller's search path says; temporary
# tables come last, or one called `head` would be taken for ours. (`memory_store_shard` names everything in full: with a
# setting of its own it could not be inlined.)
FIX_SEARCH_PATH = """
DO $do$ BEGIN
    EXECUTE format('ALTER FUNCTION {function} SET search_path = pg_catalog, %I, pg_temp', current_schema());
END $do$"""


def postgresql_triggers(table: str, kind: str, parent: str | None) -> list[str]:
    """Return the triggers of a table.

    The log is written by a row trigger deferred to the commit, so that a transaction of plain SQL takes a head as its
    last lock and holds it for its commit only. It costs plain SQL 16 us a row, however many there are.

    The library pays for the condition, 0.27 us a row. COPY of 100,000 episodes and 500,000 steps, processor time of the
    server, 7 runs in turn: 6.01 s without triggers, 6.17 with these (+2.7 %; medians 6.24 and 6.47, +3.6 %), 6.30 with
    statement triggers that have transition tables (+4.8 %; medians +6.3 %), though their condition is looked at once:
    the tables are filled whatever it says, to disk if they are large; by the clock that was +13 % on a quiet machine.
    """
    by_others = "current_setting('memory_store.writing', true) IS DISTINCT FROM 'on'"
    return [
        f"CREATE CONSTRAINT TRIGGER log_{table} AFTER INSERT OR UPDATE OR DELETE ON {table} "
        f"DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN ({by_others}) "
        f"EXECUTE FUNCTION memory_store_log_row('{kind}', '{str(parent is not None).lower()}')",
        # The library raises every revision itself, so the setting is rarely looked at.
        f"CREATE TRIGGER raise_{table}_revision BEFORE UPDATE ON {table} "
        f"FOR EACH ROW WHEN (NEW.revision <= OLD.revision AND {by_others}) "
        "EXECUTE FUNCTION memory_store_raise_revision()",
        f"CREATE TRIGGER log_{table}_truncate AFTER TRUNCATE ON {table} "
        f"FOR EACH STATEMENT WHEN ({by_others}) EXECUTE FUNCTION memory_store_log_truncate()",
    ]


def by_bytes(type_: sa.String) -> sa.String:
    return type_.with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("head", sa.Column("writing", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.create_table(
        "idempotency",
        sa.Column("namespace", by_bytes(sa.String(200)), nullable=False),
        sa.Column("key", by_bytes(sa.String(256)), nullable=False),
        sa.Column("kind", by_bytes(sa.String(64)), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("id", by_bytes(sa.String(256)), nullable=False),
        sa.Column("stored", sa.LargeBinary(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "key", name="pk_idempotency"),
    )
    if op.get_context().dialect.name == "sqlite":
        for table, (kind, parent) in PARENTS.items():
            for statement in triggers(table, kind, parent):
                op.execute(statement)
        return
    for function, create in FUNCTIONS.items():
        op.execute(create)
        if create is not SHARD_OF:
            op.execute(FIX_SEARCH_PATH.format(function=function))
    for table, (kind, parent) in PARENTS.items():
        for statement in postgresql_triggers(table, kind, parent):
            op.execute(statement)


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        for table in PARENTS:
            for event in ("insert", "delete", "move", "update"):
                op.execute(f"DROP TRIGGER log_{table}_{event}")
    else:
        # With their triggers, those of partitions too.
        for function in reversed(FUNCTIONS):
            op.execute(f"DROP FUNCTION {function} CASCADE")
    op.drop_table("idempotency")
    with op.batch_alter_table("head") as head:
        head.drop_column("writing")
