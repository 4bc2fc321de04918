"""What is wrong with a database on a server is found, named and repaired; nothing is taken for wrong that is not."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from memory_store import (
    ConfigurationError,
    DurableTimeoutError,
    DurableUnavailableError,
    Episode,
    MemoryStore,
    Pattern,
    Step,
    upkeep,
)
from memory_store.durable.changes import shard_of
from memory_store.durable.partitions import partition
from memory_store.durable.row_security import secure
from tests.integration.cli_support import Done, fill_two_namespaces, memory_store, one_line, plain_sql
from tests.migration.postgresql import HEADS, Database
from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres, MakeStandby
from tests.servers.installation import postgres_programs
from tests.unit.samples import MAKE

SHARD = shard_of("n", HEADS)
CHECKS = {"schema", "head", "foreign keys", "log", "records", "idempotency"}


def episode(id_: str) -> Episode:
    return Episode(id=id_, task_type="testing", domain="web")


async def make(url: str) -> None:
    """Make a log that has every operation, with idempotency keys, in several namespaces."""
    await fill_two_namespaces(url)
    async with MemoryStore(url, namespace="n", cache_max_bytes=0) as store:
        await store.episodes.put_many([episode(f"e{n}") for n in range(5)])
        for n in range(5):
            await store.steps.append(f"e{n}", [Step(id=f"s{n}-{k}", action="a", success=True) for k in range(3)])
            await store.embeddings.put(MAKE["embedding"](f"e{n}", id=f"v{n}"))
        await store.episodes.put(episode("keyed"), idempotency_key="once")
        await store.episodes.update("e1", status="completed")
        await store.steps.put(Step(id="s1-1", episode_id="e2", action="moved", step_number=9))
        await store.steps.delete("s1-2")
        await store.episodes.delete("e3")
        await store.episodes.put(episode("e3"))
        async with store.transaction() as tx:
            await tx.episodes.put(episode("both"))
            await tx.steps.append("both", Step(id="b1", action="x"))
            await tx.episodes.delete("both")
            await tx.episodes.put(episode("both"))
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=1))


@pytest.fixture
async def url(database: Database) -> str:
    """A closed database like that."""
    await make(database.url)
    return database.url


async def require_sound(url: str) -> None:
    found = await upkeep.verify(url)
    assert (found.problems, found.total) == ([], 0)


async def heads_of(url: str) -> list[tuple[int, int, str, int]]:
    """Shard, position, store id, epoch."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        rows = await connection.fetch("SELECT shard, position, store_id, epoch FROM head ORDER BY shard")
        return [tuple(row) for row in rows]
    finally:
        await connection.close()


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


def behind(*statements: str) -> tuple[str, ...]:
    """Damage behind the back of the log."""
    return ("SELECT set_config('memory_store.writing', 'on', true)", *statements)


