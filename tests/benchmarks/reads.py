"""Hit, miss, concurrent misses, list."""

from __future__ import annotations

import asyncio
from time import perf_counter

from memory_store import Episode
from memory_store.codec import CODECS, make_entry, pack_row, read_entry

from .baselines import GET, aioconnect, filled, open_quiet, select_sql, some_ids
from .harness import Measured, Sizes, Workspace, as_rate, compare, on_one_core
from .ours import list_domains
from .rows import DOMAINS, NAMESPACE, episodes, stored_row

_decode = CODECS["episode"].decode


async def hit(workspace: Workspace, sizes: Sizes) -> Measured:
    async with open_quiet(workspace.new("hit")) as store:
        stored = await store.episodes.put_many(episodes(min(sizes.slice, 1000)))
        ids = [record.id for record in stored]
        cached = {record.id: make_entry(1e18, 1, [pack_row(stored_row(record))]) for record in stored}

        async def read(id_: str) -> Episode:
            return _decode(read_entry(cached[id_])[2])

        async def ours(_: int) -> float:
            get = store.episodes.get
            start = perf_counter()
            for id_ in ids:
                await get(id_)
            return (perf_counter() - start) / len(ids)

        async def baseline(_: int) -> float:
            start = perf_counter()
            for id_ in ids:
                await read(id_)
            return (perf_counter() - start) / len(ids)

        measured = await compare(ours, baseline, sizes.rounds * 4, unit="µs")
        assert store.stats().cache["episode"].misses == 0
        return measured


@on_one_core
async def miss(workspace: Workspace, sizes: Sizes) -> Measured:
    path = await filled(workspace, sizes.rows)
    ids = await some_ids(path, min(200, sizes.rows))
    async with open_quiet(path) as store, aioconnect(path) as connection:

        async def ours(_: int) -> float:
            await store.cache.clear()
            start = perf_counter()
            for id_ in ids:
                await store.episodes.get(id_)
            return (perf_counter() - start) / len(ids)

        async def baseline(_: int) -> float:
            start = perf_counter()
            for id_ in ids:
                [row] = await connection.execute_fetchall(GET, (NAMESPACE, id_))
                _decode(list(row))
            return (perf_counter() - start) / len(ids)

        measured = await compare(ours, baseline, sizes.rounds, unit="µs")
        assert store.stats().cache["episode"].hits == 0
        return measured


async def concurrent_misses(workspace: Workspace, sizes: Sizes) -> Measured:
    path = await filled(workspace, sizes.rows)
    ids = await some_ids(path, min(64 * 8, sizes.rows // 64 * 64))
    groups = [ids[start : start + 64] for start in range(0, len(ids), 64)]
    async with open_quiet(path) as store, aioconnect(path) as connection:

        async def read(id_: str) -> Episode:
            [row] = await connection.execute_fetchall(GET, (NAMESPACE, id_))
            return _decode(list(row))

        async def ours(_: int) -> float:
            await store.cache.clear()
            start = perf_counter()
            for group in groups:
                await asyncio.gather(*(store.episodes.get(id_) for id_ in group))
            return (perf_counter() - start) / len(ids)

        async def baseline(_: int) -> float:
            start = perf_counter()
            for group in groups:
                await asyncio.gather(*(read(id_) for id_ in group))
            return (perf_counter() - start) / len(ids)

        measured = await compare(ours, baseline, sizes.rounds, unit="", scale=1)
        assert store.stats().cache["episode"].hits == 0
        return as_rate(measured, unit="reads/s")


@on_one_core
async def list_page(workspace: Workspace, sizes: Sizes) -> Measured:
    path = await filled(workspace, sizes.rows)
    sql = select_sql("episode", "WHERE namespace = ? AND domain = ? ORDER BY created_at DESC, id DESC LIMIT ?")
    async with open_quiet(path) as store, aioconnect(path) as connection:

        async def ours(_: int) -> float:
            return await list_domains(store)

        async def baseline(_: int) -> float:
            start = perf_counter()
            for domain in DOMAINS:
                rows = await connection.execute_fetchall(sql, (NAMESPACE, domain, 50))
                [_decode(list(row)) for row in rows]
            return (perf_counter() - start) / len(DOMAINS)

        return await compare(ours, baseline, sizes.rounds, unit="µs")
