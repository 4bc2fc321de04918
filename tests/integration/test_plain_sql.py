"""Programs that write to the file with plain SQL while stores are open on it: the triggers keep log and caches true.

What they cannot catch is here as well, so that it is known: see `test_what_cannot_be_caught`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from memory_store import ConflictError, Episode, MemoryStore, RecordNotFoundError, Step
from memory_store.records import RECORDS
from tests.fault.support import database, fields, integrity_problems, log_problems, plain_rows
from tests.unit.samples import CHANGE, MAKE, make_episode, make_pattern, make_step

NAMESPACE = "default"
HOUR_S = 3600.0
KINDS = list(RECORDS)
ON = "PRAGMA foreign_keys = ON"
RECURSIVE = "PRAGMA recursive_triggers = ON"
PRAGMAS = pytest.mark.parametrize(
    "pragmas", [[], [ON], [RECURSIVE], [ON, RECURSIVE]], ids=["plain", "keys", "recursive", "keys, recursive"]
)

# One plain change of a field for each kind.
SET = {
    "episode": "domain = 'sql'",
    "step": "result = 'sql'",
    "pattern": "usage_count = 9",
    "embedding": "content = 'sql'",
    "spatiotemporal": "spatial_key = 'sql'",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The database file."""
    return tmp_path / "agent.db"


@pytest.fixture
async def store(file_url: str) -> AsyncIterator[MemoryStore]:
    """A store that looks at the head only when it is asked to, with a record of each kind and two more episodes."""
    async with MemoryStore(file_url, staleness_s=HOUR_S, cache_path="") as store:
        await store.episodes.put_many([make_episode(id=id_) for id_ in ("e1", "e2", "bare")])
        for kind in KINDS:
            if kind != "episode":
                await store.collection(kind).put(MAKE[kind]("e1", id=kind))
        yield store


def run(path: Path, *statements: str, pragmas: list[str] | None = None, end: str = "COMMIT") -> None:
    """Run statements in one transaction, as another program does."""
    with database(path) as connection:
        for pragma in pragmas or []:
            connection.execute(pragma)
        connection.execute("BEGIN")
        for statement in statements:
            connection.execute(statement)
        connection.execute(end)


def head(path: Path) -> tuple[int, int]:
    """Return position and `writing`."""
    with database(path) as connection:
        [row] = connection.execute("SELECT position, writing FROM head")
        return row  # type: ignore[no-any-return]


def logged(path: Path, after: int) -> list[tuple[Any, ...]]:
    """Return what the log says behind a position: kind, key, parent, operation, revision; checks the rest."""
    with database(path) as connection:
        rows = connection.execute(
            "SELECT position, idx, actor, namespace, kind, key, parent, operation, revision FROM changes "
            "WHERE position > ? ORDER BY position, idx",
            (after,),
        ).fetchall()
    assert [row[:4] for row in rows] == [(after + 1 + i, 0, "sql", NAMESPACE) for i in range(len(rows))]
    assert head(path) == (after + len(rows), 0)
    return [row[4:] for row in rows]


async def agrees(store: MemoryStore, path: Path) -> None:
    """Check everything the store says against what the plain driver reads: through the cache, then without it."""
    await store.episodes.get("", freshness="linearizable")
    for _ in range(2):
        with database(path) as connection:
            for kind, spec in RECORDS.items():
                collection = store.collection(kind)
                rows = plain_rows(connection, spec, "namespace = ?", NAMESPACE)
                assert await collection.count() == len(rows)
                known = {row["id"]: row for row in rows}
                ids = {*known, "e1", "e2", "bare", "new", kind}
                if spec.parent is None:
                    assert {i: fields(await collection.get(i)) for i in ids} == {i: known.get(i) for i in ids}
                    continue
                parts: Any = collection
                for parent in ("e1", "e2", "bare", "new"):
                    expected = [row for row in rows if row[spec.parent] == parent]
                    found = [fields(part) for part in await parts.of(parent)]
                    assert sorted(found, key=str) == sorted(expected, key=str)
        await store.cache.clear()


def new_row(kind: str, **values: str) -> str:
    """Return the start of an INSERT or REPLACE that copies the kind's record with other values."""
    spec = RECORDS[kind]
    columns = [column.name for column in spec.table.columns]
    chosen = [values.get(name, f'"{name}"') for name in columns]
    source = "e1" if kind == "episode" else kind
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INTO {spec.table.name} ({names}) SELECT {', '.join(chosen)} FROM {spec.table.name} WHERE id = '{source}'"