STEP = "INSERT INTO steps (namespace, id, revision, created_at, updated_at, episode_id, step_number, action) VALUES "
REPAIRABLE: dict[str, tuple[tuple[str, ...], str, str, str | None]] = {
    # name: what is done, the check that finds it, words, the record it names
    "orphans": (
        behind(
            "ALTER TABLE steps DROP CONSTRAINT fk_steps_namespace_episode_id_episodes",
            "ALTER TABLE embeddings DROP CONSTRAINT fk_embeddings_namespace_episode_id_episodes",
            "DELETE FROM episodes WHERE id = 'e4'",
        ),
        *("foreign keys", "belongs to episode 'e4'", "s4-0"),
    ),
    "orphans that a load let through": (
        ("SET LOCAL session_replication_role = replica", "DELETE FROM episodes WHERE id = 'e4'"),
        *("foreign keys", "belongs to episode 'e4'", "s4-0"),
    ),
    "no foreign key": (
        ("ALTER TABLE steps DROP CONSTRAINT fk_steps_namespace_episode_id_episodes",),
        *("schema", "key fk_steps_namespace_episode_id_episodes is missing", None),
    ),
    "another foreign key": (
        (
            "ALTER TABLE steps DROP CONSTRAINT fk_steps_namespace_episode_id_episodes",
            "ALTER TABLE steps ADD CONSTRAINT fk_steps_namespace_episode_id_episodes FOREIGN KEY "
            "(namespace, episode_id) REFERENCES episodes (namespace, id)",
        ),
        *("schema", "key fk_steps_namespace_episode_id_episodes is another one", None),
    ),
    "no unique key": (
        ("ALTER TABLE steps DROP CONSTRAINT uq_steps_namespace_episode_id_step_number",),
        *("schema", "key uq_steps_namespace_episode_id_step_number is missing", None),
    ),
    "a head behind": (
        (f"UPDATE head SET position = position - 2 WHERE shard = {SHARD}",),
        *("head", f"of shard {SHARD} is at position", None),
    ),
    "a head ahead": (
        (f"UPDATE head SET position = position + 5 WHERE shard = {SHARD}",),
        *("head", "the log ends at", None),
    ),
    "another nonce": ((f"UPDATE head SET nonce = 1 WHERE shard = {SHARD}",), "head", "another random number", None),
    "a head missing": ((f"DELETE FROM head WHERE shard = {SHARD}",), "head", f"no head of shard {SHARD}", None),
    "no heads": (("DELETE FROM head",), "head", "there is no head of shard 0, 1, 2", None),
    "heads of two stores": (("UPDATE head SET store_id = 'x' WHERE shard = 3",), "head", "not all heads", None),
    "heads of two epochs": (("UPDATE head SET epoch = 7 WHERE shard = 3",), "head", "not all heads", None),
    "no trigger": (("DROP TRIGGER log_steps ON steps",), "schema", "trigger log_steps is missing", None),
    "a trigger switched off": (
        ("ALTER TABLE steps DISABLE TRIGGER raise_steps_revision",),
        *("schema", "trigger raise_steps_revision is switched off", None),
    ),
    "another trigger": (
        (
            "DROP TRIGGER log_steps ON steps",
            "CREATE CONSTRAINT TRIGGER log_steps AFTER INSERT OR DELETE ON steps DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION memory_store_log_row('step', 'true')",
        ),
        *("schema", "trigger log_steps is another one", None),
    ),
    "no function": (
        ("DROP FUNCTION memory_store_log_row() CASCADE",),
        *("schema", "function memory_store_log_row is missing", None),
    ),
    "another function": (
        (
            "CREATE OR REPLACE FUNCTION memory_store_raise_revision() RETURNS trigger LANGUAGE plpgsql "
            "AS $$ BEGIN RETURN NEW; END $$",
        ),
        *("schema", "function memory_store_raise_revision is another one", None),
    ),
    "no function for the shard": (
        ("DROP FUNCTION memory_store_shard(text)",),
        *("schema", "function memory_store_shard is missing", None),
    ),
    "another function for the shard": (
        ("CREATE OR REPLACE FUNCTION memory_store_shard(namespace text) RETURNS integer LANGUAGE sql RETURN 0",),
        *("schema", "function memory_store_shard is another one", None),
    ),
    "no index": (
        ("DROP INDEX ix_patterns_namespace_domain",),
        *("schema", "index ix_patterns_namespace_domain is missing", None),
    ),
    "another index": (
        ("DROP INDEX ix_steps_namespace_timestamp", "CREATE INDEX ix_steps_namespace_timestamp ON steps (timestamp)"),
        *("schema", "index ix_steps_namespace_timestamp is another one", None),
    ),
    "an index half made": (
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_patterns_namespace_domain'::regclass",),
        *("schema", "index ix_patterns_namespace_domain is not valid", None),
    ),
    "a gap": (
        (f"DELETE FROM changes WHERE shard = {SHARD} AND position = 4",),
        *("log", f"nothing between the positions 3 and 5 of shard {SHARD}", None),
    ),
    "half a commit": (("DELETE FROM changes WHERE idx = 1 AND key = 's0-1'",), "log", "has 2 of 3 changes", None),
    "two nonces": (
        ("UPDATE changes SET nonce = nonce + 1 WHERE key = 's0-1' AND idx = 1",),
        *("log", "several random numbers", None),
    ),
    "changes in another shard": (
        (f"UPDATE changes SET shard = {(SHARD + 1) % HEADS}, position = position + 1000 WHERE key = 's0-1'",),
        *("log", "are in another shard than their namespace's", None),
    ),
    "a lost end of the log": (
        (f"DELETE FROM changes WHERE shard = {SHARD} AND position > 15",),
        *("head", "the log ends at", None),
    ),
    "a row behind the log's back": (
        behind("UPDATE steps SET revision = 9 WHERE id = 's0-0'"),
        *("records", "is at revision 9, the log says 1", "s0-0"),
    ),
    "an unlogged parent": (
        behind("UPDATE steps SET episode_id = 'e1', step_number = 50 WHERE id = 's0-0'"),
        *("records", "belongs to episode 'e1', the log says 'e0'", "s0-0"),
    ),
    "an unlogged delete": (
        behind("DELETE FROM steps WHERE id = 's0-0'"),
        *("records", "is not stored, the log says that it is", "s0-0"),
    ),
    "an unlogged insert": (
        behind(f"{STEP} ('n', 'new', 1, 0, 0, 'e0', 60, 'a')"),
        *("records", "is stored, the log does not know it", "new"),
    ),
    "a deleted row that is back": (
        behind(f"{STEP} ('n', 's1-2', 1, 0, 0, 'e0', 60, 'a')"),
        *("records", "the log says that it was deleted", "s1-2"),
    ),
    "a part deleted with its episode that is back": (
        behind(f"{STEP} ('n', 's3-2', 1, 0, 0, 'e3', 60, 'a')"),
        *("records", "the log says that it was deleted", "s3-2"),
    ),
    "an idempotency key of nothing": (
        ("UPDATE idempotency SET id = 'e2' WHERE key = 'once'",),
        *("idempotency", "says idempotency key 'once'", "e2"),
    ),
    "an idempotency key of the future": (
        ("UPDATE idempotency SET position = 999 WHERE key = 'once'",),
        *("idempotency", "says idempotency key 'once'", "keyed"),
    ),
}


