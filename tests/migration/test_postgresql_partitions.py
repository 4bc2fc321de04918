"""Record tables that are split by a hash of the namespace: nothing is lost by it, and a statement touches one part."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from memory_store import ConfigurationError, Episode
from memory_store.durable.changes import shard_of
from memory_store.durable.connection import KeyedText
from memory_store.durable.dialects.postgresql_words import server_text, with_array
from memory_store.durable.partitions import RECORD_TABLES, is_partition, partition, partition_count
from memory_store.durable.query import count_query, page_query, parse_order
from memory_store.durable.statements import STATEMENTS, server_dialect
from memory_store.records import RECORDS
from tests.migration.postgresql import HEADS, Database, episode, every_kind, log, step

NAMESPACES = [f"agent/{number}" for number in range(12)]
OURS = NAMESPACES[0]


async def fill(database: Database) -> None:
    """Give every namespace a record of every kind, by plain SQL."""
    async with database.connect() as connection, connection.transaction():
        for namespace in NAMESPACES:
            await every_kind(connection, namespace)


async def content(connection: asyncpg.Connection) -> dict[str, list[Any]]:
    """All rows of the record tables."""
    return {
        table: await connection.fetch(f'SELECT * FROM {table} ORDER BY namespace, id COLLATE "C"')
        for table in RECORD_TABLES
    }


DEFINED = """
SELECT 'index', indexname::text, indexdef FROM pg_indexes WHERE tablename = ANY ($1)
UNION ALL SELECT 'constraint', conname::text, conrelid::regclass || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint WHERE conrelid::regclass::text = ANY ($1) AND conparentid = 0 AND contype <> 'n'
UNION ALL SELECT 'trigger', tgname::text, tgenabled::text || pg_get_triggerdef(oid)
    FROM pg_trigger WHERE tgrelid::regclass::text = ANY ($1) AND NOT tgisinternal
UNION ALL SELECT 'policy', policyname::text, concat_ws(' ', tablename, permissive, roles::text, cmd, qual, with_check)
    FROM pg_policies WHERE tablename = ANY ($1)
UNION ALL SELECT 'column', column_name::text, concat_ws(' ', table_name, ordinal_position, data_type, collation_name,
    is_nullable, column_default) FROM information_schema.columns WHERE table_name = ANY ($1)
UNION ALL SELECT 'table', relname::text, concat_ws(' ', relrowsecurity, relforcerowsecurity,
    pg_get_userbyid(relowner), relacl::text) FROM pg_class WHERE relname = ANY ($1)