def id_of(kind: str) -> str:
    """The id of the kind's record."""
    return "e1" if kind == "episode" else kind


def parent_of(kind: str) -> str | None:
    """The episode it belongs to."""
    return None if RECORDS[kind].parent is None else "e1"


@PRAGMAS
@pytest.mark.parametrize("kind", KINDS)
async def test_insert_update_and_delete_are_logged_and_seen(
    kind: str, pragmas: list[str], store: MemoryStore, path: Path
) -> None:
    await agrees(store, path)
    table, position = RECORDS[kind].table.name, store.position
    number = {"step_number": "7"} if kind == "step" else {}
    run(path, f"INSERT {new_row(kind, id=repr('new'), revision='1', **number)}", pragmas=pragmas)
    assert logged(path, position) == [(kind, "new", parent_of(kind), "insert", 1)]
    await agrees(store, path)
    run(path, f"UPDATE {table} SET {SET[kind]} WHERE id = 'new'", pragmas=pragmas)
    assert logged(path, position + 1) == [(kind, "new", parent_of(kind), "update", 2)]
    await agrees(store, path)
    run(path, f"DELETE FROM {table} WHERE id = 'new'", pragmas=pragmas)
    assert logged(path, position + 2) == [(kind, "new", parent_of(kind), "delete", 2)]
    await agrees(store, path)
    assert log_problems(path) == []


@PRAGMAS
@pytest.mark.parametrize("kind", KINDS)
async def test_a_compare_and_swap_notices(kind: str, pragmas: list[str], store: MemoryStore, path: Path) -> None:
    collection, id_ = store.collection(kind), id_of(kind)
    for revision, change in enumerate([SET[kind], "created_at = created_at", "revision = revision + 1"], 2):
        known = await collection.get(id_, freshness="linearizable")
        assert known is not None
        run(path, f"UPDATE {RECORDS[kind].table.name} SET {change} WHERE id = '{id_}'", pragmas=pragmas)
        with pytest.raises(ConflictError) as caught:
            await collection.update(id_, expected_revision=known.revision, **CHANGE[kind])
        assert (caught.value.expected, caught.value.actual) == (revision - 1, revision)
    stored = await collection.update(id_, expected_revision=4, **CHANGE[kind])
    assert stored.revision == 5
    assert log_problems(path) == []


@PRAGMAS
@pytest.mark.parametrize("revision", ["1", "0", "-5", "revision - 1", "revision", "7", "revision + 100"])
async def test_a_revision_never_goes_down_and_the_log_tells_the_one_that_is_stored(
    revision: str, pragmas: list[str], store: MemoryStore, path: Path
) -> None:
    """Else a compare-and-swap that was made at the older revision would pass again."""
    for status in ("failed", "completed"):
        await store.episodes.update("e1", status=status)
    position = store.position
    run(path, f"UPDATE episodes SET revision = {revision} WHERE id = 'e1'", pragmas=pragmas)
    found = await store.episodes.get("e1", freshness="linearizable")
    assert found is not None
    assert found.revision > 3
    assert logged(path, position) == [("episode", "e1", None, "update", found.revision)]


@PRAGMAS
async def test_statements_of_many_rows(pragmas: list[str], store: MemoryStore, path: Path) -> None:
    position = store.position
    run(
        path,
        "UPDATE episodes SET domain = 'sql'",
        "UPDATE episodes SET domain = 'again' WHERE id <> 'e2'",
        pragmas=pragmas,
    )
    changes = logged(path, position)
    assert sorted(changes[:3]) == [("episode", id_, None, "update", 2) for id_ in ("bare", "e1", "e2")]
    assert sorted(changes[3:]) == [("episode", id_, None, "update", 3) for id_ in ("bare", "e1")]
    await agrees(store, path)
    assert log_problems(path) == []
    run(path, "DELETE FROM patterns", "DELETE FROM steps", pragmas=pragmas)
    assert logged(path, position + 5) == [
        ("pattern", "pattern", None, "delete", 1),
        ("step", "step", "e1", "delete", 1),
    ]
    await agrees(store, path)
    assert log_problems(path) == []


