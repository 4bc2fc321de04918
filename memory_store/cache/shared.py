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
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memory_store.codec import check_entry, read_entry
from memory_store.durable.changes import PUBLISH_LIMIT, Change, HeadState
from memory_store.durable.log import STORE, Logged
from memory_store.durable.reader import PlainKey
from memory_store.errors import CodecError

__all__ = ["Gone", "Mark", "Names", "SharedCounters", "Trail", "new_generation", "seal", "touched_by", "unseal"]

_FORMAT = 1

# An id longer than this is of no record under the default limits; such a key is not shared.
_MOST_ID_CHARACTERS = 1024

_DIGEST_BYTES = 16
_SEAL_BYTES = 2 * _DIGEST_BYTES
_MARK = re.compile(rb"([1-9][0-9]{0,18}) ([0-9a-f]{1,16}) ([0-9a-f]{32})")

# Commits and keys a trail goes back: a watermark that is further behind is led on by the change log itself.
_MOST_STEPS, _MOST_KEYS = 1024, 8 * PUBLISH_LIMIT


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


def unseal(kind: str, name: bytes, generation: bytes, value: bytes) -> list[list[object]] | None:
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


class Gone(NamedTuple):
    """What may have changed between a watermark and a commit; where that is `everything`, the keys say nothing."""

    keys: frozenset[PlainKey]
    everything: bool = False


def touched_by(changes: Iterable[Logged | Change]) -> Gone:
    """Return what some changes touch."""
    keys: set[PlainKey] = set()
    for change in changes:
        if change.kind == STORE:  # the database as a whole: if that is more than a note, the epoch is another one
            continue
        id_ = change.parent or change.key
        if id_ is None:
            return Gone(frozenset(), everything=True)
        keys.add((change.kind, change.namespace, id_))
    return _bounded(keys)


def _bounded(keys: set[PlainKey]) -> Gone:
    """Return some keys, or everything where they are too many to be removed one by one while others wait."""
    return Gone(frozenset(), everything=True) if len(keys) > PUBLISH_LIMIT else Gone(frozenset(keys))


class _Step(NamedTuple):
    position: int
    nonce: int
    gone: Gone


class Trail:
    """What the newest commits touched, as far as this process has followed the log from somewhere without a gap.

    Args:
        head: where it begins.
    """

    def __init__(self, head: HeadState) -> None:
        self.restart(head)

    def restart(self, head: HeadState) -> None:
        """Begin again at a commit."""
        self.head = self._start = head
        self._steps: deque[_Step] = deque()
        self._keys = 0

    def follow(self, changes: Sequence[Logged], head: HeadState) -> None:
        """Take what led from its head to another one."""
        by_commit: dict[tuple[int, int], list[Logged]] = {}
        for change in changes:
            by_commit.setdefault((change.position, change.nonce), []).append(change)
        for (position, nonce), theirs in by_commit.items():
            self.add(head._replace(position=position, nonce=nonce), touched_by(theirs))
        if self.head != head:
            self.restart(head)

    def add(self, head: HeadState, gone: Gone) -> None:
        """Take the commit that follows its head."""
        self._steps.append(_Step(head.position, head.nonce, gone))
        self.head = head
        self._keys += len(gone.keys)
        while len(self._steps) > _MOST_STEPS or self._keys > _MOST_KEYS:
            step = self._steps.popleft()
            self._keys -= len(step.gone.keys)
            self._start = head._replace(position=step.position, nonce=step.nonce)

    def since(self, mark: Mark) -> Gone | None:
        """Return what may have changed between a watermark and its head; None where the watermark is not on it."""
        at = mark[:2]
        if at == self.head[:2]:
            return Gone(frozenset())
        keys: set[PlainKey] = set()
        everything = False
        for step in reversed(self._steps):
            if step[:2] == at:
                break
            everything |= step.gone.everything
            keys |= step.gone.keys
        else:
            if self._start[:2] != at:
                return None
        return Gone(frozenset(), everything=True) if everything else _bounded(keys)
