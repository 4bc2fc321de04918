"""Vector search: top ten through the graph and by comparing all, one in a hundred, put, open.

The vectors are mixtures of real sentence vectors (`tests/mixtures.py`) and the queries are real questions; where those
are not beside the checkout, both come from groups of random ones.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from memory_store.clock import new_id
from memory_store.search.vectors import VectorIndex
from tests.mixtures import REAL, Matrix, Vectors, clusters, mixtures

from .harness import Measured, Sizes, Workspace, compare

_DIMENSIONS = 384
_LIMIT = 10
# Fewer are not worth a graph, so this is what the tests shrink to.
_LEAST = 10_000


def _vectors(count: int) -> Vectors:
    return mixtures(count) if REAL.is_file() else clusters(count, _DIMENSIONS, groups=1000)


class _Case:
    """Vectors under ids, and an index of them."""

    def __init__(self, vectors: Vectors, ids: list[str]) -> None:
        self.vectors, self.ids = vectors, ids
        self.place_of = {id_: place for place, id_ in enumerate(ids)}
        self.index = VectorIndex(_DIMENSIONS, exact_up_to=len(ids) // 2)

    def fill(self) -> None:
        """Put all vectors, five of a parent."""
        self.index.put_many(self.ids, [self.ids[place // 5 * 5] for place in range(len(self.ids))], self.vectors.stored)

    def recall(self, found: Callable[[Matrix], Sequence[str]], among: Sequence[int] | None = None) -> float:
        """Return the share of the nearest ten, compared in float32, that are found."""
        counted = np.arange(len(self.ids)) if among is None else np.asarray(among)
        hits = 0
        for query in self.vectors.queries:
            true = self.vectors.stored[counted] @ query
            best = counted[np.argpartition(-true, _LIMIT)[:_LIMIT]]
            hits += len({self.ids[place] for place in best} & set(found(query)))
        return hits / _LIMIT / len(self.vectors.queries)

    def numpy_top(self, query: Matrix, places: Any = None) -> list[tuple[str, float]]:
        """Return what ten lines of numpy would."""
        rows = self.vectors.stored if places is None else self.vectors.stored[places]
        scores = rows @ query
        best = np.argpartition(scores, -_LIMIT)[-_LIMIT:]
        best = best[np.argsort(-scores[best])]
        found = best if places is None else places[best]
        return [(self.ids[place], float(score)) for place, score in zip(found, scores[best], strict=True)]


async def _saved(workspace: Workspace, rows: int) -> _Case:
    """Return the case whose index has a graph, built by the first who asks and opened by the others."""
    rows = max(rows, _LEAST)

    async def make(path: Path) -> None:
        case = _Case(_vectors(rows), [new_id() for _ in range(rows)])
        case.fill()
        built = await asyncio.to_thread(case.index.snapshot().build)
        assert built is not None
        assert case.index.adopt(built)
        assert case.index.has_graph
        case.index.snapshot().save(path.with_name("vectors"), b"")
        path.write_text("\n".join(case.ids))

    path = await workspace.shared(f"vector-index-{rows}", make)
    index, _ = VectorIndex.open(path.with_name("vectors"), _DIMENSIONS, exact_up_to=rows // 2)
    index.verify()
    case = _Case(_vectors(rows), path.read_text().split("\n"))
    case.index = index
    return case


async def _in_turns(
    case: _Case,
    ours: Callable[[int, Matrix], object],
    baseline: Callable[[int, Matrix], object],
    rounds: int,
    *,
    unit: str = "µs",
    scale: float = 1e6,
) -> Measured:
    """Compare two ways of answering; each round asks both all queries, each query after 312 others."""
    queries = case.vectors.queries

    def timed(ask: Callable[[int, Matrix], object]) -> Callable[[int], Any]:
        async def run(number: int) -> float:
            start = perf_counter()
            for place, query in enumerate(queries):
                ask(number * len(queries) + place, query)
            return (perf_counter() - start) / len(queries)

        return run

    return await compare(timed(ours), timed(baseline), rounds, unit=unit, scale=scale)


def _with(measured: Measured, **detail: float) -> Measured:
    return replace(measured, detail={**measured.detail, **detail})


async def search_graph(workspace: Workspace, sizes: Sizes) -> Measured:
    case = await _saved(workspace, sizes.rows)
    graph = case.index._base.graph
    assert graph is not None
    # The same graph, by usearch's own search, as deep as it was measured to need.
    bare = graph._index
    bare.expansion_search = graph.depth

    measured = await _in_turns(
        case,
        lambda _, query: case.index.search(query, _LIMIT),
        lambda _, query: bare.search(query, _LIMIT, threads=1),
        sizes.rounds,
    )
    return _with(
        measured,
        recall=case.recall(lambda query: [key for key, _ in case.index.search(query, _LIMIT)]),
        usearch_recall=case.recall(
            lambda query: [case.ids[place] for place in bare.search(query, _LIMIT).keys.tolist()]
        ),
        depth=graph.depth,
    )


def search_exact(rows: int) -> Callable[[Workspace, Sizes], Any]:
    """Return the benchmark of comparing so many rows, or fewer where less is asked for."""

    async def run(workspace: Workspace, sizes: Sizes) -> Measured:
        count = min(rows, sizes.rows)
        case = _Case(_vectors(count), [new_id() for _ in range(count)])
        case.fill()
        measured = await _in_turns(
            case,
            lambda _, query: case.index.search(query, _LIMIT),
            lambda _, query: case.numpy_top(query),
            sizes.fewer(10),
        )
        return _with(measured, recall=case.recall(lambda query: [key for key, _ in case.index.search(query, _LIMIT)]))

    return run


async def search_filtered(workspace: Workspace, sizes: Sizes) -> Measured:
    case = await _saved(workspace, sizes.rows)
    chance = np.random.default_rng(7)
    subsets = [chance.choice(len(case.ids), len(case.ids) // 100, replace=False) for _ in range(50)]
    # As they come from a database: text of their own.
    filters = ["\n".join(case.ids[place] for place in subset).split("\n") for subset in subsets]

    measured = await _in_turns(
        case,
        lambda number, query: case.index.search(query, _LIMIT, among=filters[number % 50]),
        lambda number, query: case.numpy_top(query, np.array([case.place_of[id_] for id_ in filters[number % 50]])),
        sizes.rounds,
    )
    places = await _in_turns(
        case,
        lambda number, query: case.index.search(query, _LIMIT, among=filters[number % 50]),
        lambda number, query: case.numpy_top(query, subsets[number % 50]),
        sizes.fewer(10),
    )

    def found(query: Matrix) -> list[str]:
        return [key for key, _ in case.index.search(query, _LIMIT, among=filters[0])]

    return _with(measured, recall=case.recall(found, subsets[0].tolist()), ratio_to_rows_known_by_place=places.ratio)


async def put(workspace: Workspace, sizes: Sizes) -> Measured:
    case = await _saved(workspace, sizes.rows)
    index, matrix, kept = case.index, np.empty((len(case.vectors.queries), _DIMENSIONS), np.float32), {}
    longest = [0.0]

    async def ours(number: int) -> float:
        took = 0.0
        for place, query in enumerate(case.vectors.queries):
            start = perf_counter()
            index.put(f"{number}-{place}", "parent", query)
            once = perf_counter() - start
            longest[0] = max(longest[0], once)
            took += once
        return took / len(case.vectors.queries)

    async def baseline(number: int) -> float:
        start = perf_counter()
        for place, query in enumerate(case.vectors.queries):
            matrix[place] = query / np.linalg.norm(query)
            kept[f"{number}-{place}"] = place
        return (perf_counter() - start) / len(case.vectors.queries)

    measured = await compare(ours, baseline, sizes.rounds, unit="ms", scale=1e3)
    return _with(measured, longest_ms=longest[0] * 1e3, puts=float(len(index) - len(case.ids)))


async def open_saved(workspace: Workspace, sizes: Sizes) -> Measured:
    case = await _saved(workspace, sizes.rows)
    stored = case.index._base.stored
    assert stored is not None

    async def ours(_: int) -> float:
        start = perf_counter()
        VectorIndex.open(stored.generation.parent, _DIMENSIONS)
        return perf_counter() - start

    async def baseline(_: int) -> float:
        from usearch.index import Index

        start = perf_counter()
        (stored.generation / "keys").read_bytes()
        index = Index(ndim=_DIMENSIONS, metric="cos", dtype="f16", enable_key_lookups=False)
        with (stored.generation / "graph").open("rb") as file:
            index.view(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        return perf_counter() - start

    measured = await compare(ours, baseline, sizes.fewer(15), unit="ms", scale=1e3)
    start = perf_counter()
    VectorIndex.open(stored.generation.parent, _DIMENSIONS)[0].verify()
    verified = perf_counter() - start
    size = sum(path.stat().st_size for path in stored.generation.iterdir())
    return _with(measured, and_verified_ms=verified * 1e3, megabytes=size / 1e6)
