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
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from time import perf_counter
from typing import Any, NamedTuple, cast

from memory_store.clock import now_us
from memory_store.distribution import Distribution
from memory_store.durable.changes import HeadState
from memory_store.durable.checkpoint import Checkpointer
from memory_store.durable.commits import LogWriter, rollback
from memory_store.durable.dialects.sqlite import error_code, translate
from memory_store.durable.lane import Lane
from memory_store.durable.lock import FileLock
from memory_store.durable.log import Commit, Listener
from memory_store.durable.operations import Ask, Collision, Context, Operation, Put, PutTogether, Work
from memory_store.errors import CommitUnknownError, RecordError
from memory_store.telemetry import Span, Telemetry

__all__ = ["Applied", "Exclusive", "Writer", "Written"]

# Rows a batch may have before the rest waits for the next one: it bounds how long one sync keeps others waiting.
_BATCH_ROWS = 512
# Errors that are about the rows of one write, not about the database.
_REFUSED = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG)


class _Write(NamedTuple):
    operation: Operation
    future: asyncio.Future[Any]
    caller: Any
    """The caller's span, if spans are recorded."""


class Written(NamedTuple):
    """A write's result, and the position of its commit (0: it changed nothing)."""

    result: Any
    position: int


class Applied(NamedTuple):
    """How a batch went: its commit, and for each operation its result or its error."""

    commit: Commit
    outcomes: list[Any]


class Exclusive:
    """The writer's lane in the hands of one transaction; nothing else writes until `release` is called."""

    def __init__(self, writer: Writer) -> None:
        self._writer: Writer | None = writer
        self.lane, self.lock, self.log = writer.lane, writer.lock, writer.log
        self.known = writer.listener.head
        self.checkpointer = writer.checkpointer

    def publish(self, commit: Commit) -> None:
        """Hand a commit to the store."""
        assert self._writer is not None
        self._writer.tell(commit)

    def doubt(self) -> None:
        """Say that the outcome of a commit is unknown."""
        assert self._writer is not None
        self._writer.listener.doubt()

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
        log: writes the change log.
        listener: told on the event loop of every commit, before any caller is answered.
        telemetry: records batches as spans; None records none.
    """

    def __init__(
        self,
        lane: Lane,
        lock: FileLock,
        checkpointer: Checkpointer,
        log: LogWriter,
        listener: Listener,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.lane, self.lock, self.log, self.listener = lane, lock, log, listener
        self.checkpointer, self._telemetry = checkpointer, telemetry
        self.commits = 0
        self.commit_writes, self.commit_s = Distribution(), Distribution()
        """Writes and seconds of each batch that changed something."""
        self._took_s = 0.0
        self._waiting: deque[_Write | asyncio.Future[Exclusive]] = deque()
        self._busy = False
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        self._loop = asyncio.get_running_loop()

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        """Queue a write; the future holds its `Written` result once it is durable and published."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(_Write(operation, future, None if self._telemetry is None else self._telemetry.caller()))
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
        run = partial(self._run, [write.operation for write in batch], self.listener.head)
        if self._telemetry is None:
            self.lane.post(run, partial(self._finish, batch, None))
            return
        callers = [write.caller for write in batch]
        span = self._telemetry.begin("memory_store.commit", callers, writes=len(batch), rows=rows)
        self.lane.post(span.around(run), partial(self._finish, batch, span))

    def _run(self, operations: list[Operation], known: HeadState, connection: sqlite3.Connection) -> Applied:
        began = perf_counter()
        with self.lock.shared():
            applied = run_batch(connection, operations, self.log, known)
        if applied.commit.changes:
            self.checkpointer.after_commit(connection, len(applied.commit.changes))
        self._took_s = perf_counter() - began
        return applied

    def _finish(
        self, batch: list[_Write], span: Span | None, applied: Applied | None, error: BaseException | None
    ) -> None:
        outcomes: list[Any] = [error] * len(batch) if applied is None else applied.outcomes
        # Published before any caller is answered, in one tick: nobody can read the old value after the answer.
        position = 0
        if isinstance(error, CommitUnknownError):
            self.listener.doubt()
        if applied is not None:
            position = applied.commit.position
            if applied.commit.changes:
                self.commit_writes.record(len(batch))
                self.commit_s.record(self._took_s)
            self.tell(applied.commit)
        if span is not None:
            self._record(span, len(batch), applied, error)
        for write, outcome in zip(batch, outcomes, strict=True):
            if write.future.done():
                continue
            if isinstance(outcome, BaseException):
                write.future.set_exception(outcome)
            else:
                write.future.set_result(Written(outcome, position))
        # Behind the callers just answered: those that write again join the next batch, 64 of them instead of two times
        # 32. Starting it before them gains nothing, since its thread has no interpreter until the loop is idle.
        self._loop.call_soon(self.lane_is_free)

    def _record(self, span: Span, writes: int, applied: Applied | None, error: BaseException | None) -> None:
        assert self._telemetry is not None
        if applied is not None:
            span.set(position=applied.commit.position)
            for outcome in applied.outcomes:
                if isinstance(outcome, BaseException):
                    span.note(outcome)
            if applied.commit.changes:
                self._telemetry.record("memory_store.commit.duration", self._took_s)
                self._telemetry.record("memory_store.commit.writes", writes)
        span.end(error)

    def tell(self, commit: Commit) -> None:
        """Hand the listener a commit, or what a transaction without changes saw of the log."""
        if commit.changes:
            self.commits += 1
            self.listener.publish(commit)
        elif commit.before is not None:
            self.listener.deliver(commit.before)


def run_batch(
    connection: sqlite3.Connection, operations: Sequence[Operation], log: LogWriter, known: HeadState
) -> Applied:
    """Run operations in one transaction, on the connection's thread. The caller holds the lock file.

    Simple puts are first tried as inserts made together, then one by one, then each in a savepoint: every step is
    slower and takes more. Nearly every batch ends with the first.
    """
    for run_all in (_run_together, _run_bare, _run_in_savepoints):
        opened = log.begin(connection, known)
        context = Context(now_us(), [], opened.head.position + 1)
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
            return Applied(log.commit(connection, context, opened), outcomes)
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