ORDER BY 1, 2, 3
"""


async def defined(connection: asyncpg.Connection) -> list[tuple[str, str, str]]:
    """Everything the record tables are made of besides their rows."""
    rows = await connection.fetch(DEFINED, list(RECORD_TABLES))
    # An index of a partitioned table says that it is not that of its partitions.
    return [(what, name, text.replace(" ON ONLY ", " ON ")) for what, name, text in rows]


async def test_rows_and_everything_around_them_stay(database: Database, postgres_role: str) -> None:
    await fill(database)
    async with database.connect() as connection:
        await connection.execute(
            f"""
            CREATE INDEX "by Action" ON steps (action, namespace) WHERE success;
            CREATE UNIQUE INDEX one_hash ON patterns (namespace, domain, id);
            ALTER TABLE patterns ADD CONSTRAINT sure CHECK (confidence <= 1), ALTER confidence SET DEFAULT 0.5;
            COMMENT ON COLUMN patterns.confidence IS 'how sure';
            ALTER TABLE embeddings DISABLE TRIGGER raise_embeddings_revision;
            ALTER TABLE episodes ENABLE ROW LEVEL SECURITY;
            ALTER TABLE steps FORCE ROW LEVEL SECURITY;
            CREATE POLICY "not all" ON episodes AS RESTRICTIVE FOR UPDATE TO "{postgres_role}", CURRENT_USER
                USING (domain = 'web') WITH CHECK (domain <> 'x');
            CREATE POLICY anyone ON episodes USING (true) WITH CHECK (true);
            GRANT SELECT ON episodes TO "{postgres_role}" WITH GRANT OPTION;
            GRANT INSERT, SELECT ON steps TO PUBLIC;
            """
        )
        kept, made = await content(connection), await defined(connection)
        positions = await connection.fetch("SELECT position FROM head ORDER BY shard")
        assert await database.run(partition, 4) is True
        assert await content(connection) == kept
        assert await defined(connection) == made
        assert await connection.fetchval("SELECT col_description('patterns'::regclass, 10)") == "how sure"
        heads = await connection.fetch("SELECT position, epoch FROM head ORDER BY shard")
        assert [tuple(head) for head in heads] == [(position + 1, 3) for (position,) in positions]
        spread = await connection.fetch("SELECT tableoid::regclass::text, count(*) FROM steps GROUP BY 1")
        assert len(spread) > 1
        assert all(is_partition(name) for name, _ in spread)


@pytest.fixture
async def postgres_role(database: Database) -> Any:
    """A role that owns nothing, gone with the test (roles belong to the server, not to a database)."""
    name = "role_" + database.dsn.partition("test_")[2][:12]
    async with database.connect() as connection:
        await connection.execute(f'CREATE ROLE "{name}"')
    yield name
    async with database.connect() as connection:
        await connection.execute(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


async def test_once_is_enough_and_another_number_is_refused(database: Database) -> None:
    assert await database.run(partition_count) == 0
    assert await database.run(partition, 3) is True
    assert await database.run(partition_count) == 3
    assert "No new upgrade operations detected" in await database.alembic("check")
    async with database.connect() as connection:
        heads = await connection.fetch("SELECT * FROM head ORDER BY shard")
        assert await database.run(partition, 3) is False
        with pytest.raises(ConfigurationError, match="split into 3 partitions already; into 4 only by"):
            await database.run(partition, 4)
        assert await connection.fetch("SELECT * FROM head ORDER BY shard") == heads
        await connection.execute("DROP TABLE patterns; CREATE TABLE patterns (namespace text)")
    with pytest.raises(ConfigurationError, match=r"not split alike.*episodes 3, patterns 0"):
        await database.run(partition, 3)


@pytest.mark.parametrize(
    ("partitions", "error"), [(1, ConfigurationError), (1025, ConfigurationError), (True, TypeError), ("4", TypeError)]
)
async def test_no_other_numbers(partitions: Any, error: type[Exception], database: Database) -> None:
    with pytest.raises(error, match="partitions must be"):
        await database.run(partition, partitions)


@pytest.mark.parametrize(
    ("name", "type_", "expected"),
    [
        ("steps_p0", "table", True),
        ("spatiotemporal_index_p1023", "table", True),
        ("steps", "table", False),
        ("steps_p", "table", False),
        ("my_steps_p0", "table", False),
        ("notes_p0", "table", False),
        ("fk_steps_namespace_episode_id_episodes_1", "foreign_key_constraint", True),
        ("fk_steps_namespace_episode_id_episodes", "foreign_key_constraint", False),
        ("steps_namespace_episode_id_fkey", "foreign_key_constraint", True),
        ("embeddings_namespace_episode_id_fkey12", "foreign_key_constraint", True),
        ("steps_p0", "index", False),
        (None, "schema", False),
    ],
)
def test_what_is_a_partition(name: str | None, type_: str, expected: bool) -> None:
    assert is_partition(name, type_) is expected


async def test_two_at_once(database: Database) -> None:
    await fill(database)
    assert sorted(await asyncio.gather(*(database.run(partition, 4) for _ in range(3)))) == [False, False, True]


async def test_no_store_no_partitions(postgres_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"has no table embeddings, episodes, .*memory-store upgrade"):
        await Database(postgres_url, "").run(partition, 4)


async def test_nothing_changes_where_something_else_depends_on_a_table(database: Database) -> None:
    await fill(database)
    async with database.connect() as connection:
        kept, made = await content(connection), await defined(connection)
        for make, name in (
            ("VIEW seen AS SELECT id FROM episodes", "view seen"),
            ("MATERIALIZED VIEW seen AS SELECT id FROM episodes", "view seen"),
            ("PUBLICATION told FOR TABLE steps", "publication told"),
            (
                "TABLE notes (n text, i text, FOREIGN KEY (n, i) REFERENCES episodes (namespace, id))",
                "foreign key of table notes",
            ),
        ):
            await connection.execute(f"CREATE {make}")
            with pytest.raises(ConfigurationError, match=f"used by {name}: drop that first"):
                await database.run(partition, 4)
            await connection.execute("DROP " + re.sub(r"^((?:MATERIALIZED )?\w+ \w+) .*", r"\1", make))
        assert (await content(connection), await defined(connection)) == (kept, made)
        assert await connection.fetch("SELECT DISTINCT epoch FROM head") == [(2,)]


async def test_readers_go_on_until_the_end_and_statements_that_are_prepared_stay(database: Database) -> None:
    await fill(database)
    async with database.connect() as reader, database.connect() as other, database.connect() as watcher:
        get = await other.prepare("SELECT id FROM episodes WHERE namespace = $1 AND id = 'e'")
        put = await other.prepare("UPDATE episodes SET domain = $2 WHERE namespace = $1")
        assert await put.fetch("nobody", "x") == []
        transaction = reader.transaction(isolation="repeatable_read", readonly=True)
        await transaction.start()
        # As the store's reading transactions do: no snapshot is taken before the lock.
        await reader.execute("LOCK TABLE head IN ACCESS SHARE MODE")
        converting = asyncio.create_task(database.run(partition, 4))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
        async with asyncio.timeout(60):
            while not converting.done() and not await watcher.fetchval(waits):
                await asyncio.sleep(0.01)
        assert not converting.done()
        # It waits for this one at the head, with the tables still readable.
        assert await reader.fetchval("SELECT count(*) FROM steps") == len(NAMESPACES)
        assert await get.fetchval(OURS) == "e"
        late = asyncio.create_task(late_reader(database))
        await transaction.rollback()
        assert await converting is True
        assert await late == len(NAMESPACES), "it waited before it took its snapshot"
        assert await get.fetchval(OURS) == "e"
        assert await put.fetch(OURS, "x") == []
        assert await other.fetchval("SELECT domain FROM episodes WHERE namespace = $1", OURS) == "x"


async def late_reader(database: Database) -> int:
    """Read as the store does, and return how many episodes there are."""
    async with database.connect() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute("LOCK TABLE head IN ACCESS SHARE MODE")
        await connection.fetch("SELECT position FROM head")
        return int(await connection.fetchval("SELECT count(*) FROM episodes"))


async def test_plain_sql_is_logged_as_before(database: Database) -> None:
    await database.run(partition, 4)
    async with database.connect() as connection:
        await every_kind(connection, OURS)
        await connection.execute("UPDATE patterns SET domain = 'x'")
        [table] = await connection.fetchrow("SELECT tableoid::regclass::text FROM patterns")
        await connection.execute(f"UPDATE {table} SET domain = 'y'")
        await connection.execute("DELETE FROM episodes")
        found = await log(connection, OURS, after=2)
        assert [change[2:] for change in found[:7]] == [
            ("episode", "e", None, "insert", 1),
            ("step", "x", "e", "insert", 1),
            ("pattern", "x", None, "insert", 1),
            ("embedding", "x", "e", "insert", 1),
            ("spatiotemporal", "x", "e", "insert", 1),
            ("pattern", "x", None, "update", 2),
            ("pattern", "x", None, "update", 3),
        ]
        assert {change[2:6] for change in found[7:]} == {
            ("episode", "e", None, "delete"),
            ("step", "x", "e", "delete"),
            ("embedding", "x", "e", "delete"),
            ("spatiotemporal", "x", "e", "delete"),
        }
        await connection.execute("TRUNCATE patterns")
        assert await connection.fetch("SELECT DISTINCT epoch FROM head") == [(4,)]
        await connection.execute(f"TRUNCATE {table}")
        assert await connection.fetch("SELECT DISTINCT epoch FROM head") == [(5,)]


async def test_moving_to_a_namespace_of_another_partition(database: Database) -> None:
    """PostgreSQL makes a deletion and an insertion of it, and so says the log."""
    await database.run(partition, 4)
    async with database.connect() as connection:
        for namespace in NAMESPACES:
            await connection.execute(episode(namespace, "e" if namespace == OURS else "f"))
        rows = await connection.fetch("SELECT tableoid::regclass::text AS part, namespace FROM episodes")
        parts = {row["namespace"]: row["part"] for row in rows}
        elsewhere = next(
            n for n in NAMESPACES if parts[n] != parts[OURS] and shard_of(n, HEADS) != shard_of(OURS, HEADS)
        )
        await connection.execute(f"UPDATE episodes SET namespace = '{elsewhere}' WHERE id = 'e'")
        assert (await log(connection, OURS))[-1][2:] == ("episode", "e", None, "delete", 1)
        assert (await log(connection, elsewhere))[-1][2:] == ("episode", "e", None, "insert", 2)


async def test_down_and_up_again(database: Database) -> None:
    await fill(database)
    await database.run(partition, 4)
    async with database.connect() as connection:
        kept = await content(connection)
        await database.alembic("downgrade", "0001")
        await database.alembic("upgrade", "head")
        assert await content(connection) == kept
        assert await database.run(partition_count) == 4
        await database.alembic("downgrade", "base")
        left = await connection.fetch("SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        assert {name for (name,) in left} == {"alembic_version", "alembic_version_pkc"}


def hot_statements() -> Iterator[tuple[str, str, list[Any]]]:
    """Every statement that the store runs in one namespace: its name, its text, its parameters."""
    number = iter(range(10**6))
    for kind, spec in RECORDS.items():
        statements = STATEMENTS[kind]
        row = {column.name: _value(column) for column in spec.table.columns} | {"namespace": OURS, "id": "x"}
        values = [row[name] for name in ["namespace", *spec.columns]]
        id_ = "e" if kind == "episode" else "x"
        yield f"{kind} get", statements.get, [OURS, id_]
        yield f"{kind} get_many", statements.get_many(4), [OURS, "e", "x", "y", "z"]
        yield f"{kind} get_by_id", statements.get_by_id(2), [OURS, "e", "x"]
        yield f"{kind} insert", statements.insert, [v if v != "x" else f"new{next(number)}" for v in values]
        yield f"{kind} replace", statements.replace, [*(row[c] for c in spec.columns if c != "id"), OURS, id_]
        yield f"{kind} delete", statements.delete, [OURS, id_]
        if spec.parent is not None:
            yield f"{kind} has_parts", statements.has_parts, [OURS, "e"]
            yield f"{kind} last_numbers", statements.last_numbers(2), [OURS, "e", "f"]
        if spec.number is not None:
            yield f"{kind} numbers", statements.numbers, [OURS, "e"]
            yield f"{kind} renumber", statements.renumber, [7, OURS, "x"]
    spec = RECORDS["episode"]
    newest = parse_order(spec, Episode.c.created_at.desc())
    for name, where in (("all", None), ("filtered", Episode.c.domain == "web")):
        page = page_query(server_dialect(), spec, OURS, where, newest, 50, None)
        yield f"list {name}", page.text, page.parameters
        count = count_query(server_dialect(), spec, OURS, where)
        yield f"count {name}", count.text, count.parameters


def _value(column: Any) -> Any:
    """Something that a column takes."""
    if column.name == "episode_id":
        return "e"
    python = {"BIGINT": 7, "FLOAT": 0.5, "BOOLEAN": True, "JSON": "{}", "BLOB": b"\0\0\0\0"}
    return python.get(str(column.type), "x" if column.name != "status" else "active")


HOT = [pytest.param(text, parameters, id=name) for name, text, parameters in hot_statements()]


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
async def test_a_statement_touches_one_partition(plan: str, partitioned: Database) -> None:
    """Known when it is planned (custom), or found out when it starts (generic, what a driver's kept statements get)."""
    async with partitioned.connect(plan_cache_mode=plan) as connection:
        [part] = await connection.fetchrow("SELECT tableoid::regclass::text FROM episodes WHERE namespace = $1", OURS)
        ours = part.rpartition("_p")[2]
        for parameter in HOT:
            text, values = parameter.values
            touched = await scanned(connection, text, list(values))
            assert {table.rpartition("_p")[2] for table in touched} <= {ours}, (parameter.id, touched)
            assert touched or "insert" in str(parameter.id), parameter.id


async def scanned(connection: asyncpg.Connection, text: str, values: list[Any]) -> set[str]:
    """Run a statement, undo it, and return the tables its plan has read."""
    numbered = server_text(text)
    if isinstance(text, KeyedText):
        values = with_array(text, values)
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("SELECT set_config('memory_store.writing', 'on', true)")
        await connection.execute(f"PREPARE one AS {numbered}")
        literals = ", ".join(map(literal, values))
        found = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE one({literals})")
        await connection.execute("DEALLOCATE one")
    finally:
        await transaction.rollback()
    return set(read_tables(json.loads(found)[0]["Plan"]))


def literal(value: Any) -> str:
    """A value in SQL."""
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(literal, value))}]"
    return f"'{value}'" if isinstance(value, str) else str(value)


