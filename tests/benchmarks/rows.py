"""Rows of about 1 KB with real words in them, the same on every run.

The words come from the recorded runs beside the checkout where they are, else from a fixed generator.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from memory_store import Episode, Limits, Step
from memory_store.codec import CODECS

from .harness import REPOSITORY

RECORDED = REPOSITORY.parent / "shared" / "data" / "episodes"
NAMESPACE = "bench"
DOMAINS = tuple(f"domain-{number:02}" for number in range(20))
_TASKS = ("debugging", "testing", "refactoring", "code_generation", "analysis")
_TOOLS = ("shell", "read_file", "search", "edit", "python")
_START = datetime(2026, 1, 1, tzinfo=UTC)
_LIMITS = Limits()


@functools.cache
def _words() -> str:
    parts: list[str] = []
    for source in ("tau_bench", "swe_agent_demos", "aider"):
        path = RECORDED / f"{source}.jsonl"
        if not path.is_file():
            continue
        for line in path.read_bytes().split(b"\n"):
            for step in json.loads(line)["steps"] if line else []:
                parts.extend(text[:2000] for text in (step["action"], step["result"]) if text)
    if not parts:
        chance = random.Random(20260101)
        vocabulary = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(5000)]
        parts = chance.choices(vocabulary, k=200_000)
    return " ".join(parts)


def text(number: int, length: int) -> str:
    """Return `length` characters of the words, from a place that depends on the number."""
    words = _words()
    start = number * 7919 % (len(words) - length)
    return words[start : start + length]


def episode(number: int) -> Episode:
    """Return the episode of this number, with a new id."""
    return Episode(
        task_type=_TASKS[number % len(_TASKS)],
        domain=DOMAINS[number % len(DOMAINS)],
        created_at=_START + timedelta(seconds=number),
        status="completed" if number % 3 else "failed",
        reward_score=number % 11 / 10,
        context={"goal": text(number, 260), "branch": f"fix-{number}", "files": [text(number + 1, 24), "setup.py"]},
        reflection=text(number + 2, 320),
        metadata={"model": "small", "tokens": number % 9000, "notes": text(number + 3, 120)},
    )


def episodes(count: int, start: int = 0) -> Iterator[Episode]:
    """Yield episodes."""
    return map(episode, range(start, start + count))


def steps(owner: Episode, count: int, number: int) -> list[Step]:
    """Return an episode's steps, about 400 bytes each."""
    return [
        Step(
            episode_id=owner.id,
            step_number=place + 1,
            action=text(number * 5 + place, 90),
            result=text(number * 5 + place + 1, 160),
            tool_name=_TOOLS[place % len(_TOOLS)],
            duration_ms=number % 1000,
            success=place % 4 != 0,
            timestamp=_START + timedelta(seconds=number, milliseconds=place),
        )
        for place in range(count)
    ]


def stored_row(record: Episode | Step) -> list[Any]:
    """Return a record's row as the store would hold it after its first write."""
    row = CODECS[record.kind].encode(record, _LIMITS)
    row[CODECS[record.kind].spec.index("revision")] = 1
    return row
