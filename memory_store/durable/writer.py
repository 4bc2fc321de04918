"""Group commit: concurrent writes share one transaction and one sync.

No write waits for company. An idle writer commits at once; what arrives while a commit runs forms the next batch. A
batch runs as one call on the connection's thread. Only when the database refuses something halfway is it run again with
a savepoint round each write, so that the failing one fails alone (a savepoint a write measured +31 %, and nearly no
batch fails).

Cancelling a caller before its batch starts takes the write out; after that the batch runs to its end, and what it
committed is published, so a cancelled caller never leaves a stale cache or an open transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

from memory_store.clock import now_us
from memory_store.durable.changes import SHARD, Change, Commit, new_nonce
from memory_store.durable.checkpoint import Checkpointer
from memory_store.durable.dialects.sqlite import error_code, translate
from memory_store.durable.lane import Lane
from memory_store.durable.lock import FileLock
from memory_store.durable.operations import Ask, Collision, Context, Operation, Put, PutTogether, Work
from memory_store.durable.statements import head_update, log_insert
from memory_store.errors import CommitUnknownError, DurableUnavailableError, RecordError

__all__ = ["Applied", "Exclusive", "Writer"]

# Rows a batch may have before the rest waits for the next one: it bounds how long one sync keeps others waiting.
_BATCH_ROWS = 512
# Errors that are about the rows of one write, not about the database.
_REFUSED = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG)


class _Write(NamedTuple):
    operation: Operation
    future: asyncio.Future[Any]


class Applied(NamedTuple):
    """How a batch went: its commit, and for each operation its result or its error."""

    commit: Commit
    outcomes: list[Any]


class Exclusive:
    """The writer's lane in the hands of one transaction; nothing else writes until `release` is called."""

    def __init__(self, writer: Writer) -> None:
        self._writer: Writer | None = writer
        self.lane = writer.lane
        self.lock = writer.lock
        self.actor = writer.actor
        self.checkpointer = writer.checkpointer

    def publish(self, commit: Commit) -> None:
        """Hand a commit to the store."""
        assert self._writer is not None
        self._writer.publish(commit)

    def release(self) -> None:
        """Let the other writers go on; safe to call twice."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.lane_is_free()


class Writer:
    """The one writer of a process.

    Args:
        lane: the connection that writes.
        lock: the lock file, held shared round every transaction.
        checkpointer: asked after each batch.
        actor: author of the changes in the log.
        publish: called on the event loop with every commit, before any caller is answered.
    """

    def __init__(
        self, lane: Lane, lock: FileLock, checkpointer: Checkpointer, actor: str, publish: Callable[[Commit], None]
    ) -> None:
        self.lane, self.lock, self.actor, self.publish = lane, lock, actor, publish
        self.checkpointer = checkpointer
        self._waiting: deque[_Write | asyncio.Future[Exclusive]] = deque()
        self._busy = False
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        self._loop = asyncio.get_running_loop()

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        """Queue a write; the future holds its result once it is durable and published."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(_Write(operation, future))
        if not self._busy:
            self._start()
        return future

    async def exclusive(self) -> Exclusive:
        """Wait for the lane and take it; the caller must `release` it."""
        future: asyncio.Future[Exclusive] = self._loop.create_future()
        self._waiting.append(future)
        if not self._busy:
            self._start()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # granted and cancelled in the same tick
                future.result().release()
            raise

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        await self._drained.wait()

    def lane_is_free(self) -> None:
        """Start what waits, if anything does."""
        self._busy = False
        self._start()

    def _start(self) -> None:
        waiting = self._waiting
        batch: list[_Write] = []
        rows = 0
        while waiting:
            head = waiting[0]
            if isinstance(head, asyncio.Future):
                if batch:
                    break
                waiting.popleft()
                if head.cancelled():
                    continue
                self._busy = True
                self._drained.clear()
                head.set_result(Exclusive(self))
                return
            if batch and rows + head.operation.size > _BATCH_ROWS:
                break
            waiting.popleft()
            if not head.future.cancelled():
                batch.append(head)
                rows += head.operation.size
        if not batch:
            self._drained.set()
            return
        self._busy = True
        self._drained.clear()
        operations = [write.operation for write in batch]
        self.lane.post(
            lambda connection: self._run(connection, operations),
            lambda result, error: self._finish(batch, result, error),
        )

    def _run(self, connection: sqlite3.Connection, operations: list[Operation]) -> Applied:
        with self.lock.shared():
            applied = run_batch(connection, operations, self.actor)
        if applied.commit.changes:
            self.checkpointer.after_commit(connection, len(applied.commit.changes))
        return applied

    def _finish(self, batch: list[_Write], applied: Applied | None, error: BaseException | None) -> None:
        outcomes: list[Any] = [error] * len(batch) if applied is None else applied.outcomes
        # Published before any caller is answered, in one tick: nobody can read the old value after the answer.
        if applied is not None and applied.commit.changes:
            self.publish(applied.commit)
        for write, outcome in zip(batch, outcomes, strict=True):
            if write.future.done():
                continue
            if isinstance(outcome, BaseException):
                write.future.set_exception(outcome)
            else:
                write.future.set_result(outcome)
        # Behind the callers just answered: those that write again join the next batch, 64 of them instead of two times
        # 32. Starting it before them gains nothing, since its thread has no interpreter until the loop is idle.
        self._loop.call_soon(self.lane_is_free)


