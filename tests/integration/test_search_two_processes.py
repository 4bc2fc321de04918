"""Two processes on one database: what one has written and said, the other finds; both bring in the same backlog."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from memory_store import Embedding, MemoryStore, Step
from tests.fault.search_truth import found, is_whole
from tests.fault.support import Child, Parent, episode

SETTINGS: dict[str, Any] = {"staleness_s": 0, "timeout_s": 30}
DATABASES = pytest.mark.parametrize("place", ["file_url", "server_url"], ids=["file", "server"])


@pytest.fixture
def url(place: str, request: pytest.FixtureRequest) -> str:
    """A database that several processes can open."""
    return str(request.getfixturevalue(place))


async def write_and_tell(parent: Parent, url: str, count: int) -> None:
    """Write one thing after another, and wait each time until the other has looked for it."""
    seeded = random.Random(count)
    async with MemoryStore(url, **SETTINGS) as store:
        for number in range(count):
            word = f"w{number}"
            ids = [f"e{number}-{n}" for n in range(seeded.choice([1, 2, 40, 90]))]
            await store.episodes.put_many([episode(id_, context=word) for id_ in ids])
            await asyncio.to_thread(_tell, parent, (word, set(ids)))
            if seeded.random() < 0.5:
                await store.episodes.update(ids[0], context=f"{word}u")
                await asyncio.to_thread(_tell, parent, (f"{word}u", {ids[0]}))
            await store.episodes.delete(ids[0])
            await asyncio.to_thread(_tell, parent, (word, set(ids[1:])))


def _tell(parent: Parent, message: Any) -> None:
    parent.send(message)
    parent.wait_for("seen")


@DATABASES
async def test_what_another_process_has_written_is_found_at_once(url: str) -> None:
    messages = 0
    async with MemoryStore(url, **SETTINGS) as store:
        with Child(write_and_tell, url, 20) as child:
            while (message := await asyncio.to_thread(child.receive)) is not None:
                word, ids = message
                messages += 1
                first = await store.search(word, mode="text", limit=1000)
                assert first.complete
                assert {hit.id for hit in first} == ids
                again = await store.search(word, mode="text", limit=1000)
                assert {hit.id for hit in again} == ids, "remembered, and still right"
                child.send("seen")
    assert messages > 40
    await is_whole(url)


async def load(parent: Parent, url: str, tag: str, commits: int) -> None:
    """Load many records a commit, and search meanwhile, when told."""
    async with MemoryStore(url, **SETTINGS) as store:
        parent.send("ready")
        parent.wait_for("go")
        for commit in range(commits):
            ids = [f"{tag}{commit}-{n}" for n in range(120)]
            await store.episodes.put_many([episode(id_, context=f"load {tag}{commit}") for id_ in ids])
            await store.steps.append(ids[0], [Step(id=f"{id_}-s", action=f"load {tag}{commit}") for id_ in ids])
            assert len(await found(store, f"{tag}{commit}")) == 240
            await store.episodes.delete(ids[0])  # and all the steps
            assert len(await found(store, f"{tag}{commit}")) == 119
        parent.send("done")


@DATABASES
async def test_processes_bring_in_the_same_backlog(url: str) -> None:
    with Child(load, url, "a", 5) as one, Child(load, url, "b", 5) as other:
        for child in (one, other):
            assert child.receive() == "ready"
            child.send("go")
        async with MemoryStore(url, **SETTINGS) as store:
            while not (one.arrived_within(0) and other.arrived_within(0)):
                await store.search("load", mode="text", limit=1000)
                await asyncio.sleep(0.01)
            assert [one.receive(), other.receive()] == ["done", "done"]
            assert len(await found(store, "load", kinds="step")) == 0
            every = [one.id async for one in store.episodes.stream()]
            assert len(every) == 10 * 119
            for tag in "ab":
                for commit in range(5):
                    assert len(await found(store, f"{tag}{commit}")) == 119
    await is_whole(url)


async def make_anew(parent: Parent, url: str) -> None:
    """Make the index anew until told to stop; tell how often."""
    times = 0
    async with MemoryStore(url, **SETTINGS) as store:
        parent.send("ready")
        while not parent.was_told("stop"):
            await store.reindex()
            times += 1
        parent.send(times)


@DATABASES
async def test_writes_are_found_while_another_process_makes_the_index_anew(url: str) -> None:
    async with MemoryStore(url, **SETTINGS) as store:
        await store.episodes.put_many([episode(f"old{n}", context="old") for n in range(200)])
        with Child(make_anew, url) as child:
            assert child.receive() == "ready"
            for number in range(40):
                await store.episodes.put(episode(f"e{number}", context=f"new n{number}"))
                assert f"e{number}" in await found(store, f"n{number}")
                if number % 3 == 0:
                    await store.episodes.update(f"old{number}", context="changed")
                    assert f"old{number}" in await found(store, "changed")
                if number % 5 == 0:
                    await store.episodes.delete(f"old{number + 100}")
                    assert f"old{number + 100}" not in await found(store, "old")
            child.send("stop")
            assert child.receive() >= 1
        assert len(await found(store, "new")) == 40
        assert len(await found(store, "changed")) == 14
        assert len(await found(store, "old")) == 200 - 14 - 8
    await is_whole(url)


async def embed(parent: Parent, url: str, count: int) -> None:
    """Put vectors, change and delete them, and wait each time until the other has looked."""
    async with MemoryStore(url, **SETTINGS) as store:
        for number in range(count):
            id_ = f"e{number}"
            await store.episodes.put(episode(id_))
            vector = [1.0, number / count]
            one = Embedding(id=id_, episode_id=id_, content="c", embedding=vector, model_name="m", vector_dim=2)
            await store.embeddings.put(one)
            await asyncio.to_thread(_tell, parent, ("put", id_, vector))
            if number % 3 == 0:
                await store.embeddings.update(id_, embedding=[-1.0, number / count])
                await asyncio.to_thread(_tell, parent, ("put", id_, [-1.0, number / count]))
            if number % 4 == 0:
                await store.episodes.delete(id_)
                await asyncio.to_thread(_tell, parent, ("gone", id_, vector))


@DATABASES
async def test_vectors_of_another_process_are_found_at_once(url: str) -> None:
    held: dict[str, list[float]] = {}
    async with MemoryStore(url, **SETTINGS) as store:
        with Child(embed, url, 30) as child:
            while (message := await asyncio.to_thread(child.receive)) is not None:
                word, id_, vector = message
                held[id_] = vector
                if word == "gone":
                    del held[id_]
                results = await store.search("x", mode="vector", vector=vector, model="m", kinds="embedding", limit=100)
                assert {hit.id for hit in results} == set(held)
                if held.get(id_) == vector:
                    assert results[0].score == pytest.approx(1.0, abs=1e-5)
                child.send("seen")


@asynccontextmanager
async def both(url: str, **settings: Any) -> AsyncIterator[tuple[MemoryStore, MemoryStore]]:
    """Two stores in one process, which is as two processes to the database."""
    async with MemoryStore(url, **settings) as one, MemoryStore(url, **settings) as other:
        yield one, other


@DATABASES
async def test_a_remembered_answer_is_given_up_within_the_bound(url: str) -> None:
    """Every 50 ms the head is looked at; an answer is not remembered behind a change that was seen there."""
    async with both(url, staleness_s=0.05) as (one, other):
        await other.episodes.put(episode("e", context="lantern"))
        for number in range(10):
            word = f"n{number}"
            assert [hit.id for hit in await one.search(word, mode="text")] == []
            await other.episodes.update("e", context=word)
            async with asyncio.timeout(20):
                while not await one.search(word, mode="text"):
                    await asyncio.sleep(0.005)
            assert [hit.id for hit in await one.search(word, mode="text")] == ["e"]
