"""Saved indexes: what is in the files of a generation.

    keys           msgpack: the key of each slot ("" where not live), parents, each slot's number among those (int32);
                   names behind one another with NUL between, which is read three times as fast as a list
    rows, graph    the base: its rows (float32), and usearch's own format
    added          the rows put since the base was built

A base that has not changed is linked from one generation into the next, so a save writes what is new.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from memory_store.errors import CacheError, ConfigurationError
from memory_store.search.vectors.base import Base
from memory_store.search.vectors.generations import MANIFEST, NewGeneration, map_file, read_file, reading
from memory_store.search.vectors.graph import Graph, graphs_available, graphs_version
from memory_store.search.vectors.manifest import (
    ADDED,
    GRAPH,
    GRAPH_START,
    KEYS,
    MOST_MANIFEST_BYTES,
    MOST_STATE_BYTES,
    ROW_TYPE,
    ROWS,
    Manifest,
    Seal,
    Seals,
)
from memory_store.search.vectors.rows import Matrix
from memory_store.search.vectors.slots import Entries, Slots

__all__ = ["Content", "Opened", "Stored", "read", "write"]

_GRAPH_HEADER = b"usearch"


class Content(NamedTuple):
    """What is saved.

    Args:
        dimensions: numbers in each vector.
        entries: of the slots of the base, and behind them of the added rows.
        base: the base.
        added: rows put since it was built.
        state: the owner's own.
    """

    dimensions: int
    entries: Entries
    base: Base
    added: Matrix
    state: bytes


class Opened(NamedTuple):
    """What was read: slots in place of entries, and the checksums that were not compared yet."""

    slots: Slots
    base: Base
    added: Matrix
    state: bytes
    seals: Seals


class Stored(NamedTuple):
    """Where the files of a base lie, and their seals."""

    generation: Path
    seals: Mapping[str, Seal]


# --- writing


def write(folder: Path, content: Content) -> None:
    """Save atomically, and note in the base where its files lie now, and at first also the base that they are.

    Raises:
        CacheError: the folder cannot be written. What was saved before is still there, or this is.
        ConfigurationError: the state is too large.
    """
    if len(content.state) > MOST_STATE_BYTES:
        raise ConfigurationError(f"state must have at most {MOST_STATE_BYTES:,} bytes, has {len(content.state):,}")
    base = content.base
    try:
        with NewGeneration(folder) as generation:
            seals = _write_files(generation, content)
            # Before they are published: another process may replace and remove them at any time after that.
            mapped = _mapped(generation.path, base) if base.stored is None and len(base) else None
            generation.publish(_manifest(generation.path.name, content, seals).pack())
        base.stored = Stored(generation.path, seals)
        if mapped is not None:
            mapped.stored, base.mapped = base.stored, mapped
    except OSError as error:
        raise CacheError(f"cannot save the index in {folder}: {error.strerror or error}") from error


def _write_files(generation: NewGeneration, content: Content) -> dict[str, Seal]:
    entries, base = content.entries, content.base
    keys = msgpack.packb(["\0".join(entries.keys), "\0".join(entries.parents), entries.numbers.astype("<i4").tobytes()])
    seals = {KEYS: _write_file(generation, KEYS, keys)}
    if len(content.added):
        seals[ADDED] = _write_file(generation, ADDED, content.added)
    if len(base):
        seals[ROWS] = _link(generation, ROWS, base.stored) or _write_file(generation, ROWS, base.rows)
    if base.graph is not None:
        linked = _link(generation, GRAPH, base.stored)
        seals[GRAPH] = linked or _write_graph(generation, base.graph, base.rows.nbytes // 2)
    return seals


def _write_file(generation: NewGeneration, name: str, content: Any) -> Seal:
    view = memoryview(content).cast("B")
    generation.write(name, view)
    return Seal.of(name, view)


def _write_graph(generation: NewGeneration, graph: Graph, half_bytes: int) -> Seal:
    generation.write(GRAPH, b"")  # for its mode, which usearch leaves as it is
    graph.write(str(generation.path / GRAPH))
    content = _map(generation.path / GRAPH)
    header = GRAPH_START + half_bytes
    if content[header : header + len(_GRAPH_HEADER)] != _GRAPH_HEADER:
        raise OSError("this version of usearch writes graphs in a way that is not known here")
    return Seal.of(GRAPH, content, half_bytes)


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _mapped(generation: Path, base: Base) -> Base:
    count, dimensions = base.rows.shape
    graph = base.graph and Graph.view(_map(generation / GRAPH), dimensions, count, base.graph.depth)
    return Base(_matrix(_map(generation / ROWS), dimensions), graph, base.refused_at)


def _link(generation: NewGeneration, name: str, stored: Stored | None) -> Seal | None:
    """Take a file over from where it lies; None if it does not any more, or the file system cannot."""
    if stored is None:
        return None
    place, seal = generation.path / name, stored.seals[name]
    try:
        os.link(stored.generation / name, place, follow_symlinks=False)
    except OSError:
        return None
    if place.lstat().st_size != seal.size:
        place.unlink()
        return None
    return seal


def _manifest(generation: str, content: Content, seals: dict[str, Seal]) -> Manifest:
    base = content.base
    return Manifest(
        generation,
        content.dimensions,
        len(base),
        len(content.added),
        ROW_TYPE,
        base.refused_at,
        0 if base.graph is None else base.graph.depth,
        "" if base.graph is None else graphs_version(),
        seals,
        content.state,
    )


# --- reading


def read(folder: Path, dimensions: int) -> Opened:
    """Return what was saved, its files mapped.

    Raises:
        CacheError: nothing was saved, it is damaged, or not for this index.
    """
    try:
        with reading(folder) as descriptor:
            manifest = Manifest.parse(read_file(descriptor, MANIFEST, MOST_MANIFEST_BYTES), dimensions)
            mapped = {
                name: map_file(descriptor, manifest.generation, name, seal.size)
                for name, seal in manifest.seals.items()
            }
        seals = Seals()
        for name, content in mapped.items():
            seals.add(name, content, manifest.seals[name], len(mapped.get(ROWS, b"")) // 2)
        stored = Stored((folder / manifest.generation).absolute(), manifest.seals)
        return _opened(manifest, mapped, stored, seals)
    except FileNotFoundError as error:
        raise CacheError("there is no saved index") from error
    except OSError as error:
        raise CacheError(f"cannot open the saved index: {error.strerror or error}") from error
    except (ValueError, msgpack.UnpackException) as error:
        raise CacheError(f"the saved index is damaged ({error})") from error


def _opened(manifest: Manifest, mapped: Mapping[str, memoryview], stored: Stored, seals: Seals) -> Opened:
    rows = _matrix(mapped.get(ROWS), manifest.dimensions)
    graph = _view(manifest, mapped[GRAPH]) if manifest.depth else None
    return Opened(
        Slots(_parse_keys(mapped[KEYS], manifest.rows + manifest.added), manifest.rows),
        Base(rows, graph, manifest.refused_at, stored),
        _matrix(mapped.get(ADDED), manifest.dimensions),
        manifest.state,
        seals,
    )


def _matrix(mapped: memoryview | None, dimensions: int) -> Matrix:
    return np.frombuffer(b"" if mapped is None else mapped, np.float32).reshape(-1, dimensions)


def _view(manifest: Manifest, mapped: memoryview) -> Graph:
    if not graphs_available():
        raise CacheError("the saved index has a graph, which needs usearch: pip install 'memory-store[vectors]'")
    if manifest.graphs_version != graphs_version():
        raise CacheError(f"the saved index has a graph of usearch {manifest.graphs_version}, not {graphs_version()}")
    return Graph.view(mapped, manifest.dimensions, manifest.rows, manifest.depth)


def _parse_keys(content: memoryview, count: int) -> Entries:
    values = msgpack.unpackb(content, max_ext_len=0, max_map_len=0)
    if type(values) is not list or [type(value) for value in values] != [str, str, bytes]:
        raise ValueError("the keys have the wrong shape")
    keys, parents = (names.split("\0") for names in values[:2])
    numbers = np.frombuffer(values[2], "<i4").astype(np.int32)
    if not count:
        return Entries([], np.empty(0, np.bool_), numbers, [])
    if not len(keys) == len(numbers) == count:
        raise ValueError(f"there are {len(keys)} keys for {count} rows")
    if not 0 <= numbers.min() <= numbers.max() < len(parents):
        raise ValueError("a parent is missing")
    live = np.ones(count, np.bool_)
    if "" in keys:
        live[:] = [key != "" for key in keys]
    return Entries(keys, live, numbers, parents)
