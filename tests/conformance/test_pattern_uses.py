"""Counting uses of patterns and ranking by them, the same on every backend."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memory_store import (
    ConfigurationError,
    ConflictError,
    Episode,
    InvalidRecordError,
    MemoryStore,
    Pattern,
    RecordNotFoundError,
)
from tests.unit.samples import make_episode, make_pattern, values_of

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
async def pattern(store: MemoryStore) -> Pattern:
    """A pattern that was never used."""
    return await store.patterns.put(make_pattern(id="p"))


@pytest.fixture
async def two_stores(common_url: str) -> AsyncIterator[list[MemoryStore]]:
    """Two stores on one database, in which a pattern was never used."""
    async with MemoryStore(common_url) as first, MemoryStore(common_url) as second:
        await first.patterns.put(make_pattern(id="p"))
        yield [first, second]


def counters(pattern: Pattern | None) -> tuple[int, int]:
    """Successes and uses."""
    assert pattern is not None
    return pattern.successes, pattern.usage_count


async def test_a_use_is_counted_and_everything_follows(store: MemoryStore, pattern: Pattern) -> None:
    used = await store.patterns.record_use("p", success=True, at=NOON)
    expected = {"usage_count": 1, "success_rate": 1.0, "confidence": used.lower_bound, "last_used": NOON}
    assert values_of(used) == values_of(pattern) | expected | {"revision": 2, "updated_at": used.updated_at}
    assert used.position == store.position
    assert round(used.confidence, 4) == 0.2065
    used = await store.patterns.record_use("p", success=False, at=NOON - timedelta(days=1))
    assert (counters(used), used.success_rate, used.last_used, used.revision) == ((1, 2), 0.5, NOON, 3)
    used = await store.patterns.record_use("p", success=True)
    assert used.last_used is not None
    assert used.last_used > NOON
    assert await store.patterns.get("p") == used
    await store.cache.clear()
    assert await store.patterns.get("p") == used


async def test_what_a_pattern_was_put_with_counts_as_uses_before(store: MemoryStore) -> None:
    await store.patterns.put(make_pattern(id="p", success_rate=0.9, usage_count=10, confidence=0.99))
    used = await store.patterns.record_use("p", success=False)
    assert (counters(used), used.success_rate) == ((9, 11), 9 / 11)
    assert used.confidence == used.lower_bound < 0.99


async def test_a_use_is_logged_like_any_update(store: MemoryStore, pattern: Pattern) -> None:
    feed = store.follow()
    await store.patterns.record_use("p", success=True)
    change = await anext(feed)
    assert (change.kind, change.operation, change.key, change.revision) == ("pattern", "update", "p", 2)
    await feed.aclose()  # type: ignore[attr-defined]


async def test_what_is_refused_is_not_counted(store: MemoryStore, pattern: Pattern) -> None:
    position = store.position
    with pytest.raises(RecordNotFoundError, match="pattern 'nothing' does not exist in namespace 'test-agent'"):
        await store.patterns.record_use("nothing", success=True)
    with pytest.raises(RecordNotFoundError):
        await store.namespace("other").patterns.record_use("p", success=True)
    with pytest.raises(InvalidRecordError, match="has no timezone") as caught:
        await store.patterns.record_use("p", success=True, at=datetime(2026, 11, 21))
    assert (caught.value.field, caught.value.key) == ("last_used", "p")
    with pytest.raises(InvalidRecordError, match="last_used must be a datetime"):
        await store.patterns.record_use("p", success=True, at="yesterday")  # type: ignore[arg-type]
    for wrong in (1, None, "yes"):
        with pytest.raises(TypeError, match="success must be True or False"):
            await store.patterns.record_use("p", success=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="id must be a str"):
        await store.patterns.record_use(5, success=True)  # type: ignore[arg-type]
    assert store.position == position
    most = (1 << 63) - 1
    await store.patterns.put(make_pattern(id="full", usage_count=most))
    with pytest.raises(InvalidRecordError, match="usage_count must fit 64 bits"):
        await store.patterns.record_use("full", success=True)
    assert counters(await store.patterns.get("full")) == (0, most)


async def test_concurrent_uses_share_commits_and_none_is_lost(store: MemoryStore, pattern: Pattern) -> None:
    before = store.position
    writes = [store.patterns.record_use("p", success=number % 4 != 0) for number in range(200)]
    used = await asyncio.gather(*writes)
    assert sorted(one.usage_count for one in used) == list(range(1, 201))
    assert sorted(one.revision for one in used) == list(range(2, 202))
    assert counters(await store.patterns.get("p")) == (150, 200)
    assert store.position - before < 20
    await store.cache.clear()
    assert counters(await store.patterns.get("p")) == (150, 200)


async def test_uses_among_other_writes_of_a_batch(store: MemoryStore, pattern: Pattern) -> None:
    """Some of the batch is refused, so it may be run again: nothing counts twice."""
    uses = [store.patterns.record_use("p", success=True) for _ in range(20)]
    updates = [store.patterns.update("p", domain=f"d{number}") for number in range(20)]
    puts = [store.episodes.put(make_episode(id="same")) for _ in range(20)]
    lost = [store.patterns.record_use("nothing", success=True) for _ in range(20)]
    mixed = [write for group in zip(uses, updates, puts, lost, strict=True) for write in group]
    done = await asyncio.gather(*mixed, return_exceptions=True)
    assert {type(error) for error in done[3::4]} == {RecordNotFoundError}
    found = await store.patterns.get("p")
    assert found is not None
    assert (counters(found), found.domain, found.revision) == ((20, 20), "d19", 41)


async def test_uses_from_two_stores(two_stores: list[MemoryStore]) -> None:
    await asyncio.gather(*(two_stores[number % 2].patterns.record_use("p", success=True) for number in range(100)))
    for store in two_stores:
        assert counters(await store.patterns.get("p", freshness="linearizable")) == (100, 100)


async def test_inside_a_transaction(store: MemoryStore, pattern: Pattern) -> None:
    async with store.transaction() as tx:
        await tx.patterns.put(make_pattern(id="q"))
        for id_ in ("p", "p", "q"):
            used = await tx.patterns.record_use(id_, success=True)
        assert (counters(used), used.position) == ((1, 1), None)
        assert counters(await tx.patterns.get("p")) == (2, 2)
        assert counters(await store.patterns.get("p")) == (0, 0)
        with pytest.raises(RecordNotFoundError):
            await tx.patterns.record_use("nothing", success=True)
    assert counters(await store.patterns.get("p")) == (2, 2)
    assert counters(await store.patterns.get("q")) == (1, 1)


async def test_a_transaction_rolled_back_has_not_counted(store: MemoryStore, pattern: Pattern) -> None:
    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.patterns.record_use("p", success=True, idempotency_key="run 7")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert counters(await store.patterns.get("p")) == (0, 0)
    used = await store.patterns.record_use("p", success=False, idempotency_key="run 7")
    assert counters(used) == (0, 1), "the key was free"


async def test_uses_in_and_beside_transactions(store: MemoryStore, pattern: Pattern) -> None:
    async def inside() -> None:
        async with store.transaction() as tx:
            await tx.patterns.record_use("p", success=True)
            await asyncio.sleep(0)
            await tx.patterns.record_use("p", success=False)

    await asyncio.gather(
        *(inside() for _ in range(10)), *(store.patterns.record_use("p", success=True) for _ in range(30))
    )
    assert counters(await store.patterns.get("p")) == (40, 50)


async def test_a_use_with_a_key_is_counted_once(store: MemoryStore, pattern: Pattern) -> None:
    asked: dict[str, Any] = {"success": True, "at": NOON, "idempotency_key": "run 7"}
    done = await asyncio.gather(*(store.patterns.record_use("p", **asked) for _ in range(64)))
    assert {one.position for one in done} == {store.position}
    assert counters(await store.patterns.get("p")) == (1, 1)
    first = done[0].position
    await store.patterns.record_use("p", success=True, idempotency_key="run 8")
    position = store.position
    again = await store.patterns.record_use("p", **asked)
    assert (counters(again), again.position, store.position) == ((2, 2), first, position)
    assert again == await store.patterns.get("p")
    for change in ({"success": False}, {"at": None}, {"at": NOON + timedelta(microseconds=1)}):
        with pytest.raises(ConflictError, match="run 7"):
            await store.patterns.record_use("p", **asked | change)
    with pytest.raises(ConflictError, match="run 7"):
        await store.patterns.put(make_pattern(), idempotency_key="run 7")
    with pytest.raises(InvalidRecordError, match="idempotency_key") as caught:
        await store.patterns.record_use("p", success=True, idempotency_key="x" * 257)
    assert caught.value.key == "p"
    assert store.position == position


async def test_a_key_is_known_to_another_store(two_stores: list[MemoryStore]) -> None:
    first, again = [await store.patterns.record_use("p", success=True, idempotency_key="run 7") for store in two_stores]
    assert (values_of(again), again.position) == (values_of(first), first.position)


async def put_ranked(store: MemoryStore) -> list[Pattern]:
    """Put 700 patterns with counters from a fixed seed, many of them alike; return them, the best first."""
    seeded = random.Random(3)
    made = []
    for number in range(700):
        uses = seeded.choice([0, 1, 1, 1, 2, 3, 10, 100, 1000])
        successes = seeded.choice([uses, uses, seeded.randint(0, uses)])
        made.append(
            make_pattern(
                id=f"p{number:03}",
                pattern_type=seeded.choice(["tool_sequence", "optimization"]),
                domain=seeded.choice(["web", "cli"]),
                success_rate=successes / uses if uses else seeded.random(),
                usage_count=uses,
                confidence=seeded.random(),
            )
        )
    await store.namespace("other").patterns.put_many(made)
    stored = await store.patterns.put_many(made)
    return sorted(stored, key=lambda one: (-one.lower_bound, -one.usage_count, one.id))


async def test_best_is_the_ranking_by_the_lower_bound(store: MemoryStore) -> None:
    ranked = await put_ranked(store)
    best = store.patterns.best
    assert await best() == ranked[:10]
    assert await best(limit=1000) == ranked
    of_type = [one for one in ranked if one.pattern_type == "optimization"]
    for limit in (1, 7, 300):
        assert await best(Pattern.c.pattern_type == "optimization", limit=limit) == of_type[:limit]
    used = [one for one in of_type if one.usage_count >= 3 and one.domain == "web"]
    conditions = (Pattern.c.pattern_type == "optimization", Pattern.c.domain == "web")
    assert await best(*conditions, limit=50, at_least_uses=3) == used[:50]
    assert await best(Pattern.c.domain == "nowhere") == []
    async with store.transaction() as tx:
        await tx.patterns.put(make_pattern(id="new").recounted(10**6, 10**6, None))
        assert [one.id for one in await tx.patterns.best(limit=2)] == ["new", ranked[0].id]


async def test_best_follows_what_is_recorded(store: MemoryStore) -> None:
    await store.patterns.put_many([make_pattern(id=id_) for id_ in "abc"])
    for id_, outcomes in [("a", [True]), ("b", [True] * 9 + [False]), ("c", [False])]:
        for success in outcomes:
            await store.patterns.record_use(id_, success=success)
    assert [one.id for one in await store.patterns.best()] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("conditions", "options", "word"),
    [
        ([Episode.c.domain == "web"], {}, "may only read patterns"),
        ([], {"limit": 0}, "limit must be 1 to 1,000"),
        ([], {"limit": 1001}, "limit must be 1 to 1,000"),
        ([], {"limit": True}, "limit must be 1 to 1,000"),
        ([], {"at_least_uses": -1}, "at_least_uses must be an integer from 0 on"),
        ([], {"at_least_uses": 1.5}, "at_least_uses must be an integer from 0 on"),
    ],
)
async def test_what_best_refuses(conditions: list[Any], options: dict[str, Any], word: str, store: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match=word):
        await store.patterns.best(*conditions, **options)
