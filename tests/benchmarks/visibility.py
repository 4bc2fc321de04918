"""How soon a process sees what another wrote, and what waiting for it costs."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path
from time import process_time

from memory_store import Episode, MemoryStore
from memory_store.clock import boot_s

from .baselines import open_quiet, url_of
from .harness import REPOSITORY, Measured, Sizes, Workspace
from .rows import NAMESPACE

_BOUNDS_S = {0.005: 150, 0.05: 100, 0.5: 24}
"""Staleness: how many writes are watched."""

_IDLE_S = 5.0


async def visible(workspace: Workspace, sizes: Sizes) -> Measured:
    """The age of another process's write when a read last missed it, as a share of the bound; p99, worst of three."""
    detail: dict[str, float] = {}
    for staleness_s, writes in _BOUNDS_S.items():
        path = workspace.new("visible")
        async with open_quiet(path, staleness_s=staleness_s) as store:
            record = await store.episodes.put(Episode(task_type="testing", domain="web", reward_score=0.0))
            delays = await _watch(store, path, record.id, max(4, min(writes, sizes.ticks // 20)), staleness_s)
        detail[f"p99_ms_at_{staleness_s * 1e3:g}"] = sorted(delays)[int(len(delays) * 0.99)] * 1e3
        detail[f"p50_ms_at_{staleness_s * 1e3:g}"] = sorted(delays)[len(delays) // 2] * 1e3
    shares = {bound: detail[f"p99_ms_at_{bound * 1e3:g}"] / (bound * 1e3) for bound in _BOUNDS_S}
    worst = max(shares, key=lambda bound: shares[bound])
    return Measured(shares[worst], detail[f"p99_ms_at_{worst * 1e3:g}"], worst * 1e3, "ms", detail)


async def _watch(store: MemoryStore, path: Path, id_: str, writes: int, staleness_s: float) -> list[float]:
    """Read all the time while a child writes.

    Returns, for each write, how long after its acknowledgement the last read began that did not see it yet.
    """
    code = "import sys; from tests.benchmarks.visibility import write; write(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(path), id_, str(writes), str(staleness_s)]
    writer = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    missed = [0.0] * (writes + 2)
    number = 0
    while number < writes:
        began = boot_s()
        found = await store.episodes.get(id_)
        assert found is not None
        number = int(found.reward_score or 0)
        missed[number + 1] = began  # the read that missed this one missed all after it as well
        await asyncio.sleep(0.0002)
    output, _ = await writer.communicate()
    acknowledged = json.loads(output)
    ages, latest = [], 0.0
    for place, at in enumerate(acknowledged, 1):
        latest = max(latest, missed[place])
        ages.append(max(0.0, latest - at))
    return ages


def write(path: str, id_: str, writes: str, staleness_s: str) -> None:
    """Update a record now and then, and print when each update was acknowledged (in a process of its own)."""
    asyncio.run(_write(path, id_, int(writes), float(staleness_s)))


async def _write(path: str, id_: str, writes: int, staleness_s: float) -> None:
    chance, acknowledged = random.Random(1), []
    async with MemoryStore(url_of(Path(path)), namespace=NAMESPACE, cache_path="") as store:
        for number in range(1, writes + 1):
            await asyncio.sleep(staleness_s * chance.uniform(1.0, 2.0))
            await store.episodes.update(id_, reward_score=float(number))
            acknowledged.append(boot_s())
    print(json.dumps(acknowledged))


async def idle_feed(workspace: Workspace, sizes: Sizes) -> Measured:
    """The share of a core, in per cent, that a store with an open change feed takes while nothing happens."""
    seconds = _IDLE_S if sizes.rounds > 5 else 0.2
    async with open_quiet(workspace.new("idle")) as store:
        baseline = await _cpu_share(seconds)
        feed = asyncio.create_task(_follow(store))
        await asyncio.sleep(0.1)
        ours = await _cpu_share(seconds)
        feed.cancel()
        await asyncio.wait([feed])
    return Measured(ours / max(baseline, 1e-4), ours, baseline, "% of a core", {"seconds": seconds})


async def _follow(store: MemoryStore) -> None:
    async for _ in store.follow():
        pass


async def _cpu_share(seconds: float) -> float:
    start = process_time()
    await asyncio.sleep(seconds)
    return (process_time() - start) / seconds * 100
