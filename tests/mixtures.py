"""Vectors that lie as those of real sentences do, as many as a test or a benchmark needs, the same on every run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REAL = Path(__file__).parents[2] / "shared" / "data" / "retrieval" / "cosqa" / "minilm_l6_v2_f16.npz"
"""1,355 pieces of code and 313 questions about them, in 384 dimensions (all-MiniLM-L6-v2)."""

Matrix = NDArray[np.float32]


class Vectors(NamedTuple):
    """Vectors to search in, and vectors to search with."""

    stored: Matrix
    queries: Matrix


def unit(rows: Matrix) -> Matrix:
    """Return the rows at length 1."""
    made: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def real(path: Path = REAL) -> Vectors:
    """Return the real vectors."""
    with np.load(path) as archive:
        return Vectors(archive["corpus"].astype(np.float32), archive["queries"].astype(np.float32))


def mixtures(count: int, seed: int = 0) -> Vectors:
    """Return so many vectors made of real ones, to be searched with real questions.

    Each lies between two of the real ones, nearer to the first, with noise of half their length: the nearest neighbour
    of one has a similarity of .55 to .82, half of them .75 (of the real ones: .36 to 1, half .67).
    """
    corpus, queries = real()
    chance = np.random.default_rng(seed)
    share = chance.uniform(0.5, 1, (count, 1)).astype(np.float32)
    first, second = corpus[chance.integers(0, len(corpus), count)], corpus[chance.integers(0, len(corpus), count)]
    noise = chance.normal(0, 0.5 / np.sqrt(corpus.shape[1]), first.shape).astype(np.float32)
    return Vectors(unit(share * first + (1 - share) * second + noise), queries)


def clusters(count: int, dimensions: int = 32, groups: int = 200, spread: float = 0.7, seed: int = 0) -> Vectors:
    """Return vectors in groups, and 200 queries from the same groups."""
    chance = np.random.default_rng(seed)
    centres = unit(chance.standard_normal((groups, dimensions), np.float32))
    made = centres[chance.integers(0, groups, count + 200)]
    made += chance.normal(0, spread / np.sqrt(dimensions), made.shape).astype(np.float32)
    return Vectors(unit(made[:count]), unit(made[count:]))


def anywhere(count: int, dimensions: int = 128, seed: int = 0) -> Vectors:
    """Return vectors that point anywhere, and 200 queries that do."""
    made = unit(np.random.default_rng(seed).standard_normal((count + 200, dimensions), np.float32))
    return Vectors(made[:count], made[count:])
