"""The change feed when things go wrong: closing, cancellation, kills, a log that was trimmed, a database taken back."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memory_store import LoggedChange, MemoryStore, PositionLostError, Step, StoreClosedError
from memory_store.durable.log import begin_epoch
from tests.fault.cancelling import MOMENTS, cancel_everywhere
from tests.fault.support import Child, Parent, database, episode
from tests.unit.conftest import Blocker

pytestmark = pytest.mark.usefixtures("no_thread_left")

PATIENCE_S = 20.0
PROMPTLY_S = 2.0
HOUR_S = 3600.0


async def take(feed: AsyncIterator[LoggedChange], count: int = 1) -> list[str | None]:
    """Return the keys of the next changes of a feed."""
    async with asyncio.timeout(PATIENCE_S):
        return [(await anext(feed)).key for _ in range(count)]


async def ends_with(error: type[BaseException], feed: AsyncIterator[LoggedChange]) -> BaseException:
    """Check that a feed ends with an error, promptly; return it."""
    with pytest.raises(error) as caught:
        async with asyncio.timeout(PROMPTLY_S):
            await anext(feed)
    return caught.value


@pytest.fixture
async def patient(file_url: str) -> AsyncIterator[MemoryStore]:
    """A store whose feeds look for changes of others once an hour."""
    async with MemoryStore(file_url, staleness_s=HOUR_S) as store:
        yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The database file."""
    return tmp_path / "agent.db"


# --- the end of the store


async def test_closing_ends_a_feed_that_waits(patient: MemoryStore) -> None:
    feeds = [patient.follow(), patient.follow_all(after="start")]
    await patient.episodes.put(episode("e"))
    waiting = [asyncio.ensure_future(take(feed, 3)) for feed in feeds]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(PROMPTLY_S):
        await patient.close()
        done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in done] == [StoreClosedError] * 2


@pytest.mark.parametrize("held", [1, 3, 700], ids=lambda held: f"{held} to come")
async def test_closing_ends_a_feed_whose_caller_is_busy(held: int, patient: MemoryStore) -> None:
    """It may hand out what it has read already, and then says so; it neither waits nor ends quietly."""
    feed = patient.follow()
    await patient.episodes.put_many([episode(f"e{i}") for i in range(held)])
    await take(feed)
    await patient.close()

    async def go_on() -> None:
        async with asyncio.timeout(PROMPTLY_S):
            for _ in range(held):
                await anext(feed)

    with pytest.raises(StoreClosedError):
        await go_on()


@pytest.mark.parametrize("ticks", range(8))
async def test_closing_at_any_moment_of_a_read_ends_a_feed(ticks: int, patient: MemoryStore) -> None:
    await patient.episodes.put_many([episode(f"e{i}") for i in range(600)])
    feed = patient.follow(after="start")
    taking = asyncio.ensure_future(take(feed, 601))
    for _ in range(ticks):
        await asyncio.sleep(0)
    async with asyncio.timeout(PROMPTLY_S):
        await patient.close()
        await asyncio.wait([taking])
    assert isinstance(taking.exception(), StoreClosedError)


