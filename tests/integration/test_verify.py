"""What is wrong with a database is found and named; what follows from the rows is repaired, nothing else touched."""

from __future__ import annotations

import asyncio
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import (
    ConfigurationError,
    DurableTimeoutError,
    DurableUnavailableError,
    Episode,
    MemoryStore,
    Pattern,
    SchemaMismatchError,
    Step,
    upkeep,
)
from memory_store.cache.snapshot import Snapshot, save
from memory_store.durable.lock import FileLock
from tests.conftest import REPOSITORY
from tests.fault.search_truth import found as found_by_text
from tests.fault.search_truth import index_problems, left_behind, nothing_left
from tests.fault.support import Child, Parent, database, episode, in_child, integrity_problems, log_problems
from tests.integration.cli_support import fill_two_namespaces
from tests.integration.upkeep_support import head_of, names, require_sound, url_of, write_pairs
from tests.unit.samples import MAKE

Damage = Callable[[Any], object]


async def make(path: Path) -> None:
    """Make a database whose log has every operation, with idempotency keys, in two namespaces."""
    await fill_two_namespaces(url_of(path))
    async with MemoryStore(url_of(path), namespace="n") as store:
        await store.episodes.put_many([episode(f"e{n}") for n in range(5)])
        for n in range(5):
            await store.steps.append(f"e{n}", [Step(id=f"s{n}-{k}", action="a", success=True) for k in range(3)])
            await store.embeddings.put(MAKE["embedding"](f"e{n}", id=f"v{n}"))
        await store.episodes.put(episode("keyed"), idempotency_key="once")
        await store.steps.put(Step(id="keyed-step", episode_id="keyed", action="a"), idempotency_key="once more")
        await store.episodes.update("e1", status="completed")
        await store.steps.update("s1-0", result="changed")
        await store.steps.put(Step(id="s1-1", episode_id="e2", action="moved", step_number=9))
        await store.steps.delete("s1-2")
        await store.episodes.delete("e3")
        await store.episodes.put(episode("e3"))
        await store.steps.append("e3", Step(id="s3-0", action="again"))
        async with store.transaction() as tx:
            await tx.episodes.put(episode("both"))
            await tx.steps.append("both", Step(id="b1", action="x"))
            await tx.episodes.delete("both")
            await tx.episodes.put(episode("both"))
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=1))
        await store.patterns.update("p", usage_count=4)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A closed database like that, in a folder of its own."""
    (tmp_path / "data").mkdir()
    await make(tmp_path / "data" / "agent.db")
    return tmp_path / "data" / "agent.db"


def snapshot(path: Path) -> list[Any]:
    """Everything that is stored; the tables of FTS5 as such, since it does not read what is damaged."""
    with database(path) as connection:
        objects = connection.execute("SELECT * FROM sqlite_master ORDER BY type, name").fetchall()
        tables = [name for kind, name, *_, sql in objects if kind == "table" and "VIRTUAL" not in str(sql)]
        return [objects, *((name, connection.execute(f'SELECT * FROM "{name}"').fetchall()) for name in tables)]


async def test_a_sound_database_has_no_problems_and_is_not_changed(path: Path) -> None:
    before = path.read_bytes()
    told: list[tuple[str, int, int]] = []

    found = await upkeep.verify(url_of(path), on_progress=lambda *now: told.append(now))

    assert (found.ok, found.total, found.problems, found.path) == (True, 0, [], str(path))
    assert found.position == head_of(path)[0]
    assert found.saved_cache == "sound"
    assert set(found.found) == {
        *("integrity", "foreign keys", "head", "journal mode", "schema", "log", "records", "idempotency"),
        *("full text", "saved cache"),
    }
    assert {f"checking {check}" for check in found.found} == {what for what, _, _ in told}
    assert path.read_bytes() == before
    assert log_problems(path) == []


async def test_what_cannot_be_verified(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "garbage.db").write_bytes(b"\x89PNG\r\n" * 2000)
    with database(tmp_path / "foreign.db") as connection:
        connection.execute("CREATE TABLE x (y)")
    for work in (upkeep.verify, upkeep.repair):
        for name, error in {
            "missing.db": DurableUnavailableError,
            "garbage.db": DurableUnavailableError,
            "empty.db": SchemaMismatchError,
            "foreign.db": SchemaMismatchError,
        }.items():
            with pytest.raises(error):
                await work(url_of(tmp_path / name))
        with pytest.raises(ConfigurationError):
            await work("sqlite:///:memory:")
    assert names(tmp_path) == {"empty.db", "garbage.db", "foreign.db"}


async def test_writers_are_no_problem_nor_is_what_plain_sql_did(path: Path) -> None:
    with database(path) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for sql in (
            "UPDATE episodes SET domain = 'sql' WHERE id IN ('e0', 'e1')",
            "UPDATE steps SET id = 'renamed' WHERE id = 's0-0'",
            "UPDATE steps SET episode_id = 'e4', step_number = 77 WHERE id = 's0-1'",
            "UPDATE patterns SET namespace = 'moved' WHERE id = 'p'",
            "DELETE FROM episodes WHERE id = 'e2'",
            "INSERT INTO episodes SELECT namespace, 'copied', 1, created_at, updated_at, task_type, domain, context, "
            "status, success_rate, reward_score, completed_at, reflection, metadata FROM episodes WHERE id = 'e4'",
            "UPDATE steps SET id = 'renamed again' WHERE id = 'renamed'",
            "UPDATE steps SET id = 's0-0' WHERE id = 'renamed again'",
        ):
            connection.execute(sql)
    await require_sound(path)
    writers = [Child(write_pairs, str(path), name) for name in "xy"]
    try:
        for writer in writers:
            writer.receive()
        for _ in range(4):
            found = await upkeep.verify(url_of(path))
            assert found.problems == []
    finally:
        for writer in writers:
            writer.kill()
    await require_sound(path)


def sql(*statements: str, logged: bool = False) -> Damage:
    """Damage done by plain SQL; behind the triggers' back unless it is to be logged."""

    def damage(connection: Any) -> None:
        connection.execute("PRAGMA foreign_keys = OFF")
        if not logged:
            connection.execute("UPDATE head SET writing = 1")
        for statement in statements:
            connection.execute(statement)
        if not logged:
            connection.execute("UPDATE head SET writing = 0")

    return damage


