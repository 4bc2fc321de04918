"""The demo's stages, one function each: do it, measure it, check it. What is shown is up to `screen`."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from memory_store import Episode, EpisodeStatus, MemoryStore, Pattern, PatternType
from memory_store.cli.demo.agent import Agent
from memory_store.cli.demo.crash import Acknowledged, digest, write_and_kill
from memory_store.cli.demo.goals import Survey, make_goals
from memory_store.cli.demo.summary import Paths, Summary

__all__ = ["EPISODES", "Progress", "crash", "learned", "read", "rebuild", "record"]

EPISODES = 120
_WORKERS = 4
_ACKNOWLEDGED = 400
_SAMPLED = 100
_NEW_VERSION = "demo-2"

Progress = Callable[[int, int], None]


async def record(paths: Paths, summary: Summary, progress: Progress) -> None:
    """Let the agent work on several hundred goals, from an empty database."""
    survey = await asyncio.to_thread(Survey.of, paths.checkout)
    acknowledged: list[Any] = []
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        progress(done, EPISODES)

    started = time.perf_counter()
    async with paths.open() as store:
        await Agent(store, paths.tools, acknowledged.append).work(
            islice(make_goals(survey), EPISODES), _WORKERS, one_more
        )
        elapsed = time.perf_counter() - started
        stats = store.stats()
        counts = {
            kind: await store.collection(kind).count() for kind in ("episode", "step", "embedding", "spatiotemporal")
        }
        failed = await store.episodes.count(Episode.c.status == EpisodeStatus.FAILED)
        patterns = await store.patterns.count()
    summary.record = {
        "files": len(survey.sources),
        **counts,
        "pattern": patterns,
        "failed_episodes": failed,
        "acknowledged": len(acknowledged),
        "commits": stats.position,
        "seconds": round(elapsed, 3),
    }
    told = len({(item.kind, item.id) for item in acknowledged})
    stored = sum(counts.values()) + patterns
    summary.check("everything acknowledged was recorded", told == stored, f"{told:,} acknowledged, {stored:,} stored")
    summary.check(
        "the run had successes and failures",
        counts["episode"] == EPISODES and 0 < failed < EPISODES,
        f"{EPISODES - failed} goals reached, {failed} not",
    )


async def read(paths: Paths, summary: Summary) -> None:
    """Read episodes and their steps from the durable tier and again from the cache."""
    async with paths.open() as store:
        await store.cache.wait()
        page = await store.episodes.list(order_by=Episode.c.created_at.desc(), limit=_SAMPLED)
        ids = [episode.id for episode in page.items]
        await store.cache.clear()
        before = store.stats().cache["episode"]
        missed, miss_us = await _timed(store.episodes.get, ids)
        served, hit_us = await _timed(store.episodes.get, ids)
        after = store.stats().cache["episode"]
        missed_steps, steps_miss_us = await _timed(store.steps.of, ids)
        served_steps, steps_hit_us = await _timed(store.steps.of, ids)
        followed = await _cache_follows(store)
    summary.read = {
        "reads": len(ids),
        "episode_miss_us": round(miss_us, 1),
        "episode_hit_us": round(hit_us, 1),
        "steps_miss_us": round(steps_miss_us, 1),
        "steps_hit_us": round(steps_hit_us, 1),
    }
    misses, hits = after.misses - before.misses, after.hits - before.hits
    summary.check(
        "first read misses, second read hits",
        misses == hits == len(ids),
        f"{misses} misses, then {hits} hits",
    )
    summary.check(
        "the cache says what the database says",
        missed == served == page.items and missed_steps == served_steps,
        f"{len(ids)} episodes with steps compared",
    )
    summary.check("the cache follows every change at once", followed, "put, update and delete, each read back as a hit")
    summary.check("a hit is faster than a miss", hit_us < miss_us, f"median {hit_us:.1f} µs against {miss_us:.1f} µs")


async def _cache_follows(store: MemoryStore) -> bool:
    """Return whether each change of a record is what the next read gets, without asking the database."""
    before = store.stats().cache["pattern"]
    new = await store.patterns.put(Pattern(pattern_type=PatternType.CONTEXT_PATTERN, pattern_data="a passing thought"))
    seen = [await store.patterns.get(new.id) == new]
    changed = await store.patterns.update(new.id, expected_revision=new.revision, confidence=0.5)
    seen.append(await store.patterns.get(new.id) == changed)
    await store.patterns.delete(new.id)
    seen.append(await store.patterns.get(new.id) is None)
    after = store.stats().cache["pattern"]
    return all(seen) and (after.hits - before.hits, after.misses) == (3, before.misses)


async def _timed(read_one: Callable[[str], Any], ids: Iterable[str]) -> tuple[list[Any], float]:
    found, times = [], []
    for id_ in ids:
        started = time.perf_counter_ns()
        found.append(await read_one(id_))
        times.append(time.perf_counter_ns() - started)
    return found, statistics.median(times) / 1000


async def crash(paths: Paths, summary: Summary) -> None:
    """Kill a writing child, reopen, and compare what is there with what the child had been told."""
    killed = await write_and_kill(paths.url, paths.namespace, paths.checkout, paths.scratch, _ACKNOWLEDGED)
    started = time.perf_counter()
    async with paths.open() as store:
        first = await store.episodes.list(limit=1)
        reopened_ms = (time.perf_counter() - started) * 1000
        lost = await _missing(store, killed.acknowledged)
        unfinished = await store.episodes.count(Episode.c.status == EpisodeStatus.ACTIVE)
    problems = await asyncio.to_thread(_inspect, paths.database)
    summary.crash = {
        "acknowledged": len(killed.acknowledged),
        "signal": killed.signal,
        "lost": lost,
        "episodes_cut_short": unfinished,
        "reopened_ms": round(reopened_ms, 1),
    }
    summary.check("the child was killed while it wrote", killed.signal == signal.SIGKILL, "SIGKILL, without warning")
    summary.check(
        "nothing acknowledged was lost",
        lost == 0 and len(killed.acknowledged) >= _ACKNOWLEDGED and len(first.items) == 1,
        f"{len(killed.acknowledged):,} acknowledged, {lost} missing",
    )
    summary.check("the database is sound", not problems, problems or "integrity, foreign keys, no revision gaps")


async def _missing(store: MemoryStore, acknowledged: list[Acknowledged]) -> int:
    """Return how many acknowledged writes cannot be found: as written, or replaced by a later revision."""
    newest: dict[tuple[str, str], Acknowledged] = {}
    for write in acknowledged:
        key = (write.kind, write.id)
        if key not in newest or newest[key].revision <= write.revision:
            newest[key] = write
    lost = 0
    by_kind: defaultdict[str, list[Acknowledged]] = defaultdict(list)
    for write in newest.values():
        by_kind[write.kind].append(write)
    for kind, writes in by_kind.items():
        found = await store.collection(kind).get_many(write.id for write in writes)
        for write, stored in zip(writes, found, strict=True):
            if (
                stored is None
                or stored.revision < write.revision
                or (stored.revision == write.revision and digest(stored) != write.digest)
            ):
                lost += 1
    return lost


def _inspect(database: Path) -> str:
    """Return what SQLite itself, and the change log, have to say against the file; nothing if all is well."""
    with closing(sqlite3.connect(database)) as connection:
        [(verdict,)] = connection.execute("PRAGMA integrity_check").fetchall()
        orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
        gaps = connection.execute(
            "SELECT kind, key FROM changes WHERE key IS NOT NULL AND operation IN ('insert', 'update') "
            "GROUP BY kind, namespace, key HAVING count(*) != max(revision)"
        ).fetchall()
    problems = [] if verdict == "ok" else [verdict]
    problems += [f"{len(orphans)} orphans"] if orphans else []
    problems += [f"{len(gaps)} records with a gap in their revisions"] if gaps else []
    return "; ".join(problems)


async def rebuild(paths: Paths, summary: Summary, progress: Progress) -> None:
    """Open with another version key: the saved cache is refused and filled anew, while the store serves."""
    async with paths.open() as store:
        await store.cache.wait()
        before = await store.cache.status()
    async with paths.open(cache_version=_NEW_VERSION) as store:
        filling = asyncio.create_task(store.cache.wait())
        page = await store.episodes.list(order_by=Episode.c.created_at.desc(), limit=1000)
        ids = [episode.id for episode in page.items]
        started, served = time.perf_counter(), 0
        while not filling.done():
            status = await store.cache.status()
            progress(status.done, status.total)
            await store.episodes.get(ids[served % len(ids)])
            served += 1
            await asyncio.sleep(0.002)
        await filling
        elapsed_ms = (time.perf_counter() - started) * 1000
        after = await store.cache.status()
        progress(after.done, after.total)
        counters = store.stats().cache["episode"]
        cached = await store.episodes.get_many(ids)
        misses = store.stats().cache["episode"].misses - counters.misses
    summary.rebuild = {
        "reason": after.reason,
        "keys": after.done,
        "entries": after.entries,
        "used_bytes": after.used_bytes,
        "served_meanwhile": served,
        "milliseconds": round(elapsed_ms, 1),
    }
    summary.check(
        "another version key rebuilds the cache",
        after.version_key != before.version_key and after.reason == "the version key has changed" and not after.error,
        f"{before.version_key[:8]} became {after.version_key[:8]}",
    )
    summary.check(
        "the rebuilt cache is complete and right",
        misses == 0 and cached == page.items and after.done == after.total,
        f"{len(ids)} compared, {misses} misses",
    )


async def learned(paths: Paths, summary: Summary) -> None:
    """Ask the memory what worked, which tools fail, and which are slow."""
    async with paths.open(cache_version=_NEW_VERSION) as store:
        patterns = await store.patterns.list(
            Pattern.c.pattern_type == PatternType.TOOL_SEQUENCE,
            order_by=[Pattern.c.usage_count.desc(), Pattern.c.success_rate.desc()],
            limit=8,
        )
        durations: defaultdict[str, list[int]] = defaultdict(list)
        failures: defaultdict[str, int] = defaultdict(int)
        async for step in store.steps.stream():
            tool = step.tool_name or "none"
            durations[tool].append(step.duration_ms or 0)
            failures[tool] += step.success is False
    summary.patterns = [
        {**pattern.pattern_data, "uses": pattern.usage_count, "success_rate": round(pattern.success_rate, 3)}
        for pattern in patterns.items
    ]
    summary.tools = [
        {
            "tool": tool,
            "uses": len(times),
            "failures": failures[tool],
            "median_ms": statistics.median(times),
            "slowest_ms": max(times),
        }
        for tool, times in sorted(durations.items(), key=lambda item: -statistics.median(item[1]))
    ]
    summary.check(
        "it learned which tool sequences work",
        any(pattern["success_rate"] > 0.5 for pattern in summary.patterns),
        f"{len(patterns.items)} listed",
    )
