"""The durable tier on a PostgreSQL server: one pool, lanes over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from sqlalchemy import Dialect

from memory_store.config import Settings
from memory_store.durable import schema
from memory_store.durable.breaker import Breaker
from memory_store.durable.changes import HeadState
from memory_store.durable.checkpoint import Checkpointer
from memory_store.durable.commits import LogWriter
from memory_store.durable.dialects.postgresql import Connection, connect
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.durable.hints import Hints
from memory_store.durable.lane import Lane
from memory_store.durable.log import Listener, read_heads
from memory_store.durable.pool import Pool
from memory_store.durable.pool_lanes import PoolLane
from memory_store.durable.probe import Probe
from memory_store.durable.reader import Reader
from memory_store.durable.statements import server_dialect
from memory_store.durable.writer import Writer
from memory_store.errors import ConfigurationError
from memory_store.telemetry import Telemetry

__all__ = ["ServerTier"]

# Texts the driver keeps prepared on each connection: those of all kinds and sizes are some hundred.
_PREPARED = 1024


class ServerTier:
    """Lanes over one pool, and what writes and reads through them.

    Commits of different shards run at once, reads of different shards as well; lists leave connections for both.

    Args:
        target: the database.
        settings: of the store.
        telemetry: records batches as spans; None records none.
    """

    heads: list[HeadState]
    scan: Lane
    probe: Probe | None = None
    checkpointer: Checkpointer | None = None
    replica: Lane | None = None

    def __init__(self, target: ServerTarget, settings: Settings, telemetry: Telemetry | None) -> None:
        self.target, self._settings, self._telemetry = target, settings, telemetry
        self.dialect: Dialect = server_dialect()

    async def open(self) -> None:
        """Connect, create or upgrade the schema as the settings say.

        Raises:
            DurableUnavailableError: the server cannot be reached.
            SchemaMismatchError: the database is newer, or older and `migrate="check"`, or no memory store.
        """
        settings = self._settings
        pool = self._pool_of(self.target)
        self.pool, self._lane = pool, PoolLane(pool, settings.pool_size)
        self.scan = self._scan = PoolLane(pool, max(1, settings.pool_size // 2))
        self._replicas: tuple[PoolLane, Pool] | None = None
        if settings.replica_url is not None:
            copies = self._pool_of(_replica_target(settings.replica_url))
            self._replicas = PoolLane(copies, settings.pool_size), copies
            self.replica = self._replicas[0]
        try:
            found = await self._lane.run(schema.read_revision)
            if found != schema.HEAD_REVISION:
                if settings.migrate == "check":
                    schema.check(found, self.target)
                # In a thread: Alembic's import and the DDL would block the event loop.
                await asyncio.to_thread(schema.upgrade, self.target, settings.timeout_s, heads=settings.heads)
            self.heads = await self._lane.run(read_heads)
            # A pooler gives no connection to keep, so nobody could listen.
            self._hints = (
                Hints(partial(self._connect, self.target), self._lane)
                if settings.hints and not settings.pooler
                else None
            )
        except BaseException:
            await pool.close()
            raise

    def _pool_of(self, target: ServerTarget) -> Pool:
        settings = self._settings
        breaker = Breaker(settings.breaker_failures, settings.breaker_pause_s)
        connect = partial(self._connect, target)
        return Pool(connect, settings.pool_size, settings.pool_timeout_s, settings.pool_lifetime_s, breaker)

    async def _connect(self, target: ServerTarget) -> Connection:
        settings = self._settings
        # A statement's plan is kept. Made while a table is small, it would be a scan, and stay one until the server's
        # next ANALYZE, though the table has grown: 25,000 steps took 35 s instead of 4. Every index has the namespace
        # first, so there is always one to go by.
        limits = {
            "enable_seqscan": "off",
            # Statements here take milliseconds, and to compile one takes 60 of them, each time.
            "jit": "off",
            "statement_timeout": _ms(settings.statement_timeout_s),
            "lock_timeout": _ms(settings.timeout_s),
            "idle_in_transaction_session_timeout": _ms(settings.transaction_timeout_s + 5),
        }
        # Behind a pooler neither a session's settings nor its prepared statements are there for the next transaction.
        driver = await connect(
            target.dsn,
            settings.timeout_s,
            {} if settings.pooler else limits,
            # The server gives up first, unless nobody is there.
            command_timeout=settings.statement_timeout_s + min(settings.statement_timeout_s, 5),
            statement_cache_size=0 if settings.pooler else _PREPARED,
            max_cached_statement_lifetime=0,
        )
        connection = Connection(driver, limits if settings.pooler else None)
        try:
            await connection.runner.call(Connection.ask_rights, connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def writer(self, listener: Listener, head: HeadState) -> Writer:
        """Return what writes one shard."""
        log = LogWriter(self._settings.actor, head.epoch)
        return Writer(self._lane, _Told(self._hints, head.shard, listener), log, listener, self._telemetry)

    def reader(self, listener: Listener) -> Reader:
        """Return what reads one shard."""
        return Reader(self._lane, listener, self._telemetry, self.replica)

    def begin_hints(self, hinted: Callable[[int, int], None]) -> None:
        """Listen for what other processes commit."""
        if self._hints is not None:
            self._hints.listen(hinted)

    async def close(self) -> None:
        """Finish what runs and close every connection."""
        if self._hints is not None:
            await self._hints.close()
        await self._lane.close()
        await self._scan.close()
        if self._replicas is not None:
            for each in self._replicas:
                await each.close()
        await self.pool.close()


def _replica_target(url: str) -> ServerTarget:
    target = parse_url(url)
    if not isinstance(target, ServerTarget):
        raise ConfigurationError("replica_url names no database on a server")
    return target


class _Told:
    """The server guards its own transactions; other processes are told of them."""

    def __init__(self, hints: Hints | None, shard: int, listener: Listener) -> None:
        self._hints, self._shard, self._listener = hints, shard, listener

    def writing(self) -> AbstractContextManager[None]:
        """Hold nothing."""
        return nullcontext()

    def after_commit(self, connection: Any, changes: int) -> None:
        """Tell others. A position they have seen already tells them nothing: it may be too low, not too high."""
        if self._hints is not None:
            self._hints.committed(self._shard, self._listener.head.position + 1)


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
