"""The durable tier in a SQLite file: its lanes, opened and closed together."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack

from sqlalchemy import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_store.config import Settings
from memory_store.durable import schema
from memory_store.durable.changes import HeadState
from memory_store.durable.checkpoint import Checkpointer, sync_log
from memory_store.durable.commits import LogWriter
from memory_store.durable.dialects.sqlite import leave_log_to_us
from memory_store.durable.engine import Target, make_engine
from memory_store.durable.lane import Lane, ThreadLane
from memory_store.durable.lock import FileLock
from memory_store.durable.log import Listener, read_head
from memory_store.durable.private import make_private
from memory_store.durable.probe import Probe
from memory_store.durable.reader import Reader
from memory_store.durable.statements import dialect
from memory_store.durable.writer import Writer
from memory_store.telemetry import Telemetry

__all__ = ["EmbeddedTier"]


class EmbeddedTier:
    """Three kept connections of one engine, each with its own thread.

    One commits, one answers point reads, `scan` runs everything that may take long (lists, counts, rebuilds), so that a
    long scan never stands in front of a point read. More readers measured slower: they fight for the interpreter.

    Args:
        target: the file.
        settings: of the store.
        telemetry: records batches and checkpoints as spans; None records none.
    """

    heads: list[HeadState]
    scan: Lane
    probe: Probe | None
    checkpointer: Checkpointer | None
    replica: Lane | None = None

    def __init__(self, target: Target, settings: Settings, telemetry: Telemetry | None = None) -> None:
        self.target, self._settings, self._telemetry = target, settings, telemetry
        self.dialect: Dialect = dialect()
        self._resources = AsyncExitStack()

    async def open(self) -> None:
        """Connect, create or upgrade the schema as the settings say, and start the lanes.

        Raises:
            DurableUnavailableError: the file cannot be opened.
            SchemaMismatchError: the database is newer, or older and `migrate="check"`, or no memory store.
        """
        self.target = self.target.placed()
        async with AsyncExitStack() as resources:
            resources.callback(self.target.remove_folder)
            self.target.require_folder()
            if self.target.file_bytes() == 0:
                await self._upgrade(None)
            engine = make_engine(self.target, self._settings.timeout_s)
            resources.push_async_callback(engine.dispose)
            found = await self._start(engine, resources)
            if found != schema.HEAD_REVISION:
                await self._upgrade(found)
                await self._start(engine, resources)
            self._resources = resources.pop_all()
        # The connections keep a private file alive; without a name, it is gone however the process ends.
        self.target.remove_folder()

    async def _upgrade(self, found: str | None) -> None:
        if self._settings.migrate == "check":
            schema.check(found, self.target)
        # In a thread: DDL, Alembic's import and waiting for another process would block the event loop.
        make = make_private if self.target.memory else schema.upgrade
        await asyncio.to_thread(make, self.target, self._settings.timeout_s)

    async def _start(self, engine: AsyncEngine, resources: AsyncExitStack) -> str | None:
        """Open the lanes if the database is at this library's revision; return the revision it is at."""
        async with AsyncExitStack() as opened:
            lanes = []
            for _ in range(3):
                lane = await ThreadLane.open(engine)
                opened.push_async_callback(lane.close)
                lanes.append(lane)
            write, read, scan = lanes
            if not self.target.memory:
                await write.run(lambda _: sync_log(self.target.path))
            found, head = await write.run(_inspect)
            if head is None:
                return found
            self.heads = [head]
            await write.run(leave_log_to_us)
            lock = FileLock(schema.lock_path(self.target.path), self._settings.timeout_s)
            opened.callback(lock.close)
            for lane in (read, scan):
                await lane.run(read_head)  # touches the file, which a private store is about to unlink
            self._guard = self.checkpointer = Checkpointer(self.target.path, lock, self._telemetry)
            self._write, self._read, self.scan = write, read, scan
            self.probe = Probe(self.target)
            opened.callback(self.probe.close)
            resources.push_async_callback(opened.pop_all().aclose)
            return found

    def writer(self, listener: Listener, head: HeadState) -> Writer:
        """Return what writes the one shard."""
        log = LogWriter(self._settings.actor, head.epoch)
        return Writer(self._write, self._guard, log, listener, self._telemetry)

    def reader(self, listener: Listener) -> Reader:
        """Return what reads the one shard."""
        return Reader(self._read, listener, self._telemetry)

    def begin_hints(self, hinted: Callable[[int, int], None]) -> None:
        """Do nothing: a look costs less than a hint."""

    async def close(self) -> None:
        """Finish what is queued and close every connection."""
        await self._resources.aclose()


def _inspect(connection: sqlite3.Connection) -> tuple[str | None, HeadState | None]:
    found = schema.read_revision(connection)
    return found, read_head(connection) if found == schema.HEAD_REVISION else None
