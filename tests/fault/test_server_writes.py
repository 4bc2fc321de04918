"""For each way to write to PostgreSQL: the process dies here, another one writes here, the caller is cancelled here."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from memory_store import MemoryStore, RecordError
from tests.fault.cancelling import MOMENTS, cancel_everywhere
from tests.fault.servers_support import (
    PATIENCE_S,
    SETTINGS,
    WRITE_PATHS,
    Nth,
    WritePath,
    is_cached_right,
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
    path: WritePath, moment: str, server_url: str
) -> None:
    """Nothing is left open or stale, and the next caller is not held up."""
    async with MemoryStore(server_url, **SETTINGS) as store, truth_of(server_url) as truth:
        before, after = await states_of(path, store, truth)

        async def make(number: int) -> None:
            await path.write(store, f"c{number}")

        async def check(number: int) -> None:
            await settled(store)
            held = await truth.state(f"c{number}")
            assert held in (before, after)
            assert await is_cached_right(store, f"c{number}", before, after, held)
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


INSTANTS = ["first message", "before the commit", "at the commit", "after it"]
_ONE_EACH = list(zip(_PARTS, itertools.cycle(INSTANTS)))


@pytest.mark.parametrize(("path", "instant"), _ONE_EACH, ids=str)
async def test_a_process_killed_while_it_writes_leaves_all_or_nothing(
    path: WritePath, instant: str, postgres_server: PostgresDatabases, server_url: str
) -> None:
    """Whoever comes next waits for nothing: what the dead process had locked is free."""
    await kill_at(path, instant, postgres_server, server_url)


async def kill_at(path: WritePath, instant: str, server: PostgresDatabases, url: str) -> None:
    """Kill a process at an instant of its write, and check what it leaves."""
    assert path.commit is not None
    async with through_proxy(server, url) as (store, proxy, truth):
        through = store._target.url.render_as_string(hide_password=False)
        before, after = await states_of(path, store, truth)
        with Child(_write, through, path.name, "killed") as child:
            assert await asyncio.to_thread(child.receive) == "ready"

            async def kill() -> None:
                await asyncio.to_thread(child.kill)
                if instant == "before the commit":
                    proxy.drop_all()

            if instant == "after it":
                child.send("go")
                assert await asyncio.to_thread(child.receive) == "done"
                await asyncio.to_thread(child.kill)
            else:
                found: Predicate = Nth(1) if instant == "first message" else runs(path.commit)
                rule = proxy.on_message(found, kill)
                child.send("go")
                async with asyncio.timeout(PATIENCE_S):
                    await rule.happened.wait()
        await truth.quiet()
        held = await truth.state("killed")
        assert held in {"after it": [after], "before the commit": [before]}.get(instant, [before, after])
        async with asyncio.timeout(5):
            await store.episodes.put(episode("next"))
        assert await truth.log_problems() == []
        await nothing_left(store, truth)


@pytest.mark.parametrize("path", WRITE_PATHS, ids=str)
async def test_another_process_writes_the_same_record_at_some_message(
    path: WritePath, postgres_server: PostgresDatabases, server_url: str
) -> None:
    """Each write is made on what the other left; revisions have no gap, and both caches are right."""
    await meet_another(path, postgres_server, server_url, every=5)


async def meet_another(path: WritePath, server: PostgresDatabases, url: str, every: int) -> None:
    """Let another process write while the n-th message is held back, for every so manieth n."""
    async with through_proxy(server, url) as (store, proxy, truth), MemoryStore(url, **SETTINGS) as other:
        before, after = await states_of(path, store, truth)
        ids = {key.removesuffix("/steps") for key in (*before, *after)}
        target = "old" if "old" in ids else "new" if "new" in ids else "0"
        for number in range(1, 500, every):
            tag = f"o{number}"
            if path.prepare is not None:
                await path.prepare(store, tag)
            await other.episodes.get(f"{tag}-{target}")
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
                except RecordError:
                    assert path.name == "update"
                for task in writing:
                    await task
            proxy.rules.remove(rule)
            held = await truth.state(tag)
            for process in (store, other):
                await process.episodes.get("none", freshness="linearizable")
                assert await is_cached_right(process, tag, before, after, held)
            if not rule.hits:
                assert held == after
                break
        assert await truth.log_problems() == []
        await nothing_left(store, truth, {"pool_size": 8})
