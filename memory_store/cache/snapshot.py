"""The saved cache: one file, written whole or not at all, believed only where its checksums hold.

    magic | frame(header) | frame(keys, entries) ... | frame(end)     frame = length u32 | crc32 u32 | msgpack payload

The header carries the version key, the database's identity and position, what the cache's clock said (time stands still
for the entries while no process runs) and the table of spaces that the keys name by number. Keys and entries are
written as they lie in memory, some thousand a frame: with a frame for each, saving 100,000 took 0.9 s instead of 0.2.
The end has the number of entries: a file without it was cut off. The file is 0600 in a 0700 folder and never opened
through a link. Decoding has limits and knows no extension types, so a forged file can at worst cost a rebuild.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from memory_store.codec import check_entry, pack_row
from memory_store.durable.changes import HeadState
from memory_store.durable.drafts import Draft
from memory_store.errors import CacheError, CodecError, DurableError
from memory_store.records import RECORDS

__all__ = ["Header", "SavedEntries", "Snapshot", "save"]

_MAGIC = b"memory_store cache 3\n"
_FRAME = struct.Struct(">II")
_MAX_FRAME_BYTES = 64 * 1024 * 1024
# A frame ends here at the latest; an entry that is larger by itself is not saved.
_FRAME_BYTES = 4 * 1024 * 1024
_LARGEST_ENTRY_BYTES = 32 * 1024 * 1024
_FRAME_ENTRIES = 2048
_MOST_SPACES = 1_000_000

Write = Callable[[bytes], None]
FILE_NAME = "cache.msgpack"


class Header(NamedTuple):
    """What decides whether a saved cache can be used, see `reconcile`; and how its entries are to be read.

    Args:
        version_key: formats, shapes and schema it was written with.
        heads: the watermark of each shard.
        age_s: what the cache's clock said.
        spaces: kind and namespace of each space, by its number.
    """

    version_key: str
    heads: list[HeadState]
    age_s: float
    spaces: list[tuple[str, str]]


class SavedEntries(NamedTuple):
    """Some entries of a file: their keys, with the numbers of its own spaces, and deadlines on its own clock."""

    keys: list[str]
    entries: list[bytes]


def save(folder: str, header: Header, keys: Sequence[str], entries: Sequence[bytes]) -> int:
    """Write the file atomically and return the number of entries: a crash leaves the old file or the new one.

    Raises:
        CacheError: the folder or the file cannot be written; the old file is still there.
    """
    try:
        _private_folder(folder)
        with Draft(Path(folder) / FILE_NAME) as draft:
            count = _write(draft.write, header, keys, entries)
            draft.publish(overwrite=True)
    except (OSError, DurableError) as error:
        raise CacheError(f"cannot save the cache in {folder}: {getattr(error, 'strerror', None) or error}") from error
    return count


def _private_folder(folder: str) -> None:
    Path(folder).mkdir(mode=0o700, exist_ok=True)
    if Path(folder).is_symlink():
        raise OSError(f"{folder} is a link")


def _write(write: Write, header: Header, keys: Sequence[str], entries: Sequence[bytes]) -> int:
    write(_MAGIC)
    _write_frame(write, [header.version_key, [list(head) for head in header.heads], header.age_s, header.spaces])
    count = 0
    for start in range(0, len(keys), _FRAME_ENTRIES):
        count += _write_frames(write, keys[start : start + _FRAME_ENTRIES], entries[start : start + _FRAME_ENTRIES])
    _write_frame(write, [count])
    return count


def _write_frames(write: Write, keys: Sequence[str], entries: Sequence[bytes]) -> int:
    """Write entries as one frame, or as two where they are too large for one; return how many were written."""
    if sum(map(len, entries)) > _FRAME_BYTES:
        if len(keys) > 1:
            half = len(keys) // 2
            return _write_frames(write, keys[:half], entries[:half]) + _write_frames(write, keys[half:], entries[half:])
        if len(entries[0]) > _LARGEST_ENTRY_BYTES:
            return 0
    _write_frame(write, [keys, entries])
    return len(keys)


def _write_frame(write: Write, value: list[Any]) -> None:
    payload = pack_row(value)
    # Two writes: putting them together would copy every byte once more.
    write(_FRAME.pack(len(payload), zlib.crc32(payload)))
    write(payload)


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
            self.header = _parse_header(self._next(_MOST_SPACES))
            self._kinds = {f"{number:x}/": kind for number, (kind, _) in enumerate(self.header.spaces)}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def batches(self) -> Iterator[SavedEntries]:
        """Yield the entries in the order they were saved, least recently used first; expired ones are left out.

        Raises:
            CacheError: the rest is damaged or cut off; what was yielded before is sound.
        """
        count = 0
        while len(frame := self._next(_FRAME_ENTRIES)) != 1:
            keys, entries = frame if len(frame) == 2 else (None, None)
            if type(keys) is not list or type(entries) is not list or len(keys) != len(entries):
                raise CacheError("the saved cache is damaged (a frame has the wrong shape)")
            count += len(keys)
            live = list(map(self._is_live, keys, entries))
            if not all(live):
                keys, entries = list(compress(keys, live)), list(compress(entries, live))
            yield SavedEntries(keys, entries)
        if frame[0] != count or self._file.read(1):
            raise CacheError(f"the saved cache has {count} entries, its end says {frame[0]!r:.20}")

    def _next(self, longest: int) -> list[Any]:
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
            value = msgpack.unpackb(payload, max_ext_len=0, max_map_len=0, max_array_len=longest)
        except (ValueError, msgpack.UnpackException) as error:
            raise CacheError(f"the saved cache is damaged ({error})") from error
        if not isinstance(value, list):
            raise CacheError("the saved cache is damaged (a frame is no list)")
        return value

    def _is_live(self, key: Any, entry: Any) -> bool:
        """Check one entry; return False where it has expired or is cheap to find again."""
        if type(key) is not str or type(entry) is not bytes:
            raise CacheError("the saved cache is damaged (an entry has the wrong shape)")
        kind = self._kinds.get(key[: key.find("/") + 1])
        if kind is None:
            raise CacheError("the saved cache is damaged (a key names no space)")
        if kind not in RECORDS:
            return False
        try:
            left_s = check_entry(kind, entry) - self.header.age_s
        except CodecError as error:
            raise CacheError(f"the saved cache is damaged ({error})") from error
        if not left_s < 1e9:
            raise CacheError("the saved cache is damaged (an impossible time to live)")
        return left_s > 0


def _parse_header(frame: list[Any]) -> Header:
    if [type(value) for value in frame] != [str, list, float, list]:
        raise CacheError("the saved cache is damaged (its header has the wrong shape)")
    version_key, heads, age_s, spaces = frame
    for number, head in enumerate(heads):
        shape = [type(value) for value in head] if type(head) is list else []
        if shape != [int, int, str, int, int] or head[4] != number:
            raise CacheError("the saved cache is damaged (a head has the wrong shape)")
    for space in spaces:
        if type(space) is not list or [type(name) for name in space] != [str, str]:
            raise CacheError("the saved cache is damaged (a space has the wrong shape)")
    if not -1e12 < age_s < 1e12:
        raise CacheError("the saved cache is damaged (its clock is impossible)")
    names = [(kind, namespace) for kind, namespace in spaces]
    return Header(version_key, [HeadState(*head) for head in heads], age_s, names)
