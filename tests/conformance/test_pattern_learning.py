"""Tool sequences learned from episodes, the same on every backend."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import pytest

from memory_store import (
    ConfigurationError,
    Episode,
    InvalidRecordError,
    MemoryStore,
    Pattern,
    RecordNotFoundError,
    Step,
)
from tests.conformance.test_recorded import episode_of, step_of
from tests.unit.samples import make_episode, values_of

START = datetime(2026, 11, 21, tzinfo=UTC)


async def run(store: Any, id_: str, tools: str, status: str = "completed", **values: Any) -> Episode:
    """Put an episode that called some tools, one a letter; a dot is a step without a tool."""
    ended: Episode = await store.episodes.put(make_episode(id=id_, status=status, created_at=START, **values))
    await store.steps.append(
        id_, [Step(action="x", tool_name=None if letter == "." else letter, timestamp=None) for letter in tools]
    )
    return ended


def said(patterns: list[Pattern]) -> dict[str, tuple[int, int]]:
    """Successes and uses by the tools, one letter each."""
    return {"".join(pattern.pattern_data["tools"]): (pattern.successes, pattern.usage_count) for pattern in patterns}


async def three_runs(store: Any) -> None:
    """Put three episodes with one sequence in common."""
    await run(store, "e1", "aabb.c")
    await run(store, "e2", "xabc", "failed", completed_at=START + timedelta(hours=5))
    await run(store, "e3", "abcy")


async def test_a_learned_pattern(store: MemoryStore) -> None:
    await three_runs(store)
    [learned] = await store.patterns.learn()
    assert learned.pattern_type == "tool_sequence"
    assert learned.pattern_data == {"tools": ["a", "b", "c"]}
    assert learned.id == Pattern(pattern_type="tool_sequence", pattern_data=learned.pattern_data, domain="web").id
    assert (learned.domain, learned.usage_count, learned.successes) == ("web", 3, 2)
    assert learned.confidence == learned.lower_bound
    assert learned.last_used == START + timedelta(hours=5)
    assert learned.metadata == {"learned": {"episodes": 3, "successes": 2}}
    assert await store.patterns.get(learned.id) == learned
    await store.cache.clear()
    assert await store.patterns.get(learned.id) == learned


async def test_the_same_episodes_never_count_twice(store: MemoryStore) -> None:
    await three_runs(store)
    learned = await store.patterns.learn()
    position = store.position
    assert await store.patterns.learn() == learned
    assert await store.patterns.learn("e1", "e2", "e3", "e1") == learned
    assert store.position == position, "nothing was written"


async def test_more_episodes_replace_fewer_and_recorded_uses_stay(store: MemoryStore) -> None:
    await three_runs(store)
    [learned] = await store.patterns.learn()
    for success in (True, False):
        await store.patterns.record_use(learned.id, success=success)
    await run(store, "e4", "abc", "failed")
    assert said(await store.patterns.learn()) == {"abc": (2 + 1, 4 + 2)}
    assert said(await store.patterns.learn("e1", "e2", min_support=2)) == {"abc": (1 + 1, 2 + 2)}
    assert said(await store.patterns.learn()) == {"abc": (2 + 1, 4 + 2)}
    await store.episodes.update("e4", status="completed")
    assert said(await store.patterns.learn()) == {"abc": (3 + 1, 4 + 2)}


async def test_only_what_has_a_verdict_counts(store: MemoryStore) -> None:
    await three_runs(store)
    await run(store, "open", "abc", "active")
    await run(store, "closed", "abc", "archived")
    assert said(await store.patterns.learn()) == {"abc": (2, 3)}
    assert said(await store.patterns.learn("e1", "open", "closed", min_support=1)) == {"abc": (1, 1)}


async def test_domains_and_namespaces_are_kept_apart(store: MemoryStore) -> None:
    await three_runs(store)
    await three_runs(store.namespace("other"))
    for number in range(3):
        await run(store, f"cli{number}", "ab", domain="cli")
    learned = await store.patterns.learn()
    assert {pattern.domain: pattern.usage_count for pattern in learned} == {"web": 3, "cli": 3}
    assert await store.namespace("other").patterns.count() == 0


async def test_episodes_given_as_records_count_as_they_are_stored(store: MemoryStore) -> None:
    await three_runs(store)
    kept = await run(store, "e4", "ab", "active")
    await store.episodes.update("e4", status="failed")
    assert said(await store.patterns.learn("e1", kept, min_support=2)) == {"ab": (1, 2)}


async def test_what_learn_refuses(store: MemoryStore) -> None:
    await three_runs(store)
    with pytest.raises(RecordNotFoundError, match="episode 'gone' does not exist") as caught:
        await store.patterns.learn("e1", "gone")
    assert (caught.value.kind, caught.value.key) == ("episode", "gone")
    for options in ({"min_support": 0}, {"min_length": 6}, {"max_length": 33}):
        with pytest.raises(ConfigurationError, match=next(iter(options))[3:]):
            await store.patterns.learn(**options)
    assert await store.patterns.count() == 0
    [learned] = await store.patterns.learn()
    await store.patterns.update(learned.id, metadata=["mine"])
    with pytest.raises(InvalidRecordError, match=r"metadata must be an object to learn the pattern, is a list"):
        await store.patterns.learn()
    assert said([learned]) == {"abc": (2, 3)}
    with pytest.raises(TypeError, match="learn takes episodes or their ids, got int"):
        await store.patterns.learn(5)  # type: ignore[arg-type]


async def test_a_sequence_that_was_merged_counts_where_it_went(store: MemoryStore) -> None:
    for number in range(4):
        await run(store, f"e{number}", "abcdefghijklm" if number else "abcdefghijkl")
    learned = await store.patterns.learn(max_length=13)
    assert said(learned) == {"abcdefghijkl": (4, 4), "abcdefghijklm": (3, 3)}
    [merge] = await store.patterns.merge_duplicates()
    assert (merge.kept.usage_count, list(merge.merged)) == (7, [learned[1].id])
    position = store.position
    assert said(await store.patterns.learn(max_length=13)) == {"abcdefghijkl": (7, 7)}
    assert store.position == position
    await run(store, "more", "abcdefghijklm", "failed")
    assert said(await store.patterns.learn(max_length=13)) == {"abcdefghijkl": (7, 9)}
    assert await store.patterns.count() == 1
    await store.patterns.delete(merge.kept.id)
    assert said(await store.patterns.learn(max_length=13)) == {"abcdefghijkl": (4, 5), "abcdefghijklm": (3, 4)}


async def test_in_a_transaction(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        await three_runs(tx)
        for number in range(3):
            await run(tx, f"other{number}", "uvw")
        learned = await tx.patterns.learn()
        assert said(learned) == {"uvw": (3, 3), "abc": (2, 3)}
        assert await tx.patterns.learn() == learned
        assert await store.patterns.count() == 0
    assert await store.patterns.get_many([pattern.id for pattern in learned]) == learned


@pytest.mark.parametrize("source", ["tau_bench", "aider", "reflexion"])
async def test_recorded_runs(
    source: str, store: MemoryStore, recorded_lines: Callable[[str], list[dict[str, Any]]]
) -> None:
    """Of each learned sequence, support and outcomes are what counting it by hand gives."""
    called: dict[str, tuple[str, list[str], bool]] = {}
    for line in recorded_lines(source):
        episode = await store.episodes.put(episode_of(line))
        steps = await store.steps.append(episode.id, [step_of(step) for step in line["steps"]])
        if episode.status in ("completed", "failed"):
            ordered = sorted(steps, key=lambda step: step.step_number or 0)
            once = [tool for tool, _ in groupby(step.tool_name for step in ordered if step.tool_name)]
            called[episode.id] = (episode.domain, once, episode.status == "completed")
    learned = await store.patterns.learn()
    assert len(learned) > 2
    for pattern in learned:
        tools = pattern.pattern_data["tools"]
        assert 2 <= len(tools) <= 5
        outcomes = [
            success
            for domain, once, success in called.values()
            if domain == pattern.domain
            and any(once[start : start + len(tools)] == tools for start in range(len(once) - len(tools) + 1))
        ]
        assert len(outcomes) == pattern.usage_count >= 3
        assert sum(outcomes) == pattern.successes
    assert learned == sorted(learned, key=lambda one: (-one.lower_bound, -one.usage_count, one.id))
    assert [values_of(one) for one in await store.patterns.learn()] == [values_of(one) for one in learned]
    assert await store.patterns.best(limit=20) == learned[:20]
