"""Redis servers that a test may start and kill."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from typing import Self

from tests.servers.guarded import Guard, GuardedServer
from tests.servers.installation import free_port, redis_program, short_folder

_START_S = 30.0


class RedisServer(GuardedServer):
    """A Redis without persistence on a Unix socket and on 127.0.0.1; it never outlives this process.

    Args:
        settings: Options of redis.conf, before all others.
    """

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        self.folder = short_folder("ms-redis-")
        self.socket = self.folder / "redis.sock"
        self.port = free_port()
        self.settings = {"save": "", "appendonly": "no", "bind": "127.0.0.1", "databases": "64", **(settings or {})}
        super().__init__(self.folder / "redis.log", Guard(self.folder, self.folder))

    def url(self, database: int = 0) -> str:
        """Return the URL over the Unix socket."""
        return f"unix://{self.socket}?db={database}"

    def tcp_url(self, database: int = 0, port: int | None = None) -> str:
        """Return the URL over TCP; `port` is that of a proxy in between."""
        return f"redis://127.0.0.1:{port or self.port}/{database}"

    def start(self) -> Self:
        """Start the server, empty, and return once it takes connections."""
        if self.running:
            raise RuntimeError("the server runs already")
        for attempt in range(5):
            if self._started():
                return self
            if attempt == 4 or "Address already in use" not in self.log_tail():
                break
            self.port = free_port()
        raise RuntimeError(f"Redis did not start:\n{self.log_tail()}")

    def stop(self) -> None:
        """Shut the server down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same port: it comes back empty."""
        self.stop()
        self.start()

    def _started(self) -> bool:
        everything = {"port": str(self.port), "unixsocket": str(self.socket), "dir": str(self.folder), **self.settings}
        options = [part for name, value in everything.items() for part in (f"--{name}", value)]
        self.socket.unlink(missing_ok=True)
        self.pid = self._guard.start([str(redis_program()), *options], self.log)
        deadline = time.monotonic() + _START_S
        while self.running:
            if _answers(self.socket):
                return True
            if time.monotonic() > deadline:
                raise TimeoutError(f"Redis does not answer after {_START_S:.0f} s:\n{self.log_tail()}")
            time.sleep(0.005)
        return False


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith(b"+PONG")
