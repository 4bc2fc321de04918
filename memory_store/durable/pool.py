"""The connections to a server: kept and used again, at most so many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from memory_store.clock import boot_s
from memory_store.durable.breaker import Breaker
from memory_store.durable.dialects.postgresql import Connection
from memory_store.errors import DurableTimeoutError, StoreClosedError

__all__ = ["Pool"]


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