def read_tables(node: dict[str, Any]) -> Iterator[str]:
    """The tables that a plan's scans have read."""
    if node["Node Type"] != "ModifyTable" and "Relation Name" in node and node["Actual Loops"]:
        yield node["Relation Name"]
    for child in node.get("Plans", ()):
        yield from read_tables(child)


@pytest.fixture
async def partitioned(database: Database) -> Database:
    """A database with rows in 8 partitions."""
    await fill(database)
    await database.run(partition, 8)
    return database


async def test_so_does_what_a_key_does_by_itself(partitioned: Database) -> None:
    """The parts that go with an episode, and the episode that a new part must have."""
    async with partitioned.connect() as connection, connection.transaction():
        await connection.execute("SELECT set_config('memory_store.writing', 'on', true)")
        for number in range(10):  # a statement of a key is planned anew for its first runs, and generically then
            await connection.execute(step(OURS, f"s{number}", "e", number + 10))
            await connection.execute(episode(OURS, f"f{number}"))
            await connection.execute(step(OURS, f"t{number}", f"f{number}"))
            await connection.execute("DELETE FROM episodes WHERE namespace = $1 AND id = $2", OURS, f"f{number}")
        read = await connection.fetch(
            "SELECT relname::text FROM pg_stat_xact_user_tables WHERE coalesce(idx_scan, 0) + seq_scan > 0"
        )
        [part] = await connection.fetchrow("SELECT tableoid::regclass::text FROM episodes WHERE namespace = $1", OURS)
    touched = {name for (name,) in read if is_partition(name)}
    number = part.rpartition("_p")[2]
    assert touched == {f"{table}_p{number}" for table in RECORD_TABLES if table != "patterns"}
