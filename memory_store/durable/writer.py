"""Group commit: concurrent writes share one transaction and one sync.

No write waits for company. An idle writer commits at once; what arrives while a commit runs forms the next batch. A
batch runs as one call (see `batches`), on a connection's own thread or over a server's connection.

Cancelling a caller before its batch starts takes the write out; after that the batch runs to its end, and what it
committed is published, so a cancelled caller never leaves a stale cache or an open transaction.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from memory_store.distribution import Distribution
from memory_store.durable.batches import Applied, InDoubtError, run_batch
from memory_store.durable.changes import HeadState
from memory_store.durable.commits import LogWriter
from memory_store.durable.connection import Connection
from memory_store.durable.lane import Lane
from memory_store.durable.log import Commit, CommitToken, Listener
from memory_store.durable.operations import Operation
from memory_store.durable.outcomes import Resolve
from memory_store.errors import CommitUnknownError, DurableUnavailableError
from memory_store.telemetry import Span, Telemetry

__all__ = ["Exclusive", "Guard", "Writer", "Written"]

# Rows a batch may have before the rest waits for the next one: it bounds how long one sync keeps others waiting.
_BATCH_ROWS = 512
# A server that breaks off more commits in a row than this is not tried again.
_MOST_LOST = 2


class Guard(Protocol):
    """What a database wants round its write transactions."""

    def writing(self) -> AbstractContextManager[None]:
        """Hold what a write transaction must hold."""
        ...

    def after_commit(self, connection: Any, changes: int) -> None:
        """Do what is due after a commit of some changes, on the connection that made it."""
        ...


class _Write(NamedTuple):
    operation: Operation
    future: asyncio.Future[Any]
    caller: Any
    """The caller's span, if spans are recorded."""


class Written(NamedTuple):
    """A write's result, and the position of its commit (0: it changed nothing)."""

    result: Any
    position: int


class Exclusive:
    """The writer's lane in the hands of one transaction; nothing else writes until `release` is called."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._released = False
        self.lane, self.guard, self.log = writer.lane.pinned(), writer.guard, writer.log
        self.known = writer.listener.head

    def publish(self, commit: Commit) -> None:
        """Hand a commit to the store."""
        self.writer.tell(commit)

    def doubt(self) -> None:
        """Say that the outcome of a commit is unknown."""
        self.writer.listener.doubt()

    def release(self) -> None:
        """Let the other writers go on; safe to call twice."""
        if not self._released:
            self._released = True
            self.lane.unpin()
            self.writer.lane_is_free()


class Writer:
    """The one writer of a process.

    Args:
        lane: where it writes.
        guard: held round every transaction, and told of each commit.
        log: writes the change log.
        listener: told on the event loop of every commit, before any caller is answered.
        telemetry: records batches as spans; None records none.
    """

    def __init__(
        self,
        lane: Lane,
        guard: Guard,
        log: LogWriter,
        listener: Listener,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.lane, self.guard, self.log, self.listener = lane, guard, log, listener
        self._telemetry = telemetry
        self.commits = 0
        self.commit_writes, self.commit_s = Distribution(), Distribution()
        """Writes and seconds of each batch that changed something."""
        self.left_behind: Callable[[], None] | None = None
        """Called after a commit that has left changes for the full-text index."""
        self._took_s = 0.0
        self._lost = 0
        """Commits in a row whose reply was lost and that had not happened."""
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

    def resolving(self, token: str) -> Resolve:
        """Return the operation that finds out whether a commit of this shard happened."""
        return Resolve(CommitToken.parse(token), confirm=self.lane.settles)

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

    def _run(self, operations: list[Operation], known: HeadState, connection: Connection) -> Applied:
        began = perf_counter()
        with self.guard.writing():
            applied = run_batch(connection, operations, self.log, known)
        written = len(applied.commit.changes) + applied.commit.indexed
        if written:
            self.guard.after_commit(connection, written)
        self._took_s = perf_counter() - began
        return applied

    def _finish(
        self, batch: list[_Write], span: Span | None, applied: Applied | None, error: BaseException | None
    ) -> None:
        doubt, error = (error, error.unknown) if isinstance(error, InDoubtError) else (None, error)
        outcomes: list[Any] = [error] * len(batch) if applied is None else applied.outcomes
        # Published before any caller is answered, in one tick: nobody can read the old value after the answer.
        position = 0
        if isinstance(error, CommitUnknownError):
            self.listener.doubt()
            if doubt is not None and self.lane.settles:
                self._settle(batch, span, doubt)
                return
        if applied is not None:
            self._lost = 0
            position = applied.commit.position
            if applied.commit.changes:
                self.commit_writes.record(len(batch))
                self.commit_s.record(self._took_s)
            self.tell(applied.commit)
        if span is not None:
            self._record(span, len(batch), applied, error)
        self._answer(batch, outcomes, position)

    def _answer(self, batch: list[_Write], outcomes: list[Any], position: int) -> None:
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

    def _settle(self, batch: list[_Write], span: Span | None, doubt: InDoubtError) -> None:
        """Find out on another connection whether a batch was committed, before anybody is answered."""
        resolve = partial(self._run, [self.resolving(doubt.unknown.token)], self.listener.head)
        self.lane.post(resolve, partial(self._settled, batch, span, doubt))

    def _settled(
        self,
        batch: list[_Write],
        span: Span | None,
        doubt: InDoubtError,
        applied: Applied | None,
        error: BaseException | None,
    ) -> None:
        happened = None
        if applied is not None:
            self.tell(applied.commit)
            happened = applied.outcomes[0]
        if span is not None:
            span.end(None if happened is True else doubt.unknown)
        if happened is True:
            # Not published: after `doubt` every read looks first, and finds it in the log.
            self._answer(batch, doubt.outcomes, CommitToken.parse(doubt.unknown.token).position)
        elif happened is False and self._lost < _MOST_LOST:
            self._lost += 1
            self._waiting.extendleft(reversed(batch))
            self.lane_is_free()
        elif happened is False:
            self._lost = 0
            lost = DurableUnavailableError(
                f"the server broke off {_MOST_LOST + 1} commits in a row; nothing was written"
            )
            self._answer(batch, [lost] * len(batch), 0)
        else:
            self._answer(batch, [doubt.unknown] * len(batch), 0)

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
            if commit.leaves_behind and self.left_behind is not None:
                self.left_behind()
        elif commit.before is not None:
            self.listener.deliver(commit.before)
