"""Plans on a server: none is a scan of a whole table, also where it was made while the table was small."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from memory_store import Episode, MemoryStore
from tests.unit.samples import make_episode, make_step

_SCANS = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname IN ('episodes', 'steps') ORDER BY 1"
_SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'memory_store'"
)


async def scans(connection: Any) -> list[Any]:
    """How often each table was scanned, once every session of the library has ended and so told what it counted."""
    async with asyncio.timeout(20):
        while await connection.fetchval(_SESSIONS):
            await asyncio.sleep(0.02)
    return [tuple(row) for row in await connection.fetch(_SCANS)]


async def test_what_grows_under_a_kept_plan_is_not_scanned(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url.replace("+asyncpg", ""))
    try:
        async with MemoryStore(postgres_url) as store:
            await store.episodes.put(make_episode(id="first"))
        # Now the tables are known to be small: a scan of one page is the cheapest plan of all.
        await connection.execute("ANALYZE")
        before = await scans(connection)
        async with MemoryStore(postgres_url, cache_max_bytes=0) as store:
            for number in range(20):
                owners = [make_episode(id=f"{number}.{place}") for place in range(10)]
                await store.episodes.put_many(owners)
                await store.steps.put_many([make_step(owner.id) for owner in owners])
                assert await store.episodes.get("first") is not None
                assert (await store.episodes.list(Episode.c.domain == owners[0].domain, limit=3)).items
        assert await scans(connection) == before
    finally:
        await connection.close()
