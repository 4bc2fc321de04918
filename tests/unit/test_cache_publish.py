"""Commits in the cache: what is put, appended or dropped, and that a slow read never brings an old value back."""

from __future__ import annotations

from typing import Any

import pytest

from memory_store.cache.coherence import Coherence
from memory_store.cache.entries import Space
from memory_store.cache.fences import Watch
from memory_store.cache.shelf import Shelf
from memory_store.cache.tier import CacheTier
from memory_store.clock import boot_s
from memory_store.codec import pack_row
from memory_store.durable.changes import PUBLISH_LIMIT, Change, HeadState
from memory_store.durable.log import Commit, Logged, Run
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
    return CacheTier(Shelf(1 << 30, {}))


@pytest.fixture
def episodes(tier: CacheTier) -> Space:
    return tier.space("episode", "n")


@pytest.fixture
def steps(tier: CacheTier) -> Space:
    return tier.space("step", "n")


def commit(tier: CacheTier, *changes: Change) -> None:
    """Publish the next commit."""
    tier.publish(Commit(tier.position + 1, 1, changes, tier.head))


def logged(tier: CacheTier, *changes: tuple[str, str | None, str | None], namespace: str = "n") -> None:
    """Apply the next commit of another process; each change is a kind, a key and a parent."""
    position = tier.position + 1
    head = tier.head._replace(position=position, nonce=2)
    tier.apply([Logged(position, 2, kind, namespace, key, parent) for kind, key, parent in changes], head)


def rows(tier: CacheTier, space: Space, id_: str) -> list[Any] | None:
    """The rows of an entry; none of it is an absence, None is a miss."""
    found = tier.shelf.read(space, id_, boot_s())
    return None if found is None else [row[0] for row in found[2:]]


def fill(tier: CacheTier, space: Space, id_: str, *texts: str) -> None:
    """Fill as a read at the newest position would."""
    with tier.fence() as fence:
        assert tier.fill(space, id_, [body(text) for text in texts], tier.position, fence)


def result(tier: CacheTier, reads: Space, id_: str) -> QueryResult | None:
    """A cached query result."""
    return tier.read_result(reads, id_, boot_s())


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
    monkeypatch.setattr("time.clock_gettime", lambda _: 1e12)
    commit(tier, step("s2", "e", "2", True))
    monkeypatch.undo()
    assert len(tier.shelf) == 0
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


def test_a_slow_read_does_not_survive_a_restart(tier: CacheTier, episodes: Space) -> None:
    """Positions say nothing about a read from before: it may have seen another past, as under a restored backup."""
    watch = Watch()
    tier.watch(episodes.prefix + "c", watch)
    position = tier.position
    with tier.fence() as fence:
        tier.restart(tier.head._replace(position=position + 2, nonce=5))
        for as_of in (position, tier.position, tier.position + 1):
            assert not tier.fill(episodes, "b", [body("seen by a read of many")], as_of, fence)
            assert not tier.fill(episodes, "c", [body("seen by a single read")], as_of, watch)
    with tier.fence() as later:
        assert tier.fill(episodes, "b", [body("after")], tier.position, later)


def test_an_entry_read_after_a_commit_survives_its_publication(tier: CacheTier, steps: Space) -> None:
    """Between a commit and its publication a read may see it; appending its rows again would double them."""
    with tier.fence() as fence:
        assert tier.fill(steps, "e", [body("1"), body("2")], 1, fence)
    commit(tier, step("s2", "e", "2", True))
    assert rows(tier, steps, "e") == ["1", "2"]


def test_query_results_live_until_their_kind_changes(tier: CacheTier, episodes: Space, steps: Space) -> None:
    other = tier.space("episode", "other")
    for space in (episodes, steps, other):
        tier.put_result(space, QueryResult(id=f"q{space.prefix}", total=7), tier.position)
    commit(tier, step("s", "e", "1", False))
    found = result(tier, episodes, f"q{episodes.prefix}")
    assert found is not None
    assert found.total == 7
    assert result(tier, steps, f"q{steps.prefix}") is None
    commit(tier, *(episode(f"x{number}", "x") for number in range(PUBLISH_LIMIT + 1)))
    assert result(tier, episodes, f"q{episodes.prefix}") is None
    assert result(tier, other, f"q{other.prefix}") is not None
    counters = tier.shelf.counters["query_result"]
    assert (counters.hits, counters.misses, counters.fills, counters.invalidations) == (2, 2, 3, 2)


