"""The change feed: `store.follow` and `store.follow_all`, from one process; see test_fault_feed for what goes wrong."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memory_store import ConfigurationError, LoggedChange, MemoryStore, StoreClosedError
from memory_store.records import RECORDS
from tests.unit.samples import CHANGE, MAKE, make_episode, make_pattern, make_step

PATIENCE_S = 20.0


async def take(feed: AsyncIterator[LoggedChange], count: int) -> list[LoggedChange]:
    """Return the next changes of a feed."""
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(feed) for _ in range(count)]


async def nothing_comes(feed: AsyncIterator[LoggedChange], store: MemoryStore) -> None:
    """Check that a feed has nothing more, by a mark behind it: what comes next is the mark. No waiting is involved."""
    mark = await store.patterns.put(make_pattern(pattern_data="the end"))
    [change] = await take(feed, 1)
    assert (change.kind, change.key) == ("pattern", mark.id)


def told(changes: list[LoggedChange]) -> list[tuple[Any, ...]]:
    """Return what changes say, without where and when."""
    return [(c.kind, c.key, c.parent, c.operation, c.revision) for c in changes]


async def test_every_operation_is_told(store: MemoryStore) -> None:
    feed = store.follow()
    await store.episodes.put(make_episode(id="e"))
    await store.episodes.put(make_episode(id="e"))
    await store.episodes.update("e", status="failed")
    await store.steps.append("e", [make_step("e", id="s1"), make_step("e", id="s2")])
    await store.episodes.put(make_episode(id="f"))
    await store.steps.put(make_step("f", id="s1"))
    await store.steps.delete("s2")
    await store.episodes.delete("f")
    assert told(await take(feed, 11)) == [
        ("episode", "e", None, "insert", 1),
        ("episode", "e", None, "update", 2),
        ("episode", "e", None, "update", 3),
        ("step", "s1", "e", "insert", 1),
        ("step", "s2", "e", "insert", 1),
        ("episode", "f", None, "insert", 1),
        ("step", "s1", "e", "move", 2),
        ("step", "s1", "f", "update", 2),
        ("step", "s2", "e", "delete", 1),
        ("step", None, "f", "delete", None),
        ("episode", "f", None, "delete", 1),
    ]
    await nothing_comes(feed, store)


@pytest.mark.parametrize("kind", RECORDS)
async def test_every_kind_is_told(kind: str, store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e1"))
    parent = None if RECORDS[kind].parent is None else "e1"
    feed = store.follow()
    await store.collection(kind).put(MAKE[kind]("e1", id="r"))
    await store.collection(kind).update("r", **CHANGE[kind])
    await store.collection(kind).delete("r")
    expected = [(kind, "r", parent, *rest) for rest in [("insert", 1), ("update", 2), ("delete", 2)]]
    assert told(await take(feed, 3)) == expected


async def test_positions_and_cursors(store: MemoryStore) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    feed = store.follow()
    first = await store.episodes.put(make_episode())
    async with store.transaction() as tx:
        await tx.episodes.put(make_episode())
        await tx.patterns.put(make_pattern())
    changes = await take(feed, 3)
    assert [change.position for change in changes] == [first.position, tx.position, tx.position]
    assert len({change.cursor for change in changes}) == 3
    assert {change.namespace for change in changes} == {store.name}
    assert all(before < change.at < before + timedelta(minutes=5) for change in changes)
    assert all(change.at.tzinfo is UTC for change in changes)


async def test_the_author_is_told(url: str) -> None:
    async with MemoryStore(url, actor="agent-7") as store:
        feed = store.follow()
        await store.episodes.put(make_episode())
        [change] = await take(feed, 1)
        assert change.actor == "agent-7"


async def test_what_was_rolled_back_or_changed_nothing_is_not_told(store: MemoryStore) -> None:
    feed = store.follow()

    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.episodes.put(make_episode())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await store.episodes.delete("nobody")
    await store.episodes.put(make_episode(id="e"), idempotency_key="k")
    await store.episodes.put(make_episode(id="e"), idempotency_key="k")
    assert told(await take(feed, 1)) == [("episode", "e", None, "insert", 1)]
    await nothing_comes(feed, store)


async def test_end_is_the_moment_of_the_call(store: MemoryStore) -> None:
    """Not of the first iteration: whoever follows, then reads, then iterates must not lose what came in between."""
    await store.episodes.put(make_episode(id="before"))
    feed = store.follow()
    await store.episodes.put(make_episode(id="after"))
    assert [change.key for change in await take(feed, 1)] == ["after"]


async def test_start_is_the_oldest_change_of_the_log(store: MemoryStore) -> None:
    keys = [(await store.episodes.put(make_episode())).id for _ in range(5)]
    feed = store.follow(after="start")
    assert [change.key for change in await take(feed, 5)] == keys
    await nothing_comes(feed, store)


async def test_every_cursor_leads_on_to_the_rest(store: MemoryStore) -> None:
    for _ in range(4):
        await store.episodes.put_many([make_episode(), make_episode(), make_episode()])
    changes = await take(store.follow(after="start"), 12)
    for number, change in enumerate(changes[:-1]):
        assert await take(store.follow(after=change.cursor), 11 - number) == changes[number + 1 :]
    await nothing_comes(store.follow(after=changes[-1].cursor), store)


async def test_a_cursor_leads_on_in_another_store_and_after_a_restart(file_url: str) -> None:
    seen: list[LoggedChange] = []
    for number in range(4):
        async with MemoryStore(file_url) as store, MemoryStore(file_url) as another:
            keys = [(await store.episodes.put(make_episode())).id for _ in range(3)]
            for one in (store, another):
                changes = await take(one.follow(after=seen[-1].cursor if seen else "start"), 3)
                assert [change.key for change in changes] == keys
            seen += changes[: 3 if number % 2 else 2]
            if number % 2 == 0:  # one is told again: it was handed out and not remembered
                seen += await take(store.follow(after=seen[-1].cursor), 1)
    assert len({change.key for change in seen}) == 12


async def test_changes_of_another_store_are_told(file_url: str) -> None:
    async with MemoryStore(file_url) as theirs, MemoryStore(file_url, staleness_s=0.01) as ours:
        feed = ours.follow()
        keys = []
        for number in range(10):
            waiting = asyncio.ensure_future(take(feed, 1))
            await asyncio.sleep(0)
            writer = theirs if number % 2 else ours
            keys.append((await writer.episodes.put(make_episode())).id)
            [change] = await waiting
            assert change.key == keys[-1]


async def test_own_changes_come_at_once(url: str) -> None:
    """Not after the time for which a feed may miss the changes of others."""
    async with MemoryStore(url, staleness_s=3600) as store:
        feed = store.follow()
        for way in ("put", "transaction", "keyed"):
            waiting = asyncio.ensure_future(take(feed, 1))
            await asyncio.sleep(0.01)  # it has found nothing and waits
            assert not waiting.done()
            if way == "transaction":
                async with store.transaction() as tx:
                    record = await tx.episodes.put(make_episode())
            else:
                record = await store.episodes.put(make_episode(), idempotency_key="k" if way == "keyed" else None)
            [change] = await waiting
            assert change.key == record.id


async def test_what_is_read_after_a_change_is_no_older(file_url: str) -> None:
    """For every kind of read, though the reader's cache might be an hour behind."""
    async with MemoryStore(file_url) as theirs, MemoryStore(file_url, staleness_s=3600) as ours:
        await theirs.episodes.put(make_episode(id="e", context=0))
        await ours.episodes.get("e")
        await ours.steps.of("e")
        for number in range(1, 20):
            feed = ours.follow(after="end")
            await ours.episodes.get("e")  # what is cached now is old in a moment
            await ours.steps.of("e")
            await theirs.episodes.update("e", context=number)
            [step] = await theirs.steps.append("e", make_step("e"))
            await ours.patterns.put(make_pattern())  # wakes the feed
            changes = await take(feed, 2)
            assert [change.kind for change in changes] == ["episode", "step"]
            found = await ours.episodes.get("e")
            assert found is not None
            assert found.context == number
            assert (await ours.steps.of("e"))[-1].id == step.id


