"""One process of several on a server that dies under them: it knows of every write whether it happened.

Each task is the only writer of its keys, and knows their exact state: a write that was acknowledged is there, one that
failed is not, one whose outcome is unknown is resolved before the task goes on. Values carry their mark twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from memory_store import CommitUnknownError, DurableError, Episode, MemoryStore, Step
from memory_store.namespace import Namespace
from tests.fault.support import Parent

NAMESPACES = ("red", "green")
TASKS = 3
KEYS = 4
STALENESS_S = 0.05
# A server that is away is asked again often: the run is short.
SETTINGS: dict[str, Any] = {
    "heads": 2,
    "cache_path": "",
    "staleness_s": STALENESS_S,
    "breaker_pause_s": 0.05,
    "timeout_s": 5,
    "pool_timeout_s": 5,
    "pool_size": 6,
}

State = tuple[int, int, tuple[str, ...]] | None
"""Revision, mark and the actions of the steps of one episode; None where there is none."""


async def load(parent: Parent, url: str, number: int, seed: int) -> None:
    """Work until told "pause"; then tell the ledger, compare with the database named next, and go on until "end"."""
    async with MemoryStore(url, **SETTINGS) as store:
        process = Process(store, number, random.Random(seed))
        parent.send("ready")
        while (word := await _told(parent)) != "end":
            assert word == "go"
            await process.work_until(lambda: parent._connection.poll(0))
            assert await _told(parent) == "pause"
            parent.send((process.ledger, process.counted))
            dsn = await _told(parent)
            parent.send(await process.differences(dsn))


async def _told(parent: Parent) -> Any:
    return await asyncio.to_thread(parent._connection.recv)


def episode_of(id_: str, mark: int) -> Episode:
    """Return an episode that carries its mark twice."""
    return Episode(id=id_, task_type="testing", domain="web", context={"mark": mark}, reflection=str(mark))


class Process:
    """The tasks of one process, and what they know."""

    def __init__(self, store: MemoryStore, number: int, seeded: random.Random) -> None:
        self.store, self._number, self._random = store, number, seeded
        self.ledger: dict[tuple[str, str], State] = {}
        self.counted: Counter[str] = Counter()
        self._marks = 0
        self._seen: dict[tuple[str, str], int] = {}

    async def work_until(self, over: Callable[[], bool]) -> None:
        """Call at random until something is said, and what is begun is known."""
        async with asyncio.TaskGroup() as tasks:
            for task in range(TASKS):
                tasks.create_task(self._work(task, over))

    async def _work(self, task: int, over: Callable[[], bool]) -> None:
        space = self.store.namespace(NAMESPACES[task % len(NAMESPACES)])
        ids = [f"{self._number}-{task}-{key}" for key in range(KEYS)]
        while not over():
            if self._random.random() < 0.5:
                await self._read(space, self._random.choice(ids))
            else:
                await self._write(space, ids)

    async def _read(self, space: Namespace, own: str) -> None:
        """An own key is as the ledger says; another's is whole, and never older than it was seen before."""
        freshness = self._random.choice(["bounded", "linearizable"])
        other = f"{self._random.randrange(3)}-{own.partition('-')[2]}"
        try:
            found, seen = await space.episodes.get_many([own, other], freshness=freshness)
        except DurableError:
            self.counted["reads refused"] += 1
            return
        self.counted["reads"] += 1
        expected = self.ledger.get((space.name, own))
        assert (found and (found.revision, found.context["mark"])) == (expected and expected[:2]), "own write"
        if seen is not None:
            assert seen.reflection == str(seen.context["mark"]), "torn"

    async def _write(self, space: Namespace, ids: list[str]) -> None:
        way = self._random.choice(_WAYS)
        chosen = self._random.sample(ids, 2)
        mark = self._next_mark()
        states = [self.ledger.get((space.name, id_)) for id_ in chosen]
        call, after = way(space, chosen, states, mark)
        if await self._happens(call):
            self.ledger.update({(space.name, id_): state for id_, state in zip(chosen, after, strict=True)})

    async def _happens(self, call: Callable[[], Awaitable[Any]]) -> bool:
        """Make a call; return whether it happened, for sure."""
        try:
            await call()
        except CommitUnknownError as error:
            self.counted["unknown"] += 1
            while True:
                try:
                    happened = await self.store.resolve(error.token)
                except DurableError:
                    await asyncio.sleep(0.02)
                else:
                    self.counted[f"resolved: {happened}"] += 1
                    return happened
        except DurableError as error:
            self.counted[f"failed: {type(error).__name__}"] += 1
            await asyncio.sleep(0.01)
            return False
        self.counted["acknowledged"] += 1
        return True

    def _next_mark(self) -> int:
        self._marks += 1
        return self._number * 1_000_000 + self._marks

    async def differences(self, dsn: str) -> list[Any]:
        """Return where what the cache answers is not what the database holds; nobody writes now."""
        await asyncio.sleep(2 * STALENESS_S)
        wrong: list[Any] = []
        truth = await asyncpg.connect(dsn)
        try:
            for name in NAMESPACES:
                held = await truth.fetch("SELECT id, revision, reflection FROM episodes WHERE namespace = $1", name)
                right = {id_: (revision, mark) for id_, revision, mark in held}
                episodes = self.store.namespace(name).episodes
                ids = sorted({*right, *(id_ for space, id_ in self.ledger if space == name)})
                for freshness in ("bounded", "linearizable"):
                    for id_, found in zip(ids, await episodes.get_many(ids, freshness=freshness), strict=True):
                        answer = found and (found.revision, found.reflection)
                        if answer != right.get(id_):
                            wrong.append((freshness, name, id_, answer, right.get(id_)))
        finally:
            await truth.close()
        return wrong


