"""What clients of a process do, and what plain SQL does. Every row that is written carries a number of its own."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

from memory_store.durable.log import CommitToken
from memory_store.durable.operations import Delete, Operation, Put, Update
from memory_store.durable.outcomes import Resolve
from memory_store.durable.query import Query
from memory_store.errors import CommitUnknownError, DurableError, PositionLostError, RecordError, StoreClosedError
from memory_store.records import RECORDS
from memory_store.transaction import UnitOfWork
from tests.simulation.checker import Checker
from tests.simulation.connection import COUNT
from tests.simulation.database import CacheKey, Database, Row, Tables
from tests.simulation.loop import Clock
from tests.simulation.process import LIMITS, Process

__all__ = ["Clients", "foreign_change"]

EPISODE, STEP = RECORDS["episode"], RECORDS["step"]
NAMESPACES = ("a", "b")
IDS = ("e0", "e1", "e2")
_NUMBER = STEP.index("step_number")
# What a fault of the database, a cancelled transaction or a closed store may answer; none of it acknowledges anything.
_REFUSALS = (DurableError, RecordError, StoreClosedError)


def episode_row(id_: str, token: int) -> list[Any]:
    """Return a row of an episode."""
    return [id_, 0, 1, 1, "debugging", "web", "{}", "active", None, None, None, f"w{token}", "{}"]


def step_row(id_: str, episode: str, token: int, number: int | None = None) -> list[Any]:
    """Return a row of a step."""
    return [id_, 0, 1, 1, episode, number, "run", "ok", None, None, token, "shell"]


class Clients:
    """Makes the calls of one history.

    Args:
        database: looked at to choose what a call is about.
        clock: says when a call began.
        checker: judges the answers.
        rng: chooses.
        note: takes lines for the trace.
    """

    def __init__(
        self, database: Database, clock: Clock, checker: Checker, rng: random.Random, note: Callable[[str], None]
    ) -> None:
        self._database, self._clock, self._checker, self._rng, self._note = database, clock, checker, rng, note
        self._tokens = 0
        self.positions: list[tuple[int, int]] = []
        """Past and position of acknowledged writes."""
        self._written: CacheKey = ("episode", "a", "e0")
        """What the last write was about."""

    def token(self) -> int:
        """Return a number that no other row has."""
        self._tokens += 1
        return self._tokens

    # Reads

    def a_read(
        self, process: Process, *, again: bool = False, freshness: str | None = None
    ) -> tuple[str, Coroutine[Any, Any, None]]:
        """Return some read; `again` for one of what was written last."""
        rng, roll = self._rng, 0.0 if again else self._rng.random()
        if freshness is None and rng.random() > 0.7:
            freshness = rng.choice(("linearizable", "bounded"))
        at_least = 0
        if self.positions and rng.random() < 0.1:
            at_least = rng.choice(self.positions[-3:])[1]
        namespace = NAMESPACES[rng.random() < 0.3]
        if roll < 0.8:
            count = 1 if rng.random() < 0.8 else 3
            kind = ("episode", "step")[rng.random() < 0.45]
            ids = [IDS[int(rng.random() ** 1.5 * 3)]] if count == 1 else list(IDS)
            if again or (count == 1 and rng.random() < 0.4):  # most races are about one key
                kind, namespace, id_ = self._written
                ids = [id_]
            name = f"get {kind} {namespace}/{','.join(ids)} {freshness or ''} {at_least or ''}"
            return name, self._get(process, kind, namespace, ids, freshness, at_least)
        if roll < 0.9:
            return f"count {namespace} {freshness or ''}", self._count(process, namespace, freshness)
        steps = [row[0] for key, rows in self._database.current.tables.items() if key[0] == "step" for row in rows]
        id_ = rng.choice(steps) if steps else "s0"
        return f"get step {namespace}/{id_} past the cache", self._get_part(process, namespace, id_, at_least)

    async def _get(
        self, process: Process, kind: str, namespace: str, ids: list[str], freshness: Any, at_least: int
    ) -> None:
        # As `Collection.get`, `get_many` and `Parts.of` do, on the rows themselves.
        access, space = process.access, process.space(kind, namespace)
        reading = self._checker.begin(process, freshness, at_least, self._clock.now)
        found: dict[str, Any] = {}
        try:
            for id_ in ids:
                entry = access.cached(space, id_, freshness, at_least)
                if entry is not None:
                    found[id_] = entry[2:]
            missing = [id_ for id_ in ids if id_ not in found]
            if missing:
                found.update(zip(missing, await access.load(space, missing, at_least), strict=True))
        except PositionLostError:
            self._checker.lost(reading)
            return
        except _REFUSALS:
            return
        self._note(f"  process {process.number} got {kind} {namespace} { {i: _brief(r) for i, r in found.items()} }")
        for id_, rows in found.items():
            self._checker.read(reading, (kind, namespace, id_), rows)

    async def _get_part(self, process: Process, namespace: str, id_: str, at_least: int) -> None:
        reading = self._checker.begin(process, "linearizable", at_least, self._clock.now)
        try:
            rows = await process.access.rows_by_id("step", namespace, [id_], at_least)
        except PositionLostError:
            self._checker.lost(reading)
        except _REFUSALS:
            pass
        else:
            self._note(f"  process {process.number} got step {id_}: {id_ in rows}")
            self._checker.found(reading, "step", namespace, id_, rows.get(id_))

    async def _count(self, process: Process, namespace: str, freshness: Any) -> None:
        reading = self._checker.begin(process, freshness, 0, self._clock.now)
        try:
            total = await process.access.count(
                process.space("episode", namespace), Query(COUNT, [namespace]), freshness
            )
        except _REFUSALS:
            return
        self._note(f"  process {process.number} counted {total} in {namespace}")
        self._checker.counted(reading, namespace, total)

    # Writes

    def a_write(self, process: Process, *, again: bool = False) -> tuple[str, Coroutine[Any, Any, None]]:
        """Return some write; `again` for one of what was written last."""
        rng = self._rng
        if again and self._written[0] == "episode":
            _, namespace, id_ = self._written
            operation: Operation = Put(EPISODE, namespace, [episode_row(id_, self.token())])
            return f"put {namespace}/{id_}", self._write(process, operation)
        if rng.random() < 0.12:
            operations = [self._operation() for _ in range(rng.choice((1, 2, 3)))]
            name = f"transaction {', '.join(one[0] for one in operations)}"
            return name, self._transaction(process, [one[1] for one in operations])
        name, operation = self._operation()
        return name, self._write(process, operation)

    def an_append(self, process: Process) -> tuple[str, Coroutine[Any, Any, None]]:
        """Return an append of one or two parts to an episode that there is, where there is one."""
        episodes = [key for key in self._database.current.tables if key[0] == "episode"]
        _, namespace, id_ = self._rng.choice(episodes) if episodes else ("", "a", "e0")
        name, operation = self._append(namespace, id_, self._rng.choice((1, 2)))
        return name, self._write(process, operation)

    def _append(self, namespace: str, id_: str, many: int) -> tuple[str, Operation]:
        self._written = ("step", namespace, id_)
        tokens = [self.token() for _ in range(many)]
        rows = [step_row(f"s{token}", id_, token) for token in tokens]
        return f"append {many} to {namespace}/{id_}", Put(STEP, namespace, rows)

    def _operation(self) -> tuple[str, Operation]:
        rng, roll = self._rng, self._rng.random()
        namespace, id_ = NAMESPACES[rng.random() < 0.3], IDS[int(rng.random() ** 1.5 * 3)]
        tables = self._database.current.tables
        steps = tables.get(("step", namespace, id_), ())
        self._written = ("step" if roll >= 0.62 else "episode", namespace, id_)
        if roll < 0.35:
            return f"put {namespace}/{id_}", Put(EPISODE, namespace, [episode_row(id_, self.token())])
        if roll < 0.45:
            change = {"reflection": f"w{self.token()}"}
            return f"update {namespace}/{id_}", Update(EPISODE, namespace, id_, change, None, LIMITS)
        if roll < 0.55:
            return f"delete {namespace}/{id_}", Delete(EPISODE, namespace, id_, None)
        if roll < 0.62:
            rows = [episode_row(one, self.token()) for one in IDS]
            return f"put all of {namespace}", Put(EPISODE, namespace, rows)
        if roll < 0.82 or not steps:
            return self._append(namespace, id_, rng.choice((1, 1, 2, 3)))  # three are more than the publish limit
        row = rng.choice(steps)
        if roll < 0.9:
            return f"delete step {namespace}/{row[0]}", Delete(STEP, namespace, row[0], None)
        if roll < 0.95:
            other = rng.choice(IDS)
            return f"move {row[0]} to {other}", Put(STEP, namespace, [step_row(row[0], other, self.token())])
        return f"put step {namespace}/{row[0]}", Put(
            STEP, namespace, [step_row(row[0], id_, self.token(), row[_NUMBER])]
        )

    async def _write(self, process: Process, operation: Operation) -> None:
        try:
            written = await process.access.write(operation)
        except CommitUnknownError as error:
            await self._resolve(process, error.token)
            return
        except _REFUSALS as error:
            self._note(f"  process {process.number} was refused: {type(error).__name__}")
            return
        self._acknowledge(process, written.position)

    async def _transaction(self, process: Process, operations: list[Operation]) -> None:
        # As `Namespace.transaction` does.
        try:
            process.access.require_writable()
            work = UnitOfWork(await process.writer.exclusive(), process.access.dialect, LIMITS, 5.0)
            await work.begin()
            try:
                for operation in operations:
                    with contextlib.suppress(RecordError):  # it alone is undone
                        await work.write(operation)
                    await asyncio.sleep(0)
            except BaseException:
                await work.roll_back()
                raise
            await work.commit()
        except _REFUSALS as error:
            self._note(f"  process {process.number} was refused: {type(error).__name__}")
            return
        self._acknowledge(process, work.position)

    async def _resolve(self, process: Process, token: str) -> None:
        """Ask what became of a commit, as `MemoryStore.resolve` does."""
        self._note(f"  process {process.number} does not know what became of {token}")
        parsed = CommitToken.parse(token)
        try:
            happened = (await process.access.write(Resolve(parsed))).result
        except _REFUSALS:
            return
        self._note(f"  process {process.number} was told that {token} {'happened' if happened else 'did not happen'}")
        self._checker.resolved(parsed, happened)

    def _acknowledge(self, process: Process, position: int) -> None:
        self._note(f"  process {process.number} was told of a commit at {position}")
        if position and (past := self._checker.acknowledged(process, position)) is not None:
            self.positions.append((past, position))


def _brief(rows: Any) -> list[Any]:
    return [row[-2] for row in rows]


def foreign_change(
    rng: random.Random, token: Callable[[], int]
) -> Callable[[Tables], list[tuple[str, str, str | None, str | None]]]:
    """Return a change as plain SQL makes it: it changes the tables and returns what the triggers log."""
    namespace, id_, roll = NAMESPACES[rng.random() < 0.3], IDS[int(rng.random() * 3)], rng.random()
    episode: CacheKey = ("episode", namespace, id_)
    steps: CacheKey = ("step", namespace, id_)

    def change(tables: Tables) -> list[tuple[str, str, str | None, str | None]]:
        if roll < 0.45 or episode not in tables:
            tables[episode] = (tuple(episode_row(id_, token())),)
            return [("episode", namespace, id_, None)]
        if roll < 0.6:
            rows: tuple[Row, ...] = tables.pop(steps, ())
            del tables[episode]
            return [*(("step", namespace, row[0], id_) for row in rows), ("episode", namespace, id_, None)]
        if roll < 0.75:
            old, one = tables.get(steps, ()), token()
            number = max((row[_NUMBER] for row in old), default=0) + 1
            tables[steps] = (*old, tuple(step_row(f"s{one}", id_, one, number)))
            return [("step", namespace, f"s{one}", id_)]
        if roll < 0.85:  # a range: all steps of an episode
            return [("step", namespace, None, id_)] if tables.pop(steps, None) else []
        # A range: everything of a kind in a namespace.
        kinds = ("step", "episode") if roll < 0.93 else ("step",)
        for key in [key for key in tables if key[0] in kinds and key[1] == namespace]:
            del tables[key]
        return [(kind, namespace, None, None) for kind in kinds]

    return change