async def test_what_is_rolled_back_or_changes_nothing_is_not_logged(store: MemoryStore, path: Path) -> None:
    before = head(path)
    run(path, "UPDATE episodes SET domain = 'sql'", "DELETE FROM steps", end="ROLLBACK")
    run(path, "SAVEPOINT s", "UPDATE episodes SET domain = 'sql'", "ROLLBACK TO s", "RELEASE s")
    run(path, "UPDATE episodes SET domain = 'sql' WHERE id = 'nobody'", "DELETE FROM episodes WHERE id = 'nobody'")
    run(path, f"INSERT OR IGNORE {new_row('episode')}")
    with pytest.raises(sqlite3.IntegrityError):
        run(path, "UPDATE episodes SET domain = 'sql' WHERE id = 'e1'", f"INSERT {new_row('episode')}")
    assert head(path) == before
    await agrees(store, path)
    # What came before the rollback to a savepoint stays.
    run(
        path,
        "UPDATE episodes SET domain = 'kept' WHERE id = 'e1'",
        "SAVEPOINT s",
        "DELETE FROM patterns",
        "ROLLBACK TO s",
    )
    assert logged(path, before[0]) == [("episode", "e1", None, "update", 2)]
    await agrees(store, path)


async def test_an_upsert(store: MemoryStore, path: Path) -> None:
    position = store.position
    run(path, f"INSERT {new_row('episode', revision='1')} ON CONFLICT (namespace, id) DO UPDATE SET domain = 'sql'")
    assert logged(path, position) == [("episode", "e1", None, "update", 2)]
    await agrees(store, path)
    run(path, f"INSERT {new_row('episode', id=repr('new'), revision='1')} ON CONFLICT DO NOTHING")
    assert logged(path, position + 1) == [("episode", "new", None, "insert", 1)]
    await agrees(store, path)
    assert log_problems(path) == []


@PRAGMAS
async def test_replace(pragmas: list[str], store: MemoryStore, path: Path) -> None:
    """It deletes and inserts; with foreign keys on, the parts are deleted as well, and told one by one."""
    position = store.position
    await agrees(store, path)
    run(path, f"REPLACE {new_row('episode', domain=repr('sql'))}", pragmas=pragmas)
    changes = logged(path, position)
    assert changes[-1] == ("episode", "e1", None, "insert", 1)
    parts = {(kind, kind, "e1", "delete", 1) for kind in KINDS if parent_of(kind)}
    assert parts & set(changes) == (parts if ON in pragmas else set())
    assert (("episode", "e1", None, "delete", 1) in changes) == (RECURSIVE in pragmas)
    await agrees(store, path)


@PRAGMAS
async def test_a_delete_takes_its_parts_along_where_foreign_keys_are_on(
    pragmas: list[str], store: MemoryStore, path: Path
) -> None:
    await store.steps.append("e1", [make_step("e1"), make_step("e1")])
    await agrees(store, path)
    position = store.position
    run(path, "DELETE FROM episodes WHERE id = 'e1'", pragmas=pragmas)
    deleted = sorted((kind, parent, operation) for kind, _, parent, operation, _ in logged(path, position))
    parts = [(kind, "e1", "delete") for kind in ("embedding", "spatiotemporal", *["step"] * 3)]
    assert deleted == sorted([("episode", None, "delete"), *(parts if ON in pragmas else [])], key=str)
    await agrees(store, path)
    assert log_problems(path) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if RECORDS[kind].parent])
async def test_parts_that_change_their_episode_leave_one_list_and_enter_the_other(
    kind: str, store: MemoryStore, path: Path
) -> None:
    await agrees(store, path)
    position = store.position
    run(path, f"UPDATE {RECORDS[kind].table.name} SET episode_id = 'e2'")
    assert logged(path, position) == [(kind, kind, "e1", "move", 1), (kind, kind, "e2", "update", 2)]
    await agrees(store, path)
    assert log_problems(path) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_record_that_changes_its_id_is_told_under_both(kind: str, store: MemoryStore, path: Path) -> None:
    await agrees(store, path)
    position, parent = store.position, parent_of(kind)
    run(path, f"UPDATE {RECORDS[kind].table.name} SET id = 'new' WHERE id = '{id_of(kind)}'")
    assert logged(path, position) == [(kind, id_of(kind), parent, "move", 1), (kind, "new", parent, "update", 2)]
    await agrees(store, path)


