"""Just enough of PostgreSQL's wire protocol 3 to see where messages begin and end, and what SQL they run."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


@dataclass(frozen=True)
class Message:
    """One whole message: `kind` is its letter, empty for those before the session starts."""

    kind: bytes
    data: bytes

    @property
    def body(self) -> bytes:
        return self.data[5:] if self.kind else self.data[4:]

    @property
    def code(self) -> int:
        """The number by which a message before the session says what it is."""
        return int(struct.unpack("!I", self.data[4:8])[0]) if not self.kind else 0


def message(kind: bytes, body: bytes = b"") -> bytes:
    """Return the bytes of a message."""
    return kind + struct.pack("!I", len(body) + 4) + body


class Splitter:
    """Cuts a stream of bytes into messages; an incomplete one waits for its rest."""

    def __init__(self, side: Literal["client", "server"]) -> None:
        self.starting = side == "client"
        self.single_bytes = 0  # answers to requests for encryption are one byte without a frame
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        self._buffer += data
        messages = []
        while (found := self._next()) is not None:
            messages.append(found)
        return messages

    def rest(self) -> bytes:
        """Take what is not a whole message yet."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _next(self) -> Message | None:
        if self.single_bytes and self._buffer:
            self.single_bytes -= 1
            return Message(b"?", self._take(1))
        header = 0 if self.starting else 1
        if len(self._buffer) < header + 4:
            return None
        size = header + int(struct.unpack_from("!I", self._buffer, header)[0])
        if len(self._buffer) < size:
            return None
        if not self.starting:
            return Message(bytes(self._buffer[:1]), self._take(size))
        found = Message(b"", self._take(size))
        self.starting = found.code in (SSL_REQUEST, GSS_REQUEST)
        return found

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


class Session:
    """Follows what one client sends, so as to know the SQL behind an Execute."""

    def __init__(self) -> None:
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}

    def runs(self, sent: Message) -> str:
        """Return the SQL that this message makes the server run; empty for a message that runs nothing."""
        if sent.kind == b"Q":
            return sent.body.rstrip(b"\0").decode()
        if sent.kind == b"P":
            name, sql, _ = sent.body.split(b"\0", 2)
            self._statements[name] = sql.decode()
        elif sent.kind == b"B":
            portal, statement, _ = sent.body.split(b"\0", 2)
            self._portals[portal] = self._statements.get(statement, "")
        elif sent.kind == b"E":
            return self._portals.get(sent.body.split(b"\0", 1)[0], "")
        return ""
