"""The shared cache level as it is stored: one watermark a shard, entries sealed for it, and what leads it on.

Beside the entries of a shard stands its watermark: a commit (position and nonce), and the generation. What holds there:
every entry that is sealed for the generation of the watermark equals the database at the watermark's commit. So the
watermark is moved on only in one step with the removal of what changed in between, and an entry is put only where the
watermark is the very commit at which it was read. Where nobody can say what changed, a new generation begins: random,
kept in the watermark's own value, so that no loss of a key can bring an old entry back to life.

The name of every key holds the database, its epoch, the version key and the shard: a foreign or an older entry has
another name. The part in braces puts all keys of a shard in one slot of a cluster.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from memory_store.cache.entries import Space
from memory_store.codec import Row, check_entry, read_entry
from memory_store.durable.changes import HeadState
from memory_store.durable.reader import PlainKey
from memory_store.errors import CodecError

__all__ = ["Link", "Mark", "Names", "Put", "SharedCounters", "SharedFlight", "new_generation", "seal", "unseal"]

_FORMAT = 1

# An id longer than this is of no record under the default limits; such a key is not shared.
_MOST_ID_CHARACTERS = 1024

_DIGEST_BYTES = 16
_SEAL_BYTES = 2 * _DIGEST_BYTES
_MARK = re.compile(rb"([1-9][0-9]{0,18}) ([0-9a-f]{1,16}) ([0-9a-f]{32})")


@dataclass(slots=True)
class SharedCounters:
    """What happened at the shared level since the store was opened.

    Args:
        hits: misses of this process answered from there.
        misses: those it had nothing for.
        refused: those whose entry was not taken: the watermark there was older, or not known here yet.
        damaged: values that were none of this library's, or broken.
        puts: entries put there.
        advances: times its watermark was moved on.
        flushes: times a new generation was begun, because nobody could say what had changed.
        mends: times the change log was read for a watermark that was left behind.
    """

    hits: int = 0
    misses: int = 0
    refused: int = 0
    damaged: int = 0
    puts: int = 0
    advances: int = 0
    flushes: int = 0
    mends: int = 0


class Mark(NamedTuple):
    """A shared watermark: the commit that the entries of a generation equal."""

    position: int
    nonce: int
    generation: bytes

    @classmethod
    def parse(cls, value: bytes | None) -> Mark | None:
        """Return the watermark of its value; None where there is none, or it is not one."""
        found = _MARK.fullmatch(value or b"")
        return found and cls(int(found[1]), int(found[2], 16), bytes.fromhex(found[3].decode()))

    def __bytes__(self) -> bytes:
        return b"%d %x %b" % (self.position, self.nonce, self.generation.hex().encode())


def new_generation() -> bytes:
    """Return what no generation was called before."""
    return os.urandom(_DIGEST_BYTES)


class Names:
    """What the keys of one shard are called, in one epoch of one database.

    Args:
        head: any commit of the shard in that epoch.
        version_key: formats, shapes, schema and the user's part.
    """

    def __init__(self, head: HeadState, version_key: str) -> None:
        self.past = head[2:]
        """Database, epoch and shard."""
        base = f"memory_store:{_FORMAT}:{{{head.store_id}.{head.epoch}.{version_key}.{head.shard}}}"
        self.mark = base.encode()
        self._prefix = f"{base}/"

    def entry(self, key: PlainKey) -> bytes:
        """Return the name of an entry. Kinds and namespaces have no space in them, so no two keys share one."""
        kind, namespace, id_ = key
        return f"{self._prefix}{kind} {namespace} {id_}".encode("utf-8", "surrogatepass")

    @staticmethod
    def can_name(id_: str) -> bool:
        """Return whether entries of this id are shared."""
        return len(id_) <= _MOST_ID_CHARACTERS


def _digest(name: bytes, generation: bytes, entry: bytes) -> bytes:
    digest = hashlib.blake2b(name + b"\0", digest_size=_DIGEST_BYTES, key=generation)
    digest.update(entry)
    return digest.digest()


def seal(name: bytes, generation: bytes, entry: bytes) -> bytes:
    """Return an entry as it is stored under a name, for a generation."""
    return generation + _digest(name, generation, entry) + entry


def unseal(kind: str, name: bytes, generation: bytes, value: bytes) -> list[Row] | None:
    """Return the rows of a stored entry of a kind; None where it was sealed for another generation.

    Raises:
        CodecError: it was not sealed under this name, or is not what was sealed.
    """
    entry = value[_SEAL_BYTES:]
    if len(value) > _SEAL_BYTES and value[:_DIGEST_BYTES] != generation:
        generation = value[:_DIGEST_BYTES]
        if _digest(name, generation, entry) == value[_DIGEST_BYTES:_SEAL_BYTES]:
            return None
    if _digest(name, generation, entry) != value[_DIGEST_BYTES:_SEAL_BYTES]:
        raise CodecError("a shared entry is damaged", kind=kind)
    check_entry(kind, entry)
    return read_entry(entry)[2:]


class Put(NamedTuple):
    """An entry to be put: its name, its sealed bytes, milliseconds it may live."""

    name: bytes
    value: bytes
    ttl_ms: int


class Link(Protocol):
    """The server that holds the shared level. Every call ends within a short timeout."""

    up: bool
    """Whether it answered lately; while it did not, nobody should ask."""
    error: str
    """What went wrong last, or ""."""
    timeout_s: float
    version_key: str
    """What entries there must have been written with."""

    async def read(self, names: Sequence[bytes], within_s: float) -> list[bytes | None]:
        """Return the values of some names as they were at one moment.

        Raises:
            CacheError: it does not answer.
        """
        ...

    async def replace(
        self, mark: bytes, expected: bytes, new: bytes, gone: Sequence[bytes], puts: Sequence[Put]
    ) -> bytes:
        """In one step: where a watermark's value is the expected one ("" for none), remove, set it, and put.

        Returns:
            The watermark's value afterwards; other than `new`, nothing was done.

        Raises:
            CacheError: it does not answer; it may have been done, or be done yet.
        """
        ...

    async def wait(self) -> None:
        """Wait until it has answered or failed for the first time."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class SharedFlight(Protocol):
    """A read under way for a key."""

    space: Space
    id: str

    def land_shared(self, head: HeadState, rows: list[Row]) -> None:
        """Take what the shared level knew of the key at a commit."""
        ...