def cut_index(connection: Any) -> None:
    """Make an index forget its rows: its root is replaced by an empty page."""
    name = "ix_episodes_namespace_status"
    [(root,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchall()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    [(_, _, file)] = connection.execute("PRAGMA database_list").fetchall()
    content = bytearray(Path(file).read_bytes())
    content[(root - 1) * 4096 : root * 4096] = bytes([10, 0, 0, 0, 0, 16, 0, 0]) + bytes(4088)
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    Path(file).write_bytes(content)


RECORD = {"kind": "step", "namespace": "n"}
REPAIRABLE: dict[str, tuple[Damage, str, str, dict[str, str]]] = {
    # name: what is done, the check that finds it, words, the record it names
    "an index without its rows": (cut_index, "integrity", "missing from index ix_episodes_namespace_status", {}),
    "orphans": (
        sql("DELETE FROM episodes WHERE id = 'e4'", logged=True),
        *("foreign keys", "belongs to episode 'e4'"),
        RECORD | {"key": "s4-0"},
    ),
    "orphans that were never logged": (
        sql("DELETE FROM episodes WHERE id = 'e4'", "DELETE FROM changes WHERE parent = 'e4'"),
        *("foreign keys", "belongs to episode 'e4'"),
        RECORD | {"key": "s4-0"},
    ),
    "a head behind": (sql("UPDATE head SET position = position - 2"), "head", "the log ends at", {}),
    "a head ahead": (sql("UPDATE head SET position = position + 5"), "head", "the log ends at", {}),
    "another nonce": (sql("UPDATE head SET nonce = nonce + 1"), "head", "another random number", {}),
    "no head": (sql("DELETE FROM head"), "head", "there is no head", {}),
    "a head being written": (sql("UPDATE head SET writing = 1", logged=True), "head", "is marked as being written", {}),
    "another journal": (sql("PRAGMA journal_mode = DELETE"), "journal mode", "is delete", {}),
    "no trigger": (sql("DROP TRIGGER log_steps_insert"), "schema", "trigger log_steps_insert is missing", {}),
    "another trigger": (
        sql(
            "DROP TRIGGER log_steps_insert",
            "CREATE TRIGGER log_steps_insert AFTER INSERT ON steps BEGIN SELECT 1; END",
        ),
        *("schema", "trigger log_steps_insert is another one", {}),
    ),
    "no index": (sql("DROP INDEX ix_patterns_namespace_domain"), "schema", "ix_patterns_namespace_domain is miss", {}),
    "another index": (
        sql(
            "DROP INDEX ix_patterns_namespace_domain",
            "CREATE INDEX ix_patterns_namespace_domain ON patterns (domain)",
        ),
        *("schema", "ix_patterns_namespace_domain is another one", {}),
    ),
    "a gap": (sql("DELETE FROM changes WHERE position = 4"), "log", "nothing between the positions 3 and 5", {}),
    "half a commit": (
        sql("DELETE FROM changes WHERE idx = 1 AND key = 's0-1'"),
        *("log", "has 2 of 3 changes", {}),
    ),
    "two nonces": (
        sql("UPDATE changes SET nonce = nonce + 1 WHERE key = 's0-1'"),
        *("log", "several random numbers", {}),
    ),
    "a lost end of the log": (
        sql("DELETE FROM changes WHERE position > (SELECT position - 3 FROM head)"),
        *("head", "the log ends at", {}),
    ),
    "a row behind the log's back": (
        sql("UPDATE steps SET revision = 9 WHERE id = 's0-0'"),
        *("records", "is at revision 9, the log says 1"),
        RECORD | {"key": "s0-0"},
    ),
    "an unlogged parent": (
        sql("UPDATE steps SET episode_id = 'e1', step_number = 50 WHERE id = 's0-0'"),
        *("records", "belongs to episode 'e1', the log says 'e0'"),
        RECORD | {"key": "s0-0"},
    ),
    "an unlogged delete": (
        sql("DELETE FROM steps WHERE id = 's0-0'"),
        *("records", "is not stored, the log says that it is"),
        RECORD | {"key": "s0-0"},
    ),
    "an unlogged insert": (
        sql(
            "INSERT INTO steps (namespace, id, revision, created_at, updated_at, episode_id, step_number, action) "
            "VALUES ('n', 'new', 1, 0, 0, 'e0', 60, 'a')"
        ),
        *("records", "is stored, the log does not know it"),
        RECORD | {"key": "new"},
    ),
    "a deleted row that is back": (
        sql(
            "INSERT INTO steps (namespace, id, revision, created_at, updated_at, episode_id, step_number, action) "
            "VALUES ('n', 's1-2', 1, 0, 0, 'e0', 60, 'a')"
        ),
        *("records", "the log says that it was deleted"),
        RECORD | {"key": "s1-2"},
    ),
    "a part deleted with its episode that is back": (
        sql(
            "INSERT INTO steps (namespace, id, revision, created_at, updated_at, episode_id, step_number, action) "
            "VALUES ('n', 's3-2', 1, 0, 0, 'e3', 60, 'a')"
        ),
        *("records", "the log says that it was deleted"),
        RECORD | {"key": "s3-2"},
    ),
    "an idempotency key of nothing": (
        sql("UPDATE idempotency SET id = 'e2' WHERE key = 'once'"),
        *("idempotency", "says idempotency key 'once'"),
        {"kind": "episode", "namespace": "n", "key": "e2"},
    ),
    "an idempotency key of the future": (
        sql("UPDATE idempotency SET position = 999 WHERE key = 'once'"),
        *("idempotency", "says idempotency key 'once'"),
        {"kind": "episode", "namespace": "n", "key": "keyed"},
    ),
    "no document": (
        sql("DELETE FROM documents WHERE id = 's0-0'"),
        *("full text", "cannot be searched"),
        RECORD | {"key": "s0-0"},
    ),
    "a document of old": (
        sql("UPDATE documents SET revision = 7 WHERE id = 's0-0'"),
        *("full text", "is searched as it was at revision 7"),
        RECORD | {"key": "s0-0"},
    ),
    "a document of nothing": (
        sql("UPDATE documents SET id = 'none' WHERE id = 's0-0'"),
        *("full text", "is searched, but not stored"),
        RECORD | {"key": "none"},
    ),
    "other terms": (
        sql("UPDATE documents SET terms = 'x y' WHERE id = 's0-0'"),
        *("full text", "the index is not that of the documents", {}),
    ),
    "a garbled index": (
        sql("UPDATE documents_text_data SET block = x'00112233' WHERE id > 10"),
        *("full text", "the index is not that of the documents", {}),
    ),
    "an index without its sums": (
        sql("UPDATE documents_text_data SET block = x'00' WHERE id = 1"),
        *("full text", "the index is not that of the documents", {}),
    ),
    "an index that cannot be opened": (
        sql("DELETE FROM documents_text_data WHERE id = 10"),
        *("full text", "cannot be checked: vtable constructor failed", {}),
    ),
}


@pytest.mark.parametrize("name", REPAIRABLE)
async def test_what_is_wrong_is_found_named_and_repaired(name: str, path: Path) -> None:
    damage, check, words, record = REPAIRABLE[name]
    with database(path) as connection:
        damage(connection)
    before, head = snapshot(path), None if name == "no head" else head_of(path)

    found = await upkeep.verify(url_of(path))

    fitting = [problem for problem in found.problems if problem.check == check and words in problem.text]
    assert fitting, found.problems
    if record:
        places = [{"kind": item.kind, "namespace": item.namespace, "key": item.key} for item in fitting]
        assert record in places, found.problems
    assert found.found[check] >= len(fitting)
    assert snapshot(path) == before

    done = await upkeep.repair(url_of(path))

    assert (done.total, done.problems[0] in found.problems) == (found.total, True)
    assert done.done
    assert done.left == []
    assert done.copy == f"{path}.before-repair.bak"
    assert snapshot(Path(done.copy)) == before
    await require_sound(path)
    if head is not None:
        assert head_of(path)[2:] == (head[2], head[3] + 1)
        assert head_of(path)[0] > head[0]
    again = await upkeep.repair(url_of(path))
    assert (again.total, again.done, again.copy) == (0, [], None)
    async with MemoryStore(url_of(path), namespace="n") as store:
        await store.steps.append("e1", Step(action="after"))
        stored = {step.id async for step in store.steps.stream()}
        assert await found_by_text(store, "a OR moved OR again OR after", kinds="step", syntax="expert") == stored
        for name in ("default", "other/agent"):
            await nothing_left(store.namespace(name))
    assert (left_behind(path), index_problems(path)) == ([], [])
    await require_sound(path)
    assert names(path.parent) == {"agent.db", "agent.db.before-repair.bak"}


async def test_an_index_of_no_known_format_is_found_and_made_anew(path: Path) -> None:
    with database(path) as connection:
        connection.execute("DELETE FROM documents_text_config")
    found = await upkeep.verify(url_of(path))
    assert {check: count for check, count in found.found.items() if count} == {"schema": 1, "full text": 1}
    assert "cannot be checked: invalid fts5 file format" in str(found.problems[-1])
    done = await upkeep.repair(url_of(path))
    assert (done.left, done.done[1:]) == ([], ["left all records to be indexed anew, for searches by text"])
    async with MemoryStore(url_of(path), namespace="n") as store:
        assert await found_by_text(store, "moved") == {"s1-1"}
    await require_sound(path)


async def test_a_damaged_record_is_not_told_of_twice(path: Path) -> None:
    shutil.rmtree(f"{path}.cache")
    with database(path) as connection:
        sql("UPDATE steps SET revision = 9 WHERE id = 's0-0'", "DELETE FROM steps WHERE id = 's0-1'")(connection)
    found = await upkeep.verify(url_of(path))
    assert sorted((problem.check, problem.key) for problem in found.problems) == [
        ("records", "s0-0"),
        ("records", "s0-1"),
    ]


async def test_what_is_left_to_be_indexed_is_no_problem(path: Path) -> None:
    with database(path) as connection:
        connection.execute("UPDATE episodes SET domain = 'sql'")
        connection.execute("DELETE FROM documents WHERE namespace = 'n' AND id IN ('e1', 'e2')")
        connection.execute("INSERT INTO documents_text (documents_text) VALUES ('rebuild')")
    assert left_behind(path)
    await require_sound(path)
    async with MemoryStore(url_of(path), namespace="bulk") as store:
        await store.episodes.put_many([episode(f"b{n}") for n in range(500)])
        await require_sound(path)
    await require_sound(path)


UNREPAIRABLE: dict[str, tuple[Damage, str]] = {
    "a table of records": (sql("DROP TABLE patterns"), "table patterns is missing"),
    "idempotency": (sql("DROP TABLE idempotency"), "table idempotency is missing"),
    "a column": (sql("ALTER TABLE patterns DROP COLUMN confidence"), "table patterns has other columns"),
}


@pytest.mark.parametrize("name", UNREPAIRABLE)
async def test_what_is_lost_is_found_and_takes_a_backup(name: str, path: Path) -> None:
    damage, words = UNREPAIRABLE[name]
    with database(path) as connection:
        damage(connection)
    before = snapshot(path)
    found = await upkeep.verify(url_of(path))
    assert words in " ".join(map(str, found.problems))
    with pytest.raises(DurableUnavailableError, match="restore a backup"):
        await upkeep.repair(url_of(path))
    assert snapshot(path) == before
    assert names(path.parent) == {"agent.db"}


@pytest.mark.parametrize("table", ["patterns", "changes", "everything"])
async def test_damaged_pages_are_found_and_take_a_backup(table: str, path: Path) -> None:
    await upkeep.backup(url_of(path), path.with_name("backup.db"))
    with database(path) as connection:
        roots = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    content = bytearray(path.read_bytes())
    for page in [root for (root,) in roots] or range(2, len(content) // 4096 + 1):
        content[(page - 1) * 4096 : (page - 1) * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    if table != "everything":
        found = await upkeep.verify(url_of(path))
        assert found.found["integrity"]
        assert "cannot be checked" in " ".join(map(str, found.problems))
    for work in (upkeep.verify, upkeep.repair)[table != "everything" :]:
        with pytest.raises(DurableUnavailableError, match="restore a backup"):
            await work(url_of(path))
    assert path.read_bytes() == content
    await upkeep.restore(path.with_name("backup.db"), url_of(path))
    await require_sound(path)


async def test_what_somebody_hooked_in_is_told_and_left_alone(path: Path) -> None:
    with database(path) as connection:
        connection.execute("CREATE INDEX faster ON steps (namespace, action)")
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute("CREATE TRIGGER theirs_insert AFTER INSERT ON theirs BEGIN SELECT 1; END")
    await require_sound(path)
    with database(path) as connection:
        connection.execute("CREATE UNIQUE INDEX refusing ON steps (namespace, id, action)")
        connection.execute("CREATE TRIGGER hooked AFTER INSERT ON steps BEGIN SELECT 1; END")
    found = await upkeep.verify(url_of(path))
    assert sorted(problem.text for problem in found.problems) == [
        "index refusing on steps is not of this library",
        "trigger hooked on steps is not of this library",
    ]
    done = await upkeep.repair(url_of(path))
    assert done.left == found.problems
    with database(path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert {"refusing", "hooked", "faster", "theirs"} <= names


async def test_a_database_that_went_back_a_revision_and_came_again_is_sound(path: Path) -> None:
    for command in (["downgrade", "0001"], ["upgrade", "head"]):
        arguments = [sys.executable, "-m", "alembic", "-x", f"url={url_of(path)}", *command]
        subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True)
    found = await upkeep.verify(url_of(path))
    assert [problem for problem in found.problems if problem.check != "idempotency"] == []


async def test_a_trimmed_log_is_only_asked_about_what_it_holds(path: Path) -> None:
    shutil.rmtree(f"{path}.cache")
    with database(path) as connection:
        connection.execute("DELETE FROM changes WHERE position <= 20")
    assert (await upkeep.verify(url_of(path))).problems == []
    with database(path) as connection:
        connection.execute("DELETE FROM changes WHERE position = 25")
        connection.execute("UPDATE head SET writing = 1")
        connection.execute("UPDATE episodes SET revision = 77 WHERE id = 'e1' OR (namespace = 'default')")
        connection.execute("UPDATE head SET writing = 0")
    found = await upkeep.verify(url_of(path))
    assert {(problem.check, problem.key) for problem in found.problems} == {
        *(("log", None), ("records", "e1")),
        ("full text", "e-one"),  # what the log does not reach back to, the index still has as it was
    }


async def test_all_problems_are_counted_and_the_first_returned(path: Path) -> None:
    shutil.rmtree(f"{path}.cache")
    with database(path) as connection:
        sql("UPDATE steps SET revision = 9")(connection)
        [(steps,)] = connection.execute("SELECT count(*) FROM steps")
    found = await upkeep.verify(url_of(path), most=4)
    assert (len(found.problems), found.total, found.found["records"]) == (4, steps, steps)


async def test_text_that_is_no_text_is_a_problem_and_no_accident(path: Path) -> None:
    with database(path) as connection:
        sql("UPDATE steps SET id = CAST(x'ff41' AS TEXT) WHERE id = 's0-0'")(connection)
    found = await upkeep.verify(url_of(path))
    assert found.found["records"] == 1
    assert "cannot be checked" in found.problems[0].text


def _saved(path: Path) -> Path:
    return Path(f"{path}.cache") / "cache.msgpack"


async def test_a_saved_entry_that_is_not_what_is_stored_is_found_and_goes(path: Path) -> None:
    with database(path) as connection:  # same revision: only the cache can tell
        sql(
            "UPDATE steps SET action = 'other' WHERE id = 's0-1'",
            "UPDATE episodes SET domain = 'x' WHERE id = 'e1'",
            "UPDATE patterns SET pattern_data = '2' WHERE id = 'p'",
        )(connection)
    found = await upkeep.verify(url_of(path))
    assert found.saved_cache == "damaged or wrong"
    assert {(item.check, item.kind, item.namespace, item.key) for item in found.problems} == {
        ("saved cache", "step", "n", "e0"),
        ("saved cache", "episode", "n", "e1"),
        ("saved cache", "pattern", "n", "p"),
    }
    async with MemoryStore(url_of(path), namespace="n") as running:
        await running.cache.wait()
        assert (await running.episodes.get("e1")).domain == "web", "it is stale, as was to be shown"
        done = await upkeep.repair(url_of(path))
        assert not _saved(path).exists()
        assert "removed the saved cache" in done.done
        assert (await running.episodes.get("e1", freshness="linearizable")).domain == "x", "a new epoch drops it"
    await require_sound(path)


@pytest.mark.parametrize("cut", [10, -5, 400])
async def test_a_damaged_saved_cache_is_found_and_goes(cut: int, path: Path) -> None:
    content = _saved(path).read_bytes()
    _saved(path).write_bytes(content[:cut])
    found = await upkeep.verify(url_of(path))
    assert [problem.check for problem in found.problems] == ["saved cache"]
    done = await upkeep.repair(url_of(path))
    assert (done.total, done.left, _saved(path).exists()) == (1, [], False)
    await require_sound(path)


async def test_what_changed_since_the_cache_was_saved_is_no_problem(path: Path) -> None:
    saved = _saved(path).read_bytes()
    async with MemoryStore(url_of(path), namespace="n") as store:
        await store.episodes.update("e1", domain="x")
        await store.episodes.delete("e2")
        await store.steps.append("e0", Step(action="more"))
    _saved(path).write_bytes(saved)
    found = await upkeep.verify(url_of(path))
    assert (found.problems, found.saved_cache) == ([], "sound")


async def test_an_empty_or_refused_saved_cache_is_no_problem(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await upkeep.verify(url_of(path) + "?cache_version=mine")
    assert (found.ok, "version key" in found.saved_cache) == (True, True)
    with monkeypatch.context() as without:
        without.setenv("MEMORY_STORE_CACHE_PATH", "")
        found = await upkeep.verify(url_of(path))
    assert (found.ok, found.saved_cache) == (True, "there is none")
    with Snapshot(f"{path}.cache") as snapshot_:
        header = snapshot_.header
    save(f"{path}.cache", header, [], [])
    found = await upkeep.verify(url_of(path))
    assert (found.ok, found.saved_cache) == (True, "sound")


async def test_a_running_store_goes_on_over_a_repair(path: Path) -> None:
    async with MemoryStore(url_of(path), namespace="n") as store:
        assert (await store.episodes.get("e1")).domain == "web"
        with database(path) as connection:
            sql("UPDATE episodes SET domain = 'x', revision = 5 WHERE id = 'e1'")(connection)
        done = await upkeep.repair(url_of(path))
        assert "logged 1 changes" in " ".join(done.done)
        assert (await store.episodes.get("e1", freshness="linearizable")).domain == "x"
        assert (await store.episodes.update("e1", expected_revision=5, status="failed")).revision == 6
    await require_sound(path)


async def test_a_second_repair_keeps_the_copy_of_the_first(path: Path) -> None:
    for number in range(3):
        with database(path) as connection:
            sql("UPDATE head SET nonce = nonce + 1")(connection)
        before = snapshot(path)
        done = await upkeep.repair(url_of(path))
        assert done.copy == f"{path}.before-repair{'' if number == 0 else f'.{number + 1}'}.bak"
        assert snapshot(Path(done.copy)) == before


async def test_a_locked_database_is_not_repaired(path: Path) -> None:
    with database(path) as connection:
        sql("UPDATE head SET nonce = nonce + 1")(connection)
    before = snapshot(path)
    lock = FileLock(f"{path}-lock", 1)
    with lock.shared(), pytest.raises(DurableTimeoutError):
        await upkeep.repair(url_of(path) + "?timeout_s=0.2")
    lock.close()
    with database(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(DurableTimeoutError):
            await upkeep.repair(url_of(path) + "?timeout_s=0.2")
    assert snapshot(path) == before
    assert names(path.parent) == {"agent.db"}
    await upkeep.repair(url_of(path))
    await require_sound(path)


async def test_cancelled_work_changes_nothing(path: Path) -> None:
    with database(path) as connection:
        sql("UPDATE head SET nonce = nonce + 1")(connection)
    before, cancelled = snapshot(path), 0
    for seconds in (0, 0.005, 0.02, 0.05):
        for work in (upkeep.verify, upkeep.repair):
            running = asyncio.create_task(work(url_of(path)))
            await asyncio.sleep(seconds)
            running.cancel()
            try:
                await running
            except asyncio.CancelledError:
                cancelled += 1
            if snapshot(path) != before:  # it was too late: all of it was done
                assert work is upkeep.repair
                await require_sound(path)
                shutil.copy(f"{path}.before-repair.bak", path)
            assert not list(path.parent.glob("*.tmp*"))
            Path(f"{path}.before-repair.bak").unlink(missing_ok=True)
    assert cancelled


def _grow(path: Path) -> None:
    """Put in 100,000 records, logged, as one commit."""
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
    with database(path) as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE head SET writing = 1")
        connection.execute(
            f"INSERT INTO patterns SELECT 'big', printf('id-%040d', i), 1, 0, 0, 't', '1', NULL, 1, 1, 1, NULL, '{{}}' "
            f"FROM ({rows} SELECT i FROM n)"
        )
        connection.execute(
            "INSERT INTO changes SELECT 0, (SELECT position + 1 FROM head), row_number() OVER () - 1, 'pattern', "
            "namespace, id, NULL, 'insert', 1, '', 0, 4, NULL FROM patterns WHERE namespace = 'big'"
        )
        connection.execute(
            "INSERT INTO documents SELECT 1000 + row_number() OVER (), namespace, 'pattern', id, NULL, NULL, 0, 1, 2, "
            "'abcdef', 't ' || id FROM patterns WHERE namespace = 'big'"
        )
        connection.execute("INSERT INTO documents_text (documents_text) VALUES ('rebuild')")
        connection.execute("UPDATE head SET position = position + 1, nonce = 4, writing = 0")
        connection.execute("COMMIT")


async def _memory_to_verify(parent: Parent, small: str, large: str) -> int:
    """Return how much more memory a large database takes than a small one, in kilobytes."""
    await upkeep.verify(url_of(Path(small)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = await upkeep.verify(url_of(Path(large)))
    assert (found.problems, found.total) == ([], 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_memory_does_not_grow_with_the_database(path: Path) -> None:
    small = path.with_name("small.db")
    shutil.copy(path, small)
    shutil.rmtree(f"{path}.cache")  # reconciling it reads up to 100,000 changes, whatever there are
    _grow(path)
    assert path.stat().st_size > 25_000_000
    assert in_child(_memory_to_verify, str(small), str(path)) < 10_000


async def test_another_process_sees_the_repair(path: Path) -> None:
    with Child(_get_until, str(path), "x") as child:
        assert child.receive() == "web"
        with database(path) as connection:
            sql("UPDATE episodes SET domain = 'x', revision = 5 WHERE id = 'e1'")(connection)
        await upkeep.repair(url_of(path))
        assert child.receive(10) == "x"
    assert integrity_problems(path) == []


async def _get_until(parent: Parent, path: str, domain: str) -> str:
    async with MemoryStore(url_of(Path(path)), namespace="n") as store:
        found: Episode | None = await store.episodes.get("e1")
        parent.send(found.domain)
        while found.domain != domain:
            await asyncio.sleep(0.01)
            found = await store.episodes.get("e1")
        return found.domain
