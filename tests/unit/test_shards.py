"""Several shards on one shelf: each follows its own log, and what happens to one leaves the others alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import ConfigurationError, MemoryStore, PositionLostError, StoreClosedError
from memory_store.cache.shelf import Shelf
from memory_store.cache.tier import CacheTier
from memory_store.clock import boot_s
from memory_store.codec import make_entry, pack_row
from memory_store.durable.changes import Change, HeadState, shard_of
from memory_store.durable.log import Commit, CommitToken, Logged
from tests.unit.samples import make_episode, make_step
from tests.unit.shards import NAMESPACES, SHARDS, positions, with_many_heads

# --- which shard


@pytest.mark.parametrize(
    ("namespace", "first_byte"),
    [("default", 0x37), ("test-agent", 0x9B), ("a", 0xCA), ("tenant/1", 0x6D), ("x:y_z.9-", 0x96)],
)
def test_the_shard_of_a_namespace_is_known_for_ever(namespace: str, first_byte: int) -> None:
    """As PostgreSQL computes it: get_byte(sha256(convert_to(namespace, 'UTF8')), 0) % shards."""
    assert [shard_of(namespace, shards) for shards in (1, 2, 3, 16, 256)] == [
        0,
        first_byte % 2,
        first_byte % 3,
        first_byte % 16,
        first_byte,
    ]


@given(st.text("abcXYZ019._:/-", min_size=1, max_size=200), st.integers(1, 256))
def test_every_namespace_has_one_of_the_shards(namespace: str, shards: int) -> None:
    first_byte = int(hashlib.sha256(namespace.encode("utf-8")).hexdigest()[:2], 16)
    assert shard_of(namespace, shards) == first_byte % shards


# --- the tiers of two shards on one shelf


class Pair:
    """Two shards on one shelf, with an episode's space in each."""

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        self.shelf = Shelf(max_bytes, {})
        self.tiers = [CacheTier(self.shelf, HeadState(10 + number, 1, "s", 1, number)) for number in range(2)]
        self.spaces = [tier.space("episode", name) for tier, name in zip(self.tiers, "ab", strict=True)]

    def fill(self, number: int, id_: str, size: int = 10) -> None:
        """Fill as a read at the shard's watermark would."""
        tier = self.tiers[number]
        with tier.fence() as fence:
            assert tier.fill(self.spaces[number], id_, [pack_row([id_, 1, "x" * size])], tier.position, fence)

    def has(self, number: int, id_: str) -> bool:
        """Whether an entry is there to be read."""
        return self.shelf.read(self.spaces[number], id_, boot_s()) is not None


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_space_knows_its_shard(pair: Pair) -> None:
    assert [space.shard for space in pair.spaces] == [0, 1]
    assert pair.shelf.space("episode", "b") is pair.spaces[1]


def test_the_budget_is_shared_and_the_least_recently_used_goes_whosever_it_is() -> None:
    probe = Pair()
    probe.fill(0, "a")
    pair = Pair(3 * probe.shelf.used_bytes)
    pair.fill(0, "a")
    pair.fill(1, "b")
    pair.fill(0, "c")
    assert pair.has(0, "a")
    pair.fill(0, "d")
    assert (pair.has(0, "a"), pair.has(1, "b"), pair.has(0, "c"), pair.has(0, "d")) == (True, False, True, True)
    assert pair.shelf.used_bytes == pair.shelf.max_bytes
    assert pair.shelf.counters["episode"].evictions == 1


def test_what_one_shard_applies_touches_nothing_of_another(pair: Pair) -> None:
    for number in range(2):
        pair.fill(number, "x")
    head = pair.tiers[1].head
    with pair.tiers[1].fence() as theirs:
        pair.tiers[0].apply([Logged(11, 7, "episode", name, "x", None) for name in "ab"], HeadState(11, 7, "s", 1, 0))
        assert theirs.is_untouched
    assert (pair.has(0, "x"), pair.has(1, "x")) == (False, True)
    assert pair.tiers[1].head == head
    assert (pair.tiers[0].applied, pair.tiers[1].applied) == (2, 0)
    pair.tiers[0].apply([Logged(12, 8, "episode", "a", None, None)], HeadState(12, 8, "s", 1, 0))
    assert (pair.spaces[0].floor, pair.spaces[1].floor) == (12, 0)


