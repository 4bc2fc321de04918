"""What a vector index must answer, computed the slow way."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from memory_store.search.vectors import VectorIndex

OFF = 2e-6
"""How far a figure may be off: rows are float32."""


class Model:
    """A dictionary of vectors, all of which every search compares in float64."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, NDArray[np.float64]]] = {}

    def put(self, key: str, parent: str, vector: Sequence[float]) -> None:
        self.kept[key] = (parent, np.asarray(vector, np.float64))

    def discard_parent(self, parent: str) -> None:
        self.kept = {key: value for key, value in self.kept.items() if value[0] != parent}

    def similarities(self, query: Sequence[float], among: Collection[str] | None = None) -> dict[str, float]:
        """Return the similarity of every key that counts."""
        return {
            key: cosine(vector, np.asarray(query, np.float64))
            for key, (_, vector) in self.kept.items()
            if among is None or key in among
        }


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the cosine similarity, 0 where one has no direction."""
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / lengths) if lengths else 0.0


def check_search(
    index: VectorIndex,
    model: Model,
    query: Sequence[float],
    limit: int,
    among: Collection[str] | None = None,
    *,
    complete: bool = True,
) -> None:
    """Check an answer: its keys, figures and order, and with `complete` that nothing better is left out."""
    found = index.search(query, limit, among=among)
    true = model.similarities(query, among)
    assert len(found) == min(limit, len(true))
    assert len({key for key, _ in found}) == len(found)
    assert all(abs(similarity - true[key]) <= OFF for key, similarity in found)
    assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))
    assert index.search(query, limit, among=among) == found, "the same question has the same answer"
    if complete:
        best = sorted(true.values(), reverse=True)
        assert all(similarity >= want - OFF for (_, similarity), want in zip(found, best, strict=False))


def check_contents(index: VectorIndex, model: Model) -> None:
    """Check that the index holds what the model does."""
    assert len(index) == len(model.kept)
    assert all(key in index and index.parent_of(key) == parent for key, (parent, _) in model.kept.items())
    if model.kept:
        vectors = index.vectors_of(list(model.kept))
        kept = np.array([vector for _, vector in model.kept.values()])
        lengths = np.linalg.norm(kept, axis=1, keepdims=True)
        assert np.abs(vectors - kept / np.where(lengths, lengths, 1)).max() <= OFF
