"""The entries: expiry, order, budget, counters, and the private parts of cachetools they stand on."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from cachetools import LRUCache
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store.cache.entries import Space
from memory_store.cache.tier import ENTRY_OVERHEAD_BYTES, CacheTier
from memory_store.codec import entry_expiry, make_entry, pack_row
from memory_store.durable.changes import Change, Commit
from memory_store.records import RECORDS, QueryResult

LARGE = 1 << 30


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    yield made
    monkeypatch.undo()


def put(tier: CacheTier, space: Space, id_: str, size: int = 10) -> None:
    """Fill one entry of about this size."""
    with tier.fence() as fence:
        assert tier.fill(space, id_, [pack_row([id_, 1, "x" * size])], tier.position, fence)


def real_bytes(tier: CacheTier) -> int:
    """What the entries cost by the tier's own rule, counted anew."""
    found = ((key, tier._entries.peek(key)) for key in tier.keys())  # noqa: SIM118 - not a dict
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


def test_an_expired_entry_is_never_served(clock: Clock) -> None:
    tier = CacheTier(LARGE, {"episode": 10})
    space = tier.space("episode", "n")
    put(tier, space, "x")
    clock.now += 9.999
    assert tier.read(space, "x") is not None
    clock.now += 0.001
    assert tier.read(space, "x") is None
    counters = space.counters
    assert (counters.hits, counters.misses, counters.expiries) == (1, 1, 1)
    assert (len(tier), tier.used_bytes) == (0, 0)
    assert tier.read(space, "x") is None
    assert (counters.misses, counters.expiries) == (2, 1)


def test_every_kind_has_its_own_time_to_live(clock: Clock) -> None:
    tier = CacheTier(LARGE, {"step": 5})
    for kind, spec in RECORDS.items():
        space = tier.space(kind, "n")
        put(tier, space, "x")
        entry = tier._entries.peek(space.prefix + "x")
        assert entry is not None
        assert entry_expiry(entry) == clock.now + (5 if kind == "step" else spec.ttl_s)


def test_a_read_does_not_lengthen_a_life(clock: Clock) -> None:
    tier = CacheTier(LARGE, {"episode": 10})
    space = tier.space("episode", "n")
    put(tier, space, "x")
    for _ in range(9):
        clock.now += 1
        assert tier.read(space, "x") is not None
    clock.now += 1
    assert tier.read(space, "x") is None


def test_the_least_recently_used_goes_first() -> None:
    probe = CacheTier(LARGE, {})
    put(probe, probe.space("episode", "n"), "a")
    tier = CacheTier(3 * probe.used_bytes, {})
    space = tier.space("episode", "n")
    for id_ in "abc":
        put(tier, space, id_)
    assert tier.read(space, "a") is not None
    put(tier, space, "d")
    assert [tier.read(space, id_) is not None for id_ in "abcd"] == [True, False, True, True]
    assert space.counters.evictions == 1
    put(tier, space, "e")  # "a" was read first of those that are left
    assert [tier.space_of(key)[1] for key in tier.keys()] == ["c", "d", "e"]  # noqa: SIM118 - not a dict


def test_an_eviction_counts_for_the_kind_that_lost() -> None:
    tier = CacheTier(1000, {})
    put(tier, tier.space("step", "n"), "a", 300)
    put(tier, tier.space("episode", "n"), "a", 500)
    assert (tier.counters["step"].evictions, tier.counters["episode"].evictions) == (1, 0)


def test_an_entry_larger_than_the_budget_is_not_kept() -> None:
    tier = CacheTier(1000, {})
    space = tier.space("episode", "n")
    put(tier, space, "small")
    put(tier, space, "large", 5000)
    assert tier.read(space, "large") is None
    assert tier.read(space, "small") is not None, "it pushed nothing out"
    put(tier, space, "small", 5000)
    assert tier.read(space, "small") is None, "the old value must not stay in its place"
    assert (len(tier), tier.used_bytes) == (0, 0)


def test_no_budget_caches_nothing() -> None:
    tier = CacheTier(0, {})
    put(tier, tier.space("episode", "n"), "x")
    tier.publish(Commit(1, 1, [Change("episode", "n", "x", None, "insert", 1, pack_row(["x", 1]))]))
    assert (len(tier), tier.used_bytes) == (0, 0)


actions = st.tuples(
    st.sampled_from(["fill", "publish", "delete", "append", "read", "adopt", "result", "gap", "clear"]),
    st.integers(0, 12),
    st.sampled_from([0, 10, 300, 1500, 9000]),
)


