"""The durable tier of a simulated process: lanes of one connection or of several, and what only a server can."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, TypeVar

from memory_store.durable.changes import HeadState
from memory_store.durable.commits import LogWriter
from memory_store.durable.dialects import ConnectionLostError
from memory_store.durable.lane import Lane
from memory_store.durable.log import Listener, Logged
from memory_store.durable.probe import Probe
from memory_store.durable.reader import Reader
from memory_store.durable.statements import dialect
from memory_store.durable.writer import Writer
from memory_store.errors import ConstraintError
from memory_store.records import RECORDS
from tests.simulation.connection import Connection

__all__ = ["ManyLanes", "ServerConnection", "Tier"]

T = TypeVar("T")


class ServerConnection(Connection):
    """A connection that can insert and commit in one statement, as that to a server can."""

    def insert_and_commit(
        self,
        kind: str,
        rows: Sequence[Sequence[Any]],
        head: HeadState,
        nonce: int,
        actor: str,
        at: int,
        *_: object,
    ) -> bool:
        """Insert new rows behind a head and commit; see `dialects/postgresql.py`."""
        self.database.tick(self, "insert and commit")
        if self.database.current.head != head or self.database.next_position() != head.position + 1:
            return False
        self.begin_immediate(())
        self._head = head._replace(position=head.position + 1, nonce=nonce)
        spec = RECORDS[kind]
        for namespace, *row in rows:
            if not self.insert(spec, (namespace, *row)).rowcount:
                self.roll_back(())
                raise ConstraintError("a row of that key exists")
            self._log.append(Logged(head.position + 1, nonce, kind, namespace, row[0], None))
        try:
            self.commit(())
        except sqlite3.OperationalError as error:
            raise ConnectionLostError("the reply was lost") from error
        return True


class ManyLanes:
    """A lane over several connections, as that over a server's pool: what was asked for first may end last.

    Args:
        lanes: a lane for each connection.
        rng: chooses the one a function waits for.
    """

    def __init__(self, lanes: list[Lane], rng: random.Random) -> None:
        self._lanes, self._rng = lanes, rng

    def submit(self, function: Callable[[Any], T]) -> asyncio.Future[T]:
        return self._rng.choice(self._lanes).submit(function)

    def post(self, function: Callable[[Any], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        self._rng.choice(self._lanes).post(function, done)

    async def run(self, function: Callable[[Any], T]) -> T:
        return await self._rng.choice(self._lanes).run(function)

    def pinned(self) -> Lane:
        return self._rng.choice(self._lanes).pinned()

    def unpin(self) -> None:
        """Do nothing: it keeps no connection."""


class Tier:
    """The durable tier of one process, as `EmbeddedTier` makes it, or `ServerTier`, which has no probe.

    Args:
        head: the newest commit when it was opened.
        lanes: by what runs there.
        probe: looks at the head at once; None as on a server.
        actor: author of its commits.
    """

    checkpointer = replica = None

    def __init__(self, head: HeadState, lanes: dict[str, Lane], probe: Probe | None, actor: str) -> None:
        self.target: Any = None
        self.heads, self.scan, self.probe, self.dialect = [head], lanes["scan"], probe, dialect()
        self._lanes, self._actor = lanes, actor

    async def open(self) -> None:
        """Do nothing: it is open."""

    def begin_hints(self, hinted: Callable[[int, int], None]) -> None:
        """Do nothing: the environment calls what takes them, truly or falsely."""

    def writer(self, listener: Listener, head: HeadState) -> Writer:
        guard: Any = SimpleNamespace(writing=nullcontext, after_commit=lambda connection, changes: None)
        return Writer(self._lanes["write"], guard, LogWriter(self._actor, head.epoch), listener)

    def reader(self, listener: Listener) -> Reader:
        return Reader(self._lanes["read"], listener)

    async def close(self) -> None:
        """Do nothing: the process ends."""