async def test_a_record_that_changes_its_namespace_leaves_one_and_enters_the_other(
    store: MemoryStore, path: Path
) -> None:
    other = store.namespace("other")
    assert await other.episodes.get("bare") is None
    await agrees(store, path)
    run(path, "UPDATE episodes SET namespace = 'other' WHERE id = 'bare'")
    assert await store.episodes.get("bare", freshness="linearizable") is None
    assert fields(await other.episodes.get("bare")) is not None
    with database(path) as connection:
        rows = connection.execute(
            "SELECT namespace, key, operation FROM changes ORDER BY position DESC LIMIT 2"
        ).fetchall()
    assert rows == [("other", "bare", "update"), (NAMESPACE, "bare", "move")]


async def test_bounded_reads_see_it_within_the_bound(file_url: str, path: Path) -> None:
    async with MemoryStore(file_url, staleness_s=0, cache_path="") as store:
        for number in range(20):
            await store.episodes.put(make_episode(id="e"))
            run(path, f"UPDATE episodes SET domain = 'sql {number}'")
            found = await store.episodes.get("e")
            assert found is not None
            assert found.domain == f"sql {number}"


async def test_a_feed_tells_of_it(store: MemoryStore, path: Path) -> None:
    feed = store.follow()
    run(path, "UPDATE episodes SET domain = 'sql' WHERE id = 'e1'", "DELETE FROM steps")
    await store.episodes.get("e1", freshness="linearizable")
    async with asyncio.timeout(20):
        changes = [await anext(feed), await anext(feed)]
    assert [(c.actor, c.kind, c.key, c.parent, c.operation, c.revision) for c in changes] == [
        ("sql", "episode", "e1", None, "update", 2),
        ("sql", "step", "step", "e1", "delete", 1),
    ]


async def test_own_writes_are_logged_once_and_the_log_is_given_back_every_time(store: MemoryStore, path: Path) -> None:
    """Whatever way they take, failing ones included: a claim that stays would silence the triggers for ever."""

    async def in_a_transaction(*, fail: bool) -> None:
        async with store.transaction() as tx:
            await tx.episodes.update("e1", domain="mobile")
            await tx.steps.append("e1", make_step("e1"))
            if fail:
                raise ZeroDivisionError

    ways: list[Any] = [
        lambda: store.episodes.put(make_episode(id="e1")),
        lambda: store.episodes.put(make_episode(), idempotency_key="k"),
        lambda: store.episodes.put(make_episode(), idempotency_key="k"),
        lambda: store.episodes.put_many([make_episode() for _ in range(1200)]),
        lambda: store.episodes.update("e1", expected_revision=99, domain="mobile"),
        lambda: store.episodes.delete("nobody"),
        lambda: store.steps.append("nobody", make_step("nobody")),
        lambda: store.steps.append("e1", [make_step("e1"), make_step("e1", step_number=1)]),
        lambda: store.steps.put(make_step("e2", id="step")),
        lambda: in_a_transaction(fail=False),
        lambda: in_a_transaction(fail=True),
        lambda: store.episodes.delete("e1"),
        lambda: asyncio.gather(*(store.episodes.put(make_episode()) for _ in range(64))),
    ]
    for way in ways:
        with contextlib.suppress(ConflictError, RecordNotFoundError, ZeroDivisionError):
            await way()
        assert head(path)[1] == 0
    with database(path) as connection:
        assert connection.execute("SELECT DISTINCT actor FROM changes WHERE kind <> 'store'").fetchall() == [("",)]
    assert log_problems(path) == []
    position = store.position
    run(path, "UPDATE episodes SET domain = 'sql' WHERE id = 'e2'")
    assert logged(path, position) == [("episode", "e2", None, "update", 2)]


async def test_plain_sql_waits_for_an_open_transaction_and_is_logged_after_it(store: MemoryStore, path: Path) -> None:
    with database(path) as connection:
        connection.execute("PRAGMA busy_timeout = 0")
        async with store.transaction() as tx:
            await tx.episodes.update("e1", domain="mobile")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                connection.execute("UPDATE episodes SET domain = 'sql' WHERE id = 'e1'")
        connection.execute("UPDATE episodes SET domain = 'sql' WHERE id = 'e1'")
    assert logged(path, store.position) == [("episode", "e1", None, "update", 3)]
    await agrees(store, path)
    assert log_problems(path) == []


