"""Unit of work: several writes, one commit.

It has the writer's lane to itself from its first statement to its end, so it reads its own writes and nobody else
writes in between; readers go on. Whatever happens to the task that runs it, the transaction is ended on the
connection's own thread and the lane handed on by a callback, never by the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from sqlalchemy import Dialect

from memory_store.cache.entries import Space
from memory_store.clock import now_us
from memory_store.codec import Row
from memory_store.config import Freshness, Limits, check_freshness
from memory_store.durable.batches import run_in_savepoint
from memory_store.durable.changes import HeadState
from memory_store.durable.commits import rollback
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import translate
from memory_store.durable.documents import record_guarded
from memory_store.durable.lane import Pinned
from memory_store.durable.log import Commit, CommitToken
from memory_store.durable.operations import Context, Operation
from memory_store.durable.query import Query
from memory_store.durable.reader import Key, read_by_id, read_keys
from memory_store.durable.writer import Exclusive, Written
from memory_store.errors import (
    CommitUnknownError,
    ConfigurationError,
    DurableTimeoutError,
    DurableUnavailableError,
    MemoryStoreError,
)

__all__ = ["UnitOfWork"]


class UnitOfWork:
    """One open transaction.

    Args:
        exclusive: the writer's lane.
        dialect: in which users' expressions are compiled.
        limits: the largest values accepted.
        timeout_s: seconds until it is rolled back, since it keeps every other writer waiting.
    """

    def __init__(self, exclusive: Exclusive, dialect: Dialect, limits: Limits, timeout_s: float) -> None:
        self.dialect, self.limits = dialect, limits
        self.asks_head_of: int | None = None
        self._exclusive, self._timeout_s = exclusive, timeout_s
        self.position = 0
        """Of the commit, once it has been made and if it changed anything."""
        self._context = Context.new(now_us(), 0)
        self._held = ExitStack()
        self._state = "open"
        self._watch: asyncio.TimerHandle | None = None

    @property
    def lane(self) -> Pinned:
        """The lane its reads and writes run on."""
        return self._exclusive.lane

    async def begin(self) -> None:
        """Begin; on failure or cancellation the lane is handed back.

        Raises:
            DurableTimeoutError: another program keeps the database locked.
        """
        begun = self.lane.submit(self._begin)
        try:
            await asyncio.shield(begun)
        except BaseException as error:
            self._state = "ended"
            self._end(self.lane.submit(self._roll_back))
            raise translate(error) from error
        self._watch = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)

    async def write(self, operation: Operation) -> Written:
        """Run an operation; if it fails, it alone is undone and the transaction goes on. Its position is to come."""
        self._require_open()
        outcome = await self.lane.run(lambda connection: run_in_savepoint(connection, operation, self._context))
        if isinstance(outcome, BaseException):
            raise outcome
        return Written(outcome, 0)

    def cached(self, space: Space, id_: str, freshness: Freshness | None = None, at_least: int | None = None) -> None:
        """Nothing: the cache does not know what is not committed."""
        check_freshness(freshness)

    async def load(
        self, space: Space, ids: Sequence[str], freshness: Freshness | None = None, at_least: int | None = None
    ) -> list[list[Row]]:
        """Read keys as the transaction sees them; nothing is missed, nobody else can write."""
        self._require_open()
        keys = [Key(space.kind, space.namespace, id_) for id_ in ids]
        return await self.lane.run(lambda connection: read_keys(connection, keys))

    async def count(self, reads: Space, query: Query, freshness: Freshness | None = None) -> int:
        """Run a query that counts, as the transaction sees the rows."""
        return int((await self.query(query))[0][0])

    async def query(self, query: Query) -> list[tuple[Any, ...]]:
        """Run a query as the transaction sees the rows."""
        self._require_open()
        return list(await self.lane.run(lambda connection: connection.execute(*query).fetchall()))

    async def changes_since(self, known: HeadState | None) -> None:
        """Nothing: what the transaction changed is in the log once it is committed."""
        self._require_open()

    async def rows_by_id(
        self, kind: str, namespace: str, ids: list[str], at_least: int | None = None
    ) -> dict[str, Row]:
        """Read rows by id as the transaction sees them."""
        self._require_open()
        return await self.lane.run(lambda connection: read_by_id(connection, kind, namespace, ids))

    async def commit(self) -> None:
        """Commit and publish. If the caller is cancelled meanwhile, both still happen.

        Raises:
            CommitUnknownError: syncing failed.
            DurableTimeoutError: it was open too long and has been rolled back.
        """
        self._require_open()
        self._state = "ended"
        done = self.lane.submit(self._commit)
        self._end(done)
        try:
            await asyncio.shield(done)
        except CommitUnknownError as error:
            if not self.lane.settles:
                raise
            await self._settle(error)
        except Exception as error:
            raise translate(error) from error

    async def _settle(self, doubt: CommitUnknownError) -> None:
        """Find out on another connection whether it was committed.

        Raises:
            CommitUnknownError: that cannot be found out now.
            DurableUnavailableError: it was not; nothing was written.
        """
        writer = self._exclusive.writer
        try:
            happened = (await writer.submit(writer.resolving(doubt.token))).result
        except MemoryStoreError:
            raise doubt from None
        if not happened:
            raise DurableUnavailableError("the connection broke before the commit; nothing was written") from doubt
        self.position = CommitToken.parse(doubt.token).position

    async def roll_back(self) -> None:
        """Undo everything; safe to call when it has ended already."""
        if self._state == "open":
            self._state = "ended"
            done = self.lane.submit(self._roll_back)
            self._end(done)
            await asyncio.shield(done)

    def _require_open(self) -> None:
        if self._state == "expired":
            raise DurableTimeoutError(f"the transaction was open for {self._timeout_s:g} s and has been rolled back")
        if self._state != "open":
            raise ConfigurationError("the transaction has ended")

    def _expire(self) -> None:
        if self._state == "open":
            self._state = "expired"
            self._end(self.lane.submit(self._roll_back))

    def _end(self, done: asyncio.Future[Any]) -> None:
        if self._watch is not None:
            self._watch.cancel()
        done.add_done_callback(self._ended)

    def _ended(self, done: asyncio.Future[Any]) -> None:
        error = done.exception()
        if isinstance(error, CommitUnknownError):
            self._exclusive.doubt()
        if error is None and isinstance(commit := done.result(), Commit):
            self.position = commit.position
            self._exclusive.publish(commit)
        self._exclusive.release()

    def _begin(self, connection: Connection) -> None:
        self._held.enter_context(self._exclusive.guard.writing())
        self._opened = self._exclusive.log.begin(connection, self._exclusive.known)
        self._context = self._context._replace(position=self._opened.head.position + 1)

    def _commit(self, connection: Connection) -> Commit:
        with self._held:
            commit = self._exclusive.log.commit(connection, self._context, self._opened, record_guarded)
        if commit.changes:
            self._exclusive.guard.after_commit(connection, len(commit.changes))
        return commit

    def _roll_back(self, connection: Connection) -> None:
        with self._held:
            rollback(connection)