def run_batch(connection: sqlite3.Connection, operations: Sequence[Operation], actor: str) -> Applied:
    """Run operations in one transaction, on the connection's thread. The caller holds the lock file.

    Simple puts are first tried as inserts made together, then one by one, then each in a savepoint: every step is
    slower and takes more. Nearly every batch ends with the first.
    """
    for run_all in (_run_together, _run_bare, _run_in_savepoints):
        context = Context(now_us(), [])
        connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes = run_all(connection, operations, context)
        except Collision:
            rollback(connection)
        except sqlite3.Error as error:
            rollback(connection)
            if run_all is _run_in_savepoints or error_code(error) not in _REFUSED:
                raise
        except BaseException:
            rollback(connection)
            raise
        else:
            return Applied(write_log_and_commit(connection, context, actor), outcomes)
    raise AssertionError("unreachable: the last run returns or raises")


def _run_together(connection: sqlite3.Connection, operations: Sequence[Operation], context: Context) -> list[Any]:
    outcomes: list[Any] = []
    for simple, run in groupby(operations, key=_simple_kind):
        together = list(run)
        if simple is None or len(together) == 1:
            outcomes += [_run_one(connection, operation, context) for operation in together]
        else:
            outcomes += drive(connection, PutTogether(cast("list[Put]", together)).run(context))
    return outcomes


def _simple_kind(operation: Operation) -> str | None:
    return operation.spec.kind if isinstance(operation, Put) and operation.is_simple else None


def _run_bare(connection: sqlite3.Connection, operations: Sequence[Operation], context: Context) -> list[Any]:
    return [_run_one(connection, operation, context) for operation in operations]


def _run_in_savepoints(connection: sqlite3.Connection, operations: Sequence[Operation], context: Context) -> list[Any]:
    return [run_in_savepoint(connection, operation, context) for operation in operations]


def _run_one(connection: sqlite3.Connection, operation: Operation, context: Context) -> Any:
    """Run one operation; what it refuses is its outcome, what the database refuses is raised."""
    try:
        return drive(connection, operation.run(context))
    except RecordError as error:
        return error


def run_in_savepoint(connection: sqlite3.Connection, operation: Operation, context: Context) -> Any:
    """Run one operation; whatever is wrong with it is its outcome, and nothing of it stays."""
    noted = len(context.changes)
    connection.execute("SAVEPOINT one")
    try:
        outcome = drive(connection, operation.run(context))
    except RecordError as error:
        outcome = error
    except sqlite3.Error as error:
        if error_code(error) not in _REFUSED:
            raise
        del context.changes[noted:]
        connection.execute("ROLLBACK TO one")
        outcome = translate(error)
    connection.execute("RELEASE one")
    return outcome


def drive(connection: sqlite3.Connection, work: Work) -> Any:
    """Run an operation's statements on the connection and return the operation's result."""
    rows: Any = None  # a generator is started with None
    try:
        while True:
            ask: Ask = work.send(rows)
            run = connection.executemany if ask.many else connection.execute
            cursor = run(ask.sql, ask.parameters)
            rows = cursor.fetchall() if cursor.description else [()] * cursor.rowcount
    except StopIteration as stop:
        return stop.value


def write_log_and_commit(connection: sqlite3.Connection, context: Context, actor: str) -> Commit:
    """Advance the head, log the changes and commit; without changes, end the transaction.

    Raises:
        CommitUnknownError: syncing failed, so nobody can say what is on the disk.
    """
    changes = context.changes
    if not changes:
        rollback(connection)
        return Commit()
    nonce = new_nonce()
    try:
        [(position,)] = connection.execute(head_update(), (nonce,)).fetchall()
        connection.executemany(log_insert(), _log_rows(changes, position, nonce, actor, context.now_us))
        commit(connection)
    except BaseException:
        rollback(connection)
        raise
    return Commit(position, nonce, changes)


def _log_rows(changes: list[Change], position: int, nonce: int, actor: str, at: int) -> Iterator[tuple[Any, ...]]:
    for index, (kind, namespace, key, parent, operation, revision, _, _, image) in enumerate(changes):
        yield SHARD, position, index, kind, namespace, key, parent, operation, revision, actor, at, nonce, image


def commit(connection: sqlite3.Connection) -> None:
    """Commit.

    Raises:
        CommitUnknownError: the sync failed; the frames may or may not be on the disk.
    """
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if error_code(error) == sqlite3.SQLITE_IOERR:
            raise CommitUnknownError(f"syncing the commit failed ({error}); read the record again") from error
        raise


def rollback(connection: sqlite3.Connection) -> None:
    """End the transaction if one is open (some errors have ended it already)."""
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise DurableUnavailableError(f"a failed transaction could not be rolled back: {error}") from error
