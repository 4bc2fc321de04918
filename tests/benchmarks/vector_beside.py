"""This store's search by vector beside that of its peers, in one run and on the same vectors.

Ours is the whole of `store.search`: the answers remembered are forgotten before each, and the ten records are read.
Most peers return numbers, and keep neither records nor a log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from memory_store import Episode, MemoryStore
from tests.mixtures import Matrix
from tests.servers.postgres import PostgresServer

from .harness import Sizes, Workspace
from .peer import Act, measure
from .searched import DOMAINS, LIMIT, MODEL, embedding, forget_answers, open_with_vectors, vectors, with_vectors
from .server_vector_peers import SERVER_VECTOR_PEERS
from .vector_case import name
from .vector_peers import VECTOR_PEERS, VectorPeer, domain_of

# Making the graph of 100,000 takes a server minutes.
_ON_SERVER = 20_000
_ASKED = 50


async def measure_vector_peers(sizes: Sizes) -> list[dict[str, Any]]:
    """Measure every peer beside this store and return the rows of the result."""
    rows: list[dict[str, Any]] = []
    with Workspace() as workspace:
        for peer, opened in VECTOR_PEERS.items():
            made = partial(opened, workspace.new("peer").parent)
            rows += await _beside(peer, made, workspace, sizes.rows, sizes)
        with PostgresServer() as server:
            for peer, on_server in SERVER_VECTOR_PEERS.items():
                made = partial(on_server, server)
                rows += await _beside(peer, made, workspace, min(sizes.rows, _ON_SERVER), sizes)
    return rows


@asynccontextmanager
async def _ours(workspace: Workspace, rows: int) -> AsyncIterator[VectorPeer]:
    path = await with_vectors(workspace, rows)

    async def found(store: MemoryStore, query: Matrix, **asked: Any) -> list[int]:
        forget_answers(store)
        asked = {"mode": "vector", "kinds": "embedding", "model": MODEL, "limit": LIMIT, **asked}
        return [int(hit.record.id.rpartition("-")[2]) for hit in await store.search("", vector=query, **asked)]

    async def within(query: Matrix, domain: str) -> list[int]:
        return await found(store, query, where=Episode.c.domain == domain)

    added: list[str] = []

    async def add(number: int, vector: Matrix) -> None:
        added.append(name(number))
        await store.embeddings.put(replace(embedding(number, vector), episode_id=f"episode-{number % rows:07}"))

    async def reopen(query: Matrix) -> list[int]:
        async with open_with_vectors(path) as again:
            return await found(again, query)

    async with open_with_vectors(path) as store:
        try:
            yield VectorPeer(partial(found, store), within, add, reopen)
        finally:  # the next peer begins with the same vectors
            for id_ in added:
                await store.embeddings.delete(id_)


async def _beside(
    called: str,
    made: Callable[[Matrix], AbstractAsyncContextManager[VectorPeer]],
    workspace: Workspace,
    rows: int,
    sizes: Sizes,
) -> list[dict[str, Any]]:
    """Measure one peer; both start with the same vectors, and what is added comes last."""
    given = vectors(rows)
    queries = given.queries[:_ASKED]
    async with _ours(workspace, rows) as ours, made(given.stored) as peer:
        exact = _Exact(given.stored)

        async def row(operation: str, theirs: Act, mine: Act, recall: Any = None, count: int = 20) -> dict[str, Any]:
            found = await measure(called, operation, theirs, mine, sizes.fewer(8), count=min(sizes.slice, count))
            sides = {} if recall is None else {"peer_recall": await recall(peer), "ours_recall": await recall(ours)}
            return {**found, "rows": rows, **sides}

        def searched(of: VectorPeer) -> Act:
            return lambda number: of.search(queries[number % len(queries)])

        def filtered(of: VectorPeer) -> Act:
            assert of.within is not None
            within = of.within
            return lambda number: within(queries[number % len(queries)], domain_of(number))

        def again(of: VectorPeer) -> Act:
            assert of.reopen is not None
            reopen = of.reopen
            return lambda number: reopen(queries[number % len(queries)])

        def added(of: VectorPeer) -> Act:
            return lambda number: of.add(rows + number, queries[number % len(queries)])

        found = [await row("top 10", searched(peer), searched(ours), partial(exact.recall, queries))]
        if peer.within is not None:
            found.append(
                await row("top 10 of 1 %", filtered(peer), filtered(ours), partial(exact.recall_within, queries))
            )
        if peer.reopen is not None:
            found.append(await row("open, first top 10", again(peer), again(ours), count=1))
        found.append(await row("add one", added(peer), added(ours)))
        return found


class _Exact:
    """What is nearest among vectors, all compared, and how much of it a search finds."""

    def __init__(self, stored: Matrix) -> None:
        self._stored = stored

    async def recall(self, queries: Matrix, of: VectorPeer) -> float:
        """Return the share of the ten nearest that are found."""
        everything = np.arange(len(self._stored))
        return float(np.mean([self._share(query, everything, await of.search(query)) for query in queries]))

    async def recall_within(self, queries: Matrix, of: VectorPeer) -> float:
        """Return the same of those of a domain."""
        assert of.within is not None
        shares = []
        for number, query in enumerate(queries):
            counted = np.arange(number % len(DOMAINS), len(self._stored), len(DOMAINS))
            shares.append(self._share(query, counted, await of.within(query, domain_of(number))))
        return float(np.mean(shares))

    def _share(self, query: Matrix, counted: Any, found: list[int]) -> float:
        scores = np.vecdot(self._stored[counted], query)
        nearest = counted[np.argsort(-scores, kind="stable")[:LIMIT]]
        return len(set(nearest.tolist()) & set(found)) / len(nearest)
