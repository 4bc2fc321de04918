"""What describes a saved index: its manifest, and the seals by which its files are known to be as they were written.

A file has two checksums. One covers what must be right from the start: wrong keys are wrong answers, and on wrong links
usearch crashes. The other covers the vectors, which would take too long to read on opening.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import msgpack
import numpy as np

from memory_store.errors import CacheError

__all__ = [
    "ADDED",
    "GRAPH",
    "GRAPH_START",
    "KEYS",
    "MOST_MANIFEST_BYTES",
    "MOST_STATE_BYTES",
    "ROWS",
    "ROW_TYPE",
    "Manifest",
    "Seal",
    "Seals",
]

KEYS, ROWS, GRAPH, ADDED = "keys", "rows", "graph", "added"
"""The names of the files."""

GRAPH_START = 8
"""Where the rows begin in the file of a graph, in float16: usearch writes two uint32 before, and its header behind."""

ROW_TYPE = np.dtype(np.float32).str
"""How rows are stored; says the order of their bytes, too."""

MOST_STATE_BYTES = 1024 * 1024
MOST_MANIFEST_BYTES = MOST_STATE_BYTES + 64 * 1024

_MAGIC = b"memory_store vectors 1\n"
_FRAME = struct.Struct(">II")


class Seal(NamedTuple):
    """What a file must be: its size, and the checksums of what is compared on opening and of what is compared later."""

    size: int
    early: int
    late: int

    @classmethod
    def of(cls, name: str, content: memoryview, half_bytes: int = 0) -> Seal:
        """Return the seal of a file; `half_bytes` says how long the rows are that a graph holds."""
        early, late = _parts(name, content, half_bytes)
        return cls(len(content), _checksum(early), _checksum(late))


class Seals:
    """Checksums of what was opened and not read yet."""

    def __init__(self) -> None:
        self._late: list[tuple[str, list[memoryview], int]] = []

    def add(self, name: str, content: memoryview, seal: Seal, half_bytes: int) -> None:
        """Compare what must be right from the start, and keep the rest for later.

        Raises:
            ValueError: it is wrong.
        """
        early, late = _parts(name, content, half_bytes)
        if _checksum(early) != seal.early:
            raise ValueError(f"{name} has another checksum")
        self._late.append((name, late, seal.late))

    def check(self) -> None:
        """Compare the rest, once; for a thread.

        Raises:
            CacheError: it is wrong.
        """
        for name, late, checksum in self._late:
            if _checksum(late) != checksum:
                raise CacheError(f"the saved index is damaged ({name} has another checksum)")
        self._late = []


def _parts(name: str, content: memoryview, half_bytes: int) -> tuple[list[memoryview], list[memoryview]]:
    if name == KEYS:
        return [content], []
    if name == GRAPH:
        links = GRAPH_START + half_bytes
        return [content[:GRAPH_START], content[links:]], [content[GRAPH_START:links]]
    return [], [content]


def _checksum(parts: Iterable[memoryview]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


class Manifest(NamedTuple):
    """A saved index but for its files, which are checked against it.

    As bytes: magic | length u32 | crc32 u32 | msgpack list of these.

    Args:
        generation: that holds the files.
        dimensions: numbers in each vector.
        rows: of the base.
        added: rows put since the base was built.
        row_type: as numpy writes it: the type's size and the order of its bytes.
        refused_at: of the base.
        depth: of the base's graph, 0 for none.
        graphs_version: of what wrote the graph, "" for none.
        seals: of each file.
        state: the owner's own.
    """

    generation: str
    dimensions: int
    rows: int
    added: int
    row_type: str
    refused_at: int
    depth: int
    graphs_version: str
    seals: dict[str, Seal]
    state: bytes

    def pack(self) -> bytes:
        """Return it as bytes."""
        seals = {name: list(seal) for name, seal in self.seals.items()}
        payload: bytes = msgpack.packb(list(self._replace(seals=seals)))  # type: ignore[arg-type]
        return _MAGIC + _FRAME.pack(len(payload), zlib.crc32(payload)) + payload

    @classmethod
    def parse(cls, content: bytes, dimensions: int) -> Manifest:
        """Return a manifest whose counts and sizes agree.

        Raises:
            CacheError: it is none, or not for this machine or this index.
            ValueError: it is damaged.
        """
        if not content.startswith(_MAGIC):
            raise CacheError("the file is not a saved index of this format")
        start = len(_MAGIC) + _FRAME.size
        payload = content[start:]
        if len(content) < start or _FRAME.unpack(content[len(_MAGIC) : start]) != (len(payload), zlib.crc32(payload)):
            raise ValueError("the manifest has another checksum")
        values = msgpack.unpackb(payload, max_ext_len=0)
        types = [str, int, int, int, str, int, int, str, dict, bytes]
        if type(values) is not list or [type(value) for value in values] != types:
            raise ValueError("the manifest has the wrong shape")
        for seal in values[8].values():
            if type(seal) is not list or [type(number) for number in seal] != [int, int, int]:
                raise ValueError("a seal has the wrong shape")
        manifest = cls(*values)._replace(seals={name: Seal(*seal) for name, seal in values[8].items()})
        if manifest.dimensions != dimensions:
            raise CacheError(f"the saved index has {manifest.dimensions} dimensions, not {dimensions}")
        if manifest.row_type != ROW_TYPE:
            raise CacheError(f"the saved index has rows of {manifest.row_type!r:.20}, which this machine does not read")
        manifest._check_sizes()
        return manifest

    def _check_sizes(self) -> None:
        if min(self.rows, self.added, self.refused_at, self.depth) < 0:
            raise ValueError("the manifest has impossible counts")
        row_bytes = self.dimensions * np.dtype(np.float32).itemsize
        sizes = {ROWS: self.rows * row_bytes, ADDED: self.added * row_bytes}
        names = {KEYS, *(name for name, size in sizes.items() if size), *([GRAPH] if self.depth else [])}
        if self.seals.keys() != names or any(
            seal.size != sizes.get(name, seal.size) for name, seal in self.seals.items()
        ):
            raise ValueError("the manifest has files that its counts do not lead to")
        if self.depth and not self.rows:
            raise ValueError("the manifest has a graph over no rows")
