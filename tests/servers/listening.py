"""What the servers written here share: a port of 127.0.0.1, a task for each connection, and an end of all of them."""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from tests.servers.installation import free_port

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Upstream = Path | int | tuple[str, int]  # a Unix socket, a port of 127.0.0.1, or a host and port


class Listener(ABC):
    """Serves each connection by `serve`, within `async with`; what a `serve` raises is raised again at the end."""

    def __init__(self) -> None:
        self.port = free_port()
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._errors:
            raise BaseExceptionGroup(f"the {type(self).__name__} of the test failed by itself", self._errors)

    async def accept(self) -> None:
        """Take new connections (again)."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    def refuse(self) -> None:
        """Refuse new connections; those that exist go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @abstractmethod
    async def serve(self, client: Stream) -> None:
        """Serve one connection until it is over."""

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio logs an error for each of its own that is cancelled.
        task = asyncio.create_task(self._serve((reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _serve(self, client: Stream) -> None:
        try:
            await self.serve(client)
        finally:
            client[1].close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)


async def connect(upstream: Upstream) -> Stream:
    """Connect to a server, wherever it is."""
    if isinstance(upstream, Path):
        return await asyncio.open_unix_connection(str(upstream))
    host, port = upstream if isinstance(upstream, tuple) else ("127.0.0.1", upstream)
    return await asyncio.open_connection(host, port)


def abort(writer: asyncio.StreamWriter) -> None:
    """Close a connection by a reset, without sending what is still waiting."""
    held: socket.socket | None = writer.get_extra_info("socket")
    if held is not None and held.family != socket.AF_UNIX and held.fileno() >= 0:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
