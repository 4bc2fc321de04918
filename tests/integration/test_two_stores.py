"""Two stores on one file: what one of them does at the worst moment of the other, forced and not hoped for."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memory_store import Episode, MemoryStore, PositionLostError, RecordNotFoundError, Step
from memory_store.records import RECORDS
from tests.fault.support import database, fields, integrity_problems, log_problems, plain_rows
from tests.unit.conftest import Blocker, HeldRead
from tests.unit.samples import make_episode, make_pattern, make_step

HOUR_S = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The database file."""
    return tmp_path / "agent.db"


@pytest.fixture
async def theirs(file_url: str) -> AsyncIterator[MemoryStore]:
    """Somebody else's store, with two episodes."""
    async with MemoryStore(file_url, cache_path="") as store:
        await store.episodes.put_many([make_episode(id=id_, domain="old") for id_ in ("e1", "e2")])
        await store.steps.append("e1", make_step("e1", id="s"))
        yield store


@pytest.fixture
async def ours(theirs: MemoryStore, file_url: str) -> AsyncIterator[MemoryStore]:
    """Our store: its cache is cold, and it looks at the head only when it is asked to."""
    async with MemoryStore(file_url, staleness_s=HOUR_S, cache_path="") as store:
        await store.cache.wait()
        await store.cache.clear()
        await store.episodes.get("nobody", freshness="linearizable")
        yield store


def reader(store: MemoryStore) -> Any:
    """The lane of a store's point reads."""
    return store._access.shard.reader._lane


async def domain(store: MemoryStore, **options: Any) -> str | None:
    """Return the domain of e1."""
    found = await store.episodes.get("e1", **options)
    return found and found.domain


# --- a read that is under way


@pytest.mark.parametrize("way", ["linearizable", "at_least", "many"])
async def test_nobody_who_joins_a_read_is_given_an_older_answer_than_he_may_have(
    way: str, ours: MemoryStore, theirs: MemoryStore
) -> None:
    """A read has seen the old value and not told yet; another store writes; who asks then joins that read."""
    async with HeldRead(reader(ours)) as held:
        first = asyncio.ensure_future(domain(ours))
        await held.reached.wait()
        await theirs.episodes.update("e1", domain="new")
        if way == "linearizable":
            second: asyncio.Future[Any] = asyncio.ensure_future(domain(ours, freshness="linearizable"))
        elif way == "at_least":
            second = asyncio.ensure_future(domain(ours, at_least=theirs.position))
        else:
            second = asyncio.ensure_future(ours.episodes.get_many(["e1"], freshness="linearizable"))
        await asyncio.sleep(0.01)
        assert not second.done()
        held.release()
        assert await first in ("old", "new")
        answer = await second
        assert answer == "new" if way != "many" else answer[0].domain == "new"
    assert await domain(ours) == "new"


@pytest.mark.parametrize("change", ["update", "delete", "range", "own update", "own delete"])
async def test_a_slow_read_puts_nothing_old_back(change: str, ours: MemoryStore, theirs: MemoryStore) -> None:
    """What it has seen is overtaken, and the cache has been told so, before it arrives."""
    async with HeldRead(reader(ours)) as held:
        slow = asyncio.ensure_future(ours.steps.of("e1") if change == "range" else ours.episodes.get("e1"))
        await held.reached.wait()
        writer = ours if change.startswith("own") else theirs
        if change.endswith("update"):
            await writer.episodes.update("e1", domain="new")
        else:
            await writer.episodes.delete("e1")
        await ours.patterns.list()  # a look, on another lane
        held.release()
        await slow
    expected = "new" if change.endswith("update") else None
    for _ in range(2):
        assert await domain(ours) == expected
    assert len(await ours.steps.of("e1")) == (expected is not None)


async def test_a_bulk_write_of_another_store_overtakes_a_slow_read(ours: MemoryStore, theirs: MemoryStore) -> None:
    """More changes than a look goes through one by one: everything counts as changed, reads under way as well."""
    async with HeldRead(reader(ours)) as held:
        slow = asyncio.ensure_future(domain(ours))
        await held.reached.wait()
        await theirs.episodes.put_many([make_episode(id=id_, domain="new") for id_ in ["e1", *map(str, range(1100))]])
        await ours.patterns.list()
        held.release()
        await slow
    assert await domain(ours) == "new"


