"""A lane: where whole functions run, each on a connection, one after another or as many as there are connections.

For SQLite that is one kept connection of the engine and its own thread. SQLAlchemy's async engine makes one thread hop
(30 to 140 µs) for every driver call; a lane makes one for a whole batch. `ThreadLane` alone reaches into aiosqlite:
`Connection._tx` is the queue its thread reads, `_conn` the sqlite3 connection; `tests/unit/test_lane.py` pins both
against the installed version. For a server, see `pool.py`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import aiosqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_store.durable.dialects.sqlite import translate

__all__ = ["Lane", "Pinned", "ThreadLane"]

T = TypeVar("T")


class Pinned(Protocol):
    """Runs functions one after another on the same connection, until `unpin`."""

    settles: bool
    """Whether an unknown outcome can be found out at once, on another connection."""

    def submit(self, function: Callable[[Any], T]) -> asyncio.Future[T]:
        """Queue `function(connection)` and return its future.

        The function runs to its end even when the future is cancelled; what it raises is the future's exception.
        """
        ...

    async def run(self, function: Callable[[Any], T]) -> T:
        """Run `function(connection)` and return its result, errors translated.

        A cancelled caller does not wait; the function still runs to its end.
        """
        ...

    def unpin(self) -> None:
        """Give the connection back; what is queued still runs."""
        ...


class Lane(Protocol):
    """Runs functions over a connection, whichever is free."""

    settles: bool
    """As `Pinned.settles`."""

    def submit(self, function: Callable[[Any], T]) -> asyncio.Future[T]:
        """Queue `function(connection)` and return its future; see `Pinned.submit`."""
        ...

    def post(self, function: Callable[[Any], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Queue `function(connection)`; `done(result, error)` is called on the event loop, errors translated."""
        ...

    async def run(self, function: Callable[[Any], T]) -> T:
        """Run `function(connection)` and return its result; see `Pinned.run`."""
        ...

    def pinned(self) -> Pinned:
        """Return a way to one connection, for a transaction."""
        ...


class ThreadLane:
    """Runs functions one after another on one connection's thread."""

    # A sync that failed leaves nobody to ask before the next start.
    settles = False

    def __init__(self, connection: Any, driver: aiosqlite.Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._pooled, self._driver, self._loop = connection, driver, loop
        self._sqlite = driver._conn

    @classmethod
    async def open(cls, engine: AsyncEngine) -> ThreadLane:
        """Take a connection from the engine and keep it."""
        try:
            connection = await engine.raw_connection()
        except Exception as error:
            raise translate(error) from error
        driver = connection.driver_connection
        assert isinstance(driver, aiosqlite.Connection)
        return cls(connection, driver, asyncio.get_running_loop())

    def submit(self, function: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Queue `function(connection)` and return its future.

        The function runs to its end even when the future is cancelled; what it raises is the future's exception, as the
        driver raised it.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._driver._tx.put_nowait((future, partial(function, self._sqlite)))
        return future

    def post(
        self, function: Callable[[sqlite3.Connection], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """Queue `function(connection)`; `done(result, error)` is called on the event loop, errors translated.

        As `submit`, one turn of the event loop sooner: a future would call back in the turn after it is set.
        """
        self._driver._tx.put_nowait((None, partial(self._run_and_tell, function, done)))

    def _run_and_tell(
        self, function: Callable[[sqlite3.Connection], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        result, failure = None, None
        try:
            result = function(self._sqlite)
        except BaseException as error:
            failure = translate(error)
        self._loop.call_soon_threadsafe(done, result, failure)

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function(connection)` and return its result, its driver errors translated.

        A cancelled caller does not wait; the function still runs to its end.
        """
        try:
            return await self.submit(function)
        except Exception as error:
            raise translate(error) from error

    def pinned(self) -> ThreadLane:
        """Return this lane, which has one connection anyway."""
        return self

    def unpin(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Wait for what is queued, then close the connection."""
        await self._driver.close()
        self._pooled.detach()
