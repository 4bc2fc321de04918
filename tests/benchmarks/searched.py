"""What searches are measured on: stores filled with documents and vectors, and many queries as one figure."""

from __future__ import annotations

import re
import statistics
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from memory_store import Embedding, Episode, MemoryStore
from tests.mixtures import REAL, Matrix, Vectors, clusters, mixtures

from .baselines import connect, url_of
from .harness import Measured, Slice, Workspace, compare
from .rows import NAMESPACE
from .texts import document

DIMENSIONS = 384
MODEL = "all-MiniLM-L6-v2"
DOMAINS = tuple(f"domain-{number:02}" for number in range(100))
TASKS = ("debugging", "testing", "refactoring", "code_generation", "analysis")
LIMIT = 10

_BATCH = 2000
_START = datetime(2026, 1, 1, tzinfo=UTC)
_CONTENT_CHARACTERS = 100


def documents(count: int, first: int = 0) -> Iterator[Episode]:
    """Yield episodes that hold a document each; one in a hundred is of a domain, five minutes lie between two."""
    for number in range(first, first + count):
        yield Episode(
            id=f"episode-{number:07}",
            task_type=TASKS[number // len(DOMAINS) % len(TASKS)],
            domain=DOMAINS[number % len(DOMAINS)],
            created_at=_START + timedelta(minutes=5 * number),
            reflection=document(number),
        )


def vectors(count: int) -> Vectors:
    """Return so many vectors, and questions: made of real ones where these are beside the checkout."""
    return mixtures(count) if REAL.is_file() else clusters(count, DIMENSIONS, groups=1000)


def embedding(number: int, vector: Matrix) -> Embedding:
    """Return the embedding of the episode of this number."""
    return Embedding(
        id=f"embedding-{number:07}",
        episode_id=f"episode-{number:07}",
        content=document(number)[:_CONTENT_CHARACTERS],
        embedding=vector.astype("<f4").tobytes(),
        model_name=MODEL,
        vector_dim=len(vector),
    )


async def put_documents(store: MemoryStore, rows: int) -> None:
    """Put so many episodes, and wait until they are indexed."""
    for first in range(0, rows, _BATCH):
        await store.episodes.put_many(documents(min(_BATCH, rows - first), first))
    await indexed(store)


async def put_embeddings(store: MemoryStore, stored: Matrix) -> None:
    """Put the vectors of the episodes that are there, and wait until a graph over them is built."""
    for first in range(0, len(stored), _BATCH):
        rows = enumerate(stored[first : first + _BATCH], first)
        await store.embeddings.put_many([embedding(number, vector) for number, vector in rows])
    await indexed(store)
    await store.search("", mode="vector", kinds="embedding", vector=stored[0], model=MODEL)
    for space in store._models.spaces._spaces.values():  # none where the server finds them
        await space.wait()


async def indexed(store: MemoryStore) -> None:
    """Wait until everything that was put can be found by its text."""
    while not (await store.search("indexed", mode="text")).complete:
        pass


def vector_space(store: MemoryStore) -> Any:
    """Return the store's one vector space, which a search has made."""
    [space] = store._models.spaces._spaces.values()
    return space


async def with_documents(workspace: Workspace, rows: int) -> Path:
    """Return a database with so many documents."""

    async def make(path: Path) -> None:
        async with MemoryStore(url_of(path), namespace=NAMESPACE, cache_path="", cache_max_bytes=0) as store:
            await put_documents(store, rows)

    return await workspace.shared(f"documents-{rows}", make)


async def with_vectors(workspace: Workspace, rows: int) -> Path:
    """Return a database with so many documents and their vectors, and the saved index of these beside it."""
    source = await with_documents(workspace, rows)

    async def make(path: Path) -> None:
        before, copy = connect(source), connect(path)
        before.backup(copy)
        before.close()
        copy.close()
        async with open_with_vectors(path) as store:
            await put_embeddings(store, vectors(rows).stored)

    return await workspace.shared(f"vectors-{rows}", make)


@asynccontextmanager
async def open_with_vectors(path: Path) -> AsyncIterator[MemoryStore]:
    """Open a store that saves its vector index."""
    folder = path.with_name("saved")
    async with MemoryStore(url_of(path), namespace=NAMESPACE, cache_path=str(folder), cache_max_bytes=0) as store:
        await store.cache.wait()
        yield store


def forget_answers(store: MemoryStore) -> None:
    """Let every search be done again: answers are remembered, and what meets a condition."""
    store._search._answers.clear()
    store._models.spaces._met.clear()


def any_word(query: str) -> list[str]:
    """Return the words of a query, for a baseline that seeks any of them."""
    return list(dict.fromkeys(re.findall(r"\w+", query.lower())))


async def over_queries(
    sorts: Mapping[str, Sequence[str]], ours: Callable[[str], Slice], baseline: Callable[[str], Slice], rounds: int
) -> Measured:
    """Compare query by query; the figures are the medians over all queries, and the ratio that of each one's own.

    A mean would be that of the longest queries. Each sort's own medians are in `detail`.
    """
    found = {
        sort: [await compare(ours(query), baseline(query), rounds, unit="µs") for query in queries]
        for sort, queries in sorts.items()
    }
    every = [measured for of_sort in found.values() for measured in of_sort]
    detail: dict[str, float] = {"rounds": rounds, "queries": len(every)}
    for sort, of_sort in found.items():
        detail[f"{sort}_ratio"], detail[f"{sort}_us"], detail[f"{sort}_baseline_us"] = _medians(of_sort)
    ratio, mine, theirs = _medians(every)
    ratios = sorted(measured.ratio for measured in every)
    detail["ratio_p25"], detail["ratio_p75"] = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return Measured(ratio, mine, theirs, "µs", detail)


def _medians(found: Iterable[Measured]) -> tuple[float, float, float]:
    figures = [(measured.ratio, measured.ours, measured.baseline) for measured in found]
    ratio, ours, baseline = map(statistics.median, zip(*figures, strict=True))
    return ratio, ours, baseline