@pytest.mark.parametrize("name", REPAIRABLE)
async def test_what_is_wrong_is_found_named_and_repaired(name: str, url: str) -> None:
    damage, check, words, key = REPAIRABLE[name]
    await plain_sql(url, *damage)
    before = await heads_of(url)

    found = await upkeep.verify(url)

    fitting = [problem for problem in found.problems if problem.check == check and words in problem.text]
    assert fitting, found.problems
    if key is not None:
        assert ("n", key) in {(problem.namespace, problem.key) for problem in fitting}
    assert await heads_of(url) == before

    with pytest.raises(ConfigurationError, match="without_copy=True"):
        await upkeep.repair(url)
    done = await upkeep.repair(url, without_copy=True)

    assert (done.total, done.problems, done.copy) == (found.total, found.problems, None)
    assert done.done
    assert done.left == []
    await require_sound(url)
    after = await heads_of(url)
    assert len({(store, epoch) for _, _, store, epoch in after}) == 1
    assert [shard for shard, *_ in after] == list(range(HEADS))
    if before:
        assert after[0][3] == max(epoch for *_, epoch in before) + 1
    again = await upkeep.repair(url, without_copy=True)
    assert (again.total, again.done, again.left) == (0, [], [])
    async with MemoryStore(url, namespace="n") as store:
        await store.steps.append("e1", Step(action="after"))
    await plain_sql(url, "UPDATE steps SET action = 'sql' WHERE id = 's2-0'")
    await require_sound(url)


UNREPAIRABLE = {
    "a table of records": ("DROP TABLE patterns", "table patterns is missing"),
    "idempotency": ("DROP TABLE idempotency", "table idempotency is missing"),
    "the heads": ("DROP TABLE head", "table head is missing"),
    "the log": ("DROP TABLE changes", "table changes is missing"),
    "a column": ("ALTER TABLE patterns DROP COLUMN confidence", "table patterns has other columns"),
    "another type": ("ALTER TABLE patterns ALTER usage_count TYPE integer", "table patterns has other columns"),
    "another order": ('ALTER TABLE patterns ALTER domain TYPE text COLLATE "POSIX"', "has other columns"),
    "how many heads": (
        "DELETE FROM head WHERE shard > 6; DROP FUNCTION memory_store_shard(text)",
        "function memory_store_shard is missing",
    ),
}


@pytest.mark.parametrize("name", UNREPAIRABLE)
async def test_what_is_lost_is_found_and_takes_a_backup(name: str, url: str) -> None:
    damage, words = UNREPAIRABLE[name]
    await plain_sql(url, damage)

    found = await upkeep.verify(url)
    assert words in " ".join(map(str, found.problems))
    with pytest.raises(DurableUnavailableError, match="restore a backup"):
        await upkeep.repair(url, without_copy=True)
    assert (await upkeep.verify(url)).problems == found.problems


async def test_partitions_are_compared_and_repaired_as_well(url: str, database: Database) -> None:
    await database.run(partition, 3)
    await plain_sql(
        url,
        "DROP TRIGGER log_steps_truncate ON steps_p1",
        "DROP TRIGGER log_steps ON steps",
        "DROP INDEX ix_steps_namespace_tool_name",
        "ALTER TABLE steps DROP CONSTRAINT fk_steps_namespace_episode_id_episodes",
    )
    found = await upkeep.verify(url)
    assert sorted(problem.text for problem in found.problems) == [
        "index ix_steps_namespace_tool_name is missing",
        "key fk_steps_namespace_episode_id_episodes is missing",
        "trigger log_steps is missing",
        "trigger log_steps_truncate on steps_p1 is missing",
    ]
    done = await upkeep.repair(url, without_copy=True)
    assert done.left == []
    await require_sound(url)


