"""The instants of a process at which it can be killed: every SQL statement, lock, file opened, renamed or synced.

Nothing of the library is replaced: the interpreter's audit events and SQLite's trace tell what begins, so whatever the
library does at such a point is met. A process announces the instant it was told to stop at, and stays in it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_FOR_EVER_S = 60.0


class Stop(NamedTuple):
    """Where a process is to be killed.

    Args:
        phase: "opening", "writing" or "closing".
        label: how the instant's name begins; "" for any.
        number: the how manieth of them in that phase, from 1.
        stay: whether the process waits there; else it says so and goes on, to be killed in the midst of what follows.
    """

    phase: str
    label: str
    number: int
    stay: bool


class Instants:
    """Watches one process.

    Args:
        folder: whose files are watched.
        stop: where to stop, None for nowhere.
        announce: called there, on whatever thread it is.
    """

    def __init__(self, folder: Path, stop: Stop | None, announce: Callable[[str], None]) -> None:
        self._folder, self._stop, self._announce = str(folder), stop, announce
        self.phase = ""
        self._met = 0
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Begin; there is no end to it."""
        fsync = os.fsync

        def watched_fsync(descriptor: int) -> None:
            self._at("sync")
            fsync(descriptor)
            self._at("synced")

        connect = sqlite3.connect

        def watched_connect(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **keywords)
            connection.set_trace_callback(lambda sql: self._at(f"sql {sql.lstrip()[:60]}"))
            return connection

        # Syncing is no audit event, and in that of connecting the connection cannot be used yet.
        os.fsync, sqlite3.connect = watched_fsync, watched_connect
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "fcntl.flock":
            self._at("unlock" if arguments[1] & fcntl.LOCK_UN else "lock")
        elif event == "os.rename":
            self._at("rename")
        elif event == "open" and str(arguments[0]).startswith(self._folder):
            self._at(f"open {Path(str(arguments[0])).suffix or 'folder'}")

    def _at(self, label: str) -> None:
        stop = self._stop
        if stop is None or stop.phase != self.phase or not label.startswith(stop.label):
            return
        with self._lock:
            self._met += 1
            met = self._met
        if met == stop.number:
            self._announce(label)
            if stop.stay:
                time.sleep(_FOR_EVER_S)
