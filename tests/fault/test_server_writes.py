"""Three questions for each way to write to PostgreSQL: the process dies here, another one writes here, the caller goes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from memory_store import MemoryStore, RecordError
from tests.fault.cancelling import MOMENTS, cancel_everywhere
from tests.fault.servers_support import (
    PATIENCE_S,
    SETTINGS,
    WRITE_PATHS,
    Nth,
    Truth,
    WritePath,
    cached_state,
    nothing_left,
    truth_of,
)
from tests.fault.support import Child, Parent, episode
from tests.fault.test_server_cuts import states_of, through_proxy
from tests.servers.databases import PostgresDatabases
from tests.servers.proxy import Predicate, runs

_BY_NAME = {path.name: path for path in WRITE_PATHS}
_PARTS = [path for path in WRITE_PATHS if path.commit]  # those that are one commit


async def settled(store: MemoryStore) -> None:
    """Wait until whatever cancelled callers left behind has come to its end."""
    assert store._shards is not None
    for shard in store._shards:
        async with asyncio.timeout(PATIENCE_S):
            await shard.writer.drain()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("path", _PARTS, ids=str)
async def test_a_write_cancelled_at_any_await_is_made_as_a_whole_or_not_at_all(
    path: WritePath, moment: str, postgres_url: str
) -> None:
    """Nothing is left open or stale, and the next caller is not held up."""
    async with MemoryStore(postgres_url, **SETTINGS) as store, truth_of(postgres_url) as truth:
        before, after = await states_of(path, store, truth)
        ids = {key.removesuffix("/steps") for key in (*before, *after)}

        async def make(number: int) -> None:
            await path.write(store, f"c{number}")

        async def check(number: int) -> None:
            await settled(store)
            held = await truth.state(f"c{number}")
            assert held in (before, after)
            assert await cached_state(store, f"c{number}", ids) == held
            await nothing_left(store, truth)
            if path.prepare is not None:
                await path.prepare(store, f"c{number + 1}")

        if path.prepare is not None:
            await path.prepare(store, "c1")
        assert await cancel_everywhere(make, check, moment) >= 1
        assert await truth.log_problems() == []


async def _write(parent: Parent, url: str, name: str, tag: str) -> None:
    async with MemoryStore(url, **SETTINGS) as store:
        path = _BY_NAME[name]
        if path.prepare is not None:
            await path.prepare(store, tag)
        parent.send("ready")
        parent.wait_for("go")
        await path.write(store, tag)
        parent.send("done")
        parent.wait_for("never")


_INSTANTS = ["first message", "before the commit", "at the commit", "after it"]


@pytest.mark.parametrize("instant", _INSTANTS)
async def test_a_process_killed_while_it_writes_leaves_all_or_nothing(
    instant: str, postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    """Whoever comes next waits for nothing: what the dead process had locked is free."""
    async with through_proxy(postgres_server, postgres_url) as (store, proxy, truth):
        through = str(store._target.url.render_as_string(hide_password=False))  # type: ignore[union-attr]
        for path in _PARTS:
            tag = path.name.replace(" ", "-")
            before, after = await states_of(path, store, truth, tag)
            with Child(_write, through, path.name, f"k{tag}") as child:
                assert await asyncio.to_thread(child.receive) == "ready"

                async def kill(child: Child = child) -> None:
                    await asyncio.to_thread(child.kill)
                    if instant == "before the commit":
                        proxy.drop_all()

                assert path.commit is not None
                found: Predicate = Nth(1) if instant == "first message" else runs(path.commit)
                rule = proxy.on_message(found, kill)
                child.send("go")
                if instant == "after it":
                    proxy.rules.remove(rule)
                    assert await asyncio.to_thread(child.receive) == "done"
                    await asyncio.to_thread(child.kill)
                else:
                    async with asyncio.timeout(PATIENCE_S):
                        await rule.happened.wait()
                    proxy.rules.remove(rule)
            await truth.quiet()
            held = await truth.state(f"k{tag}")
            assert held in (before, after)
            if instant == "after it":
                assert held == after
            elif instant == "before the commit":
                assert held == before
            assert await cached_state(store, f"k{tag}", set()) == {}
            async with asyncio.timeout(5):
                await store.episodes.put(episode(f"next-{tag}"))
        assert await truth.log_problems() == []
        await nothing_left(store, truth)


@pytest.mark.parametrize("path", WRITE_PATHS, ids=str)
async def test_another_process_writes_the_same_record_at_any_message(
    path: WritePath, postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    """Each write is made on what the other left; revisions have no gap, and both caches are right."""
    async with (
        through_proxy(postgres_server, postgres_url) as (store, proxy, truth),
        MemoryStore(postgres_url, **SETTINGS) as other,
    ):
        before, after = await states_of(path, store, truth)
        ids = {key.removesuffix("/steps") for key in (*before, *after)}
        target = "old" if "old" in ids else "new" if "new" in ids else "0"
        for number in range(1, 100):
            tag = f"o{number}"
            if path.prepare is not None:
                await path.prepare(store, tag)
            await cached_state(other, tag, ids)
            writing: list[asyncio.Task[Any]] = []

            async def write(tag: str = tag, writing: list[asyncio.Task[Any]] = writing) -> None:
                put = other.episodes.put(episode(f"{tag}-{target}", context={"mark": 99}))
                writing.append(asyncio.create_task(put))
                # Done at once where the head is free, else behind the other's commit.
                await asyncio.wait(writing, timeout=0.01)

            rule = proxy.on_message(Nth(number), write)
            async with asyncio.timeout(PATIENCE_S):
                try:
                    await path.write(store, tag)
                except (RecordError, AssertionError):
                    assert path.name in ("update", "put with an idempotency key", "transaction", "append")
                for task in writing:
                    await task
            proxy.rules.remove(rule)
            held = await truth.state(tag)
            for process in (store, other):
                await process.episodes.get("none", freshness="linearizable")
                assert await cached_state(process, tag, ids) == held
            if not rule.hits:
                assert held == after
                break
        assert await truth.log_problems() == []
        await nothing_left(store, truth, {"pool_size": 8})

