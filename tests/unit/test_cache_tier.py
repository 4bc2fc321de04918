"""The entries: expiry, order, budget, counters, and the private parts of cachetools they stand on."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from cachetools import LRUCache
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store.cache.entries import Entries, Space
from memory_store.cache.shelf import ENTRY_OVERHEAD_BYTES, Shelf
from memory_store.cache.tier import CacheTier
from memory_store.clock import boot_s
from memory_store.codec import entry_expiry, make_entry, pack_row
from memory_store.durable.changes import Change
from memory_store.durable.log import Commit, Logged
from memory_store.records import RECORDS, QueryResult

LARGE = 1 << 30


class Clock:
    """A boot clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(time, "clock_gettime", lambda _: made.now)
    yield made
    monkeypatch.undo()


def put(tier: CacheTier, space: Space, id_: str, size: int = 10) -> None:
    """Fill one entry of about this size."""
    with tier.fence() as fence:
        assert tier.fill(space, id_, [pack_row([id_, 1, "x" * size])], tier.position, fence)


def read(tier: CacheTier, space: Space, id_: str) -> list[Any] | None:
    """Read an entry now."""
    return tier.shelf.read(space, id_, boot_s())


def publish(tier: CacheTier, *changes: Change) -> None:
    """Publish the next commit of this process."""
    tier.publish(Commit(tier.position + 1, 1, changes, tier.head))


def real_bytes(tier: CacheTier) -> int:
    """What the entries cost by the tier's own rule, counted anew."""
    found = ((key, tier.shelf.peek(key)) for key in tier.shelf.keys())  # noqa: SIM118 - not a dict
    return sum(sys.getsizeof(key) + sys.getsizeof(entry) + ENTRY_OVERHEAD_BYTES for key, entry in found)


def test_cachetools_has_what_the_entries_reach_into() -> None:
    cache: LRUCache[str, int] = LRUCache(maxsize=float("inf"))
    for number, key in enumerate("abc"):
        cache[key] = number
    assert cache["a"] == 0
    assert list(cache._LRUCache__order) == ["b", "c", "a"]  # type: ignore[attr-defined]
    assert cache._Cache__data.get("b") == 1  # type: ignore[attr-defined]
    assert list(cache._LRUCache__order) == ["b", "c", "a"], "a peek is no use"  # type: ignore[attr-defined]
    assert cache.popitem() == ("b", 1)


def test_cachetools_takes_many_as_the_entries_put_them() -> None:
    fast, slow = Entries(), Entries()
    slow["z"] = fast["z"] = b"z"
    fast.put_new(list("abc"), [b"0", b"1", b"2"])
    for key, value in zip("abc", [b"0", b"1", b"2"], strict=True):
        slow[key] = value
    assert vars(fast) == vars(slow)
    for entries in (fast, slow):
        assert entries["a"] == b"0"
        assert entries.popitem() == ("z", b"z")
        del entries["c"]
    assert (fast.oldest_first(), vars(fast)) == (slow.oldest_first(), vars(slow))


def test_an_expired_entry_is_never_served(clock: Clock) -> None:
    tier = CacheTier(Shelf(LARGE, {"episode": 10}))
    space = tier.space("episode", "n")
    put(tier, space, "x")
    clock.now += 9.999
    assert read(tier, space, "x") is not None
    clock.now += 0.001
    assert read(tier, space, "x") is None
    counters = space.counters
    assert (counters.hits, counters.misses, counters.expiries) == (1, 1, 1)
    assert (len(tier.shelf), tier.shelf.used_bytes) == (0, 0)
    assert read(tier, space, "x") is None
    assert (counters.misses, counters.expiries) == (2, 1)


def test_every_kind_has_its_own_time_to_live(clock: Clock) -> None:
    tier = CacheTier(Shelf(LARGE, {"step": 5}))
    for kind, spec in RECORDS.items():
        space = tier.space(kind, "n")
        put(tier, space, "x")
        entry = tier.shelf.peek(space.prefix + "x")
        assert entry is not None
        assert entry_expiry(entry) == clock.now + (5 if kind == "step" else spec.ttl_s)


def test_a_read_does_not_lengthen_a_life(clock: Clock) -> None:
    tier = CacheTier(Shelf(LARGE, {"episode": 10}))
    space = tier.space("episode", "n")
    put(tier, space, "x")
    for _ in range(9):
        clock.now += 1
        assert read(tier, space, "x") is not None
    clock.now += 1
    assert read(tier, space, "x") is None