async def test_a_programs_upkeep_of_the_file_disturbs_nothing(store: MemoryStore, path: Path) -> None:
    await agrees(store, path)
    before = head(path)
    with database(path) as connection:
        for statement in ("VACUUM", "ANALYZE", "REINDEX", "PRAGMA optimize", "PRAGMA incremental_vacuum"):
            connection.execute(statement).fetchall()
            assert head(path) == before
            await agrees(store, path)
    assert (await store.episodes.put(make_episode())).position == before[0] + 1
    assert integrity_problems(path) == []


async def test_what_cannot_be_caught(store: MemoryStore, path: Path) -> None:
    """Known limits of triggers: whoever switches them off, or replaces rows without telling the revision."""
    known = await store.episodes.get("e1")
    assert known is not None
    run(path, f"REPLACE {new_row('episode', domain=repr('sql'))}")
    found = await store.episodes.get("e1", freshness="linearizable")
    assert found is not None
    assert (found.domain, found.revision) == ("sql", known.revision), "it is seen, but wears the old revision"


def _statements(seeded: random.Random) -> list[str]:
    """Some plain statements, of which a few meet nothing."""
    episode, other = seeded.choice(["e1", "e2", "bare", "new"]), seeded.choice(["e1", "e2", "bare"])
    return [
        f"UPDATE episodes SET domain = '{seeded.random()}' WHERE id = '{episode}'",
        f"UPDATE episodes SET revision = revision + {seeded.randrange(2)} WHERE id >= '{episode}'",
        f"DELETE FROM episodes WHERE id = '{episode}' AND id <> 'e1'",
        f"INSERT OR IGNORE {new_row('episode', id=repr(episode), revision='1')}",
        "UPDATE steps SET result = random()",
        f"UPDATE OR IGNORE steps SET episode_id = '{other}' WHERE EXISTS (SELECT 1 FROM episodes WHERE id = '{other}')",
        f"DELETE FROM steps WHERE episode_id = '{other}' AND step_number > 2",
        f"UPDATE patterns SET usage_count = {seeded.randrange(9)}",
        f"UPDATE embeddings SET content = '{seeded.random()}'",
    ]


async def _change(store: MemoryStore, seeded: random.Random) -> None:
    id_ = seeded.choice(["e1", "e2", "bare", "new"])
    way = seeded.randrange(6)
    if way == 0:
        await store.episodes.put(make_episode(id=id_))
    elif way == 1 and await store.episodes.get(id_, freshness="linearizable"):
        await store.episodes.update(id_, reward_score=seeded.random())
    elif way == 2 and await store.episodes.get(id_, freshness="linearizable"):
        await store.steps.append(id_, [Step(action="a"), Step(action="b")])
    elif way == 3 and id_ != "e1":
        await store.episodes.delete(id_)
    elif way == 4:
        await store.patterns.put(make_pattern(id="pattern", usage_count=seeded.randrange(9)))
    elif way == 5 and await store.episodes.get("e1", freshness="linearizable"):
        async with store.transaction() as tx:
            await tx.episodes.update("e1", status="failed")
            await tx.steps.append("e1", Step(action="c"))


@pytest.mark.parametrize("seed", range(6))
async def test_stores_and_plain_sql_take_turns(seed: int, store: MemoryStore, file_url: str, path: Path) -> None:
    """Random changes by two stores and plain SQL: cache, rows and log agree after each."""
    seeded = random.Random(seed)
    pragmas = [ON, RECURSIVE][: 1 + seed % 2]
    async with MemoryStore(file_url, staleness_s=HOUR_S, cache_path="") as other:
        stores = [store, other]
        for _ in range(25):
            writer = seeded.randrange(4)
            if writer < 2:
                await _change(stores[writer], seeded)
            else:
                end = seeded.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"])
                run(path, *seeded.sample(_statements(seeded), seeded.randrange(1, 4)), pragmas=pragmas, end=end)
            await agrees(seeded.choice(stores), path)
    assert log_problems(path) == []
    assert integrity_problems(path) == []
    found = (await store.episodes.list(Episode.c.id == "e1")).items
    assert len(found) == 1
