"""The durable tier of one database: its lanes, its writer and its reader, opened and closed together."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack

from sqlalchemy.ext.asyncio import AsyncEngine

from memory_store.config import Settings
from memory_store.durable import schema
from memory_store.durable.changes import HeadState
from memory_store.durable.checkpoint import Checkpointer, sync_log
from memory_store.durable.commits import LogWriter
from memory_store.durable.dialects.sqlite import leave_log_to_us
from memory_store.durable.engine import Target, make_engine
from memory_store.durable.lane import Lane
from memory_store.durable.lock import FileLock
from memory_store.durable.log import Listener, read_head
from memory_store.durable.probe import Probe
from memory_store.durable.reader import Reader
from memory_store.durable.writer import Writer
from memory_store.telemetry import Telemetry

__all__ = ["Durable"]


class Durable:
    """Three kept connections of one engine, each with its own thread.

    `writer` commits, `reader` answers point reads, `scan` runs everything that may take long (lists, counts, rebuilds),
    so that a long scan never stands in front of a point read. More readers measured slower: they fight for the
    interpreter.
    """

    target: Target
    head: HeadState
    """The newest commit when the store was opened."""

    writer: Writer
    reader: Reader
    scan: Lane
    probe: Probe
    """Reads the head on the event loop's own thread."""

    def __init__(
        self, target: Target, settings: Settings, listener: Listener, telemetry: Telemetry | None = None
    ) -> None:
        self.target, self._settings, self._listener, self._telemetry = target, settings, listener, telemetry
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
        await asyncio.to_thread(schema.upgrade, self.target, self._settings.timeout_s)

    async def _start(self, engine: AsyncEngine, resources: AsyncExitStack) -> str | None:
        """Open the lanes if the database is at this library's revision; return the revision it is at."""
        async with AsyncExitStack() as opened:
            lanes = []
            for _ in range(3):
                lane = await Lane.open(engine)
                opened.push_async_callback(lane.close)
                lanes.append(lane)
            write, read, scan = lanes
            if not self.target.memory:
                await write.run(lambda _: sync_log(self.target.path))
            found, head = await write.run(_inspect)
            if head is None:
                return found
            self.head = head
            await write.run(leave_log_to_us)
            lock = FileLock(schema.lock_path(self.target.path), self._settings.timeout_s)
            opened.callback(lock.close)
            for lane in (read, scan):
                await lane.run(read_head)  # touches the file, which a private store is about to unlink
            checkpointer = Checkpointer(self.target.path, lock, self._telemetry)
            self.checkpointer = checkpointer
            log = LogWriter(self._settings.actor, head.epoch)
            self.writer = Writer(write, lock, checkpointer, log, self._listener, self._telemetry)
            self.reader, self.scan = Reader(read, self._listener, self._telemetry), scan
            self.probe = Probe(self.target)
            opened.callback(self.probe.close)
            resources.push_async_callback(opened.pop_all().aclose)
            return found

    async def close(self) -> None:
        """Finish what is queued and close every connection."""
        try:
            await self.writer.drain()
        finally:
            await self._resources.aclose()


def _inspect(connection: sqlite3.Connection) -> tuple[str | None, HeadState | None]:
    found = schema.read_revision(connection)
    return found, read_head(connection) if found == schema.HEAD_REVISION else None
