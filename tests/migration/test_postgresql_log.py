"""What plain SQL changes on PostgreSQL is logged when its transaction commits, by triggers."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from memory_store.durable.changes import shard_of
from tests.migration.postgresql import HEADS, OTHERS, Database, episode, every_kind, log, step

# Two namespaces of one shard, and one of another; the test below says so.
ONE, SAME, OTHER = "n", "n15", "a"

WRITING = "SELECT set_config('memory_store.writing', 'on', true)"


def test_the_namespaces_are_what_these_tests_take_them_for() -> None:
    assert shard_of(ONE, HEADS) == shard_of(SAME, HEADS) != shard_of(OTHER, HEADS)


async def test_each_operation(database: Database) -> None:
    async with database.connect() as connection:
        await connection.execute(episode(ONE, "e"))
        await connection.execute(step(ONE, "s", "e"))
        await connection.execute("UPDATE steps SET action = 'make'")
        await connection.execute("UPDATE episodes SET domain = 'x', revision = 7")
        await connection.execute("DELETE FROM steps")
        found = await log(connection, ONE)
        assert found == [
            (2, 0, "episode", "e", None, "insert", 1),
            (3, 0, "step", "s", "e", "insert", 1),
            (4, 0, "step", "s", "e", "update", 2),
            (5, 0, "episode", "e", None, "update", 7),
            (6, 0, "step", "s", "e", "delete", 2),
        ]
        rows = await connection.fetch("SELECT namespace, actor, at, nonce, image FROM changes WHERE position > 1")
        assert {(row["namespace"], row["actor"], row["image"]) for row in rows} == {(ONE, "sql", None)}
        nonces = [row["nonce"] for row in rows]
        assert len(set(nonces)) == 5
        assert all(0 < nonce < 1 << 63 for nonce in nonces)
        assert max(nonces) > 1 << 52, "five numbers of 63 bits are all below that once in 2^55 runs"
        head = await connection.fetchrow("SELECT * FROM head WHERE shard = $1", shard_of(ONE, HEADS))
        assert (head["position"], head["nonce"], head["epoch"]) == (6, nonces[-1], 2)
        [now] = await connection.fetchrow("SELECT (extract(epoch FROM now()) * 1000000)::bigint")
        assert all(now - 3600_000_000 < row["at"] <= now for row in rows)
        assert await connection.fetchval("SELECT sum(position) FROM head") == HEADS + 5, "no other head has moved"


async def test_every_kind_by_its_name_and_parent(database: Database) -> None:
    async with database.connect() as connection:
        await every_kind(connection, ONE)
        assert [change[2:6] for change in await log(connection, ONE)] == [
            ("episode", "e", None, "insert"),
            ("step", "x", "e", "insert"),
            ("pattern", "x", None, "insert"),
            ("embedding", "x", "e", "insert"),
            ("spatiotemporal", "x", "e", "insert"),
        ]


async def test_a_transaction_gets_one_position_in_each_shard_it_touched(database: Database) -> None:
    async with database.connect() as connection:
        async with connection.transaction():
            for namespace in (ONE, OTHER, SAME):
                await connection.execute(episode(namespace, "e"))
            await connection.execute("UPDATE episodes SET domain = 'x'")
            assert await log(connection, ONE) == [], "it takes no head before it commits"
        rows = await connection.fetch(
            "SELECT namespace, position, idx, operation FROM changes WHERE position > 1 ORDER BY shard, position, idx"
        )
        by_shard = [
            [tuple(row)[1:] for row in rows if shard_of(row[0], HEADS) == shard_of(namespace, HEADS)]
            for namespace in (ONE, OTHER)
        ]
        assert by_shard[0] == [(2, 0, "insert"), (2, 1, "insert"), (2, 2, "update"), (2, 3, "update")]
        assert by_shard[1] == [(2, 0, "insert"), (2, 1, "update")]
        assert await connection.fetchval("SELECT count(*) FROM head WHERE position = 2") == 2
        await connection.execute("UPDATE episodes SET domain = 'y'")
        assert [change[:2] for change in (await log(connection, ONE))[-2:]] == [(3, 0), (3, 1)], "the next one another"
        nonces = await connection.fetch("SELECT position, nonce FROM changes WHERE shard = $1", shard_of(ONE, HEADS))
        assert len(set(nonces)) == len({position for position, _ in nonces}) == 3


async def test_what_is_rolled_back_is_not_logged(database: Database) -> None:
    async with database.connect() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(episode(ONE, "gone"))
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        assert len(await log(connection, ONE)) == 1
        await transaction.rollback()
        async with connection.transaction():
            await connection.execute(episode(ONE, "a"))
            savepoint = connection.transaction()
            await savepoint.start()
            await connection.execute(episode(ONE, "b"))
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await savepoint.rollback()
            await connection.execute(episode(ONE, "c"))
        assert [change[:4] for change in await log(connection, ONE)] == [(2, 0, "episode", "a"), (2, 1, "episode", "c")]
        assert await connection.fetchval("SELECT max(position) FROM head") == 2


async def test_moves(database: Database) -> None:
    """A record that leaves its place is logged there first, so that who keeps it by its place drops it."""
    async with database.connect() as connection:
        for namespace in (ONE, OTHER):
            await connection.execute(episode(namespace, "e"))
        await connection.execute(episode(ONE, "f"))
        await connection.execute(step(ONE, "s", "e"))
        first = await connection.fetchval("SELECT position FROM head WHERE shard = $1", shard_of(ONE, HEADS))
        await connection.execute("UPDATE steps SET episode_id = 'f'")
        await connection.execute("UPDATE steps SET id = 't', revision = 9")
        await connection.execute(f"UPDATE steps SET namespace = '{OTHER}', episode_id = 'e'")
        assert await log(connection, ONE, first) == [
            (first + 1, 0, "step", "s", "e", "move", 1),
            (first + 1, 1, "step", "s", "f", "update", 2),
            (first + 2, 0, "step", "s", "f", "move", 2),
            (first + 2, 1, "step", "t", "f", "update", 9),
            (first + 3, 0, "step", "t", "f", "move", 9),
        ]
        assert (await log(connection, OTHER))[-1] == (3, 0, "step", "t", "e", "update", 10)


async def test_the_revision_rises_with_every_update(database: Database) -> None:
    async with database.connect() as connection:
        await connection.execute(episode(ONE, "e", revision=5))
        for given, expected in (("revision", 6), ("1", 7), ("8", 8), ("100", 100), ("100", 101)):
            await connection.execute(f"UPDATE episodes SET revision = {given}")
            assert await connection.fetchval("SELECT revision FROM episodes") == expected
        assert [change[-1] for change in await log(connection, ONE)] == [5, 6, 7, 8, 100, 101]
        async with connection.transaction():
            await connection.execute(WRITING)
            await connection.execute("UPDATE episodes SET revision = 3")
        assert await connection.fetchval("SELECT revision FROM episodes") == 3, "the library's own business"


async def test_parts_that_go_with_their_episode(database: Database) -> None:
    async with database.connect() as connection:
        await every_kind(connection, ONE)
        await connection.execute("DELETE FROM episodes")
        deleted = [change for change in await log(connection, ONE) if change[5] == "delete"]
        assert {change[0] for change in deleted} == {7}, "one transaction, one position"
        assert sorted(change[1] for change in deleted) == [0, 1, 2, 3]
        assert {change[2:] for change in deleted} == {
            ("episode", "e", None, "delete", 1),
            ("step", "x", "e", "delete", 1),
            ("embedding", "x", "e", "delete", 1),
            ("spatiotemporal", "x", "e", "delete", 1),
        }


async def test_nothing_is_logged_for_the_library(database: Database) -> None:
    async with database.connect() as connection:
        async with connection.transaction():
            await connection.execute(WRITING)
            await every_kind(connection, ONE)
            await connection.execute("UPDATE patterns SET domain = 'x'")
            await connection.execute("DELETE FROM episodes")
            await connection.execute("TRUNCATE episodes CASCADE")
        assert await log(connection, ONE) == []
        await connection.execute(episode(ONE, "e"))
        assert len(await log(connection, ONE)) == 1, "the setting ends with the transaction"


async def test_truncating_begins_a_new_epoch(database: Database) -> None:
    """No namespaces are known, so every follower must drop everything: that is what a new epoch is for."""
    async with database.connect() as connection:
        await every_kind(connection, ONE)
        before = {row["shard"]: row for row in await connection.fetch("SELECT * FROM head")}
        await connection.execute("TRUNCATE patterns")
        after = await connection.fetch("SELECT * FROM head")
        assert {row["epoch"] for row in after} == {3}
        assert len({row["nonce"] for row in after}) == HEADS
        for row in after:
            assert row["position"] == before[row["shard"]]["position"] + 1
            assert row["store_id"] == before[row["shard"]]["store_id"]
        stated = await connection.fetch(
            "SELECT c.shard, idx, kind, namespace, key, parent, operation, actor FROM changes c JOIN head h "
            "USING (shard, position, nonce) ORDER BY shard"
        )
        assert [tuple(row) for row in stated] == [
            (shard, 0, "store", "", None, None, "truncate", "sql") for shard in range(HEADS)
        ]
        await connection.execute("TRUNCATE episodes CASCADE")
        assert await connection.fetch("SELECT DISTINCT epoch FROM head") == [(4,)], "four tables, one transaction"


async def test_a_large_update_stays_linear(database: Database) -> None:
    """One position for 20,000 rows, and each of them costs what one of 2,000 costs.

    A head updated for every row would be read through as many dead versions as there were rows before.
    """
    async with database.connect() as connection:
        insert = episode(ONE, "e").replace("'e'", "number::text").replace("VALUES (", "SELECT ").removesuffix(")")
        async with connection.transaction():
            await connection.execute(WRITING)
            await connection.execute(f"{insert} FROM generate_series(1, 20000) number")
        # Blocks read by a transaction do not depend on the machine, as seconds do.
        blocks = []
        for most in (2_000, 20_000):
            async with connection.transaction():
                await connection.execute(f"UPDATE episodes SET domain = 'x' WHERE id::integer <= {most}")
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                blocks.append(
                    await connection.fetchval(
                        "SELECT pg_stat_get_xact_blocks_fetched('head'::regclass) + "
                        "pg_stat_get_xact_blocks_fetched('changes'::regclass)"
                    )
                )
        counts = await connection.fetch(
            "SELECT position, count(*), max(idx), count(DISTINCT nonce) FROM changes WHERE shard = $1 AND position > 1 "
            "GROUP BY position ORDER BY position",
            shard_of(ONE, HEADS),
        )
        assert [tuple(row) for row in counts] == [(2, 2_000, 1_999, 1), (3, 20_000, 19_999, 1)]
        assert blocks[1] < 15 * blocks[0]


async def test_transactions_over_the_same_shards_in_another_order_do_not_wait_for_each_other(
    database: Database,
) -> None:
    """They commit one after the other, whatever the order in which they learn of their shards."""
    namespaces = [f"n{number}" for number in range(40)]
    assert len({shard_of(namespace, HEADS) for namespace in namespaces}) > 10

    async def write(worker: int) -> None:
        async with database.connect() as connection:
            await connection.execute("SET deadlock_timeout = '10ms'")
            for turn in range(10):
                async with connection.transaction():
                    for namespace in namespaces if worker % 2 else namespaces[::-1]:
                        await connection.execute(episode(namespace, f"{worker}.{turn}"))

    async with asyncio.timeout(120):
        await asyncio.gather(*(write(worker) for worker in range(4)))
    async with database.connect() as connection:
        positions = await connection.fetch("SELECT DISTINCT shard, position FROM changes WHERE position > 1")
        touched = {shard_of(namespace, HEADS) for namespace in namespaces}
        assert sorted(map(tuple, positions)) == [(shard, 2 + n) for shard in sorted(touched) for n in range(40)]


async def test_a_head_is_held_for_the_commit_only(database: Database) -> None:
    async with database.connect() as plain, database.connect() as library:
        transaction = plain.transaction()
        await transaction.start()
        await plain.execute(episode(ONE, "e"))
        async with library.transaction():
            found = await library.fetch("SELECT 1 FROM head WHERE shard = $1 FOR UPDATE NOWAIT", shard_of(ONE, HEADS))
            assert len(found) == 1
        await transaction.commit()
        assert len(await log(plain, ONE)) == 1


async def test_a_reader_is_not_led_astray(database: Database) -> None:
    """What a session can put in the way of a trigger that looks things up by their names."""
    async with database.connect() as connection:
        await connection.execute("CREATE SCHEMA mine; CREATE TABLE mine.head (LIKE head)")
        await connection.execute("CREATE TEMP TABLE changes (LIKE changes); CREATE TEMP TABLE head (LIKE head)")
        await connection.execute("CREATE FUNCTION mine.sha256(bytea) RETURNS bytea LANGUAGE sql RETURN '\\x00'::bytea")
        await connection.execute("SET search_path = mine, pg_temp, public, pg_catalog")
        await connection.execute(episode(ONE, "e"))
        assert await connection.fetchval("SELECT count(*) FROM pg_temp.changes") == 0
        await connection.execute("SET search_path = public; DROP TABLE pg_temp.changes, pg_temp.head")
        assert len(await log(connection, ONE)) == 1


async def test_a_transaction_is_one_commit_even_when_a_row_changes_twice(database: Database) -> None:
    async with database.connect() as connection:
        async with connection.transaction():
            await connection.execute(episode(ONE, "e"))
            await connection.execute("UPDATE episodes SET domain = 'x'")
            await connection.execute("DELETE FROM episodes")
        assert [(change[0], change[1], *change[5:]) for change in await log(connection, ONE)] == [
            (2, 0, "insert", 1),
            (2, 1, "update", 2),
            (2, 2, "delete", 2),
        ]


async def test_what_a_key_refuses_is_not_logged(database: Database) -> None:
    async with database.connect() as connection:
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await connection.execute(step(ONE, "s", "nobody"))
        await connection.execute(episode(ONE, "e"))
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute(episode(ONE, "e"))
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await connection.execute(OTHERS["embeddings"].format(namespace=OTHER, id="x", parent="e"))
        assert [change[:4] for change in await log(connection, ONE)] == [(2, 0, "episode", "e")]