def test_the_least_recently_used_goes_first() -> None:
    probe = CacheTier(Shelf(LARGE, {}))
    put(probe, probe.space("episode", "n"), "a")
    tier = CacheTier(Shelf(3 * probe.shelf.used_bytes, {}))
    space = tier.space("episode", "n")
    for id_ in "abc":
        put(tier, space, id_)
    assert read(tier, space, "a") is not None
    put(tier, space, "d")
    assert [read(tier, space, id_) is not None for id_ in "abcd"] == [True, False, True, True]
    assert space.counters.evictions == 1
    put(tier, space, "e")  # "a" was read first of those that are left
    assert [tier.shelf.space_of(key)[1] for key in tier.shelf.keys()] == ["c", "d", "e"]  # noqa: SIM118 - not a dict


def test_an_eviction_counts_for_the_kind_that_lost() -> None:
    tier = CacheTier(Shelf(1000, {}))
    put(tier, tier.space("step", "n"), "a", 300)
    put(tier, tier.space("episode", "n"), "a", 500)
    assert (tier.shelf.counters["step"].evictions, tier.shelf.counters["episode"].evictions) == (1, 0)


def test_an_entry_larger_than_the_budget_is_not_kept() -> None:
    tier = CacheTier(Shelf(1000, {}))
    space = tier.space("episode", "n")
    put(tier, space, "small")
    put(tier, space, "large", 5000)
    assert read(tier, space, "large") is None
    assert read(tier, space, "small") is not None, "it pushed nothing out"
    put(tier, space, "small", 5000)
    assert read(tier, space, "small") is None, "the old value must not stay in its place"
    assert (len(tier.shelf), tier.shelf.used_bytes) == (0, 0)


def test_no_budget_caches_nothing() -> None:
    tier = CacheTier(Shelf(0, {}))
    put(tier, tier.space("episode", "n"), "x")
    publish(tier, Change("episode", "n", "x", None, "insert", 1, pack_row(["x", 1])))
    assert (len(tier.shelf), tier.shelf.used_bytes) == (0, 0)


actions = st.tuples(
    st.sampled_from(
        ["fill", "publish", "delete", "append", "read", "adopt", "adopt many", "result", "theirs", "restart", "clear"]
    ),
    st.integers(0, 12),
    st.sampled_from([0, 10, 300, 1500, 9000]),
)


@settings(deadline=None)
@given(st.integers(0, 8000), st.lists(actions, max_size=60))
def test_the_budget_is_never_exceeded_and_the_books_are_right(budget: int, done: list[tuple[str, int, int]]) -> None:
    tier = CacheTier(Shelf(budget, {}))
    episodes, steps = tier.space("episode", "n"), tier.space("step", "n")
    for action, number, size in done:
        id_ = f"id{number}"
        body = pack_row([id_, 1, "x" * size])
        new, entry = [f"new{number}", f"new{number + 1}"], make_entry(boot_s() + 60, tier.position, [body])
        match action:
            case "fill":
                put(tier, episodes, id_, size)
            case "publish":
                publish(tier, Change("episode", "n", id_, None, "update", 1, body))
            case "delete":
                publish(tier, Change("episode", "n", id_, None, "delete", 1))
            case "append":
                publish(tier, Change("step", "n", "s", id_, "insert", 1, body, number % 2 == 0))
            case "read":
                read(tier, episodes, id_)
                read(tier, steps, id_)
            case "adopt":
                with tier.fence() as fence:
                    tier.adopt(episodes, id_, entry, fence)
            case "adopt many":
                with tier.fence() as fence:
                    tier.adopt_many([episodes.prefix + one for one in new], [entry, entry], fence)
            case "result":
                tier.put_result(episodes, QueryResult(id=id_, ids=("x" * size,)), tier.position)
            case "theirs":
                head = tier.head._replace(position=tier.position + 1)
                # Every third time all of the kind.
                key = None if number % 3 == 0 else id_
                tier.apply([Logged(head.position, 1, "episode", "n", key, None)], head)
            case "restart":
                # Forward, or back to where the database was before.
                tier.restart(tier.head._replace(position=max(0, tier.position + number - 6), nonce=number))
            case "clear":
                tier.shelf.clear()
        assert tier.shelf.used_bytes == real_bytes(tier)
        assert 0 <= tier.shelf.used_bytes <= budget


# Just before and just after Python's dictionaries have grown, which is when an entry costs least and most.
@pytest.mark.parametrize("count", [20_000, 22_000])
@pytest.mark.parametrize("size", [100, 1000])
def test_the_books_agree_with_what_python_really_takes(size: int, count: int) -> None:
    """Real bytes, what an entry costs included: within 15 % of what tracemalloc sees."""
    tier = CacheTier(Shelf(LARGE, {}))
    space = tier.space("episode", "n")
    ids = [f"0193a2b4-5c6d-7e8f-9a0b-{number:012x}" for number in range(count)]
    row = pack_row(["x" * size])
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with tier.fence() as fence:
            for id_ in ids:
                tier.fill(space, id_, [row], 0, fence)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(tier.shelf) == count
    words = f"an entry takes {taken / count:.0f} bytes, {tier.shelf.used_bytes / count:.0f} are counted"
    assert abs(taken - tier.shelf.used_bytes) <= 0.15 * taken, words


