"""Opening, importing the package, memory an entry: what needs a fresh state or a fresh interpreter."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

from memory_store import Episode, MemoryStore
from memory_store.codec import CODECS, make_entry, pack_row

from .baselines import GET, connect, filled, open_quiet, some_ids, url_of
from .harness import REPOSITORY, Measured, Sizes, Workspace, compare
from .rows import NAMESPACE, stored_row

_decode = CODECS["episode"].decode


async def open_store(workspace: Workspace, sizes: Sizes) -> Measured:
    path = await filled(workspace, sizes.rows)
    settings = {"namespace": NAMESPACE, "cache_max_bytes": 200_000_000, "cache_save_interval_s": 0}
    async with MemoryStore(url_of(path), **settings) as store:
        await store.cache.wait()
        await store.cache.rebuild()
    saved = sum(file.stat().st_size for file in Path(f"{path}.cache").iterdir())
    [id_] = await some_ids(path, 1)

    async def ours(_: int) -> float:
        start = perf_counter()
        store = await MemoryStore(url_of(path), **settings).open()
        found = await store.episodes.get(id_)
        took = perf_counter() - start
        assert found is not None
        await store.close()
        return took

    async def baseline(_: int) -> float:
        start = perf_counter()
        connection = connect(path)
        [row] = connection.execute(GET, (NAMESPACE, id_)).fetchall()
        _decode(list(row))
        took = perf_counter() - start
        connection.close()
        return took

    measured = await compare(ours, baseline, sizes.fewer(20), unit="ms", scale=1e3)
    detail = {**measured.detail, "saved_cache_mb": saved / 1e6}
    return Measured(measured.ratio, measured.ours, measured.baseline, measured.unit, detail)


def _run_python(*arguments: str) -> str:
    # Byte code is what users have; an environment that forbids writing it would time the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


async def import_package(workspace: Workspace, sizes: Sizes) -> Measured:
    def timing(module: str) -> Callable[[int], Awaitable[float]]:
        code = f"from time import perf_counter as t; a = t(); import {module}; print(t() - a)"

        async def run(_: int) -> float:
            return float(await asyncio.to_thread(_run_python, "-c", code))

        return run

    ours, baseline = timing("memory_store"), timing("sqlalchemy.ext.asyncio")
    return await compare(ours, baseline, sizes.fewer(25), unit="ms", scale=1e3)


async def memory(workspace: Workspace, sizes: Sizes) -> Measured:
    path = await filled(workspace, min(sizes.rows, 20_000))
    code = "import sys; from tests.benchmarks.processes import weigh; weigh(sys.argv[1])"
    weighed = json.loads(await asyncio.to_thread(_run_python, "-c", code, str(path)))
    entries, entry_bytes = weighed["entries"], weighed["bytes"]
    detail = {"entries": entries, "accounted_ratio": weighed["accounted"] / entry_bytes}
    return Measured(
        weighed["memory"] / entry_bytes, weighed["memory"] / entries, entry_bytes / entries, "bytes/entry", detail
    )


def weigh(path: str) -> None:
    """Print what a full cache of this database takes, by tracemalloc, and the bytes of its entries."""
    print(json.dumps(asyncio.run(_weigh(Path(path)))))


async def _weigh(path: Path) -> dict[str, float]:
    async with open_quiet(path) as store:
        await store.cache.clear()
        await store.episodes.get("warms the reader up")
        await store.cache.clear()
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await store.cache.rebuild()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        status = await store.cache.status()
        sizes = [_entry_size(record) async for record in store.episodes.stream(order_by=Episode.c.created_at.desc())]
    return {
        "entries": status.entries,
        "memory": after - before,
        "accounted": status.used_bytes,
        # A rebuild fills the newest first; where not all fit, those are the ones that are held.
        "bytes": sum(sizes[: status.entries]),
    }


def _entry_size(record: Episode) -> int:
    return len(make_entry(0.0, 0, [pack_row(stored_row(record))]))
