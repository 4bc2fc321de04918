"""Checkpoints: moving committed pages from the WAL into the database file, when no writer can meet them."""

from __future__ import annotations

import os
import sqlite3
from contextlib import AbstractContextManager

from memory_store.clock import boot_s
from memory_store.durable.lock import FileLock
from memory_store.errors import DurableUnavailableError, MemoryStoreError
from memory_store.telemetry import Telemetry, spanned

__all__ = ["Checkpointer", "sync_log"]

# SQLite's own default, 4 MB: the two syncs a checkpoint costs are few beside those of the commits that filled the WAL.
_WAL_PAGES = 1000
# What a commit and each of its changes dirty, as a first guess; corrected by what each checkpoint reports.
_COMMIT_PAGES, _CHANGE_PAGES = 8, 1


class Checkpointer:
    """Checkpoints on the writer's own thread, between two transactions, when the WAL has grown.

    How many pages wait in the WAL is estimated from the commits since the last checkpoint. The file's size does not
    tell: it is kept and written over, because a commit that makes a file longer syncs 60 % slower (378 against 235 µs),
    which is why `journal_size_limit` is not used either.

    Args:
        path: the database file.
        lock: the writer's lock file; a checkpoint needs it exclusively and is put off while another process writes.
        telemetry: records checkpoints as spans; None records none.
    """

    def __init__(self, path: str, lock: FileLock, telemetry: Telemetry | None = None) -> None:
        self._wal, self._lock, self._telemetry = path + "-wal", lock, telemetry
        self._guessed = 0
        self._put_off_until = _WAL_PAGES
        self._correction = 1.0
        self.checkpoints = 0
        self.failures = 0
        self.last_at: float | None = None
        """When the last checkpoint ended, on the boot clock."""

    def writing(self) -> AbstractContextManager[None]:
        """Hold what a write transaction must hold."""
        return self._lock.shared()

    def wal_bytes(self) -> int:
        """Return the size of the WAL file; 0 when there is none."""
        try:
            return os.stat(self._wal).st_size  # noqa: PTH116 - half the cost of Path.stat
        except FileNotFoundError:
            return 0

    def after_commit(self, connection: sqlite3.Connection, changes: int) -> None:
        """Note a commit of some changes, and checkpoint if enough pages wait.

        A checkpoint that could not finish, because a reader still needs old pages or another process writes, is tried
        again once as many pages have come on top. One that fails loses nothing, since the WAL still holds everything,
        so it does not fail the write before it.
        """
        self._guessed += _COMMIT_PAGES + changes * _CHANGE_PAGES
        if self._guessed * self._correction < self._put_off_until:
            return
        try:
            finished = self.checkpoint(connection)
        except (sqlite3.Error, MemoryStoreError):
            self.failures += 1
            finished = False
        if not finished:
            self._put_off_until += _WAL_PAGES

    def checkpoint(self, connection: sqlite3.Connection) -> bool:
        """Checkpoint now; return whether every page was moved.

        False as well where another process is writing: nothing was done then.
        """
        with self._lock.exclusive_if_free() as held:
            if not held:
                return False
            with spanned(self._telemetry, "memory_store.checkpoint") as span:
                busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                span.set(frames=frames, moved=moved)
        self.checkpoints += 1
        self.last_at = boot_s()
        if busy or frames != moved:
            return False
        if self._guessed:
            self._correction = min(max(frames / self._guessed, 0.1), 100.0)
        self._guessed, self._put_off_until = 0, _WAL_PAGES
        return True


def sync_log(path: str) -> None:
    """Sync what an earlier process left in a database's write-ahead log, and its name.

    After a kill it can hold a whole commit that was never synced. Recovery believes it, and so would everything that
    is answered from it, until a power cut takes it back. Opening the log beside SQLite is safe: its locks are on the
    other files.

    Raises:
        DurableUnavailableError: it cannot be synced.
    """
    try:
        for name in (path + "-wal", os.path.dirname(path)):  # noqa: PTH120 - as `wal_bytes`
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DurableUnavailableError(f"the write-ahead log of {path} cannot be synced: {error.strerror}") from error
