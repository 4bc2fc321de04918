"""The two ends of a copy: one connection each, on which functions are run one after another.

They are no stores: nothing is cached, nothing runs beside them, and the target is not to be opened as one yet.
"""

# ruff: noqa: S608 - statements are made of our own names

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from memory_store.config import Settings
from memory_store.durable import schema
from memory_store.durable.changes import COPY_LOCK, HEADS_LOCK
from memory_store.durable.checkpoint import Checkpointer
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import translate
from memory_store.durable.dialects.sqlite import connection_pragmas, leave_log_to_us
from memory_store.durable.engine import ServerTarget, Target
from memory_store.durable.lock import FileLock
from memory_store.durable.runner import settle
from memory_store.durable.streams import STREAMS
from memory_store.errors import ConfigurationError, MemoryStoreError
from memory_store.waiting import wait_out

__all__ = ["End", "in_thread", "opened_source", "opened_target"]

T = TypeVar("T")


class End(Protocol):
    """One end of a copy."""

    async def run(self, function: Callable[[Any], T]) -> T:
        """Return `function(connection)`, errors translated."""
        ...

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Hold what a write transaction must hold; in the function that `run` runs."""
        ...

    def begin(self, connection: Connection, *, all_heads: bool, durable: bool) -> None:
        """Begin a write transaction that logs for itself.

        Args:
            connection: where.
            all_heads: keep every other writer out, of whichever head.
            durable: whether the commit is to be on the disk when it returns. If not, a crash may take it back, together
                with all that came after it.
        """
        ...

    def after_commit(self, connection: Any, rows: int) -> None:
        """Look after the file."""
        ...

    def begin_reading(self, connection: Connection) -> None:
        """Begin the transaction in which everything is read."""
        ...

    def analyse(self, connection: Connection) -> None:
        """Let the database know how its new rows are spread, on which its plans depend."""
        ...


class _FileEnd:
    """A SQLite file: a connection with a thread of its own."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memory_store-copy")
        self._path, self._timeout_s = path, timeout_s
        self._connection: sqlite3.Connection | None = None
        self._checkpointer: Checkpointer | None = None

    async def run(self, function: Callable[[Any], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(self._connection))
        except Exception as error:
            raise translate(error) from error

    async def open_to_read(self) -> None:
        def connect(_: Any) -> None:
            uri = f"{Path(self._path).as_uri()}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True, timeout=self._timeout_s, isolation_level=None)

        await self.run(connect)

    async def open_to_write(self, lock: FileLock) -> None:
        def connect(_: Any) -> None:
            self._connection = sqlite3.connect(self._path, timeout=self._timeout_s, isolation_level=None)
            self._connection.executescript(connection_pragmas(self._timeout_s, durable=True))
            leave_log_to_us(self._connection)
            self._checkpointer = Checkpointer(self._path, lock)

        await self.run(connect)

    @contextmanager
    def writing(self) -> Iterator[None]:
        assert self._checkpointer is not None
        with self._checkpointer.writing():
            yield

    def begin(self, connection: Connection, *, all_heads: bool, durable: bool) -> None:
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE head SET writing = 1")

    def after_commit(self, connection: Any, rows: int) -> None:
        assert self._checkpointer is not None
        self._checkpointer.after_commit(connection, rows)

    def begin_reading(self, connection: Connection) -> None:
        connection.execute("BEGIN")

    def analyse(self, connection: Connection) -> None:
        """Do nothing: the plans of our statements do not depend on statistics here."""

    async def close(self) -> None:
        """Close the connection when what runs has ended; what it had begun is undone."""
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        cancelled = await wait_out(closing)
        self._thread.shutdown(wait=False)
        if cancelled:
            raise asyncio.CancelledError
        closing.result()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _ServerEnd:
    """A database on a server: a connection of the event loop."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._running: asyncio.Future[Any] | None = None

    async def run(self, function: Callable[[Any], T]) -> T:
        if self._running is not None and not self._running.done():  # its caller was cancelled
            await asyncio.wait({self._running})
        self._running = future = asyncio.get_running_loop().create_future()
        self._connection.runner.run(function, self._connection, partial(settle, future))
        result: T = await asyncio.shield(future)
        return result

    @contextmanager
    def writing(self) -> Iterator[None]:
        yield

    def begin(self, connection: Connection, *, all_heads: bool, durable: bool) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if all_heads:
            connection.execute(f"SELECT pg_advisory_xact_lock({HEADS_LOCK})")
        # The head before the tables, as everyone locks them. The settings are for this transaction only: behind a
        # pooler the session is also others'.
        wanted = "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' END" if durable else "'off'"
        connection.execute(
            "SELECT set_config('memory_store.writing', 'on', true), set_config('synchronous_commit', "
            f"coalesce({wanted}, current_setting('synchronous_commit')), true) "
            f"FROM head WHERE shard = 0 OR {all_heads} ORDER BY shard FOR UPDATE"
        )

    def begin_reading(self, connection: Connection) -> None:
        connection.execute("BEGIN")
        # Of a role that may see one namespace, an error, and no copy of that namespace alone.
        connection.execute("SET LOCAL row_security = off")

    def analyse(self, connection: Connection) -> None:
        connection.execute(f"ANALYZE {', '.join(stream.table.name for stream in STREAMS)}, changes")

    def after_commit(self, connection: Any, rows: int) -> None:
        pass

    async def close(self) -> None:
        """Close the connection; what it is in the middle of is undone by the server."""
        connection, running = self._connection, self._running
        try:
            if running is not None and not running.done():
                connection.driver.terminate()
                if await wait_out(running):
                    raise asyncio.CancelledError
                running.result()
            elif not connection.driver.is_closed():
                await connection.driver.close(timeout=1)
        except (OSError, TimeoutError, MemoryStoreError):
            pass  # it is gone either way
        finally:
            connection.close()


@asynccontextmanager
async def opened_source(target: Target | ServerTarget, settings: Settings) -> AsyncIterator[End]:
    """Open the end that is read, in a transaction that sees one commit of each head for as long as it lasts."""
    if isinstance(target, ServerTarget):
        source: Any = await _connected(target, settings)
    else:
        source = _FileEnd(target.path, settings.timeout_s)
    try:
        if isinstance(source, _FileEnd):
            await source.open_to_read()
        yield source
    finally:
        await source.close()


@asynccontextmanager
async def opened_target(target: Target | ServerTarget, settings: Settings) -> AsyncIterator[End]:
    """Open the end that is written, if no other copy writes it.

    Raises:
        ConfigurationError: another one does.
    """
    if isinstance(target, ServerTarget):
        async with _server_alone(target, settings):
            server = await _connected(target, settings)
            try:
                yield server
            finally:
                await server.close()
        return
    with _file_alone(target):
        lock = FileLock(schema.lock_path(target.path), settings.timeout_s)
        file = _FileEnd(target.path, settings.timeout_s)
        try:
            await file.open_to_write(lock)
            yield file
        finally:
            await file.close()
            lock.close()


@contextmanager
def _file_alone(target: Target) -> Iterator[None]:
    """Hold a lock file beside the database. It stays: whoever removed it might remove another copy's."""
    lock = FileLock(f"{target.path}-copy", 0)
    try:
        with lock.exclusive_if_free() as held:
            if not held:
                raise _busy(target)
            yield
    finally:
        lock.close()


@asynccontextmanager
async def _server_alone(target: ServerTarget, settings: Settings) -> AsyncIterator[None]:
    """Hold a lock in a transaction of its own, which a pooler in transaction mode keeps on one session."""
    guard = await _connected(target, settings)
    try:

        def lock(connection: Connection) -> bool:
            connection.execute("BEGIN IMMEDIATE")
            return bool(connection.execute(f"SELECT pg_try_advisory_xact_lock({COPY_LOCK})").fetchone()[0])

        if not await guard.run(lock):
            raise _busy(target)
        yield
    finally:
        await guard.close()


def _busy(target: Target | ServerTarget) -> ConfigurationError:
    return ConfigurationError(f"another copy into {target.name} is running; nothing was touched")


async def _connected(target: ServerTarget, settings: Settings) -> _ServerEnd:
    from memory_store.durable.dialects.postgresql import Connection as ServerConnection
    from memory_store.durable.dialects.postgresql import connect

    limits = {
        "lock_timeout": str(int(settings.timeout_s * 1000)),
        # Each end waits for the other, for as long as that takes.
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }
    pooled = settings.pooler
    driver = await connect(
        target.dsn, settings.timeout_s, {} if pooled else limits, **({"statement_cache_size": 0} if pooled else {})
    )
    return _ServerEnd(ServerConnection(driver, limits if pooled else None))


async def in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread and return its result; a cancelled caller waits for its end, since it goes on."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    if await wait_out(running):
        raise asyncio.CancelledError
    return running.result()
