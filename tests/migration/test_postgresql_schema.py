"""The schema on PostgreSQL: the same migrations, its own types, several heads; and ready to be distributed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import ForeignKeyConstraint, Index, PrimaryKeyConstraint, Table, UniqueConstraint, inspect

from memory_store.durable import schema
from memory_store.durable.changes import CHANGES, HEAD, IDEMPOTENCY, shard_of
from memory_store.durable.documents import DOCUMENTS
from memory_store.durable.schema import SERVER_TABLES
from memory_store.records import METADATA, RECORDS
from tests.migration.conftest import REPOSITORY
from tests.migration.postgresql import HEADS, Database, alembic, every_kind
from tests.servers.databases import PostgresDatabases

TABLES = {table.name: table for table in SERVER_TABLES}

COLUMNS = (
    "SELECT table_name, column_name, data_type, collation_name FROM information_schema.columns "
    "WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
)


async def test_what_the_columns_are_made_of(database: Database) -> None:
    async with database.connect() as connection:
        found = {(table, column): (type_, by) for table, column, type_, by in await connection.fetch(COLUMNS)}
    texts = {place for place, (type_, _) in found.items() if type_ == "text"}
    assert {found[place][1] for place in texts} == {"C"}, "text sorts by its bytes, as on SQLite"
    assert {found[place][1] for place in found.keys() - texts} == {None}
    assert {type_ for type_, _ in found.values()} == {
        "text", "json", "double precision", "bytea", "boolean", "bigint", "integer", "tsvector", "USER-DEFINED",
    }  # fmt: skip
    expected = {
        ("episodes", "namespace"): "text",
        ("episodes", "context"): "json",
        ("episodes", "success_rate"): "double precision",
        ("episodes", "created_at"): "bigint",
        ("episodes", "reflection"): "text",
        ("steps", "success"): "boolean",
        ("steps", "action"): "text",
        ("embeddings", "embedding"): "bytea",
        ("changes", "image"): "bytea",
        ("changes", "at"): "bigint",
        ("head", "shard"): "integer",
        ("idempotency", "digest"): "bytea",
    }
    assert {place: found[place][0] for place in expected} == expected


async def test_tables_and_models_say_the_same(database: Database) -> None:
    assert "No new upgrade operations detected" in await database.alembic("check")
    # What Alembic does not compare: names of keys, and the collation.
    found = await database.inspect(described)
    modelled = {
        table.name: (
            f"pk_{table.name}",
            sorted(str(key.name) for key in table.foreign_key_constraints),
            sorted(str(index.name) for index in table.indexes),
            {column.name: column.nullable for column in table.columns},
        )
        for table in METADATA.tables.values()
    }
    assert found == modelled


def described(connection: Any) -> dict[str, Any]:
    """Names of a database's keys and indexes, and which columns may be null."""
    inspector = inspect(connection)
    return {
        name: (
            inspector.get_pk_constraint(name)["name"],
            sorted(str(key["name"]) for key in inspector.get_foreign_keys(name)),
            sorted(str(index["name"]) for index in inspector.get_indexes(name) if not index["unique"]),
            {column["name"]: column["nullable"] for column in inspector.get_columns(name)},
        )
        for name in METADATA.tables
    }


async def test_a_new_database_has_heads_of_one_store(database: Database) -> None:
    async with database.connect() as connection:
        heads = await connection.fetch("SELECT shard, position, nonce, store_id, epoch, writing FROM head ORDER BY 1")
        changes = await connection.fetch("SELECT shard, position, kind, operation, nonce FROM changes ORDER BY 1")
    assert [head["shard"] for head in heads] == list(range(HEADS))
    assert {(head["position"], head["epoch"], head["writing"]) for head in heads} == {(1, 2, 0)}
    [store_id] = {head["store_id"] for head in heads}
    assert len(store_id) == 32
    # Making the tables was an upgrade as every other: a commit of its own in each shard.
    assert [tuple(change) for change in changes] == [
        (head["shard"], 1, "store", "upgrade", head["nonce"]) for head in heads
    ]


@pytest.mark.parametrize("heads", [1, 3, 256])
async def test_as_many_heads_as_asked_for(heads: int, postgres_url: str, postgres_server: PostgresDatabases) -> None:
    await asyncio.to_thread(lambda: alembic(postgres_url, "upgrade", "head", heads=heads))
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    rows = postgres_server.execute("SELECT count(*), min(shard), max(shard), count(DISTINCT store_id) FROM head", name)
    assert rows == [[str(heads), "0", str(heads - 1), "1"]]
    namespaces = ["a", "default", "skill/web", "ü" * 100]
    for namespace in namespaces:
        [[shard]] = postgres_server.execute(f"SELECT memory_store_shard('{namespace}')", name)
        assert int(shard) == shard_of(namespace, heads), "SQL and the library find the same shard"


@pytest.mark.parametrize("heads", ["0", "257", "many"])
def test_no_other_number_of_heads(heads: str, postgres_url: str, postgres_server: PostgresDatabases) -> None:
    command = [sys.executable, "-m", "alembic", "-x", f"url={postgres_url}", "-x", f"heads={heads}", "upgrade", "head"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert f"heads must be a number from 1 to 256, got '{heads}'" in done.stderr
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    assert postgres_server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name) == []


