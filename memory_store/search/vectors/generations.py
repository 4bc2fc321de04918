"""A folder of which one generation of files is current: the one that its manifest names.

A generation is a folder of its own, under a name nobody else takes. It is written and synced, and complete before the
manifest is renamed to name it; its files never change after that. Who writes one holds a lock on it. The lock on the
folder above is held while a generation is begun, while the manifest is replaced and what nobody writes is removed, and
by readers until they have opened all files. What they have mapped stays theirs after it was removed.

Files are 0600 in folders of 0700, and never opened through a link. The locks are `flock`'s, which the kernel frees
however a process ends.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

__all__ = ["MANIFEST", "NewGeneration", "map_file", "read_file", "reading"]

MANIFEST = "manifest"
_NAME = re.compile("[0-9a-f]{16}")
_BLOCK_BYTES = 16 * 1024 * 1024
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe that somebody put there would wait for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER = _READ | os.O_DIRECTORY


class NewGeneration:
    """A generation to be written. Use as a context manager: not published, it is removed.

    Whoever is killed leaves it behind, and the next that is published removes it. All methods raise OSError.

    Args:
        folder: is made if absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self.path = self._folder / secrets.token_hex(8)
        self._published = False

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with _locked(self._folder, fcntl.LOCK_EX):
            self.path.mkdir(mode=0o700)
            self._holder = os.open(self.path, _FOLDER)
            fcntl.flock(self._holder, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._published:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._holder)

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file and sync it."""
        rest = memoryview(content)
        file = os.open(self.path / name, _NEW, 0o600)
        try:
            while rest:  # a full disk may take a part of it before it refuses the rest
                rest = rest[os.write(file, rest[:_BLOCK_BYTES]) :]
            os.fsync(file)
        finally:
            os.close(file)

    def publish(self, manifest: bytes) -> None:
        """Make it the current one, and remove those that are neither current nor being written."""
        self.write(MANIFEST, manifest)
        os.fsync(self._holder)
        with _locked(self._folder, fcntl.LOCK_EX) as folder:
            (self.path / MANIFEST).replace(self._folder / MANIFEST)
            self._published = True
            os.fsync(folder)
            self._remove_others()

    def _remove_others(self) -> None:
        for found in self._folder.iterdir():
            if found == self.path or not _NAME.fullmatch(found.name):
                continue
            try:
                holder = os.open(found, _FOLDER)
            except OSError:
                continue  # no folder of ours
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found, ignore_errors=True)  # what is left costs space until the next time
            except BlockingIOError:
                continue
            finally:
                os.close(holder)


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[int]:
    descriptor = os.open(folder, _FOLDER)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def reading(folder: Path) -> Iterator[int]:
    """Return the folder, in which nothing is replaced or removed meanwhile. Raises OSError."""
    with _locked(folder, fcntl.LOCK_SH) as descriptor:
        yield descriptor


def read_file(folder: int, name: str, most: int) -> bytes:
    """Return a file's bytes, or as many of them as are read at most. Raises OSError."""
    with os.fdopen(_open(folder, name), "rb") as file:
        return file.read(most)


def map_file(folder: int, generation: str, name: str, size: int) -> memoryview:
    """Return a file of a generation, mapped.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is missing or has another size, or the name is not one of a generation.
    """
    if not _NAME.fullmatch(generation):
        raise ValueError("it names no generation")
    try:
        parent = os.open(generation, _FOLDER, dir_fd=folder)
        try:
            file = _open(parent, name)
        finally:
            os.close(parent)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is missing") from error
    try:
        if os.fstat(file).st_size != size:
            raise ValueError(f"{name} has {os.fstat(file).st_size} bytes, not {size}")
        return memoryview(mmap.mmap(file, size, access=mmap.ACCESS_READ))
    finally:
        os.close(file)


def _open(folder: int, name: str) -> int:
    file = os.open(name, _READ, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{name} is not a plain file")
    return file