async def test_what_somebody_hooked_in_is_told_and_left_alone(url: str) -> None:
    await plain_sql(
        url,
        "CREATE INDEX faster ON steps (namespace, action)",
        "CREATE TABLE theirs (x integer PRIMARY KEY)",
        "CREATE FUNCTION hook() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        "CREATE TRIGGER hooked AFTER INSERT ON theirs FOR EACH ROW EXECUTE FUNCTION hook()",
        "CREATE SCHEMA elsewhere",
        "CREATE TABLE elsewhere.steps (x integer PRIMARY KEY)",
    )
    await require_sound(url)
    await plain_sql(
        url,
        "CREATE UNIQUE INDEX refusing ON steps (namespace, id, action)",
        "ALTER TABLE patterns ADD CONSTRAINT refuses UNIQUE (namespace, id, domain)",
        "CREATE TRIGGER hooked AFTER INSERT ON steps FOR EACH ROW EXECUTE FUNCTION hook()",
        "CREATE RULE quiet AS ON DELETE TO patterns DO INSTEAD NOTHING",
    )
    found = await upkeep.verify(url)
    assert sorted(problem.text for problem in found.problems) == [
        "index refusing on steps is not of this library",
        "key refuses on patterns is not of this library",
        "rule quiet on patterns is not of this library",
        "trigger hooked on steps is not of this library",
    ]
    done = await upkeep.repair(url, without_copy=True)
    assert done.left == found.problems
    assert done.done == ["began epoch 3 in all 16 heads"]


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
    # What the log of the one shard does not reach back to may have been there; the other's is whole.
    assert {problem.key for problem in found.problems} == {"e1", "e3", "both", "keyed", "e-one", "of none"}


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


async def test_a_running_store_goes_on_over_a_repair(url: str) -> None:
    async with MemoryStore(url, namespace="n") as store, MemoryStore(url, namespace="m") as other:
        await other.episodes.put(episode("m1"))
        assert (await store.episodes.get("e1")).domain == "web"
        await plain_sql(url, *behind("UPDATE episodes SET domain = 'x', revision = 5 WHERE id = 'e1'"))
        writing = asyncio.create_task(other.episodes.put_many([episode(f"m{n}") for n in range(2, 200)]))
        done = await upkeep.repair(url, without_copy=True)
        await writing
        assert "logged 1 changes that the log did not know" in done.done
        assert (await store.episodes.get("e1", freshness="linearizable")).domain == "x"
        assert (await store.episodes.update("e1", expected_revision=5, status="failed")).revision == 6
    await require_sound(url)


async def test_a_locked_database_is_not_repaired(url: str) -> None:
    await plain_sql(url, f"UPDATE head SET nonce = 1 WHERE shard = {SHARD}")
    before = await heads_of(url)
    limited = f"{url}{'&' if '?' in url else '?'}timeout_s=0.2"
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    async with connection.transaction():
        await connection.execute("SELECT 1 FROM head WHERE shard = 2 FOR UPDATE")
        with pytest.raises(DurableTimeoutError):
            await upkeep.repair(limited, without_copy=True)
    await connection.close()
    assert await heads_of(url) == before
    assert (await upkeep.repair(limited, without_copy=True)).left == []


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


async def test_repairing_by_the_program_takes_a_word_more(url: str, tmp_path: Path) -> None:
    await plain_sql(url, "DROP TRIGGER log_steps ON steps")

    def repair(*words: str) -> Done:
        return memory_store(tmp_path, "doctor", "--repair", *words, MEMORY_STORE_URL=url)

    refused = await asyncio.to_thread(repair)
    assert (refused.code, "--without-copy" in one_line(refused)) == (2, True)
    done = await asyncio.to_thread(repair, "--without-copy")
    assert (done.code, done.err) == (0, "")
    assert "repaired: made trigger log_steps anew" in done.out
    assert "the database as it was before" not in done.out
    again = await asyncio.to_thread(repair, "--without-copy", "--json")
    assert (again.json["ok"], again.json["done"], again.json["copy"]) == (True, [], None)
    assert "nothing is wrong" in (await asyncio.to_thread(repair, "--without-copy")).out
    await require_sound(url)