async def test_a_count_under_way_is_not_kept_beyond_a_change(ours: MemoryStore, theirs: MemoryStore) -> None:
    async with Blocker(ours._access.durable.scan).block():
        counting = asyncio.ensure_future(ours.episodes.count())
        await asyncio.sleep(0)
        await theirs.episodes.put(make_episode())
        await domain(ours, freshness="linearizable")
    assert await counting == 3
    await theirs.episodes.put(make_episode())
    assert await ours.episodes.count(freshness="linearizable") == 4
    assert await ours.episodes.count() == 4


async def test_a_write_that_waits_sees_what_another_store_commits_before_it(
    ours: MemoryStore, theirs: MemoryStore
) -> None:
    """A commit is published with all that came before it: own writes never hide theirs."""
    assert await domain(ours) == "old"
    assert await ours.episodes.get("e2") is not None
    async with Blocker(ours._access.shard.writer.lane).block():
        put = asyncio.ensure_future(ours.patterns.put(make_pattern()))
        await asyncio.sleep(0)
        await theirs.episodes.update("e1", domain="new")
        await theirs.episodes.delete("e2")
    await put
    assert await domain(ours) == "new"
    assert await ours.episodes.get("e2") is None
    await theirs.episodes.update("e1", domain="newer")
    async with ours.transaction() as tx:
        await tx.patterns.put(make_pattern())
    assert await domain(ours) == "newer"


async def test_a_transaction_sees_what_another_store_has_written(ours: MemoryStore, theirs: MemoryStore) -> None:
    assert await domain(ours) == "old"
    await theirs.episodes.update("e1", domain="new")
    async with ours.transaction() as tx:
        found = await tx.episodes.get("e1")
        assert found is not None
        assert found.domain == "new"
        assert await domain(ours) in ("old", "new")
    assert await domain(ours) == "new", "it has been seen, though the transaction changed nothing"


# --- a database that is taken back under open stores


def backup(source: Path, target: Path) -> None:
    """Copy a database over another with SQLite's backup: a transaction as every other, also under open stores."""
    with closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as copy:
        origin.backup(copy)


async def _put(store: MemoryStore) -> None:
    await store.patterns.put(make_pattern(id="p"))