Way = Callable[[Namespace, list[str], list[State], int], tuple[Callable[[], Awaitable[Any]], list[State]]]
"""Makes a call on two keys, and says their states after it."""


def _changed(state: State, mark: int, *steps: str) -> State:
    return (1, mark, steps) if state is None else (state[0] + 1, mark, (*state[2], *steps))


def _put(space: Namespace, ids: list[str], states: list[State], mark: int) -> Any:
    return lambda: space.episodes.put(episode_of(ids[0], mark)), [_changed(states[0], mark), states[1]]


def _put_once(space: Namespace, ids: list[str], states: list[State], mark: int) -> Any:
    """Asked for again and again until it is acknowledged, and made once."""

    async def call() -> None:
        while True:
            try:
                await space.episodes.put(episode_of(ids[0], mark), idempotency_key=str(mark))
            except DurableError:
                await asyncio.sleep(0.01)
            else:
                return

    return call, [_changed(states[0], mark), states[1]]


def _put_many(space: Namespace, ids: list[str], states: list[State], mark: int) -> Any:
    records = [episode_of(id_, mark) for id_ in ids]
    return lambda: space.episodes.put_many(records), [_changed(state, mark) for state in states]


def _update(space: Namespace, ids: list[str], states: list[State], mark: int) -> Any:
    state = states[0]
    if state is None:
        return _put(space, ids, states, mark)
    changes = {"context": {"mark": mark}, "reflection": str(mark), "expected_revision": state[0]}
    return lambda: space.episodes.update(ids[0], **changes), [_changed(state, mark), states[1]]


def _append(space: Namespace, ids: list[str], states: list[State], mark: int) -> Any:
    state = states[0]
    if state is None or len(state[2]) > 20:
        return _put(space, ids, states, mark)
    return lambda: space.steps.append(ids[0], Step(action=str(mark))), [
        (state[0], state[1], (*state[2], str(mark))),
        states[1],
    ]


def _delete(space: Namespace, ids: list[str], states: list[State], mark: int) -> Any:
    async def call() -> None:
        assert await space.episodes.delete(ids[0]) == (states[0] is not None)

    return call, [None, states[1]]


def _transaction(space: Namespace, ids: list[str], states: list[State], mark: int) -> Any:
    async def call() -> None:
        async with space.transaction() as tx:
            await tx.episodes.put(episode_of(ids[0], mark))
            await tx.steps.append(ids[0], Step(action=str(mark)))
            await tx.episodes.put(episode_of(ids[1], mark))

    return call, [_changed(states[0], mark, str(mark)), _changed(states[1], mark)]


_WAYS: list[Way] = [_put, _put, _put_once, _put_many, _update, _append, _delete, _transaction]
