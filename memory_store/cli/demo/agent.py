"""The agent: takes a goal, asks its memory which way worked best so far, uses tools, and records all of it.

Every tool use is a step in the store before the agent acts on its result. The end of an episode (its outcome, its
embedding, its place, what was learned) is one transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from memory_store import (
    Embedding,
    Episode,
    EpisodeStatus,
    MemoryStore,
    Pattern,
    PatternType,
    SpatiotemporalEntry,
    Step,
    Transaction,
)
from memory_store.cli.demo.goals import Goal
from memory_store.cli.demo.tools import Outcome, Toolbox
from memory_store.clock import utc_now

__all__ = ["MODEL_NAME", "Agent"]

MODEL_NAME = "demo-hashing-128"
_DIMENSIONS = 128
# Every so many uses of what works best, another way gets a chance.
_EXPLORE_EVERY = 6

Acknowledge = Callable[[Any], None]


@dataclass(slots=True)
class Bench:
    """The tools of one episode; what is done with them becomes its steps."""

    store: MemoryStore
    episode_id: str
    tools: Toolbox
    acknowledge: Acknowledge
    outcomes: list[Outcome]

    async def use(self, running: Awaitable[Outcome]) -> Outcome:
        """Wait for a tool, record the step, and return the outcome."""
        outcome = await running
        step = Step(
            action=outcome.action,
            tool_name=outcome.tool_name,
            result=outcome.result,
            success=outcome.success,
            duration_ms=outcome.duration_ms,
        )
        for stored in await self.store.steps.append(self.episode_id, step):
            self.acknowledge(stored)
        self.outcomes.append(outcome)
        return outcome


async def _guess_the_file(bench: Bench, goal: Goal) -> Any:
    path = f"{re.sub(r'(?<!^)(?=[A-Z])', '_', goal.subject).lower()}.py"
    read = await bench.use(bench.tools.read_file(path))
    return path if re.search(rf"\b(def|class) {goal.subject}\b", read.result) else None


async def _search_then_read(bench: Bench, goal: Goal) -> Any:
    found = await bench.use(bench.tools.search(rf"^\s*(async def|def|class) {goal.subject}\b"))
    if not found.success:
        return None
    path = found.result.partition(":")[0]
    await bench.use(bench.tools.read_file(path))
    return path


async def _guess_the_test(bench: Bench, goal: Goal) -> Any:
    path = f"tests/test_{goal.subject.lower()}.py"
    read = await bench.use(bench.tools.read_file(path))
    return {path} if read.success else None


async def _search_the_tests(bench: Bench, goal: Goal) -> Any:
    listed = await bench.use(bench.tools.list_files("tests"))
    if not listed.success:
        return set()
    found = await bench.use(bench.tools.search(rf"\b{goal.subject}\b", "tests"))
    if not found.success:
        return set()
    tests = {line.partition(":")[0] for line in found.result.splitlines()}
    await bench.use(bench.tools.read_file(min(tests)))
    return tests


async def _count_what_was_read(bench: Bench, goal: Goal) -> Any:
    await bench.use(bench.tools.list_files(goal.domain))
    read = await bench.use(bench.tools.read_file(goal.subject))
    return read.result.count("\n")  # wrong for a long file, of which the tool shows only the start


async def _count_with_python(bench: Bench, goal: Goal) -> Any:
    code = f"print(open({goal.subject!r}, newline='', encoding='utf-8').read().count(chr(10)))"
    counted = await bench.use(bench.tools.run_python("-c", code))
    return int(counted.result) if counted.result.isdigit() else None


async def _compile(bench: Bench, goal: Goal) -> Any:
    name = hashlib.blake2b(goal.text.encode(), digest_size=8).hexdigest()
    path = bench.tools.scratch / f"{name}.py"
    await asyncio.to_thread(path.write_text, goal.subject, "utf-8")
    compiled = await bench.use(bench.tools.run_python("-m", "py_compile", str(path)))
    if not compiled.success:  # look at the whole file for the reason
        await bench.use(bench.tools.read_file(goal.path))
    return compiled.success


async def _import(bench: Bench, goal: Goal) -> Any:
    imported = await bench.use(bench.tools.run_python("-c", f"import {goal.subject}"))
    if not imported.success:  # who would be hurt?
        await bench.use(bench.tools.search(rf"^\s*(import|from) {goal.subject}\b"))
    return imported.success


_WAYS: dict[str, dict[str, Callable[[Bench, Goal], Awaitable[Any]]]] = {
    "definition": {"guess the file": _guess_the_file, "search, then read": _search_then_read},
    "mentions": {"guess the test": _guess_the_test, "search the tests": _search_the_tests},
    "lines": {"count what was read": _count_what_was_read, "count with python": _count_with_python},
    "excerpt": {"compile": _compile},
    "import": {"import": _import},
}


class Agent:
    """Works through goals and remembers.

    Args:
        store: its memory.
        tools: its tools.
        acknowledge: called with each record once its write has been acknowledged.
    """

    def __init__(self, store: MemoryStore, tools: Toolbox, acknowledge: Acknowledge = lambda record: None) -> None:
        self._store, self._tools, self._acknowledge = store, tools, acknowledge
        self._recent: list[list[float]] = []

    async def work(self, goals: Iterator[Goal], workers: int, done: Callable[[], None] = lambda: None) -> None:
        """Work on the goals, several at a time, until there are none left."""

        async def worker() -> None:
            for goal in goals:
                await self.pursue(goal)
                done()

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())

    async def pursue(self, goal: Goal) -> None:
        """Work on one goal: one episode."""
        started = Episode(task_type=goal.task_type, domain=goal.domain, context={"goal": goal.text, "kind": goal.kind})
        episode = await self._store.episodes.put(started)
        self._acknowledge(episode)
        way = await self._choose(goal.kind)
        bench = Bench(self._store, episode.id, self._tools, self._acknowledge, [])
        answer = await _WAYS[goal.kind][way](bench, goal)
        achieved = answer == goal.truth if goal.kind != "definition" else answer in goal.truth
        async with self._store.transaction() as tx:
            records = await self._conclude(tx, episode, goal, way, bench.outcomes, achieved)
        for record in records:
            self._acknowledge(record)

    async def _choose(self, kind: str) -> str:
        """Return the way that worked best so far; now and then the one tried least."""
        ways = list(_WAYS[kind])
        known = await self._store.patterns.get_many(_decision(kind, way).id for way in ways)
        uses = [0 if pattern is None else pattern.usage_count for pattern in known]
        if 0 in uses or sum(uses) % _EXPLORE_EVERY == 0:
            return ways[uses.index(min(uses))]
        rates = [0.0 if pattern is None else pattern.success_rate for pattern in known]
        return ways[rates.index(max(rates))]

    async def _conclude(
        self, tx: Transaction, episode: Episode, goal: Goal, way: str, outcomes: list[Outcome], achieved: bool
    ) -> list[Any]:
        failures = [outcome for outcome in outcomes if not outcome.success]
        verdict = "worked" if achieved else "did not work"
        reason = f"; {failures[0].tool_name} said: {failures[0].result.splitlines()[-1][:120]}" if failures else ""
        vector = _embed(goal.text)
        tools = " > ".join(outcome.tool_name + ("" if outcome.success else "!") for outcome in outcomes)
        ended = await tx.episodes.update(
            episode.id,
            expected_revision=episode.revision,
            status=EpisodeStatus.COMPLETED if achieved else EpisodeStatus.FAILED,
            success_rate=1 - len(failures) / len(outcomes),
            reward_score=max(0.0, achieved - 0.1 * len(failures)),
            completed_at=utc_now(),
            reflection=f"“{way}” {verdict}{reason}",
            metadata={"python": sys.version.split()[0], "way": way},
        )
        return [
            ended,
            *await tx.embeddings.append(
                episode.id,
                Embedding(
                    episode_id=episode.id,
                    content=goal.text,
                    embedding=vector,
                    model_name=MODEL_NAME,
                    vector_dim=_DIMENSIONS,
                ),
            ),
            *await tx.spatiotemporal.append(
                episode.id,
                SpatiotemporalEntry(
                    episode_id=episode.id,
                    spatial_key=f"{goal.domain}/{goal.kind}"[-250:],
                    temporal_key=ended.created_at.strftime("%G-W%V"),
                    diversity_score=self._diversity(vector),
                ),
            ),
            await _learn(tx, _decision(goal.kind, way), achieved),
            await _learn(tx, _pattern(PatternType.TOOL_SEQUENCE, {"goal": goal.kind, "tools": tools}), achieved),
        ]

    def _diversity(self, vector: list[float]) -> float:
        nearest = max((_product(vector, other) for other in self._recent), default=0.0)
        self._recent = [*self._recent[-19:], vector]
        return min(1.0, max(0.0, 1.0 - nearest))


def _pattern(pattern_type: PatternType, data: dict[str, str]) -> Pattern:
    return Pattern(pattern_type=pattern_type, pattern_data=data, domain="checkout")


def _decision(kind: str, way: str) -> Pattern:
    return _pattern(PatternType.DECISION_POINT, {"goal": kind, "way": way})


async def _learn(tx: Transaction, pattern: Pattern, achieved: bool) -> Pattern:
    """Count one more use; the transaction makes reading and writing it one step."""
    known = await tx.patterns.get(pattern.id)
    if known is None:
        known = await tx.patterns.put(pattern)
    uses = known.usage_count + 1
    return await tx.patterns.update(
        pattern.id,
        success_rate=(known.success_rate * known.usage_count + achieved) / uses,
        confidence=1 - 1 / (1 + uses),
        usage_count=uses,
        last_used=utc_now(),
    )


def _product(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _embed(text: str) -> list[float]:
    """Return a feature-hashing vector: each word adds 1 or -1 at a place given by its hash; of length 1."""
    vector = [0.0] * _DIMENSIONS
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
        vector[digest[0] % _DIMENSIONS] += 1.0 if digest[1] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]