async def test_down_and_up_again_with_data(database: Database) -> None:
    async with database.connect() as connection:
        await every_kind(connection, "n")
        kept = [await connection.fetch(f"SELECT * FROM {spec.table.name}") for spec in RECORDS.values()]
        assert all(kept)
        await database.alembic("downgrade", "0001")
        now = [await connection.fetch(f"SELECT * FROM {spec.table.name}") for spec in RECORDS.values()]
        assert now == kept
        assert await connection.fetchval("SELECT count(*) FROM pg_proc WHERE proname LIKE 'memory_store%'") == 0
        position = await connection.fetchval("SELECT sum(position) FROM head")
        await connection.execute("DELETE FROM steps")
        assert await connection.fetchval("SELECT sum(position) FROM head") == position, "there are no triggers"
        await database.alembic("upgrade", "head")
        assert await connection.fetch("SELECT * FROM patterns") == kept[list(RECORDS).index("pattern")]
        await connection.execute("DELETE FROM patterns")
        # Down and up were one commit in each head; then the triggers are there again.
        assert await connection.fetchval("SELECT sum(position) FROM head") == position + HEADS + 1
        assert await connection.fetchval("SELECT count(DISTINCT epoch) FROM head") == 1
        await database.alembic("downgrade", "base")
        assert await connection.fetch("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'") == [
            ("alembic_version",)
        ]
        await database.alembic("upgrade", "head")
        assert await connection.fetchval("SELECT count(*) FROM episodes") == 0


async def test_the_statements_can_be_printed_and_run_by_psql(
    postgres_url: str, postgres_server: PostgresDatabases
) -> None:
    printed = await asyncio.to_thread(lambda: alembic(postgres_url, "upgrade", "head", "--sql"))
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    postgres_server.execute(printed.stdout, name)
    assert postgres_server.execute("SELECT version_num FROM alembic_version", name) == [[schema.HEAD_REVISION]]
    path = postgres_server.execute("SELECT proconfig FROM pg_proc WHERE proname = 'memory_store_log_row'", name)
    assert path == [['{"search_path=pg_catalog, public, pg_temp"}']]


async def test_two_upgrades_at_once_both_succeed(postgres_url: str, postgres_server: PostgresDatabases) -> None:
    runs = (asyncio.to_thread(alembic, postgres_url, "upgrade", "head") for _ in range(3))
    await asyncio.gather(*runs)
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    assert postgres_server.execute("SELECT version_num FROM alembic_version", name) == [[schema.HEAD_REVISION]]
    # One of them did the work, and the others saw that there was none left.
    assert postgres_server.execute("SELECT DISTINCT position, epoch FROM head", name) == [["1", "2"]]


async def test_an_upgrade_waits_for_writers_and_lets_none_in(database: Database) -> None:
    await database.alembic("downgrade", "0001")
    async with database.connect() as writer, database.connect() as watcher:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute("SELECT 1 FROM head WHERE shard = 3 FOR UPDATE")
        upgrade = asyncio.create_task(database.alembic("upgrade", "head"))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'head'::regclass"
        async with asyncio.timeout(60):
            while not await watcher.fetchval(waits):
                await asyncio.sleep(0.01)
        # What the writer still needs is not taken yet: had the upgrade locked it first, they would wait for each other.
        await writer.execute("INSERT INTO patterns SELECT * FROM patterns")
        await transaction.commit()
        await upgrade
        assert await watcher.fetchval("SELECT version_num FROM alembic_version") == schema.HEAD_REVISION


def distribution_column(table: Table) -> str:
    """What a distributed PostgreSQL is told to spread a table by: `create_distributed_table(table, column)`."""
    return "shard" if table in (HEAD, CHANGES) else "namespace"


@pytest.mark.parametrize("table", SERVER_TABLES, ids=str)
def test_every_key_is_led_by_the_distribution_column(table: Table) -> None:
    """As an existing distributed PostgreSQL demands: it can enforce no key and use no index that spans its shards."""
    by = distribution_column(table)
    keys = [table.primary_key, *table.indexes, *table.constraints]
    if table is DOCUMENTS:  # whose full-text index enforces nothing, and whose terms begin with their corpus
        keys = [key for key in keys if key.name != "ix_documents_terms"]
    assert len(keys) > 1
    for key in keys:
        assert isinstance(key, PrimaryKeyConstraint | UniqueConstraint | ForeignKeyConstraint | Index)
        assert next(iter(key.columns)).name == by, key.name
    assert not table.c[by].nullable


def test_no_foreign_key_leaves_its_namespace() -> None:
    """Rows that refer to each other lie on the same shard: the same column by the same hash."""
    found = 0
    for table in METADATA.tables.values():
        for key in table.foreign_key_constraints:
            found += 1
            first = key.elements[0]
            assert (first.parent.name, first.column.name) == ("namespace", "namespace")
            assert distribution_column(first.column.table) == distribution_column(table) == "namespace"
            assert key.ondelete == "CASCADE"
            assert str(first.parent.type) == str(first.column.type)
    assert found == 3
    assert not HEAD.foreign_keys | CHANGES.foreign_keys | IDEMPOTENCY.foreign_keys


async def test_the_database_has_no_other_keys_than_the_models(database: Database) -> None:
    async with database.connect() as connection:
        rows = await connection.fetch(
            "SELECT c.relname::text, i.relname::text, a.attname::text FROM pg_index x "
            "JOIN pg_class c ON c.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = x.indkey[0] "
            "WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> 'alembic_version'"
        )
    assert {table for table, _, _ in rows} == TABLES.keys()
    for table, index, first in rows:
        assert first == distribution_column(TABLES[table]) or index == "ix_documents_terms", index
