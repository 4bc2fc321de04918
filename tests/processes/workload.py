"""One process of several on one file: random calls from a few tasks at once, each noted with what it saw and wrote.

Every record carries its own token several times over, so a record put together from two versions shows; the two records
of a pair are only written together, so half a transaction shows.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from memory_store import ConflictError, Episode, MemoryStore, RecordNotFoundError
from tests.fault.support import Parent
from tests.processes.history import DOMAINS, EPISODES, PAIRS, Recorder, now_ns
from tests.processes.values import CHANGED, episode_of, parts, step_of, whole

NAMESPACE = "shared"
TASKS = 3
# Between two calls of a task, now and then: without pauses four processes do nothing but wait for each other's commits.
_PAUSE_S = 0.002


class Plan(NamedTuple):
    """What one process does."""

    number: int
    freshness: str
    staleness_s: float
    ends_at_ns: int
    seed: int
    reopens_after_s: float = 0.0
    """0: it keeps its store open."""
    cache_max_bytes: int = 1 << 20
    writes: float = 1.0
    """Share of the writes it was to make that it makes: who writes all the time always knows the newest commit."""
    quiet: bool = False
    """Whether it makes only calls that the cache alone can answer: whatever misses it learns of the newest commit."""


def use(parent: Parent, url: str, plan: Plan, history: str, neighbour: Connection, own: Connection) -> None:
    """Work until the end of the plan, then write the history to its file."""
    worker = Worker(url, plan, neighbour, own)
    asyncio.run(worker.work())
    worker.recorder.save(Path(history))


def actor_of(process: int) -> str:
    """Return the name of a process in the log."""
    return f"process {process}"


class Worker:
    """The calls of one process."""

    def __init__(self, url: str, plan: Plan, neighbour: Connection, own: Connection) -> None:
        self.plan, self.recorder = plan, Recorder(plan.number)
        self._url, self._neighbour, self._own = url, neighbour, own
        self._random = random.Random(plan.seed)
        # Two changes of one record in one commit are told apart by their revisions, which start again after a delete:
        # a process does not delete what it is writing, nor the reverse. Other processes never share a commit with it.
        self._writing: Counter[str] = Counter()
        self._deleting: set[str] = set()
        self._steps: list[str] = []

    async def work(self) -> None:
        """Use the store, closing it and opening it again as planned."""
        plan = self.plan
        while now_ns() < plan.ends_at_ns:
            until = plan.ends_at_ns
            if plan.reopens_after_s:
                until = min(until, now_ns() + int(plan.reopens_after_s * 1e9))
            self.store = MemoryStore(
                self._url,
                namespace=NAMESPACE,
                freshness=plan.freshness,
                staleness_s=plan.staleness_s,
                actor=actor_of(plan.number),
                cache_max_bytes=plan.cache_max_bytes,
                cache_save_interval_s=0.2,
                timeout_s=60,
            )
            async with self.store, asyncio.TaskGroup() as tasks:
                for _ in range(TASKS):
                    tasks.create_task(self._call_until(until))

    async def _call_until(self, until: int) -> None:
        calls, weights = zip(*_CALLS.items(), strict=True)
        while now_ns() < until:
            [call] = self._random.choices(calls, weights)
            if (self.plan.quiet and call not in _CACHED) or (
                call not in _READS and self._random.random() > self.plan.writes
            ):
                call = Worker.get
            await call(self)
            if self._random.random() < 0.3:
                await asyncio.sleep(self._random.choice([0, 0, _PAUSE_S]))
            await self._take_hand_overs()

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

    async def put(self) -> None:
        await self._put(self._any_single())

    async def put_twice(self) -> None:
        """The same write asked for twice at once is made once."""
        id_ = self._any_single()
        token, began = self.recorder.token(), now_ns()
        self._writing[id_] += 1
        record = episode_of(id_, token, self._random)
        first, second = await asyncio.gather(
            *(self.store.episodes.put(record, idempotency_key=f"key {token}") for _ in range(2))
        )
        self._writing[id_] -= 1
        same = (first.revision, first.position) == (second.revision, second.position)
        self._wrote("put once", began, first, wrong="" if same else f"made twice: {first.position}, {second.position}")

    async def put_many(self) -> None:
        ids = list(dict.fromkeys(self._any_single() for _ in range(3)))
        began = now_ns()
        self._writing.update(ids)
        stored = await self.store.episodes.put_many(
            [episode_of(id_, self.recorder.token(), self._random) for id_ in ids]
        )
        self._writing.subtract(ids)
        self._wrote("put_many", began, *stored)

    async def update(self) -> None:
        id_, token = self._any_single(), self.recorder.token()
        changes = {name: getattr(episode_of(id_, token, self._random), name) for name in CHANGED}
        if self._random.random() < 0.5 and (known := await self.store.episodes.get(id_)) is not None:
            changes["expected_revision"] = known.revision
        if id_ in self._deleting:
            return
        began = now_ns()
        self._writing[id_] += 1
        try:
            self._wrote("update", began, await self.store.episodes.update(id_, **changes))
        except RecordNotFoundError:
            self.recorder.note("update of nothing", began, "linearizable", [(f"episode/{id_}", None)])
        except ConflictError as error:
            if error.actual is None:
                self.recorder.note("update of nothing", began, "linearizable", [(f"episode/{id_}", None)])
        finally:
            self._writing[id_] -= 1

    async def append(self) -> None:
        id_, began = self._any_single(), now_ns()
        steps = [step_of(id_, self.recorder.token(), 1) for _ in range(self._random.randrange(1, 3))]
        try:
            stored = await self.store.steps.append(id_, steps)
        except RecordNotFoundError:
            self.recorder.note("append to nothing", began, "linearizable", [(f"episode/{id_}", None)])
            return
        wrote = tuple(("step", step.id, step.revision, id_) for step in stored)
        self.recorder.note("append", began, "", position=stored[0].position, wrote=wrote)
        self._steps = [*self._steps[-20:], stored[0].id]

    async def update_step(self) -> None:
        if self._steps:
            id_ = self._random.choice(self._steps)
            known = await self.store.steps.get(id_)
            if known is None:
                return
            began, result = now_ns(), f"{id_}#{known.revision + 1}"
            try:
                stored = await self.store.steps.update(id_, result=result, expected_revision=known.revision)
            except (ConflictError, RecordNotFoundError):
                return
            wrote = (("step", id_, stored.revision, known.episode_id),)
            self.recorder.note("update of a step", began, "", position=stored.position, wrote=wrote)

    async def delete(self) -> None:
        """Takes the episode's steps with it: a range for the caches of the others."""
        id_ = self._any_single()
        if self._writing[id_]:
            return
        self._deleting.add(id_)
        began = now_ns()
        existed = await self.store.episodes.delete(id_)
        self._deleting.discard(id_)
        if existed:
            self.recorder.note("delete", began, "", wrote=(("episode", id_, None, ""),))
        else:
            self.recorder.note("delete of nothing", began, "linearizable", [(f"episode/{id_}", None)])

    async def transaction(self) -> None:
        """Read a pair and write both with one mark, or undo it all."""
        pair, began, undone = self._random.choice(PAIRS), now_ns(), self._random.random() < 0.2
        try:
            async with self.store.transaction() as tx:
                seen = [(f"episode/{id_}", whole(await tx.episodes.get(id_))) for id_ in pair]
                seen.append((f"steps/{pair[0]}", parts(await tx.steps.of(pair[0]))))
                token = self.recorder.token()
                stored = await tx.episodes.put_many([episode_of(id_, token, self._random) for id_ in pair])
                own = [whole(await tx.episodes.get(id_)) for id_ in pair]
                wrong = "" if own == [(token, record.revision) for record in stored] else f"it saw {own}"
                [step] = await tx.steps.append(pair[0], step_of(pair[0], self.recorder.token(), 1))
                if undone:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        wrote = [("episode", record.id, record.revision, token) for record in stored]
        wrote.append(("step", step.id, 1, pair[0]))
        self.recorder.note(
            "transaction", began, "before commit", seen, position=tx.position, wrote=tuple(wrote), wrong=wrong
        )

    async def reading_transaction(self) -> None:
        """Everything read inside is of one commit."""
        began, seen = now_ns(), []
        async with self.store.transaction() as tx:
            for id_ in (*self._random.choice(PAIRS), self._random.choice(EPISODES)):
                seen.append((f"episode/{id_}", whole(await tx.episodes.get(id_))))
            seen.append(("count/", await tx.episodes.count()))
        self.recorder.note("reading transaction", began, "linearizable", seen)

    async def delete_pair(self) -> None:
        pair, began = self._random.choice(PAIRS), now_ns()
        async with self.store.transaction() as tx:
            seen = [(f"episode/{id_}", whole(await tx.episodes.get(id_))) for id_ in pair]
            existed = [id_ for id_ in pair if await tx.episodes.delete(id_)]
        wrote = tuple(("episode", id_, None, "") for id_ in existed)
        fresh = "before commit" if existed else "linearizable"
        self.recorder.note("transaction", began, fresh, seen, position=tx.position, wrote=wrote)

    async def save(self) -> None:
        await self.store.cache.save()

    async def _put(self, id_: str) -> None:
        token, began = self.recorder.token(), now_ns()
        self._writing[id_] += 1
        stored = await self.store.episodes.put(episode_of(id_, token, self._random))
        self._writing[id_] -= 1
        self._wrote("put", began, stored)

    def _wrote(self, name: str, began: int, *stored: Episode, wrong: str = "") -> None:
        wrote = tuple(("episode", record.id, record.revision, record.context["token"]) for record in stored)
        position = stored[0].position
        assert position is not None
        self.recorder.note(name, began, "", position=position, wrote=wrote, wrong=wrong)
        if self._random.random() < 0.3:
            self._neighbour.send((stored[0].id, position))

    async def _take_hand_overs(self) -> None:
        """Read what another process says it wrote, no older than it says."""
        while self._own.poll():
            id_, position = self._own.recv()
            began = now_ns()
            if self._random.random() < 0.7:
                found = await self.store.episodes.get(id_, at_least=position)
                seen = (f"episode/{id_}", whole(found))
            else:
                seen = (f"steps/{id_}", parts(await self.store.steps.of(id_, at_least=position)))
            self.recorder.note("hand-over", began, self.plan.freshness, [seen], at_least=position)

    def _any_id(self) -> str:
        return self._random.choice(_IDS)

    def _any_single(self) -> str:
        return self._random.choice([id_ for id_ in EPISODES if id_ not in self._deleting])


_IDS = [*EPISODES, *(id_ for pair in PAIRS for id_ in pair)]


_CALLS: dict[Callable[[Worker], Coroutine[Any, Any, None]], int] = {
    Worker.get: 40,
    Worker.get_many: 10,
    Worker.of: 14,
    Worker.step: 2,
    Worker.count: 8,
    Worker.list: 3,
    Worker.cancelled_get: 3,
    Worker.put: 6,
    Worker.put_twice: 1,
    Worker.put_many: 2,
    Worker.update: 5,
    Worker.append: 5,
    Worker.update_step: 2,
    Worker.delete: 2,
    Worker.transaction: 3,
    Worker.reading_transaction: 1,
    Worker.delete_pair: 1,
    Worker.save: 1,
}
_CACHED = {Worker.get, Worker.get_many, Worker.of, Worker.count}
_READS = {*_CACHED, Worker.step, Worker.list, Worker.cancelled_get}
