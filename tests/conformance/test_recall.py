"""Recall from coarse to fine: place, time, likeness, recency, diversity; each level alone, and told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memory_store import ConfigurationError, Episode, MemoryStore
from memory_store.search.clusters import clusters_of, recency
from tests.unit.samples import make_episode

NOW = datetime(2026, 11, 21, tzinfo=UTC)
WORDS = ["cookie", "token", "header", "cache", "proxy", "socket", "thread", "kernel"]


@pytest.fixture
async def filled(store: MemoryStore) -> MemoryStore:
    """Episodes of two domains and two task types, one a day back; some of them alike."""
    made = [
        make_episode(
            id=f"{domain}-{task_type}-{day:03}",
            domain=domain,
            task_type=task_type,
            context={"goal": f"repair the {WORDS[day // 2 % 8]} of session", "note": WORDS[day % 3]},
            created_at=NOW - timedelta(days=day, hours=1),
        )
        for domain in ("web", "cli")
        for task_type in ("debugging", "testing")
        for day in range(0, 400, 2)
    ]
    await store.episodes.put_many(made)
    await store.namespace("other").episodes.put_many(made)
    return store


async def test_from_coarse_to_fine(filled: MemoryStore) -> None:
    results = await filled.recall("session cookie", domain="web", task_type="debugging", at=NOW, explain=True)
    assert len(results) == 10
    assert {(hit.record.domain, hit.record.task_type) for hit in results} == {("web", "debugging")}
    told = {kept.level: kept for kept in results.explanation}
    assert list(told) == ["namespace", "domain", "task_type", "time", "similarity", "recency", "diversity"]
    assert [told[level].kept for level in ("namespace", "domain", "task_type", "time")] == [800, 400, 200, 200]
    assert told["time"].detail.startswith("week 1 (4), week 2 (3), week 3 (4), week 4 (3), week 5 (1), month 2 (15), ")
    assert (told["similarity"].kept, told["diversity"].kept) == (50, 10)
    assert results.diversity is not None
    assert results.complete
    assert results[0].record.context["goal"] == "repair the cookie of session"
    assert set(results[0].scores) == {"text", "recency"}
    assert (await filled.recall("session", at=NOW)).explanation == ()
    some = await filled.recall("session", domain="web", task_type="testing", levels=["domain"], at=NOW, explain=True)
    assert [(kept.level, kept.kept) for kept in some.explanation] == [
        ("namespace", 800),
        ("domain", 400),
        ("similarity", 50),
    ]


async def test_each_level_can_be_switched_off(filled: MemoryStore) -> None:
    wide = await filled.recall("cookie", domain="web", task_type="testing", at=NOW, levels=["time"], limit=20)
    assert {hit.record.domain for hit in wide} == {"web", "cli"}
    assert all(hit.record.created_at > NOW - timedelta(days=30 * 4) for hit in wide), "of the newest clusters"
    assert wide.diversity is None
    none = await filled.recall("cookie", at=NOW, levels=(), limit=200)
    assert min(hit.record.created_at for hit in none) < NOW - timedelta(days=380)
    assert set(none[0].scores) == {"text"}
    with pytest.raises(ConfigurationError, match="levels must be of domain, task_type, time"):
        await filled.recall("cookie", levels=["x"])  # type: ignore[list-item]


async def test_what_is_recent_comes_first_among_the_like(filled: MemoryStore) -> None:
    found = await filled.recall("proxy", domain="cli", at=NOW, levels=["domain", "recency"], limit=5)
    ages = [hit.record.created_at for hit in found]
    assert ages == sorted(ages, reverse=True)
    earlier = await filled.recall("proxy", domain="cli", at=NOW - timedelta(days=100), limit=5)
    assert all(hit.record.created_at <= NOW - timedelta(days=100) for hit in earlier), "as it was to be seen then"


@pytest.mark.parametrize("days", [0, 100])
async def test_all_of_a_place_up_to_a_moment_is_recalled_and_nothing_else(filled: MemoryStore, days: int) -> None:
    """By the documents' own keys where a domain and a task type are all that is asked for, else by the episodes."""
    at = NOW - timedelta(days=days)
    every = [one async for one in filled.episodes.stream() if "cookie" in str(one.context)]
    web = {"domain": "web", "task_type": "testing"}
    places: list[tuple[dict[str, Any], Callable[[Episode], bool]]] = [
        (web, lambda one: one.domain == "web" and one.task_type == "testing"),
        ({"domain": "web"}, lambda one: one.domain == "web"),
        ({"where": Episode.c.task_type == "testing"}, lambda one: one.task_type == "testing"),
        ({**web, "where": Episode.c.id > "web-testing-2"}, lambda one: one.id > "web-testing-2"),
        ({}, lambda one: True),
    ]
    for place, is_there in places:
        wanted = {one.id for one in every if one.created_at <= at and is_there(one)}
        found = await filled.recall(
            "cookie", at=at, mode="text", limit=1000, levels=["domain", "task_type", "time"], **place
        )
        assert {hit.id for hit in found} == wanted != set()


