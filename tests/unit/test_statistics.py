"""What a store counts: every figure of `stats()` against a known history."""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
from contextlib import aclosing, closing
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import ConfigurationError, MemoryStore, RecordNotFoundError, StoreClosedError, StoreStats
from memory_store.cache.entries import Counters
from memory_store.distribution import Distribution, merged
from memory_store.statistics import METRICS
from tests.unit.samples import make_episode, make_step


def distribution(values: list[float]) -> Distribution:
    made = Distribution()
    for value in values:
        made.record(value)
    return made


@given(
    st.lists(st.floats(0, 1e12) | st.integers(0, 10**6), min_size=1),
    st.floats(0, 100) | st.sampled_from([0, 50, 99, 100]),
)
def test_a_percentile_is_never_too_low_and_less_than_twice_too_high(values: list[float], p: float) -> None:
    exact = sorted(values)[max(math.ceil(len(values) * p / 100), 1) - 1]

    found = distribution(values).percentile(p)

    assert exact <= found <= max(values)
    assert found < 2 * exact or found == exact


@given(st.lists(st.integers(0, 10**6)))
def test_a_distribution_knows_count_sum_and_largest(values: list[int]) -> None:
    made = distribution(list(values))

    assert (made.count, made.sum, made.max) == (len(values), sum(values), max(values, default=0))
    assert sum(made.buckets.values()) == len(values)


def test_the_percentiles_of_equal_values_are_that_value() -> None:
    for value in (0, 0.00043, 1, 64, 512):
        made = distribution([value] * 10)
        assert [made.percentile(p) for p in (0, 50, 99.9, 100)] == [value] * 4


def test_zeros_are_told_from_small_values() -> None:
    made = distribution([0, 0, 0, 0.75])

    assert (made.percentile(75), made.percentile(76)) == (0, 0.75)


def test_nothing_recorded_is_0_and_a_percentile_beyond_100_is_refused() -> None:
    assert Distribution().percentile(99) == 0
    for p in (-1, 100.1, math.nan):
        with pytest.raises(ConfigurationError, match="a percentile is 0 to 100"):
            Distribution().percentile(p)


def test_a_copy_stays_as_it_is() -> None:
    made = distribution([1, 2])
    kept = merged([made])
    made.record(8)

    assert kept == distribution([1, 2])
    assert made == distribution([1, 2, 8])


parts = st.lists(st.lists(st.floats(0, 1e12) | st.integers(0, 10**6)), max_size=5)


@given(parts)
def test_merged_distributions_are_that_of_all_values(some: list[list[float]]) -> None:
    whole = merged(distribution(values) for values in some)
    together = distribution([value for values in some for value in values])

    assert (whole.count, whole.max, whole.buckets) == (together.count, together.max, together.buckets)
    assert whole.sum == pytest.approx(together.sum)
    assert [whole.percentile(p) for p in (0, 50, 99, 100)] == [together.percentile(p) for p in (0, 50, 99, 100)]


def test_merging_leaves_the_parts_as_they_are() -> None:
    one, other = distribution([1, 2]), distribution([2, 9])
    whole = merged([one, other])
    whole.record(100)

    assert (one, other) == (distribution([1, 2]), distribution([2, 9]))
    assert whole == distribution([1, 2, 2, 9, 100])
    assert merged([]) == Distribution()


def test_every_field_is_documented() -> None:
    documented = re.findall(r"^        (\w+): ", StoreStats.__doc__ or "", re.MULTILINE)

    assert documented == [item.name for item in fields(StoreStats)]


async def test_a_new_store_has_counted_nothing(file_store: MemoryStore) -> None:
    await file_store.cache.wait()
    stats = file_store.stats()

    assert (stats.writes, stats.commits, stats.feeds, stats.position) == (0, 0, 0, file_store.position)
    assert (stats.commit_writes, stats.commit_s, stats.read_keys) == (Distribution(), Distribution(), Distribution())
    assert (stats.checkpoints, stats.checkpoint_s_ago, stats.checkpoint_failures, stats.failures) == (0, None, 0, 0)
    assert (stats.lag, stats.applied, stats.restarts, stats.rewinds) == (0, 0, 0, 0)