def test_a_query_result_read_before_a_change_is_void(tier: CacheTier, episodes: Space) -> None:
    commit(tier, episode("a", "1"))
    tier.put_result(episodes, QueryResult(id="q", total=0), 0)
    assert result(tier, episodes, "q") is None


def test_a_query_result_read_before_a_restart_is_void(tier: CacheTier, episodes: Space) -> None:
    position = tier.position
    tier.restart(tier.head._replace(position=position + 1, nonce=5))
    commit(tier, step("s", "e", "1", False))
    tier.put_result(episodes, QueryResult(id="q", total=0), position)
    assert result(tier, episodes, "q") is None


def test_a_failure_while_publishing_leaves_an_empty_cache(tier: CacheTier, episodes: Space) -> None:
    fill(tier, episodes, "a", "1")
    with tier.fence() as fence:
        broken = Change("no such kind", "n", "a", None, "update", 1, body("2"))
        commit(tier, episode("b", "2"), broken)
        assert (tier.position, len(tier.shelf), tier.failures) == (1, 0, 1)
        assert not tier.fill(episodes, "a", [body("1")], 0, fence)


def test_a_commit_that_a_read_has_just_seen_is_still_put(tier: CacheTier, episodes: Space) -> None:
    before = tier.head
    logged(tier, ("episode", "a", None))
    tier.publish(Commit(tier.position, tier.head.nonce, [episode("a", "own")], before))
    assert (tier.position, rows(tier, episodes, "a")) == (1, ["own"])


class Head:
    """Where the coherence looks: a database that stands at a commit, of which the log tells nothing."""

    def __init__(self, head: HeadState) -> None:
        self.head, self.looks = head, 0

    def look(self, known: HeadState) -> Run | None:
        """Say that anything may have changed, if anything did."""
        self.looks += 1
        return None if known == self.head else Run(known, self.head, None)


async def never(_known: HeadState) -> Run:
    """The slow look, which none of these tests needs."""
    raise AssertionError


def test_a_commit_that_reads_have_overtaken_changes_nothing(tier: CacheTier, episodes: Space) -> None:
    """The log told of it, and of more behind it, before the writer's thread could: its values are old by now."""
    follows = tier.head
    logged(tier, ("episode", "a", None))
    logged(tier, ("episode", "a", None))
    fill(tier, episodes, "a", "of position 2")
    coherence, head = Coherence(tier, "bounded", 0.05), Head(tier.head)
    coherence.attach(head, never)
    coherence.publish(Commit(1, 2, [episode("a", "of position 1"), episode("b", "of position 1")], follows))
    assert (tier.position, rows(tier, episodes, "a"), rows(tier, episodes, "b")) == (2, ["of position 2"], None)
    assert head.looks == 0


def test_a_commit_that_does_not_follow_the_watermark_drops_everything(tier: CacheTier, episodes: Space) -> None:
    """Something in between is not known here: another process may have changed anything."""
    commit(tier, episode("a", "1"), episode("b", "1"))
    follows = tier.head._replace(position=2, nonce=22)
    made = Commit(3, 33, [episode("a", "2")], follows)
    coherence, head = Coherence(tier, "bounded", 0.05), Head(made.head)
    coherence.attach(head, never)
    coherence.publish(made)
    assert (tier.head, head.looks) == (made.head, 1)
    assert (rows(tier, episodes, "a"), rows(tier, episodes, "b")) == (None, None)


def test_a_commit_brings_what_was_committed_before_it(tier: CacheTier, episodes: Space) -> None:
    commit(tier, episode("a", "1"), episode("b", "1"), episode("c", "1"))
    known = tier.head
    theirs = known._replace(position=2, nonce=22)
    before = Run(known, theirs, [Logged(2, 22, "episode", "n", "b", None)])
    coherence, head = Coherence(tier, "bounded", 0.05), Head(theirs)
    coherence.attach(head, never)
    coherence.publish(Commit(3, 33, [episode("a", "2")], theirs, before))
    assert (tier.head, head.looks) == (theirs._replace(position=3, nonce=33), 0)
    assert [rows(tier, episodes, id_) for id_ in "abc"] == [["2"], None, ["1"]]


