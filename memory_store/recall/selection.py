"""Choosing among the best hits: by a reranker, and by how much they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from memory_store.durable.connection import Connection
from memory_store.durable.text_index import text_index
from memory_store.errors import SearchError
from memory_store.search.asked import Asked
from memory_store.search.diversity import choose_diverse
from memory_store.search.results import Hit
from memory_store.text.documents import document_terms, field_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memory_store.recall.models import Reranker

__all__ = ["Candidate", "are_comparable", "select", "terms_of_hits"]


class Candidate(NamedTuple):
    """A hit; where they are needed, its vector, or the terms that its record has."""

    hit: Hit
    vector: NDArray[Any] | None = None
    terms: Sequence[str] = ()


def are_comparable(vectors: Sequence[NDArray[Any] | None]) -> bool:
    """Return whether all hits have a vector, of the same size."""
    return None not in (sizes := {None if vector is None else len(vector) for vector in vectors}) and len(sizes) == 1


def terms_of_hits(connection: Connection, namespace: str, hits: Sequence[Hit]) -> list[list[str]]:
    """Return the terms of each hit's record, as the full-text index has them.

    Read there 50 documents of 1 KB take 2 ms; made of their text again up to 30, most of it for words not yet seen.
    That is left for records whose document is of another revision, because one of both has just been written.
    """
    index = text_index(connection)
    known: dict[tuple[str, str, int], list[str]] = {}
    for kind in dict.fromkeys(hit.kind for hit in hits):
        for id_, revision, terms in index.terms(namespace, kind, [hit.id for hit in hits if hit.kind == kind]):
            known[kind, id_, revision] = terms
    found = [known.get((hit.kind, hit.id, hit.row[1])) for hit in hits]
    return [
        document_terms(hit.kind, hit.row) if terms is None else terms for hit, terms in zip(hits, found, strict=True)
    ]


async def select(
    asked: Asked, candidates: Sequence[Candidate], rerank: Reranker | None
) -> tuple[list[Hit], float | None]:
    """Return the hits to give, in order, and how diverse they are where that was asked for."""
    if rerank is not None and candidates:
        candidates = await _reranked(asked.for_models, candidates, rerank)
    if asked.diversity is None:
        return [candidate.hit for candidate in candidates[: asked.limit]], None
    if not candidates:
        return [], 1.0
    places, reached = choose_diverse(_relevance(candidates), _similarity(candidates), asked.limit, asked.diversity)
    return [candidates[place].hit for place in places], reached


async def _reranked(query: str, candidates: Sequence[Candidate], rerank: Reranker) -> list[Candidate]:
    texts = ["\n".join(text for _, text in field_texts(hit.kind, hit.row)) for hit, *_ in candidates]
    returned = await rerank(query, texts)
    wrong = f"the reranker must return a finite number for each of {len(texts)} texts"
    try:
        scores = [float(score) for score in returned]
    except (TypeError, ValueError) as error:
        raise SearchError(f"{wrong}: {error}") from error
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise SearchError(wrong)
    found = [
        candidate._replace(hit=candidate.hit.rescored(score, "rerank"))
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
    if are_comparable(vectors):
        units = np.stack([vector for vector in vectors if vector is not None])
        return np.asarray(np.clip(units @ units.T, 0, 1))
    # Cosine of the sets of terms, each weighed by how few of the candidates have it: what all have says nothing.
    different = dict.fromkeys(chain.from_iterable(terms for _, _, terms in candidates))
    place_of = dict(zip(different, range(len(different)), strict=True)).__getitem__
    matrix = np.zeros((len(candidates), len(different)), dtype=np.float32)
    for row, (_, _, terms) in zip(matrix, candidates, strict=True):
        row[list(map(place_of, terms))] = 1
    matrix *= np.log((len(candidates) + 1) / (matrix.sum(axis=0) + 0.5))
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix /= np.where(lengths > 0, lengths, 1)
    return np.asarray(matrix @ matrix.T)