def test_adopted_entries_never_push_out_what_is_there() -> None:
    probe = CacheTier(Shelf(LARGE, {}))
    put(probe, probe.space("episode", "n"), "a")
    tier = CacheTier(Shelf(2 * probe.shelf.used_bytes, {}))
    space = tier.space("episode", "n")
    put(tier, space, "a")
    entry = make_entry(boot_s() + 60, 0, [pack_row(["x", 1, "x" * 10])])
    with tier.fence() as fence:
        assert not tier.adopt(space, "a", entry, fence), "the key is in use"
        assert tier.adopt(space, "b", entry, fence)
        assert not tier.adopt(space, "c", entry, fence), "there is no room"
        assert not tier.fill_if_room(space, "d", [pack_row(["x", 1, "x" * 10])], 0, fence)
    assert (len(tier.shelf), space.counters.evictions) == (2, 0)


def test_many_are_adopted_as_one_by_one() -> None:
    tier, slow = CacheTier(Shelf(LARGE, {})), CacheTier(Shelf(LARGE, {}))
    entries = [make_entry(boot_s() + 60, 0, [pack_row([f"id{number}", 1])]) for number in range(5)]
    for made in (tier, slow):
        space = made.space("episode", "n")
        with made.fence() as fence:
            if made is slow:
                publish(made, Change("episode", "n", "elsewhere", None, "delete", 1))
                made.shelf.clear()
            made.adopt_many([f"{space.prefix}id{number}" for number in range(5)], entries, fence)
    assert tier.shelf.keys() == slow.shelf.keys()
    assert (len(tier.shelf), tier.shelf.used_bytes) == (5, real_bytes(tier)) == (len(slow.shelf), slow.shelf.used_bytes)
    put(tier, tier.space("episode", "n"), "id2")
    assert [tier.shelf.space_of(key)[1] for key in tier.shelf.keys()] == ["id0", "id1", "id3", "id4", "id2"]  # noqa: SIM118
    with tier.fence() as fence:
        publish(tier, Change("episode", "n", "x", None, "update", 1, pack_row(["x", 1])))
        before = tier.shelf.peek("0/x")
        tier.adopt_many(["0/x", "0/y"], entries[:2], fence)
        assert tier.shelf.peek("0/x") == before, "it has changed since"
        assert tier.shelf.peek("0/y") == entries[1]


def test_refreshing_makes_entries_recently_used() -> None:
    tier = CacheTier(Shelf(LARGE, {}))
    space = tier.space("episode", "n")
    for id_ in "abc":
        put(tier, space, id_)
    tier.shelf.refresh([(space, "b"), (space, "a"), (space, "nothing")])
    assert [tier.shelf.space_of(key)[1] for key in tier.shelf.keys()] == ["c", "b", "a"]  # noqa: SIM118 - not a dict
    assert space.counters.hits == 0


def test_spaces_keep_kinds_and_namespaces_apart() -> None:
    tier = CacheTier(Shelf(LARGE, {}))
    names = ["n", "0", "0/", "1/n", "n/x"]
    spaces = [tier.space(kind, name) for kind in RECORDS for name in names]
    assert len({space.prefix for space in spaces}) == len(spaces)
    for space in spaces:
        put(tier, space, "/x/")
    for space in spaces:
        assert tier.space(space.kind, space.namespace) is space
        assert tier.shelf.space_of(space.prefix + "/x/") == (space, "/x/")
        assert read(tier, space, "/x/") is not None


def test_what_is_saved_is_the_past_and_nothing_newer() -> None:
    tier = CacheTier(Shelf(LARGE, {}))
    space = tier.space("episode", "n")
    put(tier, space, "x")
    head = tier.head
    publish(tier, Change("episode", "n", "y", None, "insert", 1, pack_row(["y", 1])))
    names = [space.prefix + id_ for id_ in "xy"]
    assert tier.shelf.keys() == names
    assert tier.shelf.entries(tier.shelf.keys(), [head.position], is_now=False)[0] == names[:1]
    assert tier.shelf.entries(tier.shelf.keys(), [tier.position], is_now=True)[0] == names
    assert tier.shelf.entries(["0/gone", *names], [tier.position], is_now=True)[0] == names
    assert tier.shelf.entries(["0/gone"], [tier.position], is_now=True) == ([], [])
    tier.restart(tier.head._replace(position=9))
    put(tier, space, "z")
    assert tier.shelf.entries(tier.shelf.keys(), [tier.position], is_now=True)[0] == [space.prefix + "z"]
