"""What follows from the rows of a database on a server is repaired, under running stores; nothing else is touched."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from memory_store import ConfigurationError, DurableTimeoutError, DurableUnavailableError, MemoryStore, Step, upkeep
from memory_store.durable.partitions import partition
from tests.fault.search_truth import found as found_by_text
from tests.integration.cli_support import Done, memory_store, one_line, plain_sql
from tests.integration.server_support import SHARD, STEP, behind, episode, heads_of, make, require_sound
from tests.migration.postgresql import HEADS, Database


@pytest.fixture
async def url(database: Database) -> str:
    """A closed database whose log has every operation."""
    await make(database.url)
    return database.url


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
    "no document": (
        ("DELETE FROM documents WHERE id = 's0-0'",),
        *("full text", "cannot be searched", "s0-0"),
    ),
    "a document of old": (
        ("UPDATE documents SET revision = 7 WHERE id = 's0-0'",),
        *("full text", "is searched as it was at revision 7", "s0-0"),
    ),
    "a document of nothing": (
        ("UPDATE documents SET id = 'none' WHERE id = 's0-0'",),
        *("full text", "is searched, but not stored", "none"),
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
        stored = {step.id async for step in store.steps.stream()}
        assert await found_by_text(store, "a OR moved OR after", kinds="step", syntax="expert") == stored
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
    assert done.done == ["began epoch 3 in all 16 heads", "left all records to be indexed anew, for searches by text"]


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
