"""Choosing among the best hits: by a reranker, and by how much they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from memory_store.errors import SearchError
from memory_store.search.asked import Asked
from memory_store.search.diversity import choose_diverse
from memory_store.search.results import Hit
from memory_store.text.documents import document_terms, field_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memory_store.recall.models import Reranker

__all__ = ["Candidate", "select"]


class Candidate(NamedTuple):
    """A hit, and its vector where it has one and it is needed."""

    hit: Hit
    vector: NDArray[Any] | None


async def select(
    asked: Asked, candidates: Sequence[Candidate], rerank: Reranker | None
) -> tuple[list[Hit], float | None]:
    """Return the hits to give, in order, and how diverse they are where that was asked for."""
    if rerank is not None and candidates:
        candidates = await _reranked(asked.text, candidates, rerank)
    if asked.diversity is None:
        return [candidate.hit for candidate in candidates[: asked.limit]], None
    if not candidates:
        return [], 1.0
    places, reached = choose_diverse(_relevance(candidates), _similarity(candidates), asked.limit, asked.diversity)
    return [candidates[place].hit for place in places], reached


async def _reranked(query: str, candidates: Sequence[Candidate], rerank: Reranker) -> list[Candidate]:
    texts = ["\n".join(text for _, text in field_texts(hit.kind, hit.row)) for hit, _ in candidates]
    returned = await rerank(query, texts)
    wrong = f"the reranker must return a finite number for each of {len(texts)} texts"
    try:
        scores = [float(score) for score in returned]
    except (TypeError, ValueError) as error:
        raise SearchError(f"{wrong}: {error}") from error
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise SearchError(wrong)
    found = [
        Candidate(candidate.hit.rescored(score, "rerank"), candidate.vector)
        for candidate, score in zip(candidates, scores, strict=True)
    ]
    return sorted(found, key=lambda candidate: -candidate.hit.score)


def _relevance(candidates: Sequence[Candidate]) -> list[float]:
    """Return the scores on a scale from 0 to 1."""
    scores = [candidate.hit.score for candidate in candidates]
    least, most = min(scores), max(scores)
    return [1.0 if most == least else (score - least) / (most - least) for score in scores]


def _similarity(candidates: Sequence[Candidate]) -> NDArray[Any]:
    """Return how similar each is to each: by vectors where all have one of a size, else by the terms they share."""
    import numpy as np

    vectors = [candidate.vector for candidate in candidates]
    known = [vector for vector in vectors if vector is not None]
    if len(known) == len(vectors) and len({len(vector) for vector in known}) == 1:
        units = np.stack(known)
        return np.asarray(np.clip(units @ units.T, 0, 1))
    # Cosine of the sets of terms, each weighed by how few of the candidates have it: what all have says nothing.
    terms = [set(document_terms(hit.kind, hit.row)) for hit, _ in candidates]
    counted = Counter(term for found in terms for term in found)
    places = {term: place for place, term in enumerate(counted)}
    weights = np.log((len(terms) + 1) / (np.array([*counted.values(), 1]) + 0.5)).astype(np.float32)
    matrix = np.zeros((len(terms), len(weights)), dtype=np.float32)
    for row, found in zip(matrix, terms, strict=True):
        held = [places[term] for term in found]
        row[held] = weights[held]
        row /= np.linalg.norm(row) or 1
    return np.asarray(matrix @ matrix.T)
