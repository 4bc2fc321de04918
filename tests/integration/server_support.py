"""Databases on a server with a log that has everything, and ways to damage them."""

from __future__ import annotations

import asyncpg

from memory_store import Episode, MemoryStore, Pattern, Step, upkeep
from memory_store.durable.changes import shard_of
from tests.integration.cli_support import fill_two_namespaces
from tests.migration.postgresql import HEADS
from tests.unit.samples import MAKE

SHARD = shard_of("n", HEADS)
STEP = "INSERT INTO steps (namespace, id, revision, created_at, updated_at, episode_id, step_number, action) VALUES "


def episode(id_: str) -> Episode:
    return Episode(id=id_, task_type="testing", domain="web")


async def make(url: str) -> None:
    """Make a log that has every operation, with idempotency keys, in several namespaces."""
    await fill_two_namespaces(url)
    async with MemoryStore(url, namespace="n", cache_max_bytes=0) as store:
        await store.episodes.put_many([episode(f"e{n}") for n in range(5)])
        for n in range(5):
            await store.steps.append(f"e{n}", [Step(id=f"s{n}-{k}", action="a", success=True) for k in range(3)])
            await store.embeddings.put(MAKE["embedding"](f"e{n}", id=f"v{n}"))
        await store.episodes.put(episode("keyed"), idempotency_key="once")
        await store.episodes.update("e1", status="completed")
        await store.steps.put(Step(id="s1-1", episode_id="e2", action="moved", step_number=9))
        await store.steps.delete("s1-2")
        await store.episodes.delete("e3")
        await store.episodes.put(episode("e3"))
        async with store.transaction() as tx:
            await tx.episodes.put(episode("both"))
            await tx.steps.append("both", Step(id="b1", action="x"))
            await tx.episodes.delete("both")
            await tx.episodes.put(episode("both"))
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=1))


async def require_sound(url: str) -> None:
    found = await upkeep.verify(url)
    assert (found.problems, found.total) == ([], 0)


async def heads_of(url: str) -> list[tuple[int, int, str, int]]:
    """Shard, position, store id, epoch."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        rows = await connection.fetch("SELECT shard, position, store_id, epoch FROM head ORDER BY shard")
        return [tuple(row) for row in rows]
    finally:
        await connection.close()


def behind(*statements: str) -> tuple[str, ...]:
    """Damage behind the back of the log."""
    return ("SELECT set_config('memory_store.writing', 'on', true)", *statements)
