"""One process of several on one file: random calls from a few tasks at once, each noted with what it saw and wrote.

Every record carries its own token several times over, so a record put together from two versions shows; the two records
of a pair are only written together, so half a transaction shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from memory_store import ConflictError, Episode, MemoryStore, RecordNotFoundError
from tests.fault.support import Parent
from tests.processes.history import EPISODES, PAIRS, now_ns
from tests.processes.reads import Plan, Reads
from tests.processes.values import CHANGED, episode_of, parts, step_of, whole

NAMESPACE = "shared"
TASKS = 3
# Between two calls of a task, now and then: without pauses four processes do nothing but wait for each other's commits.
_PAUSE_S = 0.002


def use(parent: Parent, url: str, plan: Plan, history: str, neighbour: Connection, own: Connection) -> None:
    """Say "ready", work until the moment that comes as the answer, then write the history to its file."""
    parent.send("ready")
    ends_at_ns: int = parent._connection.recv()
    worker = Worker(url, plan, ends_at_ns, neighbour, own)
    asyncio.run(worker.work())
    worker.recorder.save(Path(history))


def actor_of(process: int) -> str:
    """Return the name of a process in the log."""
    return f"process {process}"


class Worker(Reads):
    """The calls of one process."""

    async def work(self) -> None:
        """Use the store, closing it and opening it again as planned."""
        plan = self.plan
        while now_ns() < self._ends_at_ns:
            until = self._ends_at_ns
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

    def _any_single(self) -> str:
        return self._random.choice([id_ for id_ in EPISODES if id_ not in self._deleting])


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
