"""An index as it was at one moment, for the work that takes a thread: building the next base, and saving."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np

from memory_store.search.vectors import files
from memory_store.search.vectors.base import Base
from memory_store.search.vectors.manifest import Seals
from memory_store.search.vectors.rows import Rows, Slice
from memory_store.search.vectors.slots import Slots

__all__ = ["Built", "Snapshot"]


class Built(NamedTuple):
    """What `Snapshot.build` returns and `VectorIndex.adopt` takes.

    Args:
        base: the new base.
        slots: its slots.
        of: the slots of the index it was made from,
        taken: which of them became those of the base, in order,
        until: and how many there were then.
    """

    base: Base
    slots: Slots
    of: Slots
    taken: Slice
    until: int


class Snapshot:
    """What an index held when `VectorIndex.snapshot` was called. Nothing that happens to the index changes it.

    Both methods block and are for a thread, beside which the index is written and searched. Both first compare what was
    opened from a file with its checksums, unless `VectorIndex.verify` has: damage would else get into a new file, under
    a checksum that holds.
    """

    def __init__(self, slots: Slots, rows: Rows, base: Base, seals: Seals, exact_up_to: int) -> None:
        self._slots, self._entries = slots, slots.frozen()
        self._rows, self._base, self._seals, self._exact_up_to = rows.frozen(), base, seals, exact_up_to

    def build(self, stop: Event | None = None) -> Built | None:
        """Return what the index becomes when everything put and discarded since the last build is worked in.

        Takes about 0.3 ms of one core a vector of 384 dimensions where a graph is built, else milliseconds.

        Args:
            stop: set it from another thread to give the work up; then it returns None within about a second.

        Raises:
            CacheError: the saved files the index was opened from are damaged; make it anew.
        """
        self._seals.check()
        taken = np.flatnonzero(self._entries.live)
        base = Base.merge(self._rows, taken, exact_up_to=self._exact_up_to, stop=stop)
        if base is None:
            return None
        return Built(base, Slots(self._entries.of(taken), len(base)), self._slots, taken, self._rows.count)

    def save(self, folder: Path, state: bytes) -> None:
        """Save atomically: a crash or an error leaves what was saved before, or this.

        The rows and the graph of a base that lies in the folder already are linked and not written again. A vector that
        was discarded is in the file until a build has worked that in; its key is not.

        Args:
            folder: is made if absent, for its owner alone; the folder above it must be there.
            state: the owner's own, at most 1 MiB; `VectorIndex.open` returns it.

        Raises:
            CacheError: the folder cannot be written, or what the index was opened from is damaged. Safe to retry.
        """
        self._seals.check()
        count = len(self._base)
        added = count + np.flatnonzero(self._entries.live[count:])
        entries = self._entries.of(np.concatenate([np.arange(count), added]))
        files.write(folder, files.Content(self._rows.dimensions, entries, self._base, self._rows.take(added), state))
