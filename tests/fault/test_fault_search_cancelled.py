"""Cancellation at every await of searching and indexing: answers stay right, nothing stays open, nothing is stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from memory_store import Embedding, Episode, MemoryStore, StoreClosedError
from memory_store.embedders import FunctionEmbedder
from tests.fault.cancelling import MOMENTS, CancelledAt, awaited, cancel_everywhere
from tests.fault.search_truth import found, index_problems, left_behind, nothing_left
from tests.fault.support import database, episode, integrity_problems, log_problems

pytestmark = pytest.mark.usefixtures("no_thread_left")

OLD, LOADED = 30, 150


async def lengths(texts: list[str]) -> list[list[float]]:
    """A vector a text: of how long it is, and of its first letter."""
    await asyncio.sleep(0)
    return [[float(len(text)), float(ord(text[0]) % 7), 1.0] for text in texts]


async def backwards(query: str, texts: list[str]) -> list[float]:
    """A reranker that takes a moment."""
    await asyncio.sleep(0)
    return [float(-number) for number in range(len(texts))]


@pytest.fixture
async def store(file_url: str) -> AsyncIterator[MemoryStore]:
    """A store with two models, whose old embeddings are of the second."""
    models = [FunctionEmbedder(lengths, "new"), FunctionEmbedder(lengths, "old")]
    async with MemoryStore(file_url, namespace="test-agent", timeout_s=10, embed=models) as store:
        await store.episodes.put_many([episode(f"old{i}", context=f"lantern {i}") for i in range(OLD)])
        for i in range(OLD):
            vector = (await lengths([f"text {i}"]))[0]
            await store.embeddings.put(
                Embedding(
                    id=f"v{i}",
                    episode_id=f"old{i}",
                    content=f"text {i}",
                    embedding=vector,
                    model_name="old",
                    vector_dim=3,
                )
            )
        await nothing_left(store)
        yield store


async def load(store: MemoryStore, key: str) -> None:
    """Leave something behind that the search has to bring in."""
    await store.episodes.put_many([episode(f"{key}-{i}", context=f"loaded {key}") for i in range(LOADED)])


async def search_text(store: MemoryStore, key: str) -> None:
    assert await store.search(f"lantern {key}", mode="text")


async def search_what_was_left_behind(store: MemoryStore, key: str) -> None:
    await load(store, key)
    assert len(await store.search(key.replace("-", ""), mode="text", limit=1000)) in (0, LOADED)
    assert len(await store.search("loaded", mode="text", limit=1000))


async def search_both(store: MemoryStore, key: str) -> None:
    assert await store.search(f"lantern {key}", where=Episode.c.domain == "web")


async def search_vectors_that_changed(store: MemoryStore, key: str) -> None:
    one = Embedding(episode_id="old0", content=key, embedding=[9, 9, 9], model_name="new", vector_dim=3)
    await store.embeddings.put(one)
    assert await store.search(f"lantern {key}", mode="vector", kinds="embedding")


async def search_diverse(store: MemoryStore, key: str) -> None:
    results = await store.search(f"lantern {key}", diversity=0.5, kinds="episode")
    assert results.diversity is not None


async def recall(store: MemoryStore, key: str) -> None:
    assert await store.recall(f"lantern {key}", domain="web", explain=True)


async def search_at_once(store: MemoryStore, key: str) -> None:
    """Another caller asks the same; cancelling one must not take the answer from the other."""
    other = asyncio.ensure_future(store.search(f"lantern {key}"))
    try:
        await store.search(f"lantern {key}")
    finally:
        await asyncio.shield(asyncio.wait([other]))
        assert other.result()


async def add(store: MemoryStore, key: str) -> None:
    await store.embeddings.add("old1", [f"first {key}", f"second {key}"])


async def reembed(store: MemoryStore, key: str) -> None:
    await store.embeddings.reembed()


async def reindex(store: MemoryStore, key: str) -> None:
    await store.reindex()


async def bulk_load(store: MemoryStore, key: str) -> None:
    await load(store, key)


METHODS: list[Callable[[MemoryStore, str], Awaitable[None]]] = [
    search_text,
    search_what_was_left_behind,
    search_both,
    search_vectors_that_changed,
    search_diverse,
    recall,
    search_at_once,
    add,
    reembed,
    reindex,
    bulk_load,
]


async def still_right(store: MemoryStore, path: Path, key: str) -> None:
    """Check that nothing is open, that a new write is found at once, and that all answers are those of the records."""
    word = key.replace("-", "") + "after"
    await store.episodes.put(episode(f"after-{key}", context=word))
    await store.embeddings.add(f"after-{key}", word)
    with database(path) as other_program:
        other_program.execute("PRAGMA busy_timeout = 2000")
        other_program.execute("BEGIN IMMEDIATE")
        other_program.execute("ROLLBACK")
    assert await found(store, word, kinds="episode") == {f"after-{key}"}
    assert {f"old{i}" for i in range(OLD)} <= await found(store, "lantern", kinds="episode")
    loaded = {one.id for one in (await store.episodes.list(Episode.c.id.like(f"{key}-%"), limit=1000)).items}
    assert len(loaded) in (0, LOADED)
    assert await found(store, "loaded", where=Episode.c.id.like(f"{key}-%")) == loaded
    stored = (await store.embeddings.list(limit=1000)).items
    every = await store.search(word, mode="vector", kinds="embedding", limit=1000)
    assert {hit.id for hit in every} == {one.id for one in stored}
    for one in stored:
        assert one.model_name in ("old", "new")
    assert sum(one.content.endswith(f" {key}") for one in stored) in (0, 2), "both or none"


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
async def test_cancelled_at_every_await(
    method: Callable[[MemoryStore, str], Awaitable[None]], moment: str, store: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "agent.db"

    async def run(number: int) -> None:
        await method(store, f"key-{number}")

    suspensions = await cancel_everywhere(run, lambda number: still_right(store, path, f"key-{number}"), moment)
    assert suspensions, "it never waited: nothing was tested"
    await nothing_left(store)
    await store.close()
    assert left_behind(path) == []
    assert index_problems(path) == []
    assert integrity_problems(path) == []
    assert log_problems(path) == []


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_reranker_cancelled_at_every_await(moment: str, file_url: str) -> None:
    async with MemoryStore(file_url, timeout_s=10, rerank=backwards) as store:
        await store.episodes.put_many([episode(f"e{i}", context="lantern") for i in range(5)])

        async def run(number: int) -> None:
            assert len(await store.search(f"lantern {number}")) == 5

        async def check(number: int) -> None:
            assert len(await store.search(f"lantern {number}")) == 5

        assert await cancel_everywhere(run, check, moment)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_closing_cancelled_at_every_await_with_a_backlog(moment: str, file_url: str, tmp_path: Path) -> None:
    """The index is being brought in when the store is closed: what is left is there for the next one."""

    for number in range(1, 60):
        store = await MemoryStore(file_url, timeout_s=10).open()
        await store.episodes.put_many([episode(f"e{number}-{i}", context=f"bulk{number}") for i in range(200)])
        indexing = asyncio.ensure_future(store.search(f"bulk{number}", mode="text"))
        await asyncio.sleep(0.001)
        run = CancelledAt(store.close(), number, moment)
        task = asyncio.ensure_future(awaited(run))
        await asyncio.wait([task], timeout=30)
        assert task.cancelled() == run.reached
        await store.close()
        await asyncio.wait([indexing])
        assert indexing.exception() is None or isinstance(indexing.exception(), StoreClosedError)
        async with MemoryStore(file_url, timeout_s=10) as again:
            assert len(await found(again, f"bulk{number}")) == 200
        assert index_problems(tmp_path / "agent.db") == []
        if not run.reached:
            assert number > 1
            return
    raise AssertionError("it never ends")
