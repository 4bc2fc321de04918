"""A few hundred recorded runs of real agents go in through the public API and come back equal from everywhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from memory_store import Episode, InvalidRecordError, MemoryStore, Step

# What the sources call an outcome, in the store's words.
STATUS = {"success": "completed", "completed": "completed", "failure": "failed", "incomplete": "archived"}
SOURCES = ["aider", "tau_bench", "reflexion", "openhands", "swe_agent_demos"]


def moment(text: str | None) -> datetime | None:
    """A recorded time; one without a zone is taken as UTC, which is for the caller to decide and not for the store."""
    if text is None:
        return None
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def episode_of(line: dict[str, Any]) -> Episode:
    """The episode of a recorded line."""
    created = moment(line["created_at"])
    return Episode(
        id=line["id"],
        task_type=line["task_type"] or "unknown",
        domain=line["domain"] or "unknown",
        context=line["context"],
        status=STATUS.get(line["status"], "active"),
        reward_score=line["reward_score"],
        completed_at=moment(line["completed_at"]),
        **({} if created is None else {"created_at": created}),
    )


def step_of(line: dict[str, Any]) -> Step:
    """A step of a recorded line."""
    return Step(
        step_number=line["step_number"],
        action=line["action"] or "",
        result=line["result"],
        tool_name=line["tool_name"],
        duration_ms=line["duration_ms"],
        success=line["success"],
        timestamp=moment(line["timestamp"]),
    )


@pytest.mark.parametrize("source", SOURCES)
async def test_recorded_episodes_come_back_equal(
    source: str, store: MemoryStore, recorded_lines: Callable[[str], list[dict[str, Any]]]
) -> None:
    lines = list({line["id"]: line for line in recorded_lines(source)}.values())
    episodes: dict[str, Episode] = {}
    steps: dict[str, list[Step]] = {}
    for line in lines:
        stored = await store.episodes.put(episode_of(line))
        episodes[stored.id] = stored
        steps[stored.id] = await store.steps.append(stored.id, [step_of(step) for step in line["steps"]])
        assert stored.context == line["context"]
        assert [step.result for step in steps[stored.id]] == [step["result"] for step in line["steps"]]
        assert [step.action for step in steps[stored.id]] == [step["action"] or "" for step in line["steps"]]
    for clear in (False, True):
        if clear:
            await store.cache.clear()
        assert await store.episodes.get_many(episodes) == list(episodes.values())
        for id_, expected in steps.items():
            assert await store.steps.of(id_) == sorted(expected, key=lambda step: step.step_number or 0)
    streamed = {episode.id: episode async for episode in store.episodes.stream()}
    assert streamed == episodes
    by_id = {step.id: step for made in steps.values() for step in made}
    assert {step.id: step async for step in store.steps.stream()} == by_id
    await store.cache.rebuild()
    assert await store.episodes.get_many(episodes) == list(episodes.values())


async def test_naive_recorded_times_are_refused_until_somebody_says_their_zone(
    recorded_lines: Callable[[str], list[dict[str, Any]]],
) -> None:
    naive = [
        step["timestamp"]
        for source in SOURCES
        for line in recorded_lines(source)
        for step in line["steps"]
        if step["timestamp"] and datetime.fromisoformat(step["timestamp"]).tzinfo is None
    ]
    assert naive, "the recorded runs hold naive times"
    for text in naive[:20]:
        with pytest.raises(InvalidRecordError, match="has no timezone"):
            Step(action="x", timestamp=datetime.fromisoformat(text))
