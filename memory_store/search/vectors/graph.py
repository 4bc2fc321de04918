"""The graph: usearch's HNSW over rows that do not change, with the search depth that its own recall asks for.

Recall is a property of the data: at a depth of 128 it is .997 on 100,000 mixtures of real sentence vectors, .15 on as
many that point anywhere, where a depth of 2,048 gives .80 and takes three times as long as comparing all of them. So a
new graph is asked for neighbours that are known, and is thrown away where it does not pay.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from memory_store.errors import ConfigurationError
from memory_store.search.vectors.rows import Matrix, Slice, similarities

if TYPE_CHECKING:
    from usearch.index import Index

__all__ = ["NEIGHBOURS", "ROUNDING", "ROWS_A_STEP", "Graph", "graphs_available", "graphs_version"]

ROWS_A_STEP = 64
"""Rows for which comparing each costs about twice what a step of a search in the graph costs, 3 µs.

A search of the graph is worth it where it takes fewer steps than the rows it replaces divided by this.
"""

ROUNDING = 0.0003
"""By how much two distances can be in the wrong order: usearch rounds rows and query to float16."""

NEIGHBOURS = 10
"""For how many neighbours the depth of a graph is enough."""

# 32 neighbours would need 13 % more memory and 30 % more time to build; at equal depth recall is up by .001.
_CONNECTIVITY = 16
_EXPANSION_ADD = 128
# What was measured on stored vectors is better than what queries get, which lie further off: .997 against .994 at 96.
# So the least depth is one step deeper than the figures alone would ask for.
_DEPTHS = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_RECALL = 0.995
_SAMPLES = 128
_BLOCK = 1024


@cache
def graphs_available() -> bool:
    """Return whether what makes graphs is installed; without it everything is compared with everything."""
    return find_spec("usearch") is not None


class Graph:
    """A graph over rows; safe to be searched from one thread while another writes it to a file.

    Args:
        index: usearch's, whose keys are the rows' numbers.
        depth: candidates a search must look at to find the nearest ten.
        memory: what the index reads from, kept as long as it is.
    """

    def __init__(self, index: Index, depth: int, memory: object) -> None:
        self._index, self.depth, self._memory = index, depth, memory

    @classmethod
    def build(cls, rows: Matrix, stop: Event | None) -> Graph | None:
        """Return a graph over the rows, or None where it would not pay. Blocks, 0.3 ms a row of 384 on one core.

        One core is left to others; the interpreter's lock is free meanwhile.

        Args:
            rows: of unit length.
            stop: once it is set, the work is given up.
        """
        halves = rows.astype(np.float16)
        index = _index(rows.shape[1])
        threads = max(1, (os.cpu_count() or 1) - 1)
        numbers = np.arange(len(rows), dtype=np.uint64)
        for start in range(0, len(rows), _BLOCK):
            if stop is not None and stop.is_set():
                return None
            block = slice(start, start + _BLOCK)
            index.add(numbers[block], halves[block], copy=False, threads=threads)
        graph = cls(index, 0, halves)
        graph.depth = graph._needed_depth(rows)
        return graph if graph.depth else None

    @classmethod
    def view(cls, saved: memoryview, dimensions: int, count: int, depth: int) -> Graph:
        """Return a graph that lies in memory as `write` wrote it.

        The bytes must be known to be as written: usearch follows the links it finds there, wherever they lead.

        Raises:
            ValueError: it is not a graph of that many rows.
        """
        index = _index(dimensions)
        try:
            index.view(saved)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if len(index) != count or index.ndim != dimensions:
            raise ValueError(f"it holds {len(index)} rows of {index.ndim} dimensions")
        return cls(index, depth, saved)

    def write(self, path: str) -> None:
        """Write it to a file that is there already, which is emptied first.

        Raises:
            OSError: the disk is full or broken.
        """
        try:
            self._index.save(path)
        except RuntimeError as error:
            raise OSError(str(error)) from error

    def nearest(self, query: Matrix, depth: int, most: int) -> tuple[Slice, Matrix]:
        """Return the nearest rows, the nearest first, and their distances, whose order is right up to `ROUNDING`.

        Args:
            query: near to this.
            depth: candidates that the search looks at; the nearest of many are found more surely than all of few.
            most: how many of them are returned, at most.
        """
        self._index.expansion_search = depth  # type: ignore[misc]  # its setter stands where mypy sees none
        found = self._index.search(query, most, threads=1)
        return found.keys.astype(np.int64), found.distances

    def _needed_depth(self, rows: Matrix) -> int:
        """Return the least depth that finds the nearest of some of the rows, 0 if comparing all rows is cheaper."""
        samples = rows[:: max(1, len(rows) // _SAMPLES)]
        wanted = min(NEIGHBOURS + 1, len(rows))  # the nearest is the sample itself
        least = [_nth_largest(similarities(rows, sample), wanted) for sample in samples]
        for depth in _DEPTHS:
            if depth * ROWS_A_STEP > len(rows):
                break
            found = [
                similarities(rows.take(self.nearest(sample, depth, 3 * wanted)[0], axis=0), sample)
                for sample in samples
            ]
            hits = sum(min(wanted, int(np.count_nonzero(near >= far))) for near, far in zip(found, least, strict=True))
            if hits >= _RECALL * wanted * len(samples):
                return depth
        return 0


def _nth_largest(values: Matrix, number: int) -> np.float32:
    place = len(values) - number
    return np.partition(values, place)[place]  # type: ignore[no-any-return]


def graphs_version() -> str:
    """Return the version of usearch. A graph is not read by another one: what it misreads, it may crash on."""
    import usearch

    return usearch.__version__


def _index(dimensions: int) -> Index:
    try:
        from usearch.index import Index  # here: most indexes never grow so large, and it takes 50 ms
    except ImportError as error:
        raise ConfigurationError("a graph needs usearch: pip install 'memory-store[vectors]'") from error
    return Index(
        ndim=dimensions,
        metric="cos",
        dtype="f16",
        connectivity=_CONNECTIVITY,
        expansion_add=_EXPANSION_ADD,
        enable_key_lookups=False,
    )
