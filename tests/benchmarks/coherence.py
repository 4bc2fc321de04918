"""What it costs that a cache is true although other processes write."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic, perf_counter
from typing import Any

from memory_store import MemoryStore
from memory_store.cache.entries import Space
from memory_store.codec import CODECS
from memory_store.durable.changes import SHARD, HeadState
from memory_store.durable.commits import LogWriter, Opened
from memory_store.durable.log import read_head
from memory_store.durable.statements import head_select

from .baselines import GET, aioconnect, connect, drop_triggers, filled, open_quiet, some_ids
from .harness import Measured, Sizes, Workspace, as_rate, compare
from .rows import NAMESPACE, episodes

_decode = CODECS["episode"].decode


def _without_coherence(store: MemoryStore) -> None:
    """Make a store's hits what they were without a protocol: is it cached, is it young enough."""
    access = store._access

    def cached(space: Space, id_: str, freshness: str | None = None, at_least: int = 0) -> list[Any] | None:
        if asyncio.get_running_loop() is not access._loop:
            access._refuse()
        return access.shelf.read(space, id_, monotonic())

    access.cached = cached


async def hit_bounded(workspace: Workspace, sizes: Sizes) -> Measured:
    async with open_quiet(workspace.new("bounded")) as store, open_quiet(workspace.new("plain")) as plain:
        _without_coherence(plain)
        records = list(episodes(min(sizes.slice, 1000)))
        ids = [record.id for record in records]
        await store.episodes.put_many(records)
        await plain.episodes.put_many(records)

        def reading(of: MemoryStore) -> Callable[[int], Awaitable[float]]:
            async def read(_: int) -> float:
                get = of.episodes.get
                start = perf_counter()
                for id_ in ids:
                    await get(id_)
                return (perf_counter() - start) / len(ids)

            return read

        measured = await compare(reading(store), reading(plain), sizes.rounds * 4, unit="µs")
        assert store.stats().cache["episode"].misses == 0
        return measured


async def hit_linearizable(workspace: Workspace, sizes: Sizes) -> Measured:
    path = workspace.new("linearizable")
    async with open_quiet(path) as store:
        [record] = await store.episodes.put_many(episodes(1))
        connection, sql, count = connect(path), head_select(), sizes.slice

        async def ours(_: int) -> float:
            get, id_ = store.episodes.get, record.id
            start = perf_counter()
            for _ in range(count):
                await get(id_, freshness="linearizable")
            return (perf_counter() - start) / count

        async def baseline(_: int) -> float:
            start = perf_counter()
            for _ in range(count):
                connection.execute(sql, (SHARD,)).fetchone()
            return (perf_counter() - start) / count

        try:
            measured = await compare(ours, baseline, sizes.rounds * 2, unit="µs")
        finally:
            connection.close()
        assert store.stats().cache["episode"].misses == 0
        return measured


async def linearizable_against_row(workspace: Workspace, sizes: Sizes) -> Measured:
    """Against the other way to miss nothing, a store without a cache; and, in the detail, against the bare driver."""
    path = await filled(workspace, sizes.rows)
    ids = await some_ids(path, min(200, sizes.rows))
    async with (
        open_quiet(path) as store,
        open_quiet(path, cache_max_bytes=0) as uncached,
        aioconnect(path) as connection,
    ):
        await store.episodes.get_many(ids)

        async def ours(_: int) -> float:
            start = perf_counter()
            for id_ in ids:
                await store.episodes.get(id_, freshness="linearizable")
            return (perf_counter() - start) / len(ids)

        async def reading(_: int) -> float:
            start = perf_counter()
            for id_ in ids:
                await uncached.episodes.get(id_)
            return (perf_counter() - start) / len(ids)

        async def driver(_: int) -> float:
            start = perf_counter()
            for id_ in ids:
                [row] = await connection.execute_fetchall(GET, (NAMESPACE, id_))
                _decode(list(row))
            return (perf_counter() - start) / len(ids)

        measured = as_rate(await compare(ours, reading, sizes.rounds, unit="", scale=1), unit="reads/s")
        bare = await compare(driver, ours, sizes.rounds, unit="", scale=1)
        return Measured(
            measured.ratio,
            measured.ours,
            measured.baseline,
            measured.unit,
            {**measured.detail, "ratio_to_bare_aiosqlite": bare.ratio},
        )


class _PlainLog(LogWriter):
    """A log that is not claimed and does not ask what others wrote: what a single process could do with."""

    def begin(self, connection: sqlite3.Connection, known: HeadState) -> Opened:
        connection.execute("BEGIN IMMEDIATE")
        return Opened(read_head(connection), None)


def commit_with(writers: int) -> Callable[[Workspace, Sizes], Awaitable[Measured]]:
    """Return the benchmark of so many concurrent writers."""
    return partial(_commit_with, writers)


async def _commit_with(writers: int, workspace: Workspace, sizes: Sizes) -> Measured:
    each = max(1, min(sizes.slice * 2, 2048) // writers) if writers > 1 else min(sizes.slice, 60)
    path = workspace.new("plain-commit")
    async with open_quiet(workspace.new("commit")) as store, open_quiet(path) as plain:
        drop_triggers(path)
        plain._access.shard.writer.log = _PlainLog("", plain._access.cache.head.epoch)

        def writing(to: MemoryStore) -> Callable[[int], Awaitable[float]]:
            async def write(records: list[Any]) -> None:
                for record in records:
                    await to.episodes.put(record)

            async def run(number: int) -> float:
                records = list(episodes(writers * each, number * writers * each))
                start = perf_counter()
                await asyncio.gather(*(write(records[place::writers]) for place in range(writers)))
                return (perf_counter() - start) / len(records)

            return run

        times = await compare(writing(store), writing(plain), sizes.fewer(25), unit="", scale=1)
        return as_rate(times, unit="writes/s")
