"""This side of the guard: start a server that cannot outlive this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

STOP_S = 30.0
GUARD = Path(__file__).with_name("guard.py")


class Guard:
    """A process that ends a server and removes `folders` when this one closes it or dies, by whatever cause.

    Args:
        data: The data folder of the server, whose shared memory goes with it.
        folders: The folders to remove.
    """

    def __init__(self, data: Path, *folders: Path) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), str(data), *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )

    def start(self, command: Sequence[str], log: Path, user: int | None = None, group: int | None = None) -> int:
        """Start a server, return its process id."""
        answer = self._ask({"start": list(command), "user": user, "group": group, "log": str(log)})
        if "error" in answer:
            raise OSError(answer["error"])
        return int(answer["pid"])

    def wait(self, seconds: float = 0.0) -> int | None:
        """Return the exit code of the server once it has ended; None while it runs."""
        code = self._ask({"wait": seconds})["code"]
        return None if code is None else int(code)

    def close(self) -> None:
        """End the server if it still runs, and remove the folders."""
        with self._lock:
            if self._process.stdin is None or self._process.stdin.closed:
                return
            self._process.stdin.close()
            self._process.wait(60)
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the guard has no pipes")
        with self._lock:
            stdin.write(json.dumps(command).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            raise RuntimeError("the guard of a server died")
        answer: dict[str, Any] = json.loads(line)
        return answer


class GuardedServer(ABC):
    """A server that a test starts, stops and kills; `with` starts it, and ends it with its folders.

    Args:
        log: the file that has what it says.
        guard: of its data and its folders.
    """

    def __init__(self, log: Path, guard: Guard) -> None:
        self.log, self._guard = log, guard
        self.pid: int | None = None
        """Of the server, None while it does not run."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def start(self) -> Self:
        """Start the server, and return once it takes connections."""

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        if self.pid is not None and self._guard.wait() is not None:
            self.pid = None
        return self.pid is not None

    def close(self) -> None:
        """End the server and remove its temporary folders."""
        self._guard.close()
        self.pid = None

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _end(self, number: signal.Signals) -> None:
        """Send it a signal and wait for its end."""
        if self.pid is None or not self.running:
            return
        os.kill(self.pid, number)
        if self._guard.wait(STOP_S) is None:
            raise TimeoutError(f"it did not end:\n{self.log_tail()}")
        self.pid = None