async def test_diversity_is_reached_or_told(store: MemoryStore) -> None:
    contexts = [*["session expired"] * 12, *(f"session of {word} was {word}" for word in WORDS)]
    for number, context in enumerate(contexts):
        await store.episodes.put(make_episode(id=f"e{number:02}", context=context, created_at=NOW))
    alike = await store.recall("session expired", at=NOW, levels=["time", "recency"], limit=6)
    unlike = await store.recall("session expired", at=NOW, limit=6, diversity=0.4)
    assert [len({hit.record.context for hit in results}) for results in (alike, unlike)] == [1, 6]
    assert (alike.diversity, len(unlike)) == (None, 6)
    assert unlike.diversity is not None
    assert unlike.diversity >= 0.4
    missed = await store.search("session expired", mode="text", kinds="episode", limit=12, diversity=1.0)
    assert missed.diversity is not None
    assert 0 < missed.diversity < 1, "as near as these come"


async def test_keys_follow_the_episode(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e", domain="web", task_type="testing", context="lamp", created_at=NOW))

    async def recalled(domain: str, task_type: str) -> list[str]:
        return [hit.id for hit in await store.recall("lamp", domain=domain, task_type=task_type, at=NOW)]

    assert await recalled("web", "testing") == ["e"]
    await store.episodes.update("e", domain="cli")
    assert (await recalled("web", "testing"), await recalled("cli", "testing")) == ([], ["e"])
    await store.episodes.update("e", task_type="analysis")
    assert (await recalled("cli", "testing"), await recalled("cli", "analysis")) == ([], ["e"])
    await store.episodes.delete("e")
    assert await recalled("cli", "analysis") == []


async def test_conditions_and_namespaces_hold(filled: MemoryStore) -> None:
    found = await filled.recall("cookie", where=Episode.c.id.like("web-%-0%"), at=NOW)
    assert {hit.record.domain for hit in found} == {"web"}
    assert len(await filled.namespace("empty").recall("cookie", at=NOW)) == 0
    await filled.episodes.delete("web-debugging-000")
    other = await filled.namespace("other").recall("cookie", domain="web", task_type="debugging", at=NOW)
    assert "web-debugging-000" in {hit.id for hit in other}


def test_clusters_grow_coarser_with_age() -> None:
    day = 86_400_000_000
    ages = [0, 6, 7, 13, 14, 27, 28, 29, 30, 59, 60, 179, 180, 270, 271, 400, 1000]
    found = clusters_of([1000 * day - age * day for age in ages], 1000 * day)
    assert [(cluster.label, cluster.episodes) for cluster in found] == [
        ("week 1", 2), ("week 2", 2), ("week 3", 1), ("week 4", 1), ("week 5", 2), ("month 2", 2), ("month 3", 1),
        ("month 6", 1), ("quarter 3", 2), ("quarter 4", 1), ("quarter 5", 1), ("quarter 12", 1),
    ]  # fmt: skip
    assert sum(cluster.episodes for cluster in found) == len(ages)
    since = [cluster.since for cluster in found]
    assert since == sorted(since, reverse=True)
    assert clusters_of([], 5) == []
    assert clusters_of([10 * day], 0)[0].label == "week 1", "what is yet to come counts as new"


def test_recency_halves_every_thirty_days() -> None:
    day = 86_400_000_000
    assert [recency(0, age * day) for age in (0, 30, 60)] == [1.0, 0.5, 0.25]
    assert recency(5, 0) == 1.0
