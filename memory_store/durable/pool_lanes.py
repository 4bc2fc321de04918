"""The lanes of a server: each function runs on a connection of the pool, as many at once as there are connections.

A function that fails because the connection broke, or because its transaction met another one, has changed nothing and
is run again, a few times with growing pauses; a commit whose reply was lost is no such failure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from memory_store.durable.dialects import TransientError
from memory_store.durable.dialects.postgresql import Connection
from memory_store.durable.pool import Pool
from memory_store.durable.runner import settle
from memory_store.errors import MemoryStoreError

__all__ = ["PinnedLane", "PoolLane"]

T = TypeVar("T")


class PoolLane:
    """Runs functions on connections of a pool, as many at once as it may.

    Args:
        pool: where connections come from.
        at_once: how many functions run at once, so that others find a connection free.
    """

    settles = True

    def __init__(self, pool: Pool, at_once: int) -> None:
        self._pool, self._at_once = pool, at_once
        self._running = 0
        self._queued: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()

    def submit(self, function: Callable[[Any], T]) -> asyncio.Future[T]:
        """Run `function(connection)`; see `Lane.submit`."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.post(function, partial(settle, future))
        return future

    def post(self, function: Callable[[Any], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Run `function(connection)`; see `Lane.post`.

        Where a connection is idle, the function begins here and now. A task of its own would begin it a turn of the
        event loop later and tell of its end another turn later, which cost a point read a third of its time.
        """
        connection = self._pool.take() if self._running < self._at_once and not self._queued else None
        if connection is None:
            self._spawn(self._wait_and_run(function), done)
            return
        self._begin()

        def finish(result: T | None, error: BaseException | None) -> None:
            self._pool.release(connection)
            self._end()
            if isinstance(error, TransientError):
                self._spawn(self._run_again(function), done)
            else:
                done(result, error)

        connection.runner.run(function, connection, finish)

    async def run(self, function: Callable[[Any], T]) -> T:
        """Run `function(connection)` and return its result; see `Lane.run`."""
        return await self.submit(function)

    def pinned(self) -> PinnedLane:
        """Return a lane that keeps one connection."""
        return PinnedLane(self._pool, self._spawn)

    def _spawn(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | None, BaseException | None], None] | None = None
    ) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        self._idle.clear()

        def ended(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            self._note_idle()
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if done is not None:
                done(task.result() if error is None else None, error)

        task.add_done_callback(ended)
        return task

    def _begin(self) -> None:
        self._running += 1
        self._idle.clear()

    def _end(self) -> None:
        self._running -= 1
        while self._queued and self._running < self._at_once:
            future = self._queued.popleft()
            if not future.done():
                future.set_result(None)
                break
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._running and not self._tasks:
            self._idle.set()

    async def _wait_and_run(self, function: Callable[[Any], T]) -> T:
        while self._running >= self._at_once:
            future = self._loop.create_future()
            self._queued.append(future)
            await future
        self._begin()
        try:
            return await self._run_once(function)
        except TransientError:
            return await self._run_again(function)
        finally:
            self._end()

    async def _run_once(self, function: Callable[[Any], T]) -> T:
        connection = await self._pool.acquire()
        future: asyncio.Future[T] = self._loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            self._pool.release(connection)
            settle(future, result, error)

        connection.runner.run(function, connection, finish)
        return await future

    async def _run_again(self, function: Callable[[Any], T]) -> T:
        return await _retrying()(self._run_once, function)

    async def close(self) -> None:
        """Wait for what runs."""
        await self._idle.wait()


# After the first try, whose failure is nearly always that of a connection that had broken long before.
_RETRIES = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


def _retrying() -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_attempt(_RETRIES),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        reraise=True,
    )


class PinnedLane:
    """Runs functions one after another on one connection, taken for the first and kept until `unpin`.

    Only the first is run again where its connection has broken: the others belong to the transaction it begins.
    """

    settles = True

    def __init__(self, pool: Pool, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]) -> None:
        self._pool, self._spawn = pool, spawn
        self._connection: Connection | None = None
        self._refused: MemoryStoreError | None = None
        self._last: asyncio.Task[Any] | None = None

    def submit(self, function: Callable[[Any], T]) -> asyncio.Future[T]:
        """Queue `function(connection)`; see `Lane.submit`."""
        self._last = self._spawn(self._run_after(self._last, function))
        return _relayed(self._last)

    async def run(self, function: Callable[[Any], T]) -> T:
        """Queue `function(connection)` and return its result; see `Lane.run`."""
        return await self.submit(function)

    def unpin(self) -> None:
        """Give the connection back, once what is queued has run."""
        self._spawn(self._give_back(self._last))

    async def _run_after(self, before: asyncio.Task[Any] | None, function: Callable[[Any], T]) -> T:
        if before is not None and not before.done():
            await asyncio.wait({before})
        if self._refused is not None:
            raise self._refused  # there is nothing that this function could belong to
        if self._connection is None:
            return await self._run_first(function)
        return await self._connection.runner.call(function, self._connection)

    async def _run_first(self, function: Callable[[Any], T]) -> T:
        """Run the function that begins the transaction, on other connections if need be: nothing has been done yet."""
        try:
            try:
                return await self._begin(function)
            except TransientError:
                return await _retrying()(self._begin, function)
        except MemoryStoreError as error:
            self._refused = error
            raise

    async def _begin(self, function: Callable[[Any], T]) -> T:
        connection = await self._pool.acquire()
        try:
            result = await connection.runner.call(function, connection)
        except BaseException:
            self._pool.release(connection)
            raise
        self._connection = connection
        return result

    async def _give_back(self, last: asyncio.Task[Any] | None) -> None:
        if last is not None and not last.done():
            await asyncio.wait({last})
        if self._connection is not None:
            self._pool.release(self._connection)


def _relayed(task: asyncio.Task[T]) -> asyncio.Future[T]:
    """Return a future of a task's result; cancelling it leaves the task alone."""
    future: asyncio.Future[T] = task.get_loop().create_future()

    def relay(done: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        settle(future, done.result() if error is None else None, error)

    task.add_done_callback(relay)
    return future