async def test_a_commit_of_many_changes_comes_whole_and_in_order(store: MemoryStore) -> None:
    feed, every = store.follow(), store.follow_all()
    stored = await store.episodes.put_many([make_episode() for _ in range(2000)])
    changes = await take(feed, 2000)
    assert [change.key for change in changes] == [record.id for record in stored]
    assert {change.position for change in changes} == {store.position}
    assert len({change.cursor for change in changes}) == 2000
    assert [replace(change, cursor="") for change in await take(every, 2000)] == [
        replace(change, cursor="") for change in changes
    ]
    # Resumed in the middle of a commit, at the edges of what is read at once as well.
    for place in (0, 1, 510, 511, 512, 1023, 1024, 1998):
        assert await take(store.follow(after=changes[place].cursor), 1) == [changes[place + 1]]
    await nothing_comes(feed, store)


async def test_several_feeds_are_told_the_same(store: MemoryStore) -> None:
    feeds = [store.follow() for _ in range(5)]
    taking = [asyncio.ensure_future(take(feed, 30)) for feed in feeds]
    await asyncio.gather(*(store.episodes.put(make_episode()) for _ in range(30)))
    first, *others = await asyncio.gather(*taking)
    assert len(first) == 30
    assert [(change.position) for change in first] == sorted(change.position for change in first)
    assert others == [first] * 4