async def test_writes_made_together_share_commits(file_store: MemoryStore) -> None:
    before = file_store.position
    await asyncio.gather(*(file_store.episodes.put(make_episode()) for _ in range(64)))
    stats = file_store.stats()

    assert stats.writes == stats.commit_writes.sum == 64
    assert stats.commits == stats.commit_writes.count == stats.commit_s.count == stats.position - before < 64
    assert stats.commit_writes.max > 1
    assert 0 < stats.commit_s.percentile(50) <= stats.commit_s.max <= stats.commit_s.sum


async def test_a_batch_that_changes_nothing_is_no_commit(file_store: MemoryStore) -> None:
    with pytest.raises(RecordNotFoundError):
        await file_store.episodes.update("nobody", domain="web")
    stats = file_store.stats()

    assert (stats.writes, stats.commits, stats.commit_s.count, stats.commit_writes.count) == (1, 0, 0, 0)


async def test_a_transaction_is_a_commit_and_no_group_commit(file_store: MemoryStore) -> None:
    before = file_store.position
    async with file_store.transaction() as tx:
        episode = await tx.episodes.put(make_episode())
        await tx.steps.append(episode.id, [make_step(episode.id) for _ in range(3)])
    async with file_store.transaction() as tx:
        await tx.episodes.get(episode.id)
    stats = file_store.stats()

    assert (stats.writes, stats.commits, stats.commit_writes.count, stats.position - before) == (0, 1, 0, 1)


async def test_keys_asked_for_together_are_read_together(file_url: str) -> None:
    async with MemoryStore(file_url, cache_max_bytes=0) as store:
        stored = await store.episodes.put_many([make_episode() for _ in range(40)])
        await store.episodes.get_many([episode.id for episode in stored])
        await store.episodes.get(stored[0].id)
        read = store.stats().read_keys

    assert (read.count, read.sum, read.max) == (2, 41, 40)


async def test_the_lag_is_what_the_last_look_found(file_url: str) -> None:
    async with MemoryStore(file_url) as writer, MemoryStore(file_url, freshness="linearizable") as reader:
        await reader.cache.wait()
        stored = await writer.episodes.put(make_episode())
        before = reader.stats()
        for _ in range(3):
            await writer.steps.append(stored.id, [make_step(stored.id) for _ in range(2)])

        await reader.episodes.get(stored.id)
        behind = reader.stats()
        await reader.episodes.get(stored.id)
        level = reader.stats()

        assert behind.lag == behind.position - before.position == 4
        assert (behind.position, behind.applied - before.applied) == (writer.position, 7)
        assert (level.lag, level.position, level.applied) == (0, behind.position, behind.applied)
        assert (behind.looks - before.looks, level.looks - behind.looks) == (1, 1)
        assert level.looked_s_ago is not None
        assert 0 <= level.looked_s_ago < 300
        assert writer.stats().applied == 0


async def test_the_age_of_the_look_is_unknown_while_the_cache_is_in_doubt(file_store: MemoryStore) -> None:
    await file_store.episodes.get("a")
    known = file_store.stats().looked_s_ago
    file_store._access.coherence.doubt()

    assert known is not None
    assert file_store.stats().looked_s_ago is None


async def test_changes_of_others_invalidate_and_large_ones_restart(file_url: str) -> None:
    async with MemoryStore(file_url) as writer, MemoryStore(file_url, freshness="linearizable") as reader:
        await reader.cache.wait()
        stored = await writer.episodes.put(make_episode())
        await reader.episodes.get(stored.id)
        await writer.episodes.update(stored.id, domain="cli")
        await reader.episodes.get(stored.id)
        one = reader.stats()
        await writer.episodes.put_many([make_episode() for _ in range(1001)])
        await reader.episodes.get(stored.id)
        many = reader.stats()

    assert (one.invalidations, one.restarts) == (one.cache["episode"].invalidations, 0) == (1, 0)
    assert (many.restarts, many.rewinds, many.lag) == (1, 0, 1)


