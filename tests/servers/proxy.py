"""A TCP proxy that a test makes fail: it drops, stalls, swallows, and cuts a connection at an exact message."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.servers.listening import Listener, Stream, Upstream, abort, connect
from tests.servers.wire import GSS_REQUEST, SSL_REQUEST, Message, Session, Splitter

Direction = Literal["to_server", "to_client"]
Predicate = Callable[[Message, str], bool]

_CHUNK = 65536


class Cut(enum.Enum):
    """When the connection is cut, seen from the request that a rule found."""

    BEFORE_REQUEST = "the server never gets the request"
    BEFORE_REPLY = "the server has done all of it, and the client gets nothing of the reply"
    IN_REPLY = "the server has done all of it, and the client gets half of the bytes of the reply"


@dataclass
class Rule:
    """What happens at a message; made by `Proxy.on_message`."""

    predicate: Predicate
    action: Cut | Callable[[], Awaitable[None]]
    times: int | None
    hits: int = 0
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def finds(self, sent: Message, sql: str) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        return self.predicate(sent, sql)


def runs(text: str) -> Predicate:
    """Find the message that makes the server run SQL beginning with this text, prepared or not."""
    return lambda _, sql: sql.lstrip().upper().startswith(text.upper())


class Proxy(Listener):
    """Forwards 127.0.0.1:`port` to a server until a test says otherwise. It lives on the loop of the test.

    Args:
        upstream: The server. It may be set to another one later: new connections go there, as by a moved address.
        postgres: Whether the connections speak PostgreSQL's protocol, which `on_message` understands (not under TLS).
    """

    def __init__(self, upstream: Upstream, *, postgres: bool = True) -> None:
        super().__init__()
        self.upstream = upstream
        self.postgres = postgres
        self.delay_s = 0.0
        self.swallowing = False
        self.rules: list[Rule] = []
        self.links: set[Link] = set()
        self.accepted = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._limits: dict[Direction, int] = {}

    async def __aexit__(self, *error: object) -> None:
        self.drop_all()
        await super().__aexit__(*error)

    def drop_all(self) -> None:
        """Reset every connection: both sides get an error, not an end."""
        for link in tuple(self.links):
            link.reset()

    def half_close(self) -> None:
        """End the stream towards the clients only: they read an end, and what they still write arrives."""
        for link in tuple(self.links):
            link.end_towards_client()

    def blackhole(self, on: bool = True) -> None:
        """Lose every byte from now on, in both directions, while connections stay and new ones are taken."""
        self.swallowing = on

    def pause(self) -> None:
        """Hold every byte back until `resume`: nothing is lost."""
        self.flowing.clear()

    def resume(self) -> None:
        """Let what was held go on."""
        self.flowing.set()

    def cut_after(self, count: int, direction: Direction) -> None:
        """Reset the connection that carries the byte after the next `count` bytes in a direction."""
        self._limits[direction] = count

    def on_message(
        self, predicate: Predicate, action: Cut | Callable[[], Awaitable[None]], *, times: int | None = 1
    ) -> Rule:
        """Do something at a message of a client: cut the connection, or wait for a coroutine before it is forwarded.

        Args:
            predicate: Gets the message and the SQL that it makes the server run (empty if none); see `runs`.
            action: Where to cut, or what to do first (kill the server, say).
            times: How often; None for always.
        """
        rule = Rule(predicate, action, times)
        self.rules.append(rule)
        return rule

    def allowance(self, direction: Direction, size: int) -> int:
        """Take bytes from what `cut_after` still lets through, and return how many may pass."""
        if direction not in self._limits:
            return size
        passing = min(size, self._limits[direction])
        self._limits[direction] -= passing
        if passing < size:
            del self._limits[direction]
        return passing

    async def serve(self, client: Stream) -> None:
        """Forward one connection."""
        self.accepted += 1
        try:
            server = await connect(self.upstream)
        except OSError:
            abort(client[1])
            return
        link = Link(self, client, server)
        self.links.add(link)
        try:
            await link.run()
        finally:
            self.links.discard(link)


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: Stream, server: Stream) -> None:
        self.proxy = proxy
        self.from_client, self.client = client
        self.from_server, self.server = server
        self.opaque = not proxy.postgres
        self.session = Session()
        self.sent, self.answered = Splitter("client"), Splitter("server")
        self.requests = 0  # that the server will end by a ReadyForQuery, and
        self.replies = -1  # those that it ended; the first one ends the start of the session
        self.cutting: tuple[int, Rule] | None = None  # the request whose reply is cut
        self.held = b""  # of that reply
        self.ended = False  # towards the client

    async def run(self) -> None:
        """Forward both ways until both ends are over."""
        pumps = [
            asyncio.create_task(self._pump("to_server", self.from_client, self.server)),
            asyncio.create_task(self._pump("to_client", self.from_server, self.client)),
        ]
        try:
            await asyncio.gather(*pumps)
        except OSError:
            self.reset()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in (self.client, self.server):
                writer.close()

    def reset(self) -> None:
        """Cut both sides."""
        abort(self.client)
        abort(self.server)

    def end_towards_client(self) -> None:
        """Let the client read an end, while what it writes still arrives."""
        if not self.ended and not self.client.is_closing():
            self.ended = True
            self.client.write_eof()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self.proxy.delay_s:
                await asyncio.sleep(self.proxy.delay_s)
            await self.proxy.flowing.wait()
            if self.proxy.swallowing:
                continue
            passing = self.proxy.allowance(direction, len(data))
            async with contextlib.AsyncExitStack() as stack:
                if passing < len(data):
                    stack.callback(self.reset)
                    data = data[:passing]
                if direction == "to_server":
                    await self._requests(data)
                else:
                    self._replies(data)
                await writer.drain()
        if direction == "to_client":
            self.end_towards_client()
        elif not writer.is_closing():
            writer.write_eof()

    async def _requests(self, data: bytes) -> None:
        if self.opaque:
            self.server.write(data)
            return
        for request in self.sent.feed(data):
            sql = self.session.runs(request)
            rule = next((rule for rule in self.proxy.rules if rule.finds(request, sql)), None)
            if rule is not None:
                rule.hits += 1
                if not isinstance(rule.action, Cut):
                    await rule.action()
                    rule.happened.set()
                elif rule.action is Cut.BEFORE_REQUEST:
                    self.reset()
                    rule.happened.set()
                    return
                else:
                    self.cutting = (self.requests + 1, rule)
            if request.kind in (b"Q", b"S", b"F"):
                self.requests += 1
            if request.code in (SSL_REQUEST, GSS_REQUEST):
                self.answered.single_bytes += 1
            self.server.write(request.data)

    def _replies(self, data: bytes) -> None:
        if self.opaque:
            self._tell(data)
            return
        for reply in self.answered.feed(data):
            if reply.kind == b"?" and reply.data in (b"S", b"G"):  # from here on only the two ends can read
                self.opaque = True
                self._tell(reply.data + self.answered.rest())
                return
            over = reply.kind == b"Z"
            if self.cutting is None or self.replies + 1 < self.cutting[0]:
                self._tell(reply.data)
            else:
                self.held += reply.data
                if over:
                    self._cut_reply(self.cutting[1])
                    return
            self.replies += over

    def _tell(self, data: bytes) -> None:
        if not self.ended:
            self.client.write(data)

    def _cut_reply(self, rule: Rule) -> None:
        """Cut once the whole reply is here: only then is it certain that the server has done it all."""
        if rule.action is Cut.BEFORE_REPLY:
            self.reset()
        else:  # what was half said must arrive before the end does, and a reset would overtake it
            self._tell(self.held[: len(self.held) // 2])
            self.client.close()
            abort(self.server)
        rule.happened.set()
