"""The saved cache: writing it, and being warm again after a start."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from time import perf_counter

from memory_store import MemoryStore

from .baselines import filled, url_of
from .harness import Measured, Sizes, Workspace, compare
from .pause import lateness
from .rows import NAMESPACE

_BLOCK = 1 << 20
_SETTINGS = {"namespace": NAMESPACE, "cache_max_bytes": 400_000_000, "cache_save_interval_s": 0}


async def save(workspace: Workspace, sizes: Sizes) -> Measured:
    path = await filled(workspace, sizes.rows)
    async with MemoryStore(url_of(path), **_SETTINGS) as store:
        await store.cache.wait()
        await store.cache.save()
        file = Path(f"{path}.cache/cache.msgpack")
        data = file.read_bytes()

        async def ours(_: int) -> float:
            start = perf_counter()
            await store.cache.save()
            return perf_counter() - start

        async def baseline(_: int) -> float:
            return await asyncio.to_thread(_write_plainly, file.with_name("plain"), data)

        measured = await compare(ours, baseline, sizes.fewer(15), unit="ms", scale=1e3)
        late = await lateness(store.cache.save, min(sizes.ticks, 1000))
        entries = (await store.cache.status()).entries
    file.with_name("plain").unlink()
    detail = {
        **measured.detail,
        "entries": entries,
        "megabytes": len(data) / 1e6,
        "pause_p99.9_ms": sorted(late)[int(len(late) * 0.999)] * 1e3,
        "pause_longest_ms": max(late) * 1e3,
    }
    return Measured(measured.ratio, measured.ours, measured.baseline, measured.unit, detail)


def _write_plainly(path: Path, data: bytes) -> float:
    """Write the same bytes as the saved cache has, to a new file that replaces the old one, synced."""
    temporary = path.with_name("plain.tmp")
    start = perf_counter()
    with temporary.open("wb", buffering=0) as file:
        for place in range(0, len(data), _BLOCK):
            file.write(data[place : place + _BLOCK])
        os.fsync(file.fileno())
    temporary.replace(path)
    return perf_counter() - start


async def warm(workspace: Workspace, sizes: Sizes) -> Measured:
    path = await filled(workspace, sizes.rows)
    async with MemoryStore(url_of(path), **_SETTINGS) as store:
        await store.cache.wait()
        await store.cache.save()
    file = Path(f"{path}.cache/cache.msgpack")
    opened: list[float] = []

    async def ours(_: int) -> float:
        start = perf_counter()
        store = await MemoryStore(url_of(path), **_SETTINGS).open()
        opened.append(perf_counter() - start)
        await store.cache.wait()
        took = perf_counter() - start
        assert (await store.cache.status()).reason == ""
        store._keeper._folder = None  # nothing has changed: closing need not save it again
        await store.close()
        return took

    async def baseline(_: int) -> float:
        start = perf_counter()
        await asyncio.to_thread(file.read_bytes)
        return perf_counter() - start

    measured = await compare(ours, baseline, sizes.fewer(10), unit="ms", scale=1e3)
    detail = {**measured.detail, "usable_after_ms": sorted(opened)[len(opened) // 2] * 1e3}
    return Measured(measured.ratio, measured.ours, measured.baseline, measured.unit, detail)
