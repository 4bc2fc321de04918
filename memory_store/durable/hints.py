"""Hints between processes: after a commit its shard and position are sent by NOTIFY, to whoever listens.

A hint shortens the wait for what others commit, and nothing rests on it: it may be lost, late, or false. It is sent
after the commit by a statement of its own and at most now and then, since a transaction with a NOTIFY in it takes a
lock that all such commits of a database share, over their sync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from memory_store.durable.dialects.postgresql import Connection
from memory_store.durable.lane import Lane
from memory_store.errors import MemoryStoreError

__all__ = ["Hints"]

_CHANNEL = "memory_store"
_PAUSE_S = 0.01
_RETRY_S = 5.0

Hinted = Callable[[int, int], None]
"""Takes a shard's number and the position it is said to have reached."""


class Hints:
    """Sends hints of this process's commits, and listens for those of others.

    Args:
        connect: makes the connection that listens, beside the pool.
        lane: sends.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], lane: Lane) -> None:
        self._connect, self._lane = connect, lane
        self._reached: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._hinted: Hinted | None = None
        self._listening: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def committed(self, shard: int, position: int) -> None:
        """Tell others, soon."""
        self._reached[shard] = position
        if self._timer is None:
            self._timer = self._loop.call_later(_PAUSE_S, self._send)

    def _send(self) -> None:
        self._timer = None
        said = " ".join(f"{shard}:{position}" for shard, position in self._reached.items())
        self._reached.clear()
        # One that could not be sent is not worth another word: pollers find out.
        self._lane.post(
            lambda connection: connection.execute(f"SELECT pg_notify('{_CHANNEL}', ?)", (said,)),
            lambda result, error: None,
        )

    def listen(self, hinted: Hinted) -> None:
        """Listen from now on, on a connection of its own; safe to call again."""
        if self._listening is None:
            self._hinted = hinted
            self._listening = self._loop.create_task(self._listen(), name="memory_store hints")

    async def _listen(self) -> None:
        while True:
            # Whatever broke costs a hint; the next try is soon enough.
            with suppress(MemoryStoreError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._hear(await self._connect())
            await asyncio.sleep(_RETRY_S)

    async def _hear(self, connection: Connection) -> None:
        """Take hints until the connection breaks."""
        gone = asyncio.Event()
        try:
            connection.driver.add_termination_listener(lambda _: gone.set())
            await connection.driver.add_listener(_CHANNEL, self._take)
            await gone.wait()
        finally:
            connection.close()

    def _take(self, _connection: Any, _pid: int, _channel: str, said: str) -> None:
        assert self._hinted is not None
        for word in said.split():
            shard, _, position = word.partition(":")
            if shard.isdecimal() and position.isdecimal():  # others may use the channel as well
                self._hinted(int(shard), int(position))

    async def close(self) -> None:
        """Send and hear no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})
