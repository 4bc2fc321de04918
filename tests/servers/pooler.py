"""A pooler in transaction mode, as PgBouncer is with `pool_mode = transaction` and `max_prepared_statements = 0`.

There is no wheel of PgBouncer to start. This one does what matters to a client: a server connection is lent for one
transaction, the next one lands on another (by turns, so that whoever relies on the session fails at once and always),
no session is reset in between, and start parameters that cannot be kept are refused. It lets everybody in.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections import defaultdict

from tests.servers.listening import Listener, Stream, Upstream, abort, connect
from tests.servers.wire import CANCEL_REQUEST, GSS_REQUEST, SSL_REQUEST, Message, Splitter, message

PROTOCOL = 3 << 16
TRACKED = {"user", "database", "client_encoding", "datestyle", "timezone", "standard_conforming_strings"}
TRACKED |= {"application_name", "intervalstyle"}  # of the values that PgBouncer takes, only the first two matter here
ENDED_BY_READY = (b"Q", b"S", b"F")
OF_A_COPY = (b"d", b"c", b"f")


class Refused(Exception):  # noqa: N818 - it is an answer, not a failure of this program
    """Told to the client as a fatal error, by code and text."""


class Pooler(Listener):
    """Takes clients on 127.0.0.1:`port`, and lends them `size` server connections for a transaction each.

    Args:
        upstream: The server.
        size: Server connections for each user and database; who finds none waits.
    """

    def __init__(self, upstream: Upstream, *, size: int = 2) -> None:
        super().__init__()
        self.upstream = upstream
        self.size = size
        self.lent = 0  # how often a server connection was lent
        self.clients: dict[bytes, Client] = {}
        self.idle: defaultdict[tuple[str, str], asyncio.Queue[Backend]] = defaultdict(asyncio.Queue)
        self.backends: defaultdict[tuple[str, str], set[Backend]] = defaultdict(set)

    async def __aexit__(self, *error: object) -> None:
        backends = [backend for some in self.backends.values() for backend in some]
        await super().__aexit__(*error)
        for backend in backends:
            backend.end()
        await asyncio.gather(*(backend.pump for backend in backends), return_exceptions=True)

    async def borrow(self, key: tuple[str, str]) -> Backend:
        """Return a new server connection while there are fewer than `size`, then the one idle for the longest."""
        while True:
            if len(self.backends[key]) < self.size:
                backend = Backend(self, key)
                self.backends[key].add(backend)
                try:
                    await backend.start()
                except BaseException:
                    backend.end()
                    raise
            else:
                backend = await self.idle[key].get()
            if backend in self.backends[key]:  # one that has ended is put there too, to wake who waits
                self.lent += 1
                return backend

    async def serve(self, client: Stream) -> None:
        """Serve one client."""
        served = Client(self, client)
        writer = client[1]
        try:
            await served.serve()
        except Refused as refused:
            code, text = refused.args
            writer.write(message(b"E", f"SFATAL\0VFATAL\0C{code}\0M{text}\0\0".encode()))
        except OSError:
            abort(writer)
        finally:
            self.clients.pop(served.secret, None)
            if served.backend is not None:  # within a transaction, which only the end of the session undoes for sure
                served.backend.end()


class Backend:
    """One connection to the server."""

    def __init__(self, pooler: Pooler, key: tuple[str, str]) -> None:
        self.pooler, self.key = pooler, key
        self.client: Client | None = None
        self.parameters, self.secret = b"", b""
        self.splitter = Splitter("server")
        self.writer: asyncio.StreamWriter | None = None
        self.pump: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Open the session, and from then on hand its messages to whoever has it."""
        self.reader, self.writer = await connect(self.pooler.upstream)
        user, database = self.key
        start = struct.pack("!I", PROTOCOL) + f"user\0{user}\0database\0{database}\0\0".encode()
        self.writer.write(message(b"", start))
        while data := await self.reader.read(65536):
            for answer in self.splitter.feed(data):
                if answer.kind == b"E":
                    raise Refused("08P01", "the server refused a connection of the pooler")
                if answer.kind == b"S":
                    self.parameters += answer.data
                elif answer.kind == b"K":
                    self.secret = answer.body
                elif answer.kind == b"Z":
                    self.pump = asyncio.create_task(self._hand_on())
                    return
        raise ConnectionResetError("the server went away")

    def end(self) -> None:
        """Close the connection and forget it."""
        self.pump.cancel()
        self._forget()

    def _forget(self) -> None:
        if self.writer is not None:
            abort(self.writer)
        if self in self.pooler.backends[self.key]:
            self.pooler.backends[self.key].remove(self)
            self.pooler.idle[self.key].put_nowait(self)

    async def send(self, data: bytes) -> None:
        """Send a message of the client that has the connection."""
        if self.writer is None:
            raise RuntimeError("the connection was not started")
        self.writer.write(data)
        await self.writer.drain()

    async def _hand_on(self) -> None:
        try:
            while data := await self.reader.read(65536):
                for answer in self.splitter.feed(data):
                    if self.client is not None:
                        self.client.answered(answer)
        except OSError:
            pass  # it ends as by an end
        self._forget()
        if self.client is not None:
            self.client.backend = None
            abort(self.client.writer)


