"""The saved cache: one file, written whole or not at all, believed only where its checksums hold.

    magic | frame(header) | frame(entry) ... | frame(end)        frame = length u32 | crc32 u32 | msgpack payload

The header carries the version key and the database's identity and position, each entry the seconds it had left to live
(time stands still for it while no process runs), the end the number of entries: a file without it was cut off. The
file is 0600 in a 0700 folder and never opened through a link. Decoding has limits and knows no extension types, so a
forged file can at worst cost a rebuild.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack

from memory_store.cache.entries import Space
from memory_store.codec import check_entry, entry_expiry, pack_row, with_expiry
from memory_store.errors import CacheError, CodecError
from memory_store.records import RECORDS

__all__ = ["Header", "SavedEntry", "Snapshot", "save"]

_MAGIC = b"memory_store cache 1\n"
_FRAME = struct.Struct(">II")
_MAX_FRAME_BYTES = 64 * 1024 * 1024
_BATCH_ENTRIES = 256
FILE_NAME = "cache.msgpack"


class Header(NamedTuple):
    """What a saved cache must agree with to be used."""

    version_key: str
    store_id: str
    epoch: int
    position: int
    nonce: int

    def mismatch(self, wanted: Header) -> str | None:
        """Return why a saved cache with this header cannot be used where `wanted` is, None if it can."""
        if self.version_key != wanted.version_key:
            return "the version key has changed"
        if (self.store_id, self.epoch) != (wanted.store_id, wanted.epoch):
            return "the saved cache belongs to another database"
        return None if self == wanted else "the database has changed since the cache was saved"


class SavedEntry(NamedTuple):
    """One entry of a file; `entry` has its deadline on this process's monotonic clock."""

    kind: str
    namespace: str
    id: str
    entry: bytes


def save(folder: str, header: Header, entries: Iterable[tuple[Space, str, bytes]]) -> int:
    """Write the file atomically and return the number of entries: a crash leaves the old file or the new one.

    Raises:
        CacheError: the folder or the file cannot be written; the old file is still there.
    """
    temporary = Path(folder) / f"{FILE_NAME}.{os.getpid()}.tmp"
    try:
        _private_folder(folder)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            count = _write(file, header, entries)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(Path(folder) / FILE_NAME)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CacheError(f"cannot save the cache in {folder}: {error.strerror or error}") from error
    return count


def _private_folder(folder: str) -> None:
    Path(folder).mkdir(mode=0o700, exist_ok=True)
    if Path(folder).is_symlink():
        raise OSError(f"{folder} is a link")


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # the rename itself must survive a power cut
    finally:
        os.close(descriptor)


def _write(file: BinaryIO, header: Header, entries: Iterable[tuple[Space, str, bytes]]) -> int:
    file.write(_MAGIC)
    file.write(_frame(list(header)))
    count, now = 0, time.monotonic()
    for space, id_, entry in entries:
        left_s = entry_expiry(entry) - now
        if left_s > 0:
            file.write(_frame([space.kind, space.namespace, id_, with_expiry(entry, left_s)]))
            count += 1
    file.write(_frame([count]))
    return count


def _frame(value: list[Any]) -> bytes:
    payload = pack_row(value)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


class Snapshot:
    """A saved cache, opened for reading. Use as a context manager; blocks, so read it in a thread.

    Raises:
        CacheError: on opening, when there is no file, it is a link, or its start is damaged.
    """

    def __init__(self, folder: str) -> None:
        try:
            # O_NONBLOCK: opening a pipe that somebody put there would wait for ever.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(Path(folder) / FILE_NAME, flags)
        except OSError as error:
            raise CacheError(
                "there is no saved cache" if isinstance(error, FileNotFoundError) else str(error)
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CacheError("the saved cache is not a plain file")
        self._file = os.fdopen(descriptor, "rb", buffering=1 << 16)
        try:
            if self._file.read(len(_MAGIC)) != _MAGIC:
                raise CacheError("the file is not a saved cache of this format")
            self.header = _parse_header(self._next())
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def batches(self) -> Iterator[list[SavedEntry]]:
        """Yield the entries in the order they were saved, least recently used first.

        Raises:
            CacheError: the rest is damaged or cut off; what was yielded before is sound.
        """
        batch: list[SavedEntry] = []
        count, now = 0, time.monotonic()
        while len(frame := self._next()) != 1:
            batch.append(_parse_entry(frame, now))
            count += 1
            if len(batch) == _BATCH_ENTRIES:
                yield batch
                batch = []
        if frame[0] != count or self._file.read(1):
            raise CacheError(f"the saved cache has {count} entries, its end says {frame[0]!r:.20}")
        if batch:
            yield batch

    def _next(self) -> list[Any]:
        head = self._file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            raise CacheError("the saved cache is cut off")
        length, checksum = _FRAME.unpack(head)
        if length > _MAX_FRAME_BYTES:
            raise CacheError("the saved cache is damaged (a length is impossible)")
        payload = self._file.read(length)
        if len(payload) < length or zlib.crc32(payload) != checksum:
            raise CacheError("the saved cache is damaged (a checksum is wrong)")
        try:
            value = msgpack.unpackb(payload, max_ext_len=0, max_map_len=0, max_array_len=5)
        except (ValueError, msgpack.UnpackException) as error:
            raise CacheError(f"the saved cache is damaged ({error})") from error
        if not isinstance(value, list):
            raise CacheError("the saved cache is damaged (a frame is no list)")
        return value


def _parse_header(frame: list[Any]) -> Header:
    if [type(value) for value in frame] != [str, str, int, int, int]:
        raise CacheError("the saved cache is damaged (its header has the wrong shape)")
    return Header(*frame)


def _parse_entry(frame: list[Any], now: float) -> SavedEntry:
    if [type(value) for value in frame] != [str, str, str, bytes] or frame[0] not in RECORDS:
        raise CacheError("the saved cache is damaged (an entry has the wrong shape)")
    kind, namespace, id_, entry = frame
    try:
        check_entry(kind, entry)
    except CodecError as error:
        raise CacheError(f"the saved cache is damaged ({error})") from error
    left_s = entry_expiry(entry)
    if not 0 < left_s < 1e9:
        raise CacheError("the saved cache is damaged (an impossible time to live)")
    return SavedEntry(kind, namespace, id_, with_expiry(entry, now + left_s))