async def test_closing_while_a_feed_reads_ends_it(patient: MemoryStore) -> None:
    """The connections are closed one after another; what was asked for before that is answered in between."""
    await patient.episodes.put(episode("e"))
    feed = patient.follow(after="start")
    async with Blocker(patient._access.durable.scan).block():
        taking = asyncio.ensure_future(take(feed, 2))
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(patient.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
    async with asyncio.timeout(PROMPTLY_S):
        await closing
        await asyncio.wait([taking])
    assert isinstance(taking.exception(), StoreClosedError)


async def test_a_feed_that_was_never_read_is_no_burden(patient: MemoryStore) -> None:
    feed = patient.follow()
    await patient.episodes.put(episode("e"))
    await patient.close()
    await ends_with(StoreClosedError, feed)


# --- cancellation


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("waits", [False, True], ids=["while it reads", "while it waits"])
async def test_cancelled_at_every_await(waits: bool, moment: str, patient: MemoryStore) -> None:
    """Nothing stays behind, and a new feed from the last cursor misses nothing."""
    keys = [(await patient.episodes.put(episode(f"e{number}"))).id for number in range(40)]
    cursor, seen, writing = "start", 0, list[asyncio.Future[Any]]()
    loop = asyncio.get_running_loop()

    async def run(number: int) -> None:
        nonlocal cursor, seen
        if waits:
            newest = patient.follow()
            put = loop.call_later(
                0.005, lambda: writing.append(asyncio.ensure_future(patient.episodes.put(episode(f"more-{number}"))))
            )
            try:
                await take(newest)
            finally:
                put.cancel()
        change = await anext(patient.follow(after=cursor))
        assert change.key == keys[seen]
        cursor, seen = change.cursor, seen + 1

    async def check(number: int) -> None:
        await asyncio.gather(*writing)
        assert patient._access.shard.waiting == set(), "a feed that is gone would still be woken"
        assert await take(patient.follow(after=cursor)) == [keys[seen]]
        feed = patient.follow()
        put = await patient.episodes.put(episode(f"check-{number}"))
        assert await take(feed) == [put.id]
        assert await patient.episodes.get(put.id) == put

    suspensions = await cancel_everywhere(run, check, moment)
    assert suspensions > 0, "it never waited: nothing was tested"


async def test_a_cancelled_feed_is_at_its_end(patient: MemoryStore) -> None:
    """As every generator; its cursor starts the next one."""
    feed = patient.follow()
    waiting = asyncio.ensure_future(take(feed))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.wait([waiting])
    await patient.episodes.put(episode("e"))
    with pytest.raises(StopAsyncIteration):
        await anext(feed)


async def test_feeds_beside_cancelled_feeds_go_on(patient: MemoryStore) -> None:
    feeds = [patient.follow() for _ in range(6)]
    waiting = [asyncio.ensure_future(take(feed)) for feed in feeds]
    await asyncio.sleep(0.02)
    for one in waiting[::2]:
        one.cancel()
    await patient.episodes.put(episode("e"))
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert done[1::2] == [["e"]] * 3
    assert [type(one) for one in done[::2]] == [asyncio.CancelledError] * 3


# --- kills


async def _follow_for_ever(parent: Parent, url: str, cursor: str) -> None:
    """Tell of each change, cursor included, until killed."""
    async with MemoryStore(url, cache_path="", staleness_s=0.005) as store:
        async for change in store.follow(after=cursor):
            found = await store.episodes.get(change.key or "")
            parent.send((change.cursor, change.key, found and found.revision, change.revision))


async def _write_some(parent: Parent, url: str, first: int, count: int) -> None:
    async with MemoryStore(url, cache_path="") as store:
        for number in range(first, first + count):
            await store.episodes.put(episode(f"e{number}"))
            await asyncio.sleep(0.001)


async def test_a_follower_killed_again_and_again_misses_nothing(file_url: str) -> None:
    """Writer and follower are processes of their own; the follower keeps the last cursor it told of."""
    async with MemoryStore(file_url):
        pass
    cursor, told = "start", []
    for round_ in range(4):
        with (
            Child(_follow_for_ever, file_url, cursor) as follower,
            Child(_write_some, file_url, round_ * 30, 30) as writer,
        ):
            for _ in range(20):
                cursor, key, found, revision = follower.receive()
                assert found is not None, "a read after a change must see it"
                assert found >= revision
                told.append(key)
            writer.receive()
            follower.kill()
    with Child(_follow_for_ever, file_url, cursor) as follower:
        while len(told) < 120:
            told.append(follower.receive()[1])
    assert told == [f"e{number}" for number in range(120)]


# --- the log does not lead on


async def some_changes(store: MemoryStore, count: int, mark: str) -> list[str]:
    """Put records one by one; return their ids."""
    return [(await store.episodes.put(episode(f"{mark}{number}"))).id for number in range(count)]


def trim(path: Path, position: int) -> None:
    """Delete the start of the log, as an administrator does."""
    with database(path) as connection:
        connection.execute("DELETE FROM changes WHERE position <= ?", (position,))


async def cursors(store: MemoryStore) -> dict[int, str]:
    """Return the cursors of all changes of episodes, by their positions."""
    found: dict[int, str] = {}
    feed = store.follow(after="start")
    while max(found, default=0) < store.position:
        change = await anext(feed)
        found[change.position] = change.cursor
    return found


async def test_a_trimmed_log_is_lost_for_those_behind_and_leads_on_for_the_others(
    patient: MemoryStore, path: Path
) -> None:
    start = patient.position
    await some_changes(patient, 6, "e")
    known = await cursors(patient)
    trim(path, start + 3)
    for position in range(start + 1, start + 3):
        error = await ends_with(PositionLostError, patient.follow(after=known[position]))
        assert isinstance(error, PositionLostError)
        assert (error.position, error.head) == (position, start + 6)
    for position in range(start + 4, start + 6):
        assert await take(patient.follow(after=known[position])) == [f"e{position - start}"]
    assert await take(patient.follow(after="start"), 3) == ["e3", "e4", "e5"], "start is the oldest the log holds"


def count_reads(store: MemoryStore) -> Callable[[], int]:
    """Count what a store reads on the lane for long reads from now on."""
    reads, run = 0, store._access.durable.scan.run

    async def counted(function: Callable[[sqlite3.Connection], Any]) -> Any:
        nonlocal reads
        reads += 1
        return await run(function)

    store._access.durable.scan.run = counted  # type: ignore[method-assign]
    return lambda: reads


@pytest.mark.parametrize("kept", [1, 0], ids=["to the newest commit", "to nothing"])
async def test_a_trimmed_log_without_news(kept: int, patient: MemoryStore, path: Path) -> None:
    """Feeds wait for the next commit without reading again and again.

    Where not even the commit they stand at was kept, its random number cannot be compared: they are lost rather than
    led on from another past.
    """
    await some_changes(patient, 3, "e")
    known = await cursors(patient)
    last = max(known)
    trim(path, last - kept)
    await ends_with(PositionLostError, patient.follow(after=known[last - 1]))
    feeds = [patient.follow(after=after) for after in (known[last], "start", "end")]
    waiting = [asyncio.ensure_future(take(feed, 1 + kept * (feed is feeds[1]))) for feed in feeds]
    reads = count_reads(patient)
    await asyncio.sleep(0.1)
    assert reads() <= 2 * len(feeds)
    await patient.episodes.put(episode("next"))
    told = await asyncio.gather(*waiting, return_exceptions=True)
    if kept:
        assert told == [["next"], ["e2", "next"], ["next"]]
    else:
        assert {type(error) for error in told} == {PositionLostError}
    assert await take(patient.follow(after="start"), 1 + kept) == ["e2", "next"][-1 - kept :]


async def test_a_log_trimmed_under_a_feed_that_is_behind(patient: MemoryStore, file_url: str, path: Path) -> None:
    feed = patient.follow()
    await some_changes(patient, 1, "first")
    assert await take(feed) == ["first0"]
    async with MemoryStore(file_url) as other:
        await some_changes(other, 4, "e")
        trim(path, other.position - 2)
    await ends_with(PositionLostError, patient.follow(after="1.0.1"))
    await patient.episodes.put(episode("wakes it"))
    await ends_with(PositionLostError, feed)


async def test_a_hole_in_the_log_is_lost_and_not_stepped_over(patient: MemoryStore, path: Path) -> None:
    start = patient.position
    await some_changes(patient, 6, "e")
    known = await cursors(patient)
    with database(path) as connection:
        connection.execute("DELETE FROM changes WHERE position IN (?, ?)", (start + 3, start + 4))
    await ends_with(PositionLostError, patient.follow(after=known[start + 2]))
    assert await take(patient.follow(after=known[start + 5])) == ["e5"]


async def test_a_cursor_of_another_database_is_lost(patient: MemoryStore, tmp_path: Path) -> None:
    async with MemoryStore(f"sqlite:///{tmp_path}/another.db") as another:
        await some_changes(another, 3, "theirs")
        theirs = await cursors(another)
    await some_changes(patient, 2, "ours")
    assert max(theirs) > patient.position
    for cursor in theirs.values():
        await ends_with(PositionLostError, patient.follow(after=cursor))


def backup(source: Path, target: Path) -> None:
    """Copy a database over another with SQLite's backup: a transaction as every other, also under open stores."""
    with closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as copy:
        origin.backup(copy)


async def test_a_database_taken_back_under_a_feed_ends_it(patient: MemoryStore, path: Path, tmp_path: Path) -> None:
    await some_changes(patient, 2, "e")
    backup(path, tmp_path / "backup.db")
    feed = patient.follow()
    await some_changes(patient, 2, "lost")
    assert await take(feed, 2) == ["lost0", "lost1"]
    waiting = asyncio.ensure_future(ends_with(PositionLostError, feed))
    await asyncio.sleep(0.02)
    backup(tmp_path / "backup.db", path)
    assert await patient.episodes.get("lost1", freshness="linearizable") is None
    await waiting


@pytest.mark.parametrize("others", range(5))
async def test_a_feed_over_another_past_is_lost(others: int, patient: MemoryStore, path: Path, tmp_path: Path) -> None:
    """However many commits were made since the database was taken back: fewer, as many, or more."""
    await some_changes(patient, 2, "e")
    backup(path, tmp_path / "backup.db")
    await some_changes(patient, 2, "lost")
    known = await cursors(patient)
    backup(tmp_path / "backup.db", path)
    await some_changes(patient, others, "other")
    newest = max(known)
    await ends_with(PositionLostError, patient.follow(after=known[newest]))
    expected = [f"other{i}" for i in range(others)]
    assert await take(patient.follow(after=known[newest - 2]), others) == expected


async def test_a_restore_with_an_epoch_of_its_own_can_be_stepped_over(
    patient: MemoryStore, path: Path, tmp_path: Path
) -> None:
    """It goes on behind every position there was. Who stands where the backup was made lost nothing; others did."""
    await some_changes(patient, 2, "e")
    backup(path, tmp_path / "backup.db")
    known_then = await cursors(patient)
    await some_changes(patient, 3, "lost")
    known = await cursors(patient)
    with database(tmp_path / "backup.db") as connection:
        connection.execute("BEGIN IMMEDIATE")
        restored = begin_epoch(connection.execute, "restore", position=patient.position)
        connection.execute("COMMIT")
    backup(tmp_path / "backup.db", path)
    assert restored.position == max(known) + 1
    await some_changes(patient, 1, "after")
    at_the_backup = max(known_then)
    feed = patient.follow_all(after=known[at_the_backup])
    changes = [await anext(feed), await anext(feed)]
    assert [(change.position, change.kind, change.operation) for change in changes] == [
        (restored.position, "store", "restore"),
        (restored.position + 1, "episode", "insert"),
    ]
    assert await take(patient.follow(after=known[at_the_backup])) == ["after0"]
    for position in range(at_the_backup + 1, max(known) + 1):
        await ends_with(PositionLostError, patient.follow(after=known[position]))


async def test_a_replaced_file_after_a_restart(file_url: str, path: Path, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await some_changes(store, 2, "e")
    shutil.copy(path, tmp_path / "backup.db")
    async with MemoryStore(file_url) as store:
        await some_changes(store, 2, "lost")
        known = await cursors(store)
    shutil.copy(tmp_path / "backup.db", path)
    async with MemoryStore(file_url) as store:
        for position, cursor in sorted(known.items())[-2:]:
            assert position > store.position
            await ends_with(PositionLostError, store.follow(after=cursor))


async def test_an_idle_feed_reads_nothing_but_the_head(file_url: str) -> None:
    """And that once every `staleness_s`."""
    async with MemoryStore(file_url, staleness_s=0.02) as store:
        waiting = asyncio.ensure_future(take(store.follow()))
        await asyncio.sleep(0.1)
        reads, looks, began = count_reads(store), store._access.coherence.looks, time.monotonic()
        await asyncio.sleep(0.4)
        looks = store._access.coherence.looks - looks
        assert reads() == 0
        assert 1 <= looks <= (time.monotonic() - began) / 0.02 + 2
        await store.episodes.put(episode("e"))
        assert await waiting == ["e"]


async def test_parts_of_a_deleted_episode_are_told_as_one_range(patient: MemoryStore) -> None:
    await patient.episodes.put(episode("e"))
    await patient.steps.append("e", [Step(action=str(i)) for i in range(5)])
    feed = patient.follow()
    await patient.episodes.delete("e")
    change = await anext(feed)
    assert (change.kind, change.key, change.parent, change.operation) == ("step", None, "e", "delete")
    assert await patient.steps.of("e") == []