async def test_a_database_taken_back_is_a_rewind(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url, freshness="linearizable", cache_path="") as store:
        for _ in range(3):
            stored = await store.episodes.put(make_episode())
        with closing(sqlite3.connect(tmp_path / "agent.db")) as foreign:
            foreign.execute("DELETE FROM changes WHERE position = 3")
            foreign.execute(
                "UPDATE head SET (position, nonce) = (SELECT position, nonce FROM changes WHERE position = 2)"
            )
            foreign.commit()
        await store.episodes.get(stored.id)
        stats = store.stats()

    assert (stats.rewinds, stats.restarts, stats.position, stats.lag) == (1, 1, 2, 0)


async def test_checkpoints_and_their_age(file_store: MemoryStore) -> None:
    await file_store.episodes.put_many([make_episode(reflection="x" * 16_000) for _ in range(400)])
    await file_store.episodes.put_many([make_episode(reflection="x" * 16_000) for _ in range(1500)])
    stats = file_store.stats()

    assert stats.checkpoints > 0
    assert stats.wal_bytes > 0
    assert stats.checkpoint_s_ago is not None
    assert 0 <= stats.checkpoint_s_ago < 300
    assert (stats.checkpoint_failures, stats.failures) == (0, 0)


async def test_a_failed_checkpoint_is_counted_in_both(file_store: MemoryStore) -> None:
    checkpointer = file_store._access.durable.checkpointer
    assert checkpointer is not None
    checkpointer.failures += 1
    file_store._access.cache.failures += 1
    stats = file_store.stats()

    assert (stats.checkpoint_failures, stats.failures) == (1, 2)


async def test_feeds_are_counted_while_they_are_followed(file_store: MemoryStore) -> None:
    await file_store.episodes.put(make_episode())
    async with aclosing(file_store.follow(after="start")) as one, aclosing(file_store.follow_all(after="start")) as two:
        assert file_store.stats().feeds == 0, "nobody has asked them for anything"
        await anext(one)
        await anext(two)
        assert file_store.stats().feeds == 2
    assert file_store.stats().feeds == 0


async def test_totals_are_those_of_all_kinds(file_store: MemoryStore) -> None:
    counters = file_store._shelf.counters
    counters["episode"] = Counters(invalidations=1, dirty_fills=2)
    counters["step"] = Counters(invalidations=10, dirty_fills=20)
    stats = file_store.stats()

    assert (stats.invalidations, stats.dirty_fills) == (11, 22)


async def test_what_was_returned_does_not_change(file_store: MemoryStore) -> None:
    before = file_store.stats()
    await file_store.episodes.put(make_episode())
    await file_store.episodes.get("nobody")

    assert (before.commit_s.count, before.read_keys.count, before.cache["episode"].misses) == (0, 0, 0)
    assert file_store.stats().commit_s.count == 1


async def test_a_closed_store_refuses(file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        store.stats()
    with pytest.raises(StoreClosedError):
        store.stats()


async def test_every_metric_can_be_read_and_has_its_own_name(file_store: MemoryStore) -> None:
    stats = file_store.stats()
    names = [metric.name for metric in METRICS]

    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"memory_store(\.[a-z_]+)+", metric.name)
        assert metric.unit in ("s", "By") or re.fullmatch(r"\{[a-z]+\}", metric.unit)
        assert metric.description.endswith(".")
        metric.read(stats)
    missing = {item.name for item in fields(Counters)} - {name.rpartition(".")[2] for name in names}
    assert missing == set(), "whatever is counted by kind is told"
