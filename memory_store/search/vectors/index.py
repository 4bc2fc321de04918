"""The vector index: all vectors of one namespace and one model, found by cosine similarity."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from memory_store.errors import ConfigurationError, InvalidRecordError, RecordNotFoundError
from memory_store.search.vectors import files
from memory_store.search.vectors.base import Base
from memory_store.search.vectors.graph import NEIGHBOURS, ROUNDING, ROWS_A_STEP, graphs_available
from memory_store.search.vectors.manifest import Seals
from memory_store.search.vectors.rows import MOST_DIMENSIONS, Matrix, Rows, Slice, similarities, unit_rows
from memory_store.search.vectors.slots import Slots, check_name
from memory_store.search.vectors.snapshot import Built, Snapshot

__all__ = ["VectorIndex"]

# A build is due when this share of the base is outdated: comparing an eighth of 100,000 rows takes about twice as long
# as a search of the graph, and each vector is built into a graph nine times while an index grows.
_OUTDATED_SHARE = 8
_LEAST_OUTDATED = 1024

Found = tuple[Slice, Matrix]
"""Slots and their similarities."""


class VectorIndex:
    """Vectors by key, each with a parent, all of one size.

    Exact up to `exact_up_to` vectors, and beyond until a graph was built: `search` never waits for one. With a graph
    recall@10 is .99 or more; figures are still exact, and so is what was put since it was built. Where a graph cannot
    reach that in less time than comparing takes (vectors that point anywhere), none is used.

    One thread uses the index. Work that takes longer is done on a snapshot, in another::

        if index.needs_build:
            index.adopt(await asyncio.to_thread(index.snapshot().build))
        await asyncio.to_thread(index.snapshot().save, folder, state)

    A vector takes 4 bytes a dimension, and in a graph 2 more and some 450 bytes for its links. What a build has made
    is mapped from the files once it has been saved.

    Args:
        dimensions: numbers in each vector, 1 to 65,536.
        exact_up_to: vectors up to which no graph is built.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(self, dimensions: int, *, exact_up_to: int = 20_000) -> None:
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ConfigurationError(f"dimensions must be 1 to {MOST_DIMENSIONS:,}, got {dimensions!r}")
        if exact_up_to < 0:
            raise ConfigurationError(f"exact_up_to must be at least 0, got {exact_up_to!r}")
        self.dimensions = dimensions
        self._exact_up_to = exact_up_to
        self.clear()

    def clear(self) -> None:
        """Discard everything."""
        self._slots, self._rows, self._seals = Slots(), Rows(self.dimensions), Seals()
        self._base = Base(np.empty((0, self.dimensions), np.float32))

    def __len__(self) -> int:
        return len(self._slots.slot_of)

    def __contains__(self, key: object) -> bool:
        return key in self._slots.slot_of

    @property
    def has_graph(self) -> bool:
        """Whether searches go through a graph."""
        return self._base.graph is not None

    def put(self, key: str, parent: str, vector: object) -> None:
        """Put a vector, in place of the one the key had; about 20 µs.

        The one put at which the dictionary of keys grows takes longer: 1 ms at 21,846 keys, 5 at 87,382. A build leaves
        room in it, so an index with a graph does not come to that.

        Args:
            key: text of 1 to 256 bytes, without NUL.
            parent: the same; the episode it belongs to.
            vector: numbers; only their direction counts. A vector of zeros has none: its similarity to any other is 0.

        Raises:
            DimensionMismatchError: it has another size. Nothing was put, here and below.
            InvalidRecordError: a number is not finite, or a key is too long.
            TypeError: it holds no numbers, or a key is no text.
        """
        units = unit_rows(vector, self.dimensions, field="vector", axes=1)
        check_name("key", key)
        check_name("parent", parent)
        self._slots.extend([key], [parent])
        self._rows.append(units)

    def put_many(self, keys: Sequence[str], parents: Sequence[str], vectors: object) -> None:
        """Put many vectors as `put` would one after another, or none of them.

        Args:
            keys: of each row.
            parents: of each row.
            vectors: a matrix.

        Raises:
            DimensionMismatchError: the vectors have another size.
            InvalidRecordError: a number is not finite, a key is too long, or there are not as many of each.
            TypeError: the vectors are no matrix of numbers, or a key is no text.
        """
        units = unit_rows(vectors, self.dimensions, field="vectors", axes=2)
        if not len(keys) == len(parents) == len(units):
            raise InvalidRecordError(
                f"there are {len(keys)} keys and {len(parents)} parents for {len(units)} vectors", field="keys"
            )
        for key, parent in zip(keys, parents, strict=True):
            check_name("key", key)
            check_name("parent", parent)
        last = dict(zip(keys, range(len(keys)), strict=True))
        if len(last) < len(keys):
            kept = list(last.values())
            keys, parents, units = list(last), [parents[place] for place in kept], units[kept]
        self._slots.extend(keys, parents)
        self._rows.append(units)

    def discard(self, key: str) -> None:
        """Discard the vector of a key, if it has one."""
        self._slots.remove(key)

    def discard_parent(self, parent: str) -> None:
        """Discard every vector of a parent."""
        self._slots.remove_parent(parent)

    def parent_of(self, key: str) -> str:
        """Return the parent of a key.

        Raises:
            RecordNotFoundError: the key has no vector.
        """
        return self._slots.parent_of(self._slot_of(key))

    def vectors_of(self, keys: Sequence[str]) -> Matrix:
        """Return the vectors of some keys at length 1, as they are kept: float32 of shape (keys, dimensions).

        Raises:
            RecordNotFoundError: one of the keys has no vector.
        """
        return self._rows.take(np.array([self._slot_of(key) for key in keys], np.int64))

    def _slot_of(self, key: str) -> int:
        slot = self._slots.slot_of.get(key)
        if slot is None:
            raise RecordNotFoundError(f"the index has no vector of {key!r:.80}", key=key)
        return slot

    def search(self, query: object, limit: int, *, among: Collection[str] | None = None) -> list[tuple[str, float]]:
        """Return the most similar keys and their cosine similarities, best first, equal ones by key.

        Args:
            query: a vector as for `put`.
            limit: how many at most, from 1.
            among: only these keys count; those without a vector are passed over. Few are compared exactly, many go
                through the graph as long as enough of them are found there.

        Raises:
            ConfigurationError: `limit` is below 1.
            DimensionMismatchError: the query has another size.
            InvalidRecordError: one of its numbers is not finite.
            TypeError: it holds no numbers, or `among` is one text.
        """
        if limit < 1:
            raise ConfigurationError(f"limit must be at least 1, got {limit!r}")
        if isinstance(among, str | bytes):
            raise TypeError("among must be a collection of keys, not one text")
        asked = unit_rows(query, self.dimensions, field="query", axes=1)[0]
        chosen = None if among is None else self._slots.find(among)
        found = self._from_graph(asked, limit, chosen)
        if found is None:
            found = self._compared(asked, chosen, 0)
        elif self._slots.count > len(self._base):
            rest = self._compared(asked, chosen, len(self._base))
            found = np.concatenate([found[0], rest[0]]), np.concatenate([found[1], rest[1]])
        return self._best(*found, limit)

    def _compared(self, query: Matrix, chosen: Slice | None, start: int) -> Found:
        """Compare every live row from the slot `start` on, or the chosen ones of them."""
        if chosen is not None:
            chosen = chosen[np.searchsorted(chosen, start) :]
            return chosen, self._rows.similarities_of(chosen, query)
        found = self._rows.similarities(query, start)
        live = self._slots.live[start:]
        if not live.all():
            found[~live] = -np.inf
        return np.arange(start, self._slots.count), found

    def _from_graph(self, query: Matrix, limit: int, chosen: Slice | None) -> Found | None:
        """Ask the graph for the base's best, or return None where only comparing rows is both right and cheap enough.

        Rows that do not count (not live, not chosen) are met on the way all the same. So the search is deeper by their
        share. If they were more than that near the query, too few others were seen to trust them.
        """
        graph, count = self._base.graph, len(self._base)
        if graph is None or not query.any():
            return None
        counts, total = self._slots.live, self._slots.live_in_base
        if chosen is not None:
            counts, total = np.zeros(count, np.bool_), int(np.searchsorted(chosen, count))
            counts[chosen[:total]] = True
        wanted = graph.depth + 2 * max(0, limit - NEIGHBOURS)
        if not total or (depth := wanted * count // total) * ROWS_A_STEP > total:
            return None
        # The first of the candidates are mostly enough, and fetching all of them costs a tenth of the search.
        for most in (min(depth, 3 * limit * count // total), depth):
            slots, distances = graph.nearest(query, depth, most)
            slots, distances = slots[counts[slots]], distances[counts[slots]]
            if len(slots) < limit or (most == depth and 2 * len(slots) < wanted):
                continue
            contenders = int(np.searchsorted(distances, distances[limit - 1] + ROUNDING, side="right"))
            if contenders < len(slots):  # else there may be more as near, for the keys to decide among
                slots = slots[:contenders]
                return slots, similarities(self._base.rows.take(slots, axis=0), query)
        return None

    def _best(self, slots: Slice, found: Matrix, limit: int) -> list[tuple[str, float]]:
        if len(found) > limit:
            least = np.partition(found, len(found) - limit)[len(found) - limit]
            best = np.flatnonzero(found >= max(least, -1))
        else:
            best = np.flatnonzero(found >= -1)  # what is not live has less
        keys = map(self._slots.key, slots[best].tolist())
        ranked = heapq.nsmallest(limit, zip((-found[best]).tolist(), keys, strict=True))
        return [(key, -distance) for distance, key in ranked]

    @property
    def needs_build(self) -> bool:
        """Whether it is time to build: for a first graph, or because much has changed since the last build."""
        if self.has_graph:
            outdated = self._slots.count - self._slots.live_in_base
            return outdated > max(_LEAST_OUTDATED, len(self._base) // _OUTDATED_SHARE)
        if self._slots.count - len(self) > max(_LEAST_OUTDATED, len(self)):
            return True
        return graphs_available() and len(self) > max(self._exact_up_to, 2 * self._base.refused_at)

    def snapshot(self) -> Snapshot:
        """Return what a thread needs to build or to save; takes microseconds.

        What an earlier snapshot has saved since is read from the files from here on, and its memory is freed.
        """
        if self._base.mapped is not None:
            self._base = self._base.mapped
            self._rows = self._rows.behind(len(self._base), self._base.rows)
        return Snapshot(self._slots, self._rows, self._base, self._seals, self._exact_up_to)

    def adopt(self, built: Built | None) -> bool:
        """Go over to what a snapshot of this index has built, with all that has happened since.

        Returns False where that is nothing: the build was stopped, or the index was cleared or has adopted another.
        """
        if built is None or built.of is not self._slots:
            return False
        built.slots.follow(built.taken, self._slots.frozen(), built.until)
        self._rows = self._rows.behind(built.until, built.base.rows)
        self._slots, self._base = built.slots, built.base
        return True

    @classmethod
    def open(cls, folder: Path, dimensions: int, *, exact_up_to: int = 20_000) -> tuple[VectorIndex, bytes]:
        """Return a saved index and its owner's state. Blocks, 40 ms for 100,000 vectors: their files are only mapped.

        Keys, parents, state and the graph's links are compared with their checksums here. The vectors are not, since
        that means reading them all: `verify` does, and until then a damaged vector may be found in the wrong place.
        No accidental damage makes a search crash. Bytes forged by who can write the folder may, and so does truncating
        a file while it is mapped.

        Raises:
            CacheError: nothing was saved there, it is damaged, of another format or of other dimensions, or its graph
                needs another library than there is. Make the index anew.
        """
        index = cls(dimensions, exact_up_to=exact_up_to)
        index._slots, index._base, added, state, index._seals = files.read(folder, dimensions)
        chunks = [chunk for chunk in (index._base.rows, added) if len(chunk)]
        index._rows = Rows(dimensions, chunks, index._slots.count)
        return index, state

    def verify(self) -> None:
        """Compare all that was opened with its checksums, once. Blocks while it reads the files; for a thread.

        Raises:
            CacheError: a vector is damaged. Make the index anew.
        """
        self._seals.check()
