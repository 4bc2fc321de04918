"""How long the event loop is kept from its other tasks: a ticker measures its own lateness while the store works."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from memory_store import Episode, MemoryStore

from .baselines import filled, open_quiet
from .harness import Measured, Sizes, Workspace
from .rows import episodes, steps
from .writes import recorded_lines

_PERIOD_S = 0.001
_BULK = 5000

Work = Callable[[], Awaitable[Any]]


async def pause(workspace: Workspace, sizes: Sizes) -> Measured:
    path = await filled(workspace, sizes.rows)
    bulk = min(_BULK, sizes.rows)
    async with open_quiet(path) as store:
        works = _works(store, bulk)
        works["import"] = _import_work(store, max(1, bulk // 5))
        gc.collect()
        gc.freeze()
        try:
            idle = await lateness(None, sizes.ticks)
            late = {name: await lateness(work, sizes.ticks) for name, work in works.items()}
        finally:
            gc.unfreeze()
    worst = {name: _p999(samples) for name, samples in late.items()}
    ours, baseline = max(worst.values()), _p999(idle)
    longest = {f"{name}_longest": max(samples) * 1e3 for name, samples in late.items()}
    detail = {**{f"{name}_p99.9": value for name, value in worst.items()}, **longest}
    return Measured(ours / baseline, ours, baseline, "ms", detail)


def _works(store: MemoryStore, bulk: int) -> dict[str, Work]:
    # Made beforehand: making records is the caller's own time.
    blocks = itertools.cycle([list(episodes(bulk, place * bulk)) for place in range(8)])
    owners = list(episodes(bulk // 5))
    parts = [step for place, owner in enumerate(owners) for step in steps(owner, 5, place)]
    singles = itertools.cycle([list(episodes(64, place * 64)) for place in range(50)])

    async def put() -> None:
        await asyncio.gather(*(store.episodes.put(record) for record in next(singles)))

    async def put_many() -> None:
        await store.episodes.put_many(next(blocks))

    async def put_many_steps() -> None:
        await store.episodes.put_many(owners)
        await store.steps.put_many(parts)

    async def get_many() -> None:
        await store.episodes.get_many([record.id for record in next(blocks)[:512]])

    async def list_page() -> None:
        await store.episodes.list(order_by=Episode.c.created_at.desc(), limit=1000)

    async def stream() -> None:
        async for _ in store.episodes.stream():
            pass

    async def count() -> None:
        await store.episodes.count(Episode.c.reflection.contains("the"))

    return {
        "put": put,
        "put_many": put_many,
        "put_many_steps": put_many_steps,
        "get_many": get_many,
        "list": list_page,
        "stream": stream,
        "count": count,
        "rebuild": store.cache.rebuild,
        "save": store.cache.save,
    }


def _import_work(store: MemoryStore, count: int) -> Work:
    from memory_store import transfer  # here: it is part of the package that nothing else needs

    blocks = itertools.cycle([recorded_lines(count, place * count) for place in range(8)])

    async def work() -> None:
        await transfer.import_lines(store, next(blocks))

    return work


async def lateness(work: Work | None, ticks: int) -> list[float]:
    """Return by how many seconds each tick was late while the work was repeated."""
    samples: list[float] = []
    worker = asyncio.create_task(_repeat(work)) if work is not None else None
    try:
        while len(samples) < ticks:
            due = perf_counter() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            samples.append(max(0.0, perf_counter() - due))
            if worker is not None and worker.done():
                worker.result()
    finally:
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])
    return samples


async def _repeat(work: Work) -> None:
    while True:
        await work()
        await asyncio.sleep(0)


def _p999(samples: list[float]) -> float:
    return sorted(samples)[int(len(samples) * 0.999)] * 1e3