@settings(deadline=None)
@given(st.integers(0, 8000), st.lists(actions, max_size=60))
def test_the_budget_is_never_exceeded_and_the_books_are_right(budget: int, done: list[tuple[str, int, int]]) -> None:
    tier = CacheTier(budget, {})
    episodes, steps = tier.space("episode", "n"), tier.space("step", "n")
    for action, number, size in done:
        id_ = f"id{number}"
        body = pack_row([id_, 1, "x" * size])
        position = tier.position + (2 if action == "gap" else 1)
        match action:
            case "fill":
                put(tier, episodes, id_, size)
            case "publish" | "gap":
                tier.publish(Commit(position, 1, [Change("episode", "n", id_, None, "update", 1, body)]))
            case "delete":
                tier.publish(Commit(position, 1, [Change("episode", "n", id_, None, "delete", 1)]))
            case "append":
                tier.publish(Commit(position, 1, [Change("step", "n", "s", id_, "insert", 1, body, number % 2 == 0)]))
            case "read":
                tier.read(episodes, id_)
                tier.read(steps, id_)
            case "adopt":
                with tier.fence() as fence:
                    tier.adopt(episodes, id_, make_entry(time.monotonic() + 60, tier.position, [body]), fence)
            case "result":
                tier.put_result(episodes, QueryResult(id=id_, ids=("x" * size,)), tier.position)
            case "clear":
                tier.clear()
        assert tier.used_bytes == real_bytes(tier)
        assert 0 <= tier.used_bytes <= budget


# Just before and just after Python's dictionaries have grown, which is when an entry costs least and most.
@pytest.mark.parametrize("count", [20_000, 22_000])
@pytest.mark.parametrize("size", [100, 1000])
def test_the_books_agree_with_what_python_really_takes(size: int, count: int) -> None:
    """Real bytes, what an entry costs included: within 15 % of what tracemalloc sees."""
    tier = CacheTier(LARGE, {})
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
    assert len(tier) == count
    words = f"an entry takes {taken / count:.0f} bytes, {tier.used_bytes / count:.0f} are counted"
    assert abs(taken - tier.used_bytes) <= 0.15 * taken, words


def test_adopted_entries_never_push_out_what_is_there() -> None:
    probe = CacheTier(LARGE, {})
    put(probe, probe.space("episode", "n"), "a")
    tier = CacheTier(2 * probe.used_bytes, {})
    space = tier.space("episode", "n")
    put(tier, space, "a")
    entry = make_entry(time.monotonic() + 60, 0, [pack_row(["x", 1, "x" * 10])])
    with tier.fence() as fence:
        assert not tier.adopt(space, "a", entry, fence), "the key is in use"
        assert tier.adopt(space, "b", entry, fence)
        assert not tier.adopt(space, "c", entry, fence), "there is no room"
        assert not tier.fill_if_room(space, "d", [pack_row(["x", 1, "x" * 10])], 0, fence)
    assert (len(tier), space.counters.evictions) == (2, 0)


def test_refreshing_makes_entries_recently_used() -> None:
    tier = CacheTier(LARGE, {})
    space = tier.space("episode", "n")
    for id_ in "abc":
        put(tier, space, id_)
    tier.refresh([(space, "b"), (space, "a"), (space, "nothing")])
    assert [tier.space_of(key)[1] for key in tier.keys()] == ["c", "b", "a"]  # noqa: SIM118 - not a dict
    assert space.counters.hits == 0


def test_spaces_keep_kinds_and_namespaces_apart() -> None:
    tier = CacheTier(LARGE, {})
    names = ["n", "0", "0/", "1/n", "n/x"]
    spaces = [tier.space(kind, name) for kind in RECORDS for name in names]
    assert len({space.prefix for space in spaces}) == len(spaces)
    for space in spaces:
        put(tier, space, "/x/")
    for space in spaces:
        assert tier.space(space.kind, space.namespace) is space
        assert tier.space_of(space.prefix + "/x/") == (space, "/x/")
        assert tier.read(space, "/x/") is not None


def test_query_results_are_not_saved() -> None:
    tier = CacheTier(LARGE, {})
    space = tier.space("episode", "n")
    put(tier, space, "x")
    tier.put_result(space, QueryResult(id="q", total=1), 0)
    assert [(found.kind, id_) for found, id_, _ in tier.entries(tier.keys(), tier.position)] == [("episode", "x")]
    assert tier.entries(["0/gone"], tier.position) == []
