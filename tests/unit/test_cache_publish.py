"""Commits in the cache: what is put, appended or dropped, and that a slow read never brings an old value back."""

from __future__ import annotations

from typing import Any

import pytest

from memory_store.cache.entries import Space
from memory_store.cache.tier import CacheTier
from memory_store.codec import pack_row
from memory_store.durable.changes import PUBLISH_LIMIT, Change, Commit
from memory_store.records import QueryResult


def body(text: str) -> bytes:
    """A packed row."""
    return pack_row([text])


def episode(id_: str, text: str | None, namespace: str = "n") -> Change:
    """A change of an episode; None deletes it."""
    packed = None if text is None else body(text)
    return Change("episode", namespace, id_, None, "delete" if text is None else "update", 1, packed)


def step(id_: str, parent: str, text: str | None, follows: bool | None) -> Change:
    """A change of a step."""
    return Change("step", "n", id_, parent, "insert", 1, None if text is None else body(text), follows)


@pytest.fixture
def tier() -> CacheTier:
    return CacheTier(1 << 30, {})


@pytest.fixture
def episodes(tier: CacheTier) -> Space:
    return tier.space("episode", "n")


@pytest.fixture
def steps(tier: CacheTier) -> Space:
    return tier.space("step", "n")


def commit(tier: CacheTier, *changes: Change, skip: int = 0) -> None:
    """Publish the next commit."""
    tier.publish(Commit(tier.position + 1 + skip, 1, changes))


def rows(tier: CacheTier, space: Space, id_: str) -> list[Any] | None:
    """The rows of an entry; none of it is an absence, None is a miss."""
    found = tier.read(space, id_)
    return None if found is None else [row[0] for row in found[2:]]


def fill(tier: CacheTier, space: Space, id_: str, *texts: str) -> None:
    """Fill as a read at the newest position would."""
    with tier.fence() as fence:
        assert tier.fill(space, id_, [body(text) for text in texts], tier.position, fence)


def test_a_commit_puts_new_values_and_absences(tier: CacheTier, episodes: Space) -> None:
    commit(tier, episode("a", "1"), episode("b", "1"))
    assert (rows(tier, episodes, "a"), rows(tier, episodes, "b")) == (["1"], ["1"])
    commit(tier, episode("a", "2"), episode("b", None))
    assert (rows(tier, episodes, "a"), rows(tier, episodes, "b")) == (["2"], [])
    commit(tier, episode("a", "3"), episode("a", None), episode("a", "4"))
    assert rows(tier, episodes, "a") == ["4"]
    assert tier.position == 3
    assert episodes.counters.misses == 0


def test_parts_are_put_appended_or_dropped(tier: CacheTier, steps: Space) -> None:
    commit(tier, step("s1", "e", "1", False))
    assert rows(tier, steps, "e") == ["1"]
    commit(tier, step("s2", "e", "2", True), step("s3", "e", "3", True))
    assert rows(tier, steps, "e") == ["1", "2", "3"]
    commit(tier, step("s1", "e", "1b", None))
    assert rows(tier, steps, "e") is None
    assert steps.counters.invalidations == 1
    commit(tier, step("s4", "e", "4", True))
    assert rows(tier, steps, "e") is None, "what stands before it is not known"
    fill(tier, steps, "e", "1b", "2", "3", "4")
    commit(tier, step("s2", "e", None, None))
    assert rows(tier, steps, "e") is None
    commit(tier, step("s5", "f", "5", False), step("s6", "f", "6", True))
    assert rows(tier, steps, "f") == ["5", "6"]
    commit(tier, Change("step", "n", None, "f", "delete", None))
    assert rows(tier, steps, "f") is None
    assert steps.counters.invalidations == 3


def test_one_unknown_place_among_known_ones_drops_the_entry(tier: CacheTier, steps: Space) -> None:
    for changes in (
        [step("s2", "e", "2", True), step("s1", "e", "1b", None)],
        [step("s1", "e", None, None), step("s2", "e", "2", True)],
        [step("s2", "e", "2", True), step("s2", "e", None, None)],
    ):
        fill(tier, steps, "e", "1")
        commit(tier, *changes)
        assert rows(tier, steps, "e") is None


def test_nothing_is_appended_to_an_expired_entry(monkeypatch: pytest.MonkeyPatch, tier: CacheTier) -> None:
    steps = tier.space("step", "n")
    commit(tier, step("s1", "e", "1", False))
    monkeypatch.setattr("time.monotonic", lambda: 1e12)
    commit(tier, step("s2", "e", "2", True))
    assert rows(tier, steps, "e") is None


