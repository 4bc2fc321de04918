"""The connections to a server, and the lanes that run functions on them.

A connection is kept and used again. A lane takes one for as long as a function runs, so as many run at once as there
are connections. A function that fails because the connection broke, or because its transaction met another one, has
changed nothing and is run again, a few times with growing pauses; a commit whose reply was lost is no such failure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from memory_store.clock import boot_s
from memory_store.durable.breaker import Breaker
from memory_store.durable.dialects import TransientError
from memory_store.durable.dialects.postgresql import Connection
from memory_store.durable.runner import settle
from memory_store.errors import DurableTimeoutError, MemoryStoreError, StoreClosedError

__all__ = ["PinnedLane", "Pool", "PoolLane"]

T = TypeVar("T")


class Pool:
    """Keeps connections, at most `size` of them.

    Args:
        connect: makes a new one.
        size: how many at once.
        timeout_s: longest wait for one to be free, in seconds.
        lifetime_s: how long one is used, in seconds: a server that others connect to should let go of memory.
        breaker: asked before a connection is made, told how it went.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        size: int,
        timeout_s: float,
        lifetime_s: float,
        breaker: Breaker,
    ) -> None:
        self._connect, self._size, self._timeout_s, self._lifetime_s = connect, size, timeout_s, lifetime_s
        self.breaker = breaker
        self._idle: list[Connection] = []
        self._born: dict[Connection, float] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._open = 0
        self._closed = False

    @property
    def in_use(self) -> int:
        """Connections that are open and not idle."""
        return self._open - len(self._idle)

    def take(self) -> Connection | None:
        """Return an idle connection, None where there is none at once."""
        while self._idle:
            connection = self._idle.pop()
            if self._is_usable(connection):
                return connection
            self._discard(connection)
        return None

    async def acquire(self) -> Connection:
        """Return a connection nobody else has until `release`.

        Raises:
            DurableTimeoutError: none was free in time.
            DurableUnavailableError: the server cannot be reached.
        """
        deadline = None
        while True:
            if self._closed:
                raise StoreClosedError("the store is closed")
            connection = self.take()
            if connection is not None:
                return connection
            if self._open < self._size:
                return await self._make()
            deadline = boot_s() + self._timeout_s if deadline is None else deadline
            await self._wait(deadline)

    async def _make(self) -> Connection:
        self.breaker.require_closed()
        began = boot_s()
        self._open += 1
        try:
            connection = await self._connect()
        except BaseException as error:
            self._open -= 1
            self._wake()
            self.breaker.note(error, began)
            raise
        self.breaker.note(None, began)
        self._born[connection] = boot_s()
        return connection

    async def _wait(self, deadline: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await asyncio.wait_for(future, max(deadline - boot_s(), 0))
        except TimeoutError as error:
            raise DurableTimeoutError(
                f"none of the {self._size} connections was free for {self._timeout_s:g} s; raise pool_size, or look "
                "for transactions that stay open"
            ) from error
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._wake()  # what this one was woken for is for the next
            raise
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    def release(self, connection: Connection) -> None:
        """Take a connection back; one that is broken or inside a transaction is not used again."""
        if self._closed or connection.in_transaction or not self._is_usable(connection):
            self._discard(connection)
        else:
            self._idle.append(connection)
            self._wake()

    def _is_usable(self, connection: Connection) -> bool:
        return not connection.driver.is_closed() and boot_s() - self._born[connection] < self._lifetime_s

    def _discard(self, connection: Connection) -> None:
        del self._born[connection]
        self._open -= 1
        connection.close()
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def close(self) -> None:
        """Close every connection that nobody uses, and each of the others when it comes back."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            del self._born[connection]
            self._open -= 1
            with suppress(Exception):  # it is gone either way
                await connection.driver.close(timeout=1)
            connection.close()
        while self._waiting:
            self._wake()


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

    def unpin(self) -> None:
        """Do nothing: this lane keeps no connection."""

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

    def post(self, function: Callable[[Any], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Not for a lane of one transaction."""
        raise NotImplementedError

    async def run(self, function: Callable[[Any], T]) -> T:
        """Queue `function(connection)` and return its result; see `Lane.run`."""
        return await self.submit(function)

    def pinned(self) -> PinnedLane:
        """Return this lane."""
        return self

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
