"""This store's side of what is measured on both databases: each returns seconds an operation."""

from __future__ import annotations

import asyncio
from time import perf_counter

from memory_store import Episode, MemoryStore

from .rows import DOMAINS, episodes


async def put_each(store: MemoryStore, count: int, number: int) -> float:
    """Put so many episodes one after another; `number` says which, so that none is put twice."""
    records = list(episodes(count, number * count))
    start = perf_counter()
    for record in records:
        await store.episodes.put(record)
    return (perf_counter() - start) / count


async def put_at_once(store: MemoryStore, count: int, number: int, writers: int) -> float:
    """Put so many episodes by so many tasks, each of which puts its share one after another."""
    records = list(episodes(count, number * count))

    async def write(share: list[Episode]) -> None:
        for record in share:
            await store.episodes.put(record)

    start = perf_counter()
    await asyncio.gather(*(write(records[place::writers]) for place in range(writers)))
    return (perf_counter() - start) / count


async def list_domains(store: MemoryStore) -> float:
    """List the newest 50 of each domain."""
    start = perf_counter()
    for domain in DOMAINS:
        await store.episodes.list(Episode.c.domain == domain, order_by=Episode.c.created_at.desc(), limit=50)
    return (perf_counter() - start) / len(DOMAINS)
