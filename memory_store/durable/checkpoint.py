"""Checkpoints: moving committed pages from the WAL into the database file, when no writer can meet them."""

from __future__ import annotations

import os
import sqlite3

from memory_store.durable.lock import FileLock

__all__ = ["WAL_BYTES", "Checkpointer"]

WAL_BYTES = 4 * 1024 * 1024
"""WAL size that is worth a checkpoint, SQLite's own default: the two syncs it costs are few beside those of the commits
that filled it."""


class Checkpointer:
    """Checkpoints on the writer's own thread, between two transactions, when the WAL has grown.

    Args:
        path: the database file.
        lock: the writer's lock file; a checkpoint needs it exclusively and is put off while another process writes.
    """

    def __init__(self, path: str, lock: FileLock) -> None:
        self._wal, self._lock = path + "-wal", lock
        self._next_bytes = WAL_BYTES
        self.checkpoints = 0
        self.failures = 0

    def wal_bytes(self) -> int:
        """Return the size of the WAL file; 0 when there is none."""
        try:
            return os.stat(self._wal).st_size  # noqa: PTH116 - on the write path: half the cost of Path.stat
        except FileNotFoundError:
            return 0

    def after_commit(self, connection: sqlite3.Connection) -> None:
        """Checkpoint if the WAL is large enough and no other process writes right now.

        A finished checkpoint lets the next commit start the WAL anew and cut it (`journal_size_limit`). One that could
        not finish, because a reader still needs old pages, is tried again once the WAL has grown as much again. One
        that fails loses nothing, since the WAL still holds everything, so it does not fail the write before it.
        """
        size = self.wal_bytes()
        if size < WAL_BYTES:
            self._next_bytes = WAL_BYTES
        elif size >= self._next_bytes:
            self._next_bytes = size + WAL_BYTES
            try:
                self.checkpoint(connection)
            except sqlite3.Error:
                self.failures += 1

    def checkpoint(self, connection: sqlite3.Connection) -> bool:
        """Checkpoint now; return whether every page was moved.

        False as well where another process is writing: nothing was done then.
        """
        with self._lock.exclusive_if_free() as held:
            if not held:
                return False
            busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self.checkpoints += 1
        return not busy and frames == moved
