"""A database on a server is checked whole, as of one commit; nothing is taken for wrong that is not."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

from memory_store import ConfigurationError, MemoryStore, upkeep
from memory_store.durable.catalogue import expected_objects
from memory_store.durable.changes import shard_of
from memory_store.durable.partitions import partition
from memory_store.durable.row_security import secure
from memory_store.records import METADATA
from tests.integration.cli_support import memory_store, plain_sql
from tests.integration.server_support import SHARD, STEP, behind, episode, heads_of, make, require_sound
from tests.migration.postgresql import HEADS, Database
from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres, MakeStandby
from tests.servers.installation import postgres_programs

CHECKS = {"schema", "head", "foreign keys", "log", "records", "idempotency", "full text"}


@pytest.fixture
async def url(database: Database) -> str:
    """A closed database whose log has every operation."""
    await make(database.url)
    return database.url


async def test_a_sound_database_has_no_problems(url: str) -> None:
    told: list[str] = []
    before = await heads_of(url)

    found = await upkeep.verify(url, on_progress=lambda what, *_: told.append(what))

    assert (found.ok, found.problems, set(found.found)) == (True, [], CHECKS)
    assert found.path == f"postgresql://postgres@/{make_url(url).database}"
    assert found.position == sum(position for _, position, _, _ in before)
    assert found.saved_cache == "there is none"
    assert {f"checking {check}" for check in CHECKS} == set(told)
    assert await heads_of(url) == before


@pytest.mark.parametrize("partitions", [False, True])
async def test_what_plain_sql_did_is_no_problem_nor_are_writers(url: str, database: Database, partitions: bool) -> None:
    if partitions:
        await database.run(partition, 3)
        await require_sound(url)
    await plain_sql(
        url,
        "UPDATE episodes SET domain = 'sql' WHERE id IN ('e0', 'e1')",
        "UPDATE steps SET id = 'renamed' WHERE id = 's0-0'",
        "UPDATE steps SET episode_id = 'e4', step_number = 77 WHERE id = 's0-1'",
        "UPDATE patterns SET namespace = 'moved' WHERE id = 'p'",
        "DELETE FROM episodes WHERE id = 'e2'",
    )
    await plain_sql(url, "UPDATE steps SET id = 's0-0' WHERE id = 'renamed'", "TRUNCATE patterns")
    await require_sound(url)

    async def write(store: MemoryStore, tag: str) -> None:
        number = 0
        while not enough.is_set():
            async with store.transaction() as tx:
                await tx.episodes.put(episode(f"{tag}{number % 5}-a"))
                await tx.episodes.put(episode(f"{tag}{number % 5}-b"))
            await store.episodes.put(episode(f"{tag}-{number}"), idempotency_key=f"{tag}-{number}")
            number += 1

    enough = asyncio.Event()
    async with MemoryStore(url, namespace="n") as one, MemoryStore(url, namespace="m") as two:
        writers = [asyncio.create_task(write(one, "x")), asyncio.create_task(write(two, "y"))]
        positions = []
        for _ in range(4):
            found = await upkeep.verify(url)
            assert found.problems == []
            positions.append(found.position)
        enough.set()
        await asyncio.gather(*writers)
    assert positions == sorted(set(positions)), "others went on meanwhile"


async def test_a_trimmed_log_is_only_asked_about_what_it_holds(url: str) -> None:
    other = shard_of("default", HEADS)
    assert other != SHARD
    await plain_sql(url, f"DELETE FROM changes WHERE shard = {SHARD} AND position <= 12")
    await require_sound(url)
    await plain_sql(
        url, *behind("UPDATE episodes SET revision = 77 WHERE namespace IN ('n', 'default')"),
        f"{STEP} ('n', 'of old', 1, 0, 0, 'e0', 60, 'a'), ('default', 'of none', 1, 0, 0, 'e-one', 60, 'a')",
    )  # fmt: skip
    found = await upkeep.verify(url)
    of_log = {problem.key for problem in found.problems if problem.check != "full text"}
    # What the log of the one shard does not reach back to may have been there; the other's is whole.
    assert of_log == {"e1", "e3", "both", "keyed", "e-one", "of none"}
    assert {problem.key for problem in found.problems} - of_log == {"e0", "e2", "e4", "of old"}, "the index has others"


async def test_all_problems_are_counted_and_the_first_returned(url: str, postgres_server: PostgresDatabases) -> None:
    await plain_sql(url, *behind("UPDATE steps SET revision = 9"))
    [[steps]] = postgres_server.execute("SELECT count(*) FROM steps", str(make_url(url).database))
    found = await upkeep.verify(url, most=4)
    assert (len(found.problems), found.total, found.found["records"]) == (4, int(steps), int(steps))


async def test_the_saved_cache_is_compared_with_the_rows(url: str, tmp_path: Path) -> None:
    cached = f"{url}{'&' if '?' in url else '?'}cache_path={tmp_path}/saved"
    async with MemoryStore(cached, namespace="n") as store:
        await store.cache.rebuild()
    assert (await upkeep.verify(cached)).saved_cache == "sound"
    await plain_sql(url, "UPDATE episodes SET domain = 'logged' WHERE id = 'e0'")
    assert (await upkeep.verify(cached)).saved_cache == "sound", "the next start drops what has changed"
    await plain_sql(url, *behind("UPDATE episodes SET domain = 'x' WHERE id = 'e1'"))  # same revision

    found = await upkeep.verify(cached)

    assert [(problem.check, problem.key) for problem in found.problems] == [("saved cache", "e1")]
    async with MemoryStore(cached, namespace="n") as running:
        await running.cache.wait()
        assert (await running.episodes.get("e1")).domain == "web", "it is stale, as was to be shown"
        done = await upkeep.repair(cached, without_copy=True)
        assert "removed the saved cache" in done.done
        assert not (tmp_path / "saved" / "cache.msgpack").exists()
        assert (await running.episodes.get("e1", freshness="linearizable")).domain == "x", "a new epoch drops it"
    await require_sound(cached)


async def test_cancelled_work_changes_nothing_and_the_server_stops_it(url: str) -> None:
    await plain_sql(url, f"UPDATE head SET nonce = 1 WHERE shard = {SHARD}")
    before = await heads_of(url)
    dsn = url.replace("+asyncpg", "")
    locking, looking = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    ours = [locking.get_server_pid(), looking.get_server_pid()]
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> ALL ($1) "
        "AND backend_type = 'client backend'"
    )
    lock = locking.transaction()
    await lock.start()
    await locking.execute("LOCK TABLE changes IN ACCESS EXCLUSIVE MODE")  # both wait there
    for work in (upkeep.verify(url), upkeep.repair(url, without_copy=True)):
        running = asyncio.create_task(work)
        while not await looking.fetchval(f"{others} AND wait_event_type = 'Lock'", ours):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while await looking.fetchval(others, ours):  # within a second: the server looks whether its client is there
            await asyncio.sleep(0.05)
    await lock.rollback()
    await locking.close()
    await looking.close()
    assert await heads_of(url) == before


async def test_a_role_that_sees_one_namespace_is_refused(url: str, database: Database) -> None:
    role = f"agent_{make_url(url).database}"
    await plain_sql(url, f'CREATE ROLE "{role}" LOGIN')
    try:
        await database.run(secure, role)
        await require_sound(url)  # of the owner, whom it does not concern
        theirs = make_url(url).set(username=role).render_as_string(hide_password=False)
        for work in (upkeep.verify(theirs), upkeep.repair(theirs, without_copy=True)):
            with pytest.raises(ConfigurationError, match="as the owner of its tables"):
                await work
    finally:
        await plain_sql(url, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


async def test_a_standby_can_be_verified(make_postgres: MakePostgres, make_standby: MakeStandby) -> None:
    primary = make_postgres(durable=False)
    await make(primary.url())
    standby = make_standby(primary)
    await require_sound(standby.url())


def client(program: str, *arguments: str) -> None:
    subprocess.run([str(postgres_programs() / program), *arguments], check=True, capture_output=True, timeout=120)


async def test_a_restored_dump_is_recognised_by_stores_and_saved_caches(
    url: str, postgres_server: PostgresDatabases, tmp_path: Path
) -> None:
    """The way back on a server: pg_dump and pg_restore."""
    name = str(make_url(url).database)
    dump, cached = tmp_path / "store.dump", f"{url}{'&' if '?' in url else '?'}cache_path={tmp_path}/saved"
    await asyncio.to_thread(client, "pg_dump", "-Fc", "-f", str(dump), "-d", postgres_server.dsn(name))
    async with MemoryStore(cached, namespace="n", staleness_s=0) as store:
        await store.episodes.update("e1", domain="lost")
        await store.cache.rebuild()
        await store.cache.save()
        assert (await store.episodes.get("e1")).domain == "lost"
        await asyncio.to_thread(postgres_server.drop_database, name)
        await asyncio.to_thread(postgres_server.execute, f'CREATE DATABASE "{name}" TEMPLATE template0')
        await asyncio.to_thread(client, "pg_restore", "--exit-on-error", "-d", postgres_server.dsn(name), str(dump))
        assert (await store.episodes.get("e1")).domain == "web", "a head taken back is noticed at the next look"
        # The same position again, with something else: the random number of the commit tells them apart.
        await store.episodes.update("e1", domain="new")
        assert (await store.episodes.get("e1")).domain == "new"
        status = memory_store(tmp_path, "cache", "status", "--json", MEMORY_STORE_URL=cached).json
        assert status["usable"] is False
    await require_sound(cached)


async def test_backups_are_made_with_the_servers_own_tools(url: str, tmp_path: Path) -> None:
    async with MemoryStore(url) as store:
        works = [
            upkeep.backup(store, tmp_path / "b"),
            upkeep.backup(url, tmp_path / "b"),
            upkeep.restore(tmp_path / "b", url),
        ]
        for work in works:
            with pytest.raises(ConfigurationError, match=r"pg_dump .* pg_basebackup .* pg_restore"):
                await work
    assert list(tmp_path.iterdir()) == []


def test_what_a_database_should_have_is_read_from_the_models_and_leaves_them_as_they_are() -> None:
    before = [str(CreateTable(table)) for table in METADATA.sorted_tables]
    expected_objects.cache_clear()
    expected_objects()
    assert [str(CreateTable(table)) for table in METADATA.sorted_tables] == before
    assert all("PRIMARY KEY" in text for text in before)
