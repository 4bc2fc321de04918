"""A role that does not own the tables sees one namespace at a time, and works in it as the owner does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from memory_store import ConfigurationError
from memory_store.durable.changes import shard_of
from memory_store.durable.partitions import RECORD_TABLES, partition
from memory_store.durable.row_security import secure
from memory_store.durable.statements import STATEMENTS
from tests.migration.postgresql import HEADS, Database, episode, every_kind, log, step
from tests.migration.test_postgresql_partitions import HOT, scanned

OURS, THEIRS = "agent/0", "agent/0x"


@pytest.fixture
async def role(database: Database) -> AsyncIterator[str]:
    """A role that owns nothing, gone with the test (roles belong to the server, not to a database)."""
    name = 'an "agent" ' + database.dsn.partition("test_")[2][:12]
    quoted = name.replace('"', '""')
    async with database.connect() as connection:
        await connection.execute(f'CREATE ROLE "{quoted}"')
    yield name
    async with database.connect() as connection:
        await connection.execute(f'DROP OWNED BY "{quoted}"; DROP ROLE "{quoted}"')


@pytest.fixture(params=["whole", "partitioned"])
async def secured(request: pytest.FixtureRequest, database: Database, role: str) -> Database:
    """A database with records of two namespaces, secured for the role; whole, and partitioned after that."""
    async with database.connect() as connection:
        for namespace in (OURS, THEIRS):
            await every_kind(connection, namespace)
            await connection.execute(
                "INSERT INTO idempotency VALUES ($1, 'key', 'episode', '\\x00', 'e', '\\x00', 2)", namespace
            )
            await connection.execute(DOCUMENT, namespace)
            await connection.execute("INSERT INTO vectors VALUES ($1, 'x', 'e', 'm', 1, '[1]')", namespace)
    await database.run(secure, role)
    if request.param == "partitioned":
        await database.run(partition, 4)
    return database


def agent(database: Database, role: str, namespace: str | None = OURS) -> Any:
    """Connect as the role, in a namespace."""
    settings = {} if namespace is None else {"memory_store.namespace": namespace}
    return database.connect(role.replace('"', '""'), **settings)


DOCUMENT = (
    "INSERT INTO documents (namespace, kind, id, at, revision, length, corpus, terms) "
    "VALUES ($1, 'episode', 'e', 1, 1, 1, 'c', 'cterm:1')"
)
TABLES = [*RECORD_TABLES, "idempotency", "documents", "backlog", "vectors"]


async def test_it_sees_its_own_rows_only(secured: Database, role: str) -> None:
    async with agent(secured, role) as connection:
        for table in TABLES:
            assert await connection.fetch(f"SELECT DISTINCT namespace FROM {table}") == [(OURS,)], table
            assert await connection.fetch(f"SELECT 1 FROM {table} WHERE namespace = $1", THEIRS) == []
        seen = await connection.fetch("SELECT DISTINCT namespace, kind = 'store' FROM changes")
        assert set(map(tuple, seen)) == {(OURS, False), ("", True)}
        assert await connection.fetchval("SELECT count(*) FROM head") == HEADS
        assert await connection.fetchval("SELECT count(*) FROM alembic_version") == 1


@pytest.mark.parametrize("namespace", [None, "", "nobody", f"{OURS},{THEIRS}", "%", "agent/0' OR true --"])
async def test_without_a_namespace_it_sees_none(namespace: str | None, secured: Database, role: str) -> None:
    async with agent(secured, role, namespace) as connection:
        for table in TABLES:
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0
        assert await connection.fetch("SELECT DISTINCT kind FROM changes") == [("store",)]
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute(episode("", "x"))


async def test_it_changes_nothing_of_others(secured: Database, role: str) -> None:
    async with secured.connect() as owner:
        select = "SELECT * FROM {} WHERE namespace = $1"
        before = [await owner.fetch(select.format(table), THEIRS) for table in [*TABLES, "changes"]]
        assert all(before)
        async with agent(secured, role) as connection:
            for table in TABLES:
                assert await connection.execute(f"DELETE FROM {table} WHERE namespace = '{THEIRS}'") == "DELETE 0"
                key = "key" if table in ("idempotency", "backlog") else "id"
                update = f"UPDATE {table} SET {key} = 'y' WHERE namespace = '{THEIRS}'"
                assert await connection.execute(update) == "UPDATE 0"
            refused = [
                episode(THEIRS, "new"),
                step(THEIRS, "new", "e", 5),
                f"UPDATE patterns SET namespace = '{THEIRS}', id = 'y'",
                f"UPDATE episodes SET namespace = '{THEIRS}', id = 'y' WHERE id = 'lonely'",
                f"UPDATE idempotency SET namespace = '{THEIRS}', key = 'y'",
                f"INSERT INTO changes SELECT shard, position, 99, kind, '{THEIRS}', key, parent, operation, revision, "
                "actor, at, nonce, image FROM changes WHERE kind = 'episode'",
                "INSERT INTO changes SELECT shard, position, 99, kind, namespace, key, parent, operation, revision, "
                "actor, at, nonce, image FROM changes WHERE kind = 'store'",
            ]
            await connection.execute(episode(OURS, "lonely"))
            for statement in refused:
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                    await connection.execute(statement)
            # What is not its namespace's business at all.
            denied = [
                "UPDATE changes SET kind = 'x'",
                "DELETE FROM changes",
                "UPDATE head SET epoch = 1",
                "UPDATE head SET store_id = 'x'",
                "DELETE FROM head",
                "UPDATE alembic_version SET version_num = '1'",
                *(f"TRUNCATE {table}" for table in TABLES),
                "ALTER TABLE episodes DISABLE ROW LEVEL SECURITY",
                "DROP POLICY memory_store_all ON episodes",
            ]
            for statement in denied:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
        after = [await owner.fetch(select.format(table), THEIRS) for table in [*TABLES, "changes"]]
        assert after == before


async def test_an_upsert_does_not_reach_what_it_cannot_see(secured: Database, role: str) -> None:
    async with agent(secured, role) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(episode(THEIRS, "e") + " ON CONFLICT DO NOTHING")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(episode(THEIRS, "e") + " ON CONFLICT (namespace, id) DO UPDATE SET domain = 'x'")


async def test_what_it_changes_is_logged(secured: Database, role: str) -> None:
    async with secured.connect() as owner, agent(secured, role) as connection:
        last = await owner.fetchval("SELECT position FROM head WHERE shard = $1", shard_of(OURS, HEADS))
        async with connection.transaction():
            await connection.execute(episode(OURS, "f"))
            await connection.execute("UPDATE patterns SET domain = 'x'")
            await connection.execute("DELETE FROM episodes WHERE id = 'e'")
        changes = await log(owner, OURS, last)
        assert {change[0] for change in changes} == {last + 1}
        assert {change[2:6] for change in changes} == {
            ("episode", "f", None, "insert"),
            ("pattern", "x", None, "update"),
            ("episode", "e", None, "delete"),
            ("step", "x", "e", "delete"),
            ("embedding", "x", "e", "delete"),
            ("spatiotemporal", "x", "e", "delete"),
        }
        assert await owner.fetchval("SELECT count(*) FROM steps WHERE namespace = $1", THEIRS) == 1


async def test_a_transactions_namespace_ends_with_it(secured: Database, role: str) -> None:
    async with agent(secured, role, None) as connection:
        for namespace in (OURS, THEIRS):
            async with connection.transaction():
                await connection.execute("SELECT set_config('memory_store.namespace', $1, true)", namespace)
                assert await connection.fetch("SELECT namespace FROM episodes") == [(namespace,)]
                await connection.execute("UPDATE episodes SET domain = $1", namespace)
            assert await connection.fetch("SELECT namespace FROM episodes") == []
    async with secured.connect() as owner:
        rows = await owner.fetch("SELECT namespace, domain, revision FROM episodes ORDER BY namespace")
        assert [tuple(row) for row in rows] == [(OURS, OURS, 2), (THEIRS, THEIRS, 2)]


async def test_the_librarys_statements_work_in_its_namespace(secured: Database, role: str) -> None:
    """And read one partition at most, as without security; of another namespace they find nothing."""
    async with agent(secured, role) as connection:
        assert len(HOT) > 30
        for parameter in HOT:
            text, values = parameter.values
            touched = await scanned(connection, str(text), [OURS if v == "agent/0" else v for v in list(values)])
            assert len({table.rpartition("_p")[2] for table in touched if "_p" in table}) <= 1, parameter.id
        one = STATEMENTS["episode"].get.replace("?", "$1", 1).replace("?", "$2", 1)
        assert len(await connection.fetch(one, OURS, "e")) == 1
        assert await connection.fetch(one, THEIRS, "e") == []
        async with connection.transaction():
            claim = (
                "SELECT position, set_config('memory_store.writing', 'on', true) FROM head WHERE shard = $1 FOR UPDATE"
            )
            [position, _] = await connection.fetchrow(claim, shard_of(OURS, HEADS))
            await connection.execute(episode(OURS, "mine"))
            await connection.execute("INSERT INTO idempotency VALUES ($1, 'k', 'episode', '', 'e', '', 2)", OURS)
            await connection.execute(
                "UPDATE head SET position = position + 1, nonce = 5, writing = 0 WHERE shard = $1",
                shard_of(OURS, HEADS),
            )
            await connection.execute(
                "INSERT INTO changes VALUES ($1, $2, 0, 'episode', $3, 'mine', NULL, 'insert', 1, '', 0, 5, NULL)",
                shard_of(OURS, HEADS),
                position + 1,
                OURS,
            )


async def test_the_security_test_costs_one_look_at_a_statement(secured: Database, role: str) -> None:
    """With the namespace of the condition it is no condition on rows: the index keeps its order."""
    async with agent(secured, role) as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")
        await connection.execute(
            "PREPARE page(text) AS SELECT id FROM episodes WHERE namespace = $1 ORDER BY created_at DESC LIMIT 50"
        )
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE page('{OURS}')"))
    assert "One-Time Filter" in plan
    assert "Sort" not in plan.replace("Sort Key", "") or "Append" in plan
    assert "Filter: " not in plan.replace("One-Time Filter: ", "")


async def test_the_log_it_may_read_has_no_gaps(secured: Database, role: str) -> None:
    """A follower starts again from nothing at a gap of the log, so what it may not read is there without content."""
    neighbour = next(f"n{i}" for i in range(10**6) if shard_of(f"n{i}", HEADS) == shard_of(OURS, HEADS))
    shard = shard_of(OURS, HEADS)
    async with secured.connect() as owner, agent(secured, role) as connection:
        async with owner.transaction():
            await owner.execute(episode(neighbour, "secret"))
            await owner.execute("UPDATE episodes SET domain = 'x' WHERE namespace = $1", neighbour)
        await owner.execute(episode(OURS, "f"))
        last = await owner.fetchval("SELECT position FROM head WHERE shard = $1", shard)
        rows = await connection.fetch("SELECT * FROM memory_store_tail($1, $2, $3, 100)", shard, 1, last)
        positions = [row["position"] for row in rows]
        assert sorted(set(positions)) == list(range(2, last + 1))
        assert positions == sorted(positions)
        hidden = [tuple(row) for row in rows if row["namespace"] not in (OURS, "") or row["kind"] == ""]
        assert [row[2:] for row in hidden] == [("", "", None, None)], "one row for the neighbour's two changes"
        visible = [tuple(row)[2:] for row in rows if row["kind"] not in ("", "store")]
        assert visible[0] == ("episode", OURS, "e", None)
        assert visible[-1] == ("episode", OURS, "f", None)
        all_rows = await owner.fetch("SELECT DISTINCT position, nonce FROM changes WHERE shard = $1", shard)
        for position, nonce in all_rows:
            assert await connection.fetchval("SELECT memory_store_nonce($1, $2)", shard, position) == nonce
        assert await connection.fetchval("SELECT memory_store_nonce($1, $2)", shard, last + 1) is None
        assert len(await connection.fetch("SELECT * FROM memory_store_tail($1, $2, $3, 2)", shard, 1, last)) == 2


async def test_copy_is_refused_to_it(secured: Database, role: str) -> None:
    """By PostgreSQL itself: a bulk load of the library must use INSERT for such a role."""
    async with agent(secured, role) as connection:
        assert await connection.fetchval("SELECT row_security_active('episodes')")
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="COPY FROM not supported with row-level security"):
            await connection.copy_records_to_table("steps", records=[], columns=["namespace"])
    async with secured.connect() as owner:
        assert not await owner.fetchval("SELECT row_security_active('episodes')")


async def test_again_and_for_another_role(secured: Database, role: str) -> None:
    other = role + "2"
    quoted = other.replace('"', '""')
    policies = "SELECT tablename::text, policyname::text, cmd FROM pg_policies ORDER BY 1, 2"
    async with secured.connect() as owner:
        before = await owner.fetch(policies)
        assert len(before) == len(TABLES) + 2
        await owner.execute(f'CREATE ROLE "{quoted}"')
        try:
            async with agent(secured, other) as connection:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.fetch("SELECT 1 FROM episodes")
            await secured.run(secure, role)
            await secured.run(secure, other)
            assert await owner.fetch(policies) == before
            async with agent(secured, other, THEIRS) as connection:
                assert await connection.fetch("SELECT namespace FROM episodes") == [(THEIRS,)]
        finally:
            await owner.execute(f'DROP OWNED BY "{quoted}"; DROP ROLE "{quoted}"')


async def test_it_is_no_migration(secured: Database, role: str) -> None:
    assert "No new upgrade operations detected" in await secured.alembic("check")
    await secured.alembic("downgrade", "0001")
    await secured.alembic("upgrade", "head")
    async with agent(secured, role) as connection:
        assert await connection.fetch("SELECT namespace FROM episodes") == [(OURS,)]
        with pytest.raises(asyncpg.InsufficientPrivilegeError):  # `idempotency` was made anew
            await connection.fetch("SELECT namespace FROM idempotency")
    await secured.run(secure, role)
    async with agent(secured, role) as connection:
        await connection.execute(episode(OURS, "f"))
        assert await connection.fetch("SELECT namespace FROM idempotency") == []


async def test_roles_it_does_not_apply_to_are_refused(database: Database, role: str) -> None:
    quoted = role.replace('"', '""')
    with pytest.raises(ConfigurationError, match='no role "nobody\'s"'):
        await database.run(secure, "nobody's")
    with pytest.raises(ConfigurationError, match="is a superuser"):
        await database.run(secure, "postgres")
    with pytest.raises(TypeError, match="role must be a str"):
        await database.run(secure, 1)
    async with database.connect() as owner:
        await owner.execute(f'ALTER ROLE "{quoted}" BYPASSRLS')
        with pytest.raises(ConfigurationError, match="has BYPASSRLS"):
            await database.run(secure, role)
        await owner.execute(f'ALTER ROLE "{quoted}" NOBYPASSRLS; ALTER TABLE head OWNER TO "{quoted}"')
        with pytest.raises(ConfigurationError, match="has the rights of the tables' owner"):
            await database.run(secure, role)
        await owner.execute("ALTER TABLE head OWNER TO postgres")
        assert await owner.fetchval("SELECT count(*) FROM pg_policies") == 0