def test_a_commit_of_one_shard_is_put_at_its_own_position(pair: Pair) -> None:
    pair.fill(1, "x")
    change = Change("episode", "a", "x", None, "insert", 1, pack_row(["x", 1]))
    pair.tiers[0].publish(Commit(11, 7, [change], pair.tiers[0].head))
    assert (pair.tiers[0].position, pair.tiers[1].position) == (11, 11)
    assert pair.has(0, "x")
    keys = pair.shelf.keys()
    assert len(pair.shelf.entries(keys, [11, 11], is_now=True)[0]) == 2
    assert pair.shelf.entries(keys, [10, 11], is_now=False)[0] == [pair.spaces[1].prefix + "x"], "each has its past"
    assert pair.shelf.entries(keys, [11, 10], is_now=False)[0] == [pair.spaces[0].prefix + "x"]


def test_a_restart_of_one_shard_leaves_the_entries_of_the_others(pair: Pair) -> None:
    for number in range(2):
        pair.fill(number, "x")
    with pair.tiers[0].fence() as ours, pair.tiers[1].fence() as theirs:
        pair.tiers[0].restart(HeadState(500, 5, "s", 1, 0))
        assert theirs.is_untouched
        assert not ours.is_untouched
    assert (pair.has(0, "x"), pair.has(1, "x")) == (False, True)
    assert [tier.restarts for tier in pair.tiers] == [1, 0]
    # Spaces that are made later begin at the floor of their own shard.
    assert pair.tiers[0].space("episode", "later").floor == 500
    assert pair.tiers[1].space("episode", "later still").floor == 0
    pair.fill(0, "y")
    assert pair.has(0, "y")


@pytest.mark.parametrize("position", [3, 10])
def test_a_shard_that_is_taken_back_leaves_nothing_of_its_own(position: int, pair: Pair) -> None:
    pair.fill(0, "x")
    pair.tiers[0].restart(HeadState(position, 5, "s", 1, 0))
    assert not pair.has(0, "x")
    pair.fill(1, "y")
    assert pair.has(1, "y")
    assert pair.tiers[1].position == 11


def test_a_shard_knows_no_commit_of_another(pair: Pair) -> None:
    assert pair.tiers[0].knows(pair.tiers[0].head)
    assert not pair.tiers[0].knows(pair.tiers[1].head)
    assert not pair.tiers[0].knows(pair.tiers[0].head._replace(shard=1))


# --- a store with several


@pytest.fixture
async def many(file_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryStore]:
    """A store with four heads."""
    with_many_heads(monkeypatch)
    async with MemoryStore(file_url) as store:
        yield store


async def test_each_namespace_commits_at_the_position_of_its_shard(many: MemoryStore) -> None:
    before = positions(many)
    for number, name in enumerate(NAMESPACES):
        for count in range(number):
            stored = await many.namespace(name).episodes.put(make_episode(id=f"e{count}"))
            assert stored.position == before[number] + count + 1 == many.namespace(name).position
    assert positions(many) == [position + number for number, position in enumerate(before)]
    assert many.stats().commits == many.stats().writes == sum(range(SHARDS))
    assert many.stats().position == many.position


async def test_a_transaction_is_of_one_shard_and_the_others_go_on(many: MemoryStore) -> None:
    first, second = many.namespace(NAMESPACES[1]), many.namespace(NAMESPACES[2])
    before = positions(many)
    async with first.transaction() as tx:
        await tx.episodes.put(make_episode(id="e"))
        await tx.steps.append("e", make_step(""))
    assert tx.position == before[1] + 1
    assert positions(many) == [before[0], before[1] + 1, *before[2:]]
    assert await second.episodes.get("e") is None


