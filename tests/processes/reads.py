"""The reads of one process, each noted with what it saw and how fresh that had to be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from memory_store import Episode, MemoryStore
from tests.processes.history import DOMAINS, EPISODES, PAIRS, Recorder, now_ns
from tests.processes.values import parts, whole

_IDS = [*EPISODES, *(id_ for pair in PAIRS for id_ in pair)]


class Plan(NamedTuple):
    """What one process does."""

    number: int
    freshness: str
    staleness_s: float
    seed: int
    reopens_after_s: float = 0.0
    """0: it keeps its store open."""
    cache_max_bytes: int = 1 << 20
    writes: float = 1.0
    """Share of the writes it was to make that it makes: who writes all the time always knows the newest commit."""
    quiet: bool = False
    """Whether it makes only calls that the cache alone can answer: whatever misses it learns of the newest commit."""


class Reads:
    """Calls that read, on `store`."""

    store: MemoryStore

    def __init__(self, url: str, plan: Plan, ends_at_ns: int, neighbour: Connection, own: Connection) -> None:
        self.plan, self.recorder = plan, Recorder(plan.number)
        self._ends_at_ns = ends_at_ns
        self._url, self._neighbour, self._own = url, neighbour, own
        self._random = random.Random(plan.seed)
        # Two changes of one record in one commit are told apart by their revisions, which start again after a delete:
        # a process does not delete what it is writing, nor the reverse. Other processes never share a commit with it.
        self._writing: Counter[str] = Counter()
        self._deleting: set[str] = set()
        self._steps: list[str] = []

    def _fresh(self) -> tuple[str, dict[str, Any]]:
        """Choose a freshness: mostly the store's own."""
        if self._random.random() < (0.999 if self.plan.quiet else 0.75):
            return self.plan.freshness, {}
        fresh = self._random.choice(["bounded", "linearizable"])
        # A call may ask for more than the store gives, or less.
        return fresh, {"freshness": fresh}

    async def get(self) -> None:
        id_ = self._any_id()
        fresh, keywords = self._fresh()
        began = now_ns()
        found = await self.store.episodes.get(id_, **keywords)
        self.recorder.note("get", began, fresh, [(f"episode/{id_}", whole(found))])

    async def get_many(self) -> None:
        ids = [self._any_id() for _ in range(self._random.randrange(1, 6))]  # the same one twice as well
        fresh, keywords = self._fresh()
        began = now_ns()
        found = await self.store.episodes.get_many(ids, **keywords)
        for id_, record in zip(ids, found, strict=True):
            wrong = "" if record is None or record.id == id_ else f"in the place of {id_}"
            self.recorder.note("get_many", began, fresh, [(f"episode/{id_}", whole(record))], wrong=wrong)

    async def of(self) -> None:
        id_ = self._any_id()
        fresh, keywords = self._fresh()
        began = now_ns()
        found = await self.store.steps.of(id_, **keywords)
        self.recorder.note("of", began, fresh, [(f"steps/{id_}", parts(found))])

    async def step(self) -> None:
        if self._steps:
            id_ = self._random.choice(self._steps)
            began = now_ns()
            found = await self.store.steps.get(id_)  # past the cache
            self.recorder.note("steps.get", began, "linearizable", [(f"step/{id_}", found and found.revision)])

    async def count(self) -> None:
        domain = self._random.choice(["", *DOMAINS])
        fresh, keywords = self._fresh()
        began = now_ns()
        found = await self.store.episodes.count(Episode.c.domain == domain if domain else None, **keywords)
        self.recorder.note("count", began, fresh, [(f"count/{domain}", found)])

    async def list(self) -> None:
        domain = self._random.choice(DOMAINS)
        began = now_ns()
        page = await self.store.episodes.list(Episode.c.domain == domain, limit=1000)  # past the cache
        listed = tuple((record.id, *whole(record)) for record in page.items)
        self.recorder.note("list", began, "linearizable", [(f"list/{domain}", listed)])

    async def cancelled_get(self) -> None:
        """Ask and go away: whoever shares the read must still get it."""
        task = asyncio.ensure_future(self.store.episodes.get(self._any_id(), freshness="linearizable"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    def _any_id(self) -> str:
        return self._random.choice(_IDS)
