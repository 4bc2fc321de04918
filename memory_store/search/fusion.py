"""Joining what was found by text with what was found by meaning: weighted reciprocal rank fusion.

A result's score is `(1 - w) / (k + rank by text) + w / (k + rank by vector)` (Cormack, Clarke and Buettcher,
"Reciprocal Rank Fusion", 2009), scaled so that first in both is 1. Fusion with the customary k = 60 and equal weights
lowers what the better part finds alone. So k is 5, and w depends on two things, both measured on CoSQA (short questions
about code) and BEAM (long questions about conversations), Recall@10 / nDCG@10:

|                        | CoSQA, WordLlama | CoSQA, MiniLM | BEAM, WordLlama |
| ---------------------- | ---------------- | ------------- | --------------- |
| text alone             | .792 / .620      | .792 / .620   | .533 / .394     |
| vectors alone          | .668 / .461      | .962 / .806   | .537 / .433     |
| k = 60, w = 0.5        | .789 / .578      | .917 / .750   | .530 / .415     |
| k = 5, w of the model  | .832 / .631      | .965 / .812   | .560 / .419     |
| and the query's length | .831 / .630      | .965 / .812   | .605 / .458     |

- How good the model is: an embedder says its `weight`, 0.38 for averages of word vectors, 0.83 for a model that reads
  the sentence.
- How long the query is. A keyword is what the text says; a long question says it in other words, and each word more is
  one more that misleads: from eight terms on, the odds w / (1 - w) grow with their number.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

__all__ = ["DEFAULT_WEIGHT", "fuse", "vector_weight"]

K = TypeVar("K", bound=Hashable)

DEFAULT_WEIGHT = 0.83
"""Of a model that does not say how good it is."""

_RANK_OFFSET = 5
_SHORT_QUERY_TERMS = 8


def vector_weight(weight: float, terms: int) -> float:
    """Return the share of the vectors in the score of a query of so many terms.

    Args:
        weight: the model's, between 0 and 1, as it holds for a short query.
        terms: different terms the query has.
    """
    if not 0 < weight < 1:
        return weight
    odds = weight / (1 - weight) * max(1.0, terms / _SHORT_QUERY_TERMS)
    return odds / (1 + odds)


def fuse(by_text: Sequence[K], by_vector: Sequence[K], weight: float) -> dict[K, float]:
    """Return the score of each of these, from 0 to 1, best first.

    Args:
        by_text: found by text, best first.
        by_vector: found by vector, best first.
        weight: the vectors' share.
    """
    scores: dict[K, float] = {}
    for ranked, share in ((by_text, 1 - weight), (by_vector, weight)):
        for rank, key in enumerate(ranked):
            scores[key] = scores.get(key, 0.0) + share * (_RANK_OFFSET + 1) / (_RANK_OFFSET + 1 + rank)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