async def test_changes_of_another_process_are_dropped_in_their_shard_only(many: MemoryStore, file_url: str) -> None:
    for name in NAMESPACES:
        await many.namespace(name).episodes.put(make_episode(id="e"))
    async with MemoryStore(file_url, cache_path="") as theirs:
        changed = await theirs.namespace(NAMESPACES[2]).episodes.update("e", domain="new")
    for name in NAMESPACES:
        found = await many.namespace(name).episodes.get("e", freshness="linearizable")
        assert found is not None
        assert (found.domain == "new") is (name == NAMESPACES[2])
    stats = many.stats()
    assert (stats.applied, stats.restarts, stats.invalidations) == (1, 0, 1)
    assert stats.cache["episode"].misses == 1, "the others were hits"
    assert many.namespace(NAMESPACES[2]).position == changed.position


async def test_a_saved_cache_comes_back_to_the_shards_it_was_of(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_many_heads(monkeypatch)
    async with MemoryStore(file_url) as store:
        for name in reversed(NAMESPACES):
            await store.namespace(name).episodes.put(make_episode(id="e"))
            await store.namespace(name).steps.append("e", make_step(""))
    async with MemoryStore(file_url, cache_path="") as theirs:
        await theirs.namespace(NAMESPACES[1]).episodes.update("e", domain="new")
        await theirs.namespace(NAMESPACES[3]).steps.append("e", make_step(""))
    async with MemoryStore(file_url) as store:
        await store.cache.wait()
        status = await store.cache.status()
        assert (status.reason, status.error, status.entries) == ("", "", 2 * SHARDS - 2)
        for number, name in enumerate(NAMESPACES):
            found = await store.namespace(name).episodes.get("e")
            assert found is not None
            assert (found.domain == "new") is (number == 1)
            assert len(await store.namespace(name).steps.of("e")) == 1 + (number == 3)
        counters = store.stats().cache
        assert (counters["episode"].misses, counters["step"].misses) == (1, 1)
        for key in store._shelf.keys():  # noqa: SIM118 - not a dict
            space, _ = store._shelf.space_of(key)
            assert space.shard == shard_of(space.namespace, SHARDS)


async def test_a_saved_cache_of_another_number_of_shards_is_not_used(
    file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(make_episode(id="e"))
    with_many_heads(monkeypatch)
    async with MemoryStore(file_url) as store:
        await store.cache.wait()
        assert (await store.cache.status()).reason == "the saved cache belongs to another database"
        assert await store.episodes.get("e") is not None


async def test_adopted_entries_are_stopped_by_the_fence_of_their_own_shard(many: MemoryStore) -> None:
    shards = many._shards
    assert shards is not None
    await many.cache.wait()
    spaces = [shards.space("episode", name) for name in NAMESPACES]
    entry = make_entry(shards.shelf.age_s() + 60, 1, [pack_row(["x", 1])])
    with shards.fenced() as fences:
        changed = many.namespace(NAMESPACES[1])
        await changed.episodes.put(make_episode(id="x"))
        await changed.episodes.delete("x")
        shards.shelf.clear()
        shards.adopt([space.prefix + "x" for space in spaces], [entry] * SHARDS, fences)
    kept = [shards.shelf.peek(space.prefix + "x") is not None for space in spaces]
    assert kept == [True, False, True, True]


async def test_a_rebuild_fills_every_shard(many: MemoryStore) -> None:
    for name in NAMESPACES:
        await many.namespace(name).episodes.put(make_episode(id="e"))
    await many.cache.rebuild()
    misses = many.stats().cache["episode"].misses
    for name in NAMESPACES:
        assert await many.namespace(name).episodes.get("e") is not None
    assert many.stats().cache["episode"].misses == misses


# --- the feed of all, and tokens


async def test_the_feed_of_all_merges_the_shards_and_goes_on_from_its_cursor(many: MemoryStore) -> None:
    cursors: list[str] = []
    seen: list[tuple[str, str | None]] = []
    async with aclosing(many.follow_all()) as feed:  # type: ignore[type-var]
        coming = asyncio.ensure_future(anext(feed))
        for round_ in range(2):
            for name in NAMESPACES:
                await many.namespace(name).episodes.put(make_episode(id=f"e{round_}"))
        for _ in range(2 * SHARDS):
            change = await asyncio.wait_for(coming, 30)
            coming = asyncio.ensure_future(anext(feed))
            seen.append((change.namespace, change.key))
            cursors.append(change.cursor)
        coming.cancel()
        await asyncio.wait({coming})
    assert sorted(seen) == sorted((name, f"e{round_}") for name in NAMESPACES for round_ in range(2))
    for name in NAMESPACES:
        assert [key for of, key in seen if of == name] == ["e0", "e1"], "each shard in its order"
    assert all(cursor.count(",") == SHARDS - 1 for cursor in cursors)
    async with aclosing(many.follow_all(after=cursors[3])) as feed:  # type: ignore[type-var]
        rest = [await asyncio.wait_for(anext(feed), 30) for _ in seen[4:]]
    assert sorted((change.namespace, change.key) for change in rest) == sorted(seen[4:])
    # A namespace's own feed takes its part of such a cursor.
    name, _ = seen[-1]
    async with aclosing(many.namespace(name).follow(after=cursors[0])) as own:  # type: ignore[type-var]
        after = [key for of, key in seen[1:] if of == name]
        assert [(await asyncio.wait_for(anext(own), 30)).key for _ in after] == after


@pytest.mark.parametrize(
    ("cursor", "message"),
    [
        ("1.0.a", "the cursor is of a database with 1 heads, this one has 4"),
        ("1.0.a,1.0.b,1.0.c", "the cursor is of a database with 3 heads, this one has 4"),
        ("1.0.a,1.0.b,1.0.c,1.0.d,1.0.e", "the cursor is of a database with 5 heads, this one has 4"),
        ("1.0.a,1.0.b,1.0.c,", "got ''"),
        ("1.0.a,1.0.b,end,1.0.d", "got 'end'"),
        ("1.0.a, 1.0.b,1.0.c,1.0.d", "got ' 1.0.b'"),
        ("1.0.a,1.0.b,1.0.c,1.0.g", "got '1.0.g'"),
        ("1.0.a,1.0.b,1.0.c,9999999999999999999.0.d", "a cursor of larger numbers than any change has"),
        ("", "the cursor is of a database with 1 heads"),
    ],
)
async def test_a_cursor_of_other_heads_is_refused_at_once(cursor: str, message: str, many: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match=message):
        many.follow_all(after=cursor)


async def test_one_shard_whose_log_does_not_lead_on_ends_the_feed_of_all(many: MemoryStore) -> None:
    await many.namespace(NAMESPACES[2]).episodes.put(make_episode())
    shards = many._shards
    assert shards is not None
    cursors = [f"{head.position}.0.{head.nonce:x}" for head in shards.heads]
    cursors[2] = f"{shards.heads[2].position}.0.1"
    async with aclosing(many.follow_all(after=",".join(cursors))) as feed:  # type: ignore[type-var]
        with pytest.raises(PositionLostError):
            await asyncio.wait_for(anext(feed), 30)


async def test_closing_ends_the_feed_of_all(many: MemoryStore) -> None:
    async with aclosing(many.follow_all()) as feed:  # type: ignore[type-var]
        coming = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0.02)
        await many.close()
        with pytest.raises(StoreClosedError):
            await asyncio.wait_for(coming, 30)


async def test_a_token_is_asked_for_in_its_shard(many: MemoryStore) -> None:
    shards = many._shards
    assert shards is not None
    stored = await many.namespace(NAMESPACES[2]).episodes.put(make_episode())
    head = shards.heads[2]
    token = CommitToken(head.store_id, head.position, head.nonce, 2)
    assert stored.position == head.position
    assert CommitToken.parse(str(token)) == token
    assert await many.resolve(str(token)) is True
    before = positions(many)
    assert await many.resolve(str(token._replace(position=head.position + 1))) is False
    after = positions(many)
    assert after == [*before[:2], before[2] + 1, before[3]], "the barrier is in the log of its shard"
    with pytest.raises(PositionLostError, match="another database"):
        await many.resolve(str(token._replace(shard=SHARDS)))
