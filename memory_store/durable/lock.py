"""The lock file beside a SQLite database.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL file when a checkpoint and a writer of different connections meet at a WAL
reset (fixed in 3.51.3, 3.50.7 and 3.44.6), and most Python builds link one of those. So every write transaction of this
library holds this lock shared, and every checkpoint and schema upgrade holds it exclusively: they never meet.
`flock` belongs to the open file, so the kernel frees it however a process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from memory_store.errors import DurableTimeoutError, DurableUnavailableError

__all__ = ["FileLock"]


class FileLock:
    """A shared and exclusive lock on a file; one holder a `FileLock`, so give every connection its own.

    Args:
        path: the lock file; created when absent, never removed (removing it would split its holders).
        timeout_s: longest wait, in seconds.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        self._path, self._timeout_s = path, timeout_s
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise DurableUnavailableError(f"cannot open the lock file {path}: {error.strerror}") from error

    def close(self) -> None:
        """Give the lock up and close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with other writers.

        Raises:
            DurableTimeoutError: an upgrade or checkpoint of another process took longer than `timeout_s`.
        """
        self._acquire(fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock alone.

        Raises:
            DurableTimeoutError: other processes kept it longer than `timeout_s`.
        """
        self._acquire(fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextmanager
    def exclusive_if_free(self) -> Iterator[bool]:
        """Hold the lock alone if nobody holds it, and say whether that is so."""
        held = self._try(fcntl.LOCK_EX)
        try:
            yield held
        finally:
            if held:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _try(self, mode: int) -> bool:
        try:
            fcntl.flock(self._file, mode | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return False
            raise DurableUnavailableError(f"cannot lock {self._path}: {error.strerror}") from error
        return True

    def _acquire(self, mode: int) -> None:
        if self._try(mode):
            return
        # Polled: a blocking flock has no time limit, and a stopped process may hold the lock for ever.
        deadline, pause_s = time.monotonic() + self._timeout_s, 0.0005
        while not self._try(mode):
            if time.monotonic() > deadline:
                raise DurableTimeoutError(f"another process held {self._path} for more than {self._timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.02)