def test_a_large_commit_invalidates_instead_of_filling(tier: CacheTier, episodes: Space, steps: Space) -> None:
    fill(tier, episodes, "x0", "old")
    fill(tier, episodes, "kept", "kept")
    fill(tier, steps, "e", "old")
    commit(tier, *(episode(f"x{number}", "new") for number in range(PUBLISH_LIMIT)), step("s", "e", "new", True))
    assert rows(tier, episodes, "x0") is None
    assert rows(tier, episodes, "x1") is None
    assert rows(tier, steps, "e") is None
    assert rows(tier, episodes, "kept") == ["kept"]
    assert (episodes.counters.invalidations, steps.counters.invalidations) == (1, 1)
    assert tier.position == 1


def test_a_gap_in_the_positions_drops_everything(tier: CacheTier, episodes: Space) -> None:
    commit(tier, episode("a", "1"), episode("b", "1"))
    commit(tier, episode("a", "2"), skip=1)
    assert tier.position == 3
    assert rows(tier, episodes, "a") == ["2"]
    assert rows(tier, episodes, "b") is None, "another process may have changed it"


def test_a_slow_read_never_brings_an_old_value_back(tier: CacheTier, episodes: Space, steps: Space) -> None:
    for large in (False, True):
        position = tier.position
        extra = [episode(f"y{number}", "y") for number in range(PUBLISH_LIMIT if large else 0)]
        with tier.fence() as fence:
            commit(tier, episode("a", "new"), step("s", "e", "2", None), *extra)
            assert not tier.fill(episodes, "a", [body("old")], position, fence)
            assert not tier.fill(steps, "e", [body("old")], position, fence)
            assert not tier.fill_if_room(episodes, "a", [body("old")], position, fence)
            assert tier.fill(episodes, "b", [body("untouched")], position, fence)
            assert rows(tier, episodes, "a") in (["new"], None)
            assert rows(tier, steps, "e") is None
        with tier.fence() as later:
            assert tier.fill(episodes, "a", [body("new")], tier.position, later)


def test_a_slow_read_does_not_survive_a_gap(tier: CacheTier, episodes: Space) -> None:
    position = tier.position
    with tier.fence() as fence:
        commit(tier, episode("a", "1"), skip=1)
        assert not tier.fill(episodes, "b", [body("from before the gap")], position, fence)
        assert tier.fill(episodes, "b", [body("after")], tier.position, fence)


def test_an_entry_read_after_a_commit_survives_its_publication(tier: CacheTier, steps: Space) -> None:
    """Between a commit and its publication a read may see it; appending its rows again would double them."""
    with tier.fence() as fence:
        assert tier.fill(steps, "e", [body("1"), body("2")], 1, fence)
    commit(tier, step("s2", "e", "2", True))
    assert rows(tier, steps, "e") == ["1", "2"]


def test_query_results_live_until_their_kind_changes(tier: CacheTier, episodes: Space, steps: Space) -> None:
    for space in (episodes, steps, tier.space("episode", "other")):
        tier.put_result(space, QueryResult(id=f"q{space.prefix}", total=7), tier.position)
    commit(tier, step("s", "e", "1", False))
    found = tier.read_result(episodes, f"q{episodes.prefix}")
    assert found is not None
    assert found.total == 7
    assert tier.read_result(steps, f"q{steps.prefix}") is None
    commit(tier, *(episode(f"x{number}", "x") for number in range(PUBLISH_LIMIT + 1)))
    assert tier.read_result(episodes, f"q{episodes.prefix}") is None
    assert tier.read_result(tier.space("episode", "other"), f"q{tier.space('episode', 'other').prefix}") is not None
    counters = tier.counters["query_result"]
    assert (counters.hits, counters.misses, counters.fills, counters.invalidations) == (2, 2, 3, 2)


def test_a_query_result_read_before_a_change_is_void(tier: CacheTier, episodes: Space) -> None:
    commit(tier, episode("a", "1"))
    tier.put_result(episodes, QueryResult(id="q", total=0), 0)
    assert tier.read_result(episodes, "q") is None


def test_a_query_result_read_before_a_gap_is_void(tier: CacheTier, episodes: Space) -> None:
    """Another process changed something unknown at position 1; our own commit at 2 changed another kind."""
    position = tier.position
    commit(tier, step("s", "e", "1", False), skip=1)
    tier.put_result(episodes, QueryResult(id="q", total=0), position)
    assert tier.read_result(episodes, "q") is None


def test_a_failure_while_publishing_leaves_an_empty_cache(tier: CacheTier, episodes: Space) -> None:
    fill(tier, episodes, "a", "1")
    with tier.fence() as fence:
        broken = Change("no such kind", "n", "a", None, "update", 1, body("2"))
        tier.publish(Commit(1, 1, [episode("b", "2"), broken]))
        assert (tier.position, len(tier), tier.failures) == (1, 0, 1)
        assert not tier.fill(episodes, "a", [body("1")], 0, fence)
