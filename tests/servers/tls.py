"""TLS in front of a PostgreSQL that was built without it, as the one from the wheel is."""

from __future__ import annotations

import asyncio
import ssl
import struct
from pathlib import Path

from tests.servers.listening import Listener, Stream, abort
from tests.servers.wire import SSL_REQUEST

# Signed by itself, for `localhost` and 127.0.0.1, valid for a hundred years: a test must not depend on a program that
# makes certificates, nor on the day. `renew.sh` beside them says how they were made. They guard nothing.
CERTIFICATE = Path(__file__).parent / "tls" / "server.pem"
KEY = Path(__file__).parent / "tls" / "server.key"

_REFUSAL = b"SFATAL\0C28000\0Mthis server takes TLS only\0\0"


class TlsFront(Listener):
    """Takes TLS on `localhost`:`port` as PostgreSQL does (by an SSLRequest), and forwards to a server without it.

    Args:
        socket: The Unix socket of the server.
        required: Refuse clients that do not ask for TLS, as `hostssl` in pg_hba.conf does.
    """

    def __init__(self, socket: Path, *, required: bool = True) -> None:
        super().__init__()
        self.socket = socket
        self.required = required
        self.versions: list[str | None] = []  # of TLS, for each connection that came through
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATE, KEY)

    async def serve(self, client: Stream) -> None:
        """Take TLS from one client."""
        reader, writer = client
        try:
            first = await reader.readexactly(8)
            if struct.unpack("!II", first) == (8, SSL_REQUEST):
                writer.write(b"S")
                await writer.start_tls(self._context)
                self.versions.append(writer.get_extra_info("ssl_object").version())
                first = b""
            elif self.required:
                writer.write(b"E" + struct.pack("!I", len(_REFUSAL) + 4) + _REFUSAL)
                await writer.drain()
                return
            server = await asyncio.open_unix_connection(str(self.socket))
            server[1].write(first)
            await forward(client, server)
        except (OSError, asyncio.IncompleteReadError):
            pass  # a client that does not trust the certificate, or is gone


async def forward(client: Stream, server: Stream) -> None:
    """Forward both ways until one side is over."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    pumps = [asyncio.create_task(pump(client[0], server[1])), asyncio.create_task(pump(server[0], client[1]))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        abort(server[1])