async def test_a_slow_feed_loses_nothing(store: MemoryStore) -> None:
    slow = store.follow()
    first = await store.episodes.put(make_episode())
    assert [change.key for change in await take(slow, 1)] == [first.id]
    keys = [(await store.episodes.put(make_episode())).id for _ in range(50)]
    assert [change.key for change in await take(slow, 50)] == keys


async def test_namespaces_are_told_apart(store: MemoryStore) -> None:
    other = store.namespace("other")
    ours, theirs, every = store.follow(), other.follow(), store.follow_all()
    for number in range(6):
        await (other if number % 3 == 0 else store).episodes.put(make_episode(id=str(number)))
    assert [change.key for change in await take(ours, 4)] == ["1", "2", "4", "5"]
    assert [change.key for change in await take(theirs, 2)] == ["0", "3"]
    changes = await take(every, 6)
    # Of two heads, each in its order.
    assert sorted(change.key or "" for change in changes) == [str(number) for number in range(6)]
    assert {change.namespace for change in changes} == {store.name, "other"}
    await nothing_comes(ours, store)
    # A cursor belongs to the log, not to a namespace.
    place = next(place for place, change in enumerate(changes) if change.key == "0")
    if len(store._shards or ()) == 1 or all(change.key != "1" for change in changes[:place]):
        assert [change.key for change in await take(store.follow(after=changes[place].cursor), 1)] == ["1"]


async def test_a_namespace_in_which_nothing_happens_says_nothing(store: MemoryStore) -> None:
    """Though others write more than is read at once, and it is resumed from before all that."""
    quiet = store.namespace("quiet").follow(after="start")
    waiting = asyncio.ensure_future(take(quiet, 1))
    for _ in range(3):
        await store.episodes.put_many([make_episode() for _ in range(600)])
    assert not waiting.done()
    put = await store.namespace("quiet").episodes.put(make_episode())
    [change] = await waiting
    assert change.key == put.id


async def test_follow_all_tells_of_the_database_as_a_whole(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e"))
    heads = len(store._shards or ())
    changes = told(await take(store.follow_all(after="start"), heads + 1))
    assert changes.count(("store", None, None, "upgrade", None)) == heads
    assert ("episode", "e", None, "insert", 1) in changes
    assert told(await take(store.follow(after="start"), 1)) == [("episode", "e", None, "insert", 1)]


async def test_a_feed_beside_many_writers_misses_nothing(store: MemoryStore) -> None:
    feed = store.follow()

    async def write(writer: int) -> list[str]:
        return [(await store.episodes.put(make_episode(id=f"{writer}.{n}"))).id for n in range(40)]

    *written, changes = await asyncio.gather(*map(write, range(8)), take(feed, 320))
    assert sorted(change.key or "" for change in changes) == sorted(itertools.chain(*written))
    assert [change.position for change in changes] == sorted(change.position for change in changes)
    for keys in written:
        told_of = [change.key for change in changes if change.key in set(keys)]
        assert told_of == keys


WRONG = ["", "now", "START", "1", "1.2", "1.2.3.4", "-1.0.a", "1.0.x", " 1.0.a", "1.0.a\n", "1.0." + "a" * 17, "9" * 20]


@pytest.mark.parametrize("after", [*WRONG, "9999999999999999999.0.1", "1.9999999999999999999.1"], ids=ascii)
async def test_what_is_no_place_in_the_log_is_refused(after: str, store: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match=r"after must be|cursor"):
        await take(store.follow(after=after), 1)


async def test_a_store_that_is_not_open_cannot_be_followed(url: str) -> None:
    store = MemoryStore(url)
    with pytest.raises(StoreClosedError):
        store.follow()
    async with store:
        feed = store.follow()
    with pytest.raises(StoreClosedError):
        store.follow()
    with pytest.raises(StoreClosedError):
        await anext(feed)


async def test_a_feed_of_all_that_is_closed_follows_nothing_any_more(store: MemoryStore) -> None:
    every = store.follow_all()
    await store.episodes.put(make_episode())
    await store.namespace("other").episodes.put(make_episode())
    await take(every, 1)
    assert store.stats().feeds == len(store._shards or ())
    for _ in range(50):  # what the other namespace's head has comes as well, and waits to be taken
        await store.episodes.get("nobody", freshness="linearizable")
    await every.aclose()  # type: ignore[attr-defined]
    assert store.stats().feeds == 0
