"""Files that appear whole or not at all: written under another name, synced, and only then given their own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from pathlib import Path
from typing import Self

from memory_store.errors import ConfigurationError, DurableError, DurableUnavailableError, StorageFullError

__all__ = ["Draft"]

# What SQLite may put beside a database while it is written.
_COMPANIONS = ("", "-wal", "-shm", "-journal")


class Draft:
    """A new file beside its final place, for its owner only. Use as a context manager: not published, it is removed.

    A process that is killed leaves it behind; the next draft of the same place removes what nobody holds any more,
    which a lock on each draft tells (process ids would not, between containers).

    Args:
        place: where it is to be in the end; its links have been followed.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._file = -1

    def __enter__(self) -> Self:
        try:
            self._remove_left_over()
            while not self._make():
                pass
        except OSError as error:
            raise _failed(self.place.parent, error) from error
        return self

    def _make(self) -> bool:
        self.path = str(self.place.parent / f"{self.place.name}.{secrets.token_hex(6)}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if os.fstat(self._file).st_nlink:
            return True
        os.close(self._file)  # somebody took it for left over, in the moment before the lock
        return False

    def _remove_left_over(self) -> None:
        pattern = re.compile(re.escape(self.place.name) + r"\.[0-9a-f]{12}\.tmp")
        for found in self.place.parent.iterdir():
            if pattern.fullmatch(found.name) is None or found.is_symlink() or not found.is_file():
                continue
            with contextlib.suppress(OSError):  # in use, gone, or not ours to remove
                file = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(str(found))
                finally:
                    os.close(file)

    def write(self, data: bytes) -> None:
        """Write bytes at its end.

        Raises:
            OSError: the disk is full or broken.
        """
        view = memoryview(data)
        while view:  # a full disk may take a part of it before it refuses the rest
            view = view[os.write(self._file, view) :]

    def sync(self) -> None:
        """Bring what was written to the disk. No connection to it may be open."""
        os.fsync(self._file)

    def publish(self, *, overwrite: bool) -> None:
        """Sync it and give it its name.

        Raises:
            ConfigurationError: a file has that name, and `overwrite` is not set.
            DurableUnavailableError: the folder does not allow it.
        """
        try:
            self.sync()
            if not overwrite:
                self._link()
            if overwrite or not self.place.exists():
                Path(self.path).replace(self.place)
            sync_folder(self.place.parent)
        except FileExistsError as error:
            raise ConfigurationError(f"{self.place} exists already") from error
        except OSError as error:
            raise _failed(self.place.parent, error) from error

    def _link(self) -> None:
        """Give it its name unless another file has it, which a rename would replace. Not every file system can."""
        try:
            os.link(self.path, self.place)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if os.path.lexists(self.place):
                raise FileExistsError(errno.EEXIST, "exists already") from error

    def __exit__(self, *_: object) -> None:
        _remove(self.path)
        os.close(self._file)


def _remove(path: str) -> None:
    for companion in _COMPANIONS:
        Path(path + companion).unlink(missing_ok=True)


def _failed(folder: Path, error: OSError) -> DurableError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFullError(f"no space left in {folder}")
    return DurableUnavailableError(f"cannot write in {folder}: {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Make a change of names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
