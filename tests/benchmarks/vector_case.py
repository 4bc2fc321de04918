"""Vector search through a store, on either database, against the index alone and against plain SQL with numpy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from memory_store import Episode, MemoryStore
from memory_store.search.vectors import VectorIndex
from tests.mixtures import Matrix, Vectors

from .harness import Measured, compare
from .searched import DOMAINS, LIMIT, MODEL, forget_answers, vector_space

__all__ = ["VectorCase", "name", "one_in_a_hundred", "top_ten", "with_detail"]

Ask = Callable[[int, Matrix], Awaitable[Any]]

_ASKED = 50


def name(number: int) -> str:
    """Return the id of the embedding of this number."""
    return f"embedding-{number:07}"


class VectorCase:
    """An open store, its vectors, and what plain SQL does on the same database.

    Args:
        store: open.
        given: what it holds, and what is sought.
        read: reads and decodes the embeddings of ten ids.
        meeting: returns the ids of the embeddings whose episodes are of a domain.
    """

    def __init__(
        self,
        store: MemoryStore,
        given: Vectors,
        read: Callable[[Sequence[str]], Awaitable[Any]],
        meeting: Callable[[str], Awaitable[Iterable[str]]],
    ) -> None:
        self.store, self.stored, self.read, self.meeting = store, given.stored, read, meeting
        self.queries = given.queries[:: max(1, len(given.queries) // _ASKED)][:_ASKED]

    async def index(self) -> VectorIndex:
        """Return the store's index, with its graph built where it is worth one."""
        await self.search(self.queries[0])
        space = vector_space(self.store)
        await space.wait()
        found: VectorIndex = await space.current()
        return found

    async def search(self, query: Matrix, **asked: Any) -> list[str]:
        """Search through the store, as for the first time, and read the ten records."""
        forget_answers(self.store)
        asked = {"mode": "vector", "kinds": "embedding", "model": MODEL, "limit": LIMIT, **asked}
        return [hit.record.id for hit in await self.store.search("", vector=query, **asked)]

    def nearest(self, query: Matrix, among: Any = None) -> list[str]:
        """Return the ids of the nearest, all compared; `among` are the numbers of those that count."""
        scores = np.vecdot(self.stored if among is None else self.stored[among], query)
        best = np.argpartition(-scores, LIMIT)[:LIMIT] if len(scores) > LIMIT else np.arange(len(scores))
        best = best[np.argsort(-scores[best])]
        return [name(number) for number in (best if among is None else among[best]).tolist()]

    async def recall(self, wanted: Ask, found: Ask) -> float:
        """Return the share of the nearest that searches find."""
        hits = total = 0
        for place, query in enumerate(self.queries):
            nearest = set(await wanted(place, query))
            hits += len(nearest & set(await found(place, query)))
            total += len(nearest)
        return hits / total

    async def compare(self, ours: Ask, baseline: Ask, rounds: int) -> Measured:
        """Compare two ways of answering; a round asks each all queries."""
        return await compare(self._timed(ours), self._timed(baseline), rounds, unit="µs")

    def _timed(self, ask: Ask) -> Callable[[int], Awaitable[float]]:
        async def run(_: int) -> float:
            start = perf_counter()
            for place, query in enumerate(self.queries):
                await ask(place, query)
            return (perf_counter() - start) / len(self.queries)

        return run


def with_detail(measured: Measured, **detail: float) -> Measured:
    """Return it with more to say."""
    return replace(measured, detail={**measured.detail, **detail})


async def top_ten(case: VectorCase, rounds: int) -> Measured:
    """Against usearch's own search of the same graph, as deep as it needs to be; of all rows where there is none.

    Beside it what that costs with the reading of ten records, and what the store's index costs alone: a search asks it
    for a hundred.
    """
    index = await case.index()
    graph = index._base.graph
    if graph is not None:
        graph._index.expansion_search = graph.depth

    async def bare(_: int, query: Matrix) -> list[int]:
        if graph is None:
            return np.argpartition(-np.vecdot(case.stored, query), LIMIT)[:LIMIT].tolist()
        return graph._index.search(query, LIMIT, threads=1).keys.tolist()

    async def bare_and_read(place: int, query: Matrix) -> None:
        await case.read([index._slots.key(slot) for slot in await bare(place, query)])

    async def ours(_: int, query: Matrix) -> list[str]:
        return await case.search(query)

    async def alone(_: int, query: Matrix) -> None:
        index.search(query, 10 * LIMIT)

    async def exact(_: int, query: Matrix) -> list[str]:
        return case.nearest(query)

    records, only = await case.compare(ours, bare_and_read, rounds), await case.compare(alone, bare, rounds)
    return with_detail(
        await case.compare(ours, bare, rounds),
        recall=await case.recall(exact, ours),
        has_graph=float(index.has_graph),
        index_of_100_us=only.ours,
        index_of_100_ratio=only.ratio,
        baseline_and_records_us=records.baseline,
        ratio_with_records=records.ratio,
    )


async def one_in_a_hundred(case: VectorCase, rounds: int) -> Measured:
    """Against the same condition as plain SQL, the rows it names compared by numpy, and the ten best read."""
    number_of = {name(number): number for number in range(len(case.stored))}

    async def subset(place: int) -> Any:
        return np.array([number_of[id_] for id_ in await case.meeting(DOMAINS[place % len(DOMAINS)])])

    async def ours(place: int, query: Matrix) -> list[str]:
        return await case.search(query, where=Episode.c.domain == DOMAINS[place % len(DOMAINS)])

    async def exact(place: int, query: Matrix) -> list[str]:
        return case.nearest(query, await subset(place))

    async def exact_and_read(place: int, query: Matrix) -> None:
        await case.read(await exact(place, query))

    measured = await case.compare(ours, exact_and_read, rounds)
    return with_detail(measured, recall=await case.recall(exact, ours), subset=float(len(await subset(0))))
