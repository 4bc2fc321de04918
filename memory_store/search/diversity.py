"""Choosing results that differ: maximal marginal relevance.

Carbonell and Goldstein, "The Use of MMR", 1998: the next result is the one with the greatest
`relevance * lambda - (1 - lambda) * its greatest similarity to those chosen`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DEFAULT_LAMBDA", "choose_diverse", "diversity_of"]

DEFAULT_LAMBDA = 0.7
# Tried one after another while the results chosen are more alike than was asked for.
_LAMBDAS = (DEFAULT_LAMBDA, 0.5, 0.3, 0.1)

# What the same set differs by when it is added up in another order: no reason for a smaller lambda.
_NOISE = 1e-5


def choose_diverse(
    relevance: Sequence[float], similarity: NDArray[np.float32], limit: int, goal: float
) -> tuple[list[int], float]:
    """Return the places of the results to take, in the order in which they were chosen, and their diversity.

    With lambda = 0.7; where their diversity misses the goal, with a smaller lambda, down to 0.1: whichever of these
    meets it first, or comes closest.

    Args:
        relevance: of each candidate, from 0 to 1, best first.
        similarity: of each candidate with each, from 0 to 1.
        limit: how many to choose.
        goal: the diversity to reach, from 0 to 1.
    """
    best: tuple[list[int], float] = ([], -1.0)
    for share in _LAMBDAS:
        chosen = _choose(relevance, similarity, limit, share)
        reached = diversity_of(similarity, chosen)
        if reached > best[1] + _NOISE:
            best = chosen, reached
        if reached >= goal:
            break
    return best


def diversity_of(similarity: NDArray[np.float32], chosen: Sequence[int]) -> float:
    """Return 1 less the mean similarity of all pairs of these; 1 for one alone."""
    count = len(chosen)
    if count < 2:
        return 1.0
    among = similarity[chosen][:, chosen]
    return float(1 - (among.sum() - among.trace()) / (count * (count - 1)))


def _choose(relevance: Sequence[float], similarity: NDArray[np.float32], limit: int, share: float) -> list[int]:
    import numpy as np

    worth = np.asarray(relevance, dtype=np.float32) * share
    nearest = np.zeros(len(worth), dtype=np.float32)
    chosen: list[int] = []
    for _ in range(min(limit, len(worth))):
        place = int(np.argmax(worth - (1 - share) * nearest))
        chosen.append(place)
        worth[place] = -np.inf
        nearest = np.maximum(nearest, similarity[place])
    return chosen
