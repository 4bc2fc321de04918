"""A process that is going to be killed: it opens, tells what it finds, and writes, telling before and after each write.

Messages, in order: `("opened", seconds)`, `("found", {key: value}, {shared key: revision})`, then for each write
`("may", {key: value})` before and `("did", {key: value}, [logged])` after it was acknowledged; `("at", label)` where it
stops. A value is None where the record is gone. Nobody else writes its keys; the shared ones are everybody's.
"""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path
from typing import Any, NamedTuple

from memory_store import ConflictError, Episode, MemoryStore, Step
from memory_store.durable import checkpoint
from tests.fault.support import Parent
from tests.processes.history import now_ns
from tests.processes.instants import Instants, Stop

NAMESPACE = "killed"
SHARED = ["shared-0", "shared-1"]
_SINGLES = 5
# Checkpoints come all the time instead of every hundred commits, and the cache is saved all the time.
_WAL_PAGES = 40
_SAVE_INTERVAL_S = 0.03


class Life(NamedTuple):
    """How one process is to live.

    Args:
        slot: whose keys it writes.
        number: of the process, for what it writes.
        seed: of what it does.
        stop: where it is to be killed, None for anywhere.
        writes: after how many it closes the store; 0 for never.
    """

    slot: int
    number: int
    seed: int
    stop: Stop | None
    writes: int


class Line:
    """Sends messages from any thread, each whole."""

    def __init__(self, parent: Parent) -> None:
        self._parent, self._lock = parent, threading.Lock()

    def send(self, *message: Any) -> None:
        with self._lock:
            self._parent.send(message)


def singles(slot: int) -> list[str]:
    """Return the episodes of a slot that are written alone."""
    return [f"{slot}-e{i}" for i in range(_SINGLES)]


def pairs(slot: int) -> list[tuple[str, str]]:
    """Return the episodes of a slot that are only ever written in twos."""
    return [(f"{slot}-p{i}a", f"{slot}-p{i}b") for i in range(2)]


def keys_of(slot: int) -> list[str]:
    """Return everything a slot's ledger can hold: episodes and, behind `/steps`, their steps."""
    episodes = [*singles(slot), *itertools.chain(*pairs(slot))]
    return [*episodes, *(f"{id_}/steps" for id_ in episodes)]


async def live(parent: Parent, url: str, life: Life) -> None:
    """Live until killed, or until the store is closed after the writes."""
    line = Line(parent)
    instants = Instants(Path(url.removeprefix("sqlite:///")).parent, life.stop, lambda label: line.send("at", label))
    checkpoint._WAL_PAGES = _WAL_PAGES
    instants.watch()
    instants.phase = "opening"
    began = now_ns()
    store = await MemoryStore(
        url,
        namespace=NAMESPACE,
        freshness="linearizable" if life.slot == 0 else "bounded",
        actor=f"slot {life.slot}",
        cache_save_interval_s=_SAVE_INTERVAL_S,
        timeout_s=30,
    ).open()
    first = await store.episodes.get(singles(life.slot)[0])
    line.send("opened", (now_ns() - began) / 1e9)
    found = await _find(store, life.slot, first)
    shared = {id_: await store.episodes.get(id_, freshness="linearizable") for id_ in SHARED}
    line.send("found", found, {id_: record.revision if record else 0 for id_, record in shared.items()})
    parent.wait_for("go on")
    instants.phase = "writing"
    seeded = random.Random(life.seed)
    for number in range(life.writes) if life.writes else itertools.count():
        await _Write(store, line, seeded, life.slot, f"{life.number}.{number}").make()
    instants.phase = "closing"
    line.send("closing")
    await store.close()
    line.send("closed")


async def _find(store: MemoryStore, slot: int, first: Episode | None) -> dict[str, Any]:
    """Return what the store says of a slot's keys, while its saved cache is loaded and after that."""
    found: dict[str, Any] = {}
    for key in keys_of(slot):
        found[key] = await _value(store, key)
    if found[singles(slot)[0]] != _told(first):
        raise AssertionError(f"the first answer was {_told(first)}, then {found[singles(slot)[0]]}")
    await store.cache.wait()
    for key, before in found.items():
        if (value := await _value(store, key)) != before:
            raise AssertionError(f"{key} was {before}, and with the saved cache loaded it is {value}")
    return found


async def _value(store: MemoryStore, key: str) -> Any:
    if key.endswith("/steps"):
        return tuple(step.action for step in await store.steps.of(key.removesuffix("/steps"))) or None
    return _told(await store.episodes.get(key))