async def _commit(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        await tx.patterns.put(make_pattern(id="p"))


async def _miss(store: MemoryStore) -> None:
    await store.episodes.get("never asked for")


async def _look(store: MemoryStore) -> None:
    await store.episodes.get("e2", freshness="linearizable")


async def _list(store: MemoryStore) -> None:
    await store.episodes.list()


FIRST: dict[str, Callable[[MemoryStore], Awaitable[None]]] = {
    "put": _put,
    "transaction": _commit,
    "miss": _miss,
    "look": _look,
    "list": _list,
}


@pytest.mark.parametrize("later", range(4))
@pytest.mark.parametrize("first", FIRST)
async def test_nothing_of_a_lost_past_is_served(
    first: str, later: int, ours: MemoryStore, path: Path, tmp_path: Path, file_url: str
) -> None:
    """A backup is put back and goes on: for fewer commits than the lost past had, as many, or more.

    Whatever the store does first afterwards, none of its entries from the lost past is served or saved.
    """
    backup(path, tmp_path / "backup.db")
    for state in ("lost", "lost again"):
        await ours.episodes.update("e1", domain=state)
    await ours.steps.append("e1", Step(action="lost"))
    assert await domain(ours) == "lost again"
    assert len(await ours.steps.of("e1")) == 2
    assert await ours.episodes.count() == 2
    backup(tmp_path / "backup.db", path)
    with database(path) as connection:
        for number in range(later):
            connection.execute("UPDATE episodes SET domain = ? WHERE id = 'e2'", (f"theirs {number}",))
    async with asyncio.timeout(20):
        await FIRST[first](ours)
        for _ in range(2):
            assert await domain(ours, freshness="linearizable") == "old"
            assert await domain(ours) == "old"
            assert len(await ours.steps.of("e1")) == 1
            assert await ours.episodes.count() == 2
            found = await ours.episodes.get("e2")
            assert found is not None
            assert found.domain == (f"theirs {later - 1}" if later else "old")
    async with MemoryStore(file_url, staleness_s=HOUR_S) as again:
        assert await domain(again) == "old"


async def test_positions_of_a_lost_past_are_lost(ours: MemoryStore, path: Path, tmp_path: Path) -> None:
    backup(path, tmp_path / "backup.db")
    put = await ours.episodes.put(make_episode())
    backup(tmp_path / "backup.db", path)
    await _look(ours)
    with pytest.raises(PositionLostError):
        await ours.episodes.get(put.id, at_least=put.position)
    assert await ours.episodes.get(put.id) is None


async def test_a_read_under_way_while_the_database_is_taken_back(ours: MemoryStore, path: Path, tmp_path: Path) -> None:
    """It has seen the lost past and arrives when the cache stands in another one."""
    backup(path, tmp_path / "backup.db")
    for state in ("lost", "lost again"):
        await ours.episodes.update("e1", domain=state)
    await ours.cache.clear()
    async with HeldRead(reader(ours)) as held:
        slow = asyncio.ensure_future(domain(ours))
        await held.reached.wait()
        backup(tmp_path / "backup.db", path)
        await ours.patterns.list()
        held.release()
        async with asyncio.timeout(20):
            assert await slow in ("old", "lost again")
    assert await domain(ours) == "old"


# --- closing


READS: dict[str, Callable[[MemoryStore], Awaitable[Any]]] = {
    "get": lambda s: s.episodes.get("e1"),
    "get_many": lambda s: s.episodes.get_many(["e1", "e2"]),
    "of": lambda s: s.steps.of("e1"),
    "list": lambda s: s.episodes.list(),
    "count": lambda s: s.episodes.count(),
    "part": lambda s: s.steps.get("s"),
    "parts": lambda s: s.steps.get_many(["s"]),
}


@pytest.mark.parametrize("name", READS)
async def test_a_read_that_was_asked_for_before_the_store_was_closed_is_answered(name: str, ours: MemoryStore) -> None:
    async with Blocker(ours._access.durable.scan).block(), Blocker(reader(ours)).block():
        reading = asyncio.ensure_future(READS[name](ours))
        await asyncio.sleep(0.01)
        closing_ = asyncio.ensure_future(ours.close())
        await asyncio.sleep(0.05)
        assert not closing_.done()
    await closing_
    assert await reading


# --- everything at once


async def _work(store: MemoryStore, seeded: random.Random, number: int) -> None:
    """Do something to records that every task of every store changes; what is in the way is no failure."""
    id_ = f"e{seeded.randrange(6)}"
    way = seeded.randrange(8)
    try:
        if way <= 1:
            await store.episodes.put(make_episode(id=id_, context=number))
        elif way == 2:
            await store.episodes.update(id_, context=number)
        elif way == 3:
            await store.steps.append(id_, [Step(action=str(number)), Step(action="b")])
        elif way == 4:
            await store.episodes.delete(id_)
        elif way == 5:
            async with store.transaction() as tx:
                await tx.episodes.put(make_episode(id=id_, context=number))
                await tx.steps.append(id_, Step(action=str(number)))
                if seeded.random() < 0.3:
                    raise ZeroDivisionError
        elif way == 6:
            await store.steps.of(id_)
        else:
            await store.episodes.get_many([f"e{i}" for i in range(6)])
    except (RecordNotFoundError, ZeroDivisionError):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(4))
async def test_two_busy_stores_end_up_alike_and_right(seed: int, file_url: str, path: Path) -> None:
    freshness = {"staleness_s": 0.005} if seed % 2 else {"freshness": "linearizable"}
    async with (
        MemoryStore(file_url, cache_path="", **freshness) as one,
        MemoryStore(file_url, cache_path="", cache_max_bytes=6000, **freshness) as two,
    ):

        async def busy(store: MemoryStore, task: int) -> None:
            seeded = random.Random(f"{seed}.{task}")
            for number in range(40):
                await _work(store, seeded, number)

        await asyncio.gather(*(busy(store, 10 * i + j) for i, store in enumerate((one, two)) for j in range(4)))
        with database(path) as connection:
            for store in (one, two):
                await store.episodes.get("e0", freshness="linearizable")
                for number in range(6):
                    id_ = f"e{number}"
                    rows = plain_rows(connection, RECORDS["episode"], "id = ?", id_)
                    assert fields(await store.episodes.get(id_)) == (rows[0] if rows else None)
                    steps = plain_rows(connection, RECORDS["step"], "episode_id = ?", id_)
                    assert [fields(step) for step in await store.steps.of(id_)] == steps
                [(held,)] = connection.execute("SELECT count(*) FROM episodes").fetchall()
                assert await store.episodes.count() == held
                assert await store.episodes.count(Episode.c.id >= "") == held
        assert (one.stats().failures, two.stats().failures) == (0, 0)
    assert log_problems(path) == []
    assert integrity_problems(path) == []
