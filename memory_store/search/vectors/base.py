"""The part of an index that does not change between two builds: rows without gaps, and a graph over them if it pays."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

from memory_store.search.vectors.graph import Graph, graphs_available
from memory_store.search.vectors.rows import Matrix, Rows, Slice

if TYPE_CHECKING:
    from memory_store.search.vectors.files import Stored

__all__ = ["Base"]


class Base:
    """The first slots of an index.

    Args:
        rows: one a slot.
        graph: over the rows, None for none.
        refused_at: for how many rows a graph was last tried and did not pay, 0 for never.
        stored: where its files lie, None for nowhere yet.
    """

    def __init__(
        self, rows: Matrix, graph: Graph | None = None, refused_at: int = 0, stored: Stored | None = None
    ) -> None:
        self.rows, self.graph, self.refused_at, self.stored = rows, graph, refused_at, stored
        self.mapped: Base | None = None
        """The same in the files it was saved to, once that has happened: its owner may go over to it."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def merge(cls, rows: Rows, slots: Slice, *, exact_up_to: int, stop: Event | None) -> Base | None:
        """Return the rows in these slots as a base, with a graph if they are more than so many; None once stopped."""
        matrix = rows.take(slots)
        if len(slots) <= exact_up_to or not graphs_available():
            return cls(matrix)
        graph = Graph.build(matrix, stop)
        if stop is not None and stop.is_set():
            return None
        return cls(matrix, graph, 0 if graph else len(slots))
