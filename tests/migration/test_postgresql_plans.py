"""The plans a server keeps: made while the tables are empty, they must be right when the tables have grown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from memory_store import Episode
from memory_store.durable.dialects.postgresql_words import server_text
from memory_store.durable.partitions import RECORD_TABLES
from memory_store.durable.query import page_query, parse_order
from memory_store.durable.statements import STATEMENTS, server_dialect
from memory_store.records import RECORDS
from tests.migration.postgresql import Database, episode, step
from tests.migration.test_postgresql_partitions import hot_statements

# What reads many records of a namespace, whatever else it asks for.
OF_MANY = ("list", "count")


def lookups(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each scan of a record table in a plan: its index, if any, and the condition that the index is asked for."""
    if "Index Name" in node and node.get("Relation Name", "episodes") in RECORD_TABLES:
        yield node["Index Name"], node.get("Index Cond", "")
    elif node["Node Type"] == "Seq Scan":
        yield node["Relation Name"], ""
    for child in node.get("Plans", ()):
        yield from lookups(child)


async def kept_plan(connection: asyncpg.Connection, text: str) -> dict[str, Any]:
    """The plan that is kept for a statement."""
    numbered = server_text(text)
    count = max(int(number) for number in re.findall(r"\$(\d+)", numbered))
    await connection.execute(f"PREPARE one AS {numbered}")
    found = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE one({', '.join(['NULL'] * count)})")
    await connection.execute("DEALLOCATE one")
    plan: dict[str, Any] = json.loads(found)[0]["Plan"]
    return plan


@pytest.mark.parametrize("state", ["new", "a few records", "analyzed"])
async def test_a_record_is_looked_up_by_its_key_and_not_by_way_of_its_namespace(state: str, database: Database) -> None:
    async with database.connect(enable_seqscan="off", plan_cache_mode="force_generic_plan") as connection:
        if state != "new":
            await connection.execute("SELECT set_config('memory_store.writing', 'on', false)")
            for number in range(8):  # each in a namespace of its own: the namespace alone says as much as the key
                await connection.execute(episode(f"n{number}", "e"))
        if state == "analyzed":
            await connection.execute("ANALYZE episodes")
        for name, text, _ in hot_statements():
            if name.startswith(OF_MANY) or name.endswith("insert"):
                continue
            found = list(lookups(await kept_plan(connection, text)))
            assert found, name
            for index, condition in found:
                assert "namespace = " in condition, (name, index)
                assert re.search(r"\b(id|episode_id) = ", condition), (name, index, condition)


async def grow(connection: asyncpg.Connection) -> None:
    """Put 3,000 episodes of a step each into one namespace; the server does not look at them by itself."""
    await connection.execute("SELECT set_config('memory_store.writing', 'on', false)")
    for table, insert in (("episodes", episode("n", "e%s")), ("steps", step("n", "s%s", "e%s"))):
        await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        quoted = insert.replace("'", "''")
        await connection.execute(
            f"DO $$ BEGIN FOR i IN 1..3000 LOOP EXECUTE replace('{quoted}', '%s', i::text); END LOOP; END $$"
        )


async def test_many_keys_are_looked_up_one_by_one_in_a_table_nobody_has_analyzed(database: Database) -> None:
    async with database.connect(enable_seqscan="off", plan_cache_mode="force_generic_plan") as connection:
        await grow(connection)
        for kind in ("episode", "step"):
            statements = STATEMENTS[kind]
            texts = [statements.get_by_id(512), statements.get_many(512), statements.get_with_head(512)]
            if kind == "step":
                texts.append(statements.last_numbers(512))
            for text in texts:
                for index, condition in lookups(await kept_plan(connection, text)):
                    assert re.search(r"\b(id|episode_id) = (?!ANY)", condition), (kind, index, condition, text)


async def test_the_plan_of_a_page_is_kept(database: Database) -> None:
    async with database.connect(enable_seqscan="off") as connection:
        await grow(connection)
        await connection.execute("ANALYZE")
        newest = parse_order(RECORDS["episode"], Episode.c.created_at.desc())
        page = page_query(server_dialect(), RECORDS["episode"], "n", Episode.c.domain == "web", newest, 51, None, 3)
        prepared = await connection.prepare(server_text(page.text))
        for _ in range(12):
            assert len(await prepared.fetch(*page.parameters)) == 51
        counted = "SELECT generic_plans FROM pg_prepared_statements WHERE statement = $1"
        assert await connection.fetchval(counted, server_text(page.text)) > 0


async def test_the_same_of_the_keys_that_the_server_checks_itself(database: Database) -> None:
    """The newest index is taken where all would cost the same; a foreign key's check is planned like any statement."""
    async with database.connect() as connection:
        newest = await connection.fetch(
            "SELECT DISTINCT ON (indrelid) indrelid::regclass::text, indisprimary FROM pg_index "
            "WHERE indrelid = ANY($1::text[]::regclass[]) ORDER BY indrelid, indexrelid DESC",
            list(RECORD_TABLES),
        )
    assert {tuple(row) for row in newest} == {(table, True) for table in RECORD_TABLES}