def test_what_others_changed_is_dropped_and_nothing_else(tier: CacheTier, episodes: Space, steps: Space) -> None:
    fill(tier, episodes, "a", "1")
    fill(tier, episodes, "b", "1")
    fill(tier, steps, "a", "1")
    fill(tier, tier.space("episode", "other"), "a", "1")
    logged(tier, ("episode", "a", None), ("step", "s1", "b"), ("store", None, None))
    assert rows(tier, episodes, "a") is None
    assert rows(tier, episodes, "b") == ["1"]
    assert rows(tier, steps, "a") == ["1"]
    assert rows(tier, tier.space("episode", "other"), "a") == ["1"]
    assert (episodes.counters.invalidations, steps.counters.invalidations) == (1, 0)
    assert (tier.position, tier.applied, tier.restarts) == (1, 3, 0)
    logged(tier, ("step", "s2", "a"))
    assert rows(tier, steps, "a") is None, "the steps of an episode are one entry"


def test_a_range_that_others_changed_raises_the_floor(tier: CacheTier, episodes: Space, steps: Space) -> None:
    position = tier.position
    fill(tier, episodes, "a", "1")
    fill(tier, steps, "a", "1")
    watch = Watch()
    tier.watch(episodes.prefix + "c", watch)
    with tier.fence() as fence:
        logged(tier, ("episode", None, None))
        assert not tier.fill(episodes, "b", [body("from before")], position, fence)
        assert not tier.fill(episodes, "c", [body("from before")], position, watch)
        assert tier.fill(episodes, "b", [body("after")], tier.position, fence)
        assert tier.fill(steps, "b", [body("another kind")], position, fence)
    assert rows(tier, episodes, "a") is None
    assert rows(tier, episodes, "b") == ["after"]
    assert rows(tier, steps, "a") == ["1"]


def test_a_slow_read_never_brings_back_what_others_changed(tier: CacheTier, episodes: Space) -> None:
    position = tier.position
    watch = Watch()
    tier.watch(episodes.prefix + "a", watch)
    with tier.fence() as fence:
        logged(tier, ("episode", "a", None))
        assert not tier.fill(episodes, "a", [body("old")], position, fence)
        assert not tier.fill(episodes, "a", [body("old")], position, watch)
        assert tier.fill(episodes, "a", [body("new")], tier.position, watch)
    assert episodes.counters.dirty_fills == 2


def test_a_change_of_what_is_only_being_read_is_noted_as_well(tier: CacheTier) -> None:
    position = tier.position
    space, parts = tier.space("episode", "not cached yet"), tier.space("step", "not cached yet")
    with tier.fence() as fence:
        logged(tier, ("episode", "a", None), ("step", None, None), namespace="not cached yet")
        assert not tier.fill(space, "a", [body("from before")], position, fence)
        assert not tier.fill_if_room(space, "a", [body("from before")], position, fence)
        assert not tier.fill(parts, "a", [body("from before")], position, fence)
        assert tier.fill(space, "b", [body("untouched")], position, fence)


def test_what_others_change_elsewhere_takes_no_memory(tier: CacheTier, episodes: Space) -> None:
    before = tier.shelf.spaces()
    for number in range(100):
        logged(tier, ("episode", "a", None), ("a kind of the future", "a", None), namespace=f"elsewhere {number}")
    assert (tier.shelf.spaces(), tier.position, tier.applied) == (before, 100, 200)


def test_an_entry_filled_from_a_newer_snapshot_survives_the_log(tier: CacheTier, episodes: Space) -> None:
    with tier.fence() as fence:
        assert tier.fill(episodes, "a", [body("of position 1")], 1, fence)
    logged(tier, ("episode", "a", None))
    assert rows(tier, episodes, "a") == ["of position 1"]


@pytest.mark.parametrize("position", [1, 2, 9])
def test_a_restart_leaves_nothing_to_be_read(position: int, tier: CacheTier, episodes: Space) -> None:
    """Whether the database went on unseen or was taken back: entries of another past may claim any position."""
    commit(tier, episode("a", "1"))
    commit(tier, episode("b", "1"))
    tier.put_result(episodes, QueryResult(id="q", total=7), tier.position)
    head = HeadState(position, 99, "another", 3)
    with tier.fence() as fence:
        tier.restart(head)
        assert not tier.fill(episodes, "c", [body("of another past")], position, fence)
    assert (tier.head, tier.restarts) == (head, 1)
    assert (rows(tier, episodes, "a"), rows(tier, episodes, "b"), result(tier, episodes, "q")) == (None, None, None)
    assert tier.shelf.entries(tier.shelf.keys(), [tier.position], is_now=True) == ([], []), "nor is any of it saved"
    fill(tier, episodes, "a", "2")
    fill(tier, tier.space("episode", "seen later"), "a", "2")
    assert rows(tier, episodes, "a") == ["2"]
    assert rows(tier, tier.space("episode", "seen later"), "a") == ["2"]