def _told(record: Episode | None) -> Any:
    """Return an episode as the ledger has it; its mark stands in it twice, far apart."""
    if record is None:
        return None
    mark = record.context["mark"]
    return (record.revision, mark if record.reflection == mark else f"torn: {mark}, {record.reflection}")


class _Write:
    """One random write, announced before and told of after."""

    def __init__(self, store: MemoryStore, line: Line, seeded: random.Random, slot: int, mark: str) -> None:
        self._store, self._line, self._random, self._slot, self._mark = store, line, seeded, slot, mark
        self._filler = "x" * seeded.choice([10, 1000, 20_000])

    async def make(self) -> None:
        action = self._random.choice(
            [self._put, self._update, self._append, self._delete, self._pair, self._pair, self._shared]
        )
        id_ = self._random.choice(singles(self._slot))
        known = await self._store.episodes.get(id_)
        if action == self._pair:
            await self._pair(*self._random.choice(pairs(self._slot)))
        elif action == self._shared:
            await self._shared(self._random.choice(SHARED))
        elif known is None:
            await self._put(id_, None)
        else:
            await action(id_, known)

    async def _put(self, id_: str, known: Episode | None) -> None:
        will = {id_: (1 if known is None else known.revision + 1, self._mark)}
        self._line.send("may", will)
        stored = await self._store.episodes.put(self._episode(id_))
        self._line.send("did", will, [("episode", id_, stored.revision, stored.position)])

    async def _update(self, id_: str, known: Episode) -> None:
        will = {id_: (known.revision + 1, self._mark)}
        self._line.send("may", will)
        made = self._episode(id_)
        stored = await self._store.episodes.update(
            id_, expected_revision=known.revision, context=made.context, reflection=made.reflection
        )
        self._line.send("did", will, [("episode", id_, stored.revision, stored.position)])

    async def _append(self, id_: str, known: Episode) -> None:
        before = tuple(step.action for step in await self._store.steps.of(id_))
        will = {f"{id_}/steps": (*before, self._mark, f"{self._mark}+")}
        self._line.send("may", will)
        steps = [Step(id=f"{id_} {mark}", action=mark, result=self._filler) for mark in (self._mark, f"{self._mark}+")]
        stored = await self._store.steps.append(id_, steps)
        self._line.send("did", will, [("step", step.id, 1, step.position) for step in stored])

    async def _delete(self, id_: str, known: Episode) -> None:
        will = {id_: None, f"{id_}/steps": None}
        self._line.send("may", will)
        await self._store.episodes.delete(id_)
        self._line.send("did", will, [])

    async def _pair(self, one: str, other: str) -> None:
        """Write two episodes and a step in one transaction, or take both away."""
        known = await self._store.episodes.get_many([one, other])
        steps = tuple(step.action for step in await self._store.steps.of(other))
        revision = [1 if record is None else record.revision + 1 for record in known]
        gone = known[0] is not None and self._random.random() < 0.2
        will: dict[str, Any] = {one: (revision[0], self._mark), other: (revision[1] + 1, self._mark)}
        will |= {f"{other}/steps": (*steps, self._mark)}
        if gone:
            will = dict.fromkeys([one, other, f"{other}/steps"])
        self._line.send("may", will)
        async with self._store.transaction() as tx:
            if gone:
                await tx.episodes.delete(one)
                await tx.episodes.delete(other)
            else:
                await tx.episodes.put_many([self._episode(one), self._episode(other)])
                await tx.episodes.update(other, status="completed")
                await tx.steps.append(other, Step(id=f"{other} {self._mark}", action=self._mark))
        logged = [] if gone else [("episode", other, revision[1] + 1, tx.position)]
        self._line.send("did", will, logged)

    async def _shared(self, id_: str) -> None:
        """Raise a record that everybody raises; the ledger of it is the log."""
        known = await self._store.episodes.get(id_)
        try:
            if known is None:
                stored = await self._store.episodes.put(self._episode(id_), idempotency_key=f"{id_} {self._mark}")
            else:
                stored = await self._store.episodes.update(id_, expected_revision=known.revision, reflection=self._mark)
        except ConflictError:
            return  # somebody else was first
        self._line.send("did", {}, [("episode", id_, stored.revision, stored.position)])

    def _episode(self, id_: str) -> Episode:
        return Episode(
            id=id_,
            task_type="testing",
            domain="web",
            context={"mark": self._mark, "filler": self._filler},
            reflection=self._mark,
        )