class Client:
    """One client and the transaction that it is in."""

    def __init__(self, pooler: Pooler, stream: Stream) -> None:
        self.pooler = pooler
        self.reader, self.writer = stream
        self.secret = secrets.token_bytes(8)
        self.backend: Backend | None = None
        self.open_requests = 0  # that the server will end by a ReadyForQuery
        self.unsynced = False  # parts of a request were sent whose end was not

    async def serve(self) -> None:
        """Greet the client, then forward each of its transactions to a connection of its own."""
        splitter = Splitter("client")
        key: tuple[str, str] | None = None
        while data := await self.reader.read(65536):
            for request in splitter.feed(data):
                if request.kind == b"X" or request.code == CANCEL_REQUEST:
                    await self._cancel(request)
                    return
                if request.code in (SSL_REQUEST, GSS_REQUEST):
                    self.writer.write(b"N")
                elif not request.kind:
                    key = await self._greet(request)
                elif key is not None:
                    await self._forward(request, key)

    def answered(self, answer: Message) -> None:
        """Hand an answer on, and give the connection back at the end of a transaction."""
        self.writer.write(answer.data)
        if answer.kind != b"Z":
            return
        self.open_requests -= 1
        if answer.body == b"I" and not self.open_requests and not self.unsynced and self.backend is not None:
            self.backend.client = None
            self.pooler.idle[self.backend.key].put_nowait(self.backend)
            self.backend = None

    async def _greet(self, request: Message) -> tuple[str, str]:
        words = request.body[4:].decode().split("\0")
        given = dict(zip(words[0:-2:2], words[1:-1:2], strict=True))
        unknown = sorted(name for name in given if name.lower() not in TRACKED)
        if unknown:
            raise Refused("08P01", f"unsupported startup parameter: {unknown[0]}")
        key = given["user"], given.get("database", given["user"])
        backend = await self.pooler.borrow(key)
        self.pooler.idle[key].put_nowait(backend)
        self.pooler.clients[self.secret] = self
        authenticated = message(b"R", struct.pack("!I", 0))
        self.writer.write(authenticated + backend.parameters + message(b"K", self.secret) + message(b"Z", b"I"))
        return key

    async def _forward(self, request: Message, key: tuple[str, str]) -> None:
        if self.backend is None:
            backend = await self.pooler.borrow(key)
            self.backend, backend.client = backend, self
        if request.kind in ENDED_BY_READY:
            self.open_requests += 1
            self.unsynced = False
        elif request.kind not in OF_A_COPY:
            self.unsynced = True
        await self.backend.send(request.data)

    async def _cancel(self, request: Message) -> None:
        """Pass a request to cancel on to the connection that the client named in it has now, if it has one."""
        named = self.pooler.clients.get(request.body[4:]) if not request.kind else None
        if named is None or named.backend is None:
            return
        _, writer = await connect(self.pooler.upstream)
        writer.write(message(b"", struct.pack("!I", CANCEL_REQUEST) + named.backend.secret))
        await writer.drain()
        writer.close()
