"""Databases to be copied, what they hold, and copies in child processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from memory_store import Episode, MemoryStore, Step, upkeep
from memory_store.config import resolve_settings
from memory_store.durable.engine import parse_url
from memory_store.durable.log import read_heads
from memory_store.durable.streams import STREAMS, Row
from memory_store.transfer import CopyReport, copy_store, export_lines
from memory_store.transfer.copy_steps import log_pages, pages_of
from memory_store.transfer.ends import opened_source
from tests.fault.support import Parent
from tests.integration.cli_support import fill

KEY = "a key"
NAMESPACES = ("default", "other/agent", *(f"agent-{number}" for number in range(6)))


class Contents(NamedTuple):
    """What a database holds.

    Args:
        rows: of each table, by key.
        log: of each namespace, in its order, without positions.
        places: shard, position and idx of each change of each namespace.
        heads: position, nonce, store id, epoch, shard of each.
    """

    rows: dict[str, dict[tuple[str, str], Row]]
    log: dict[str, list[Row]]
    places: dict[str, list[tuple[int, int, int]]]
    heads: list[Any]


async def contents(url: str) -> Contents:
    """Read everything that a database holds."""
    target = parse_url(url)
    log, places = defaultdict(list), defaultdict(list)
    async with opened_source(target, resolve_settings(target.parameters, {})) as end:
        heads = await end.run(read_heads)
        rows = {
            stream.name: {(row[0], row[1]): row async for page in pages_of(end, stream, None) for row in page.rows}
            for stream in STREAMS
        }
        for head in heads:
            async for page in log_pages(end, head.shard, (0, -1)):
                for row in page.rows:
                    log[row[4]].append(row[3:])
                    places[row[4]].append(row[:3])
    return Contents(rows, dict(log), dict(places), heads)


async def exported(url: str) -> bytes:
    """Return the whole export of a database."""
    async with MemoryStore(url, cache_max_bytes=0, cache_path="") as store:
        return b"".join([line async for line in export_lines(store, all_namespaces=True)])


async def fill_source(url: str, episodes: int = 60) -> None:
    """Put records of every kind into several namespaces, change and delete some, in commits of all sizes."""
    async with MemoryStore(url, actor="the tests", cache_path="") as store:
        for name in NAMESPACES:
            space = store.namespace(name)
            await fill(space, f"in {name} \x1a")
            made = [Episode(id=f"e{n}", task_type="t", domain="d", context={"n": n}) for n in range(episodes)]
            await space.episodes.put_many(made)
            await space.steps.put_many(
                [Step(episode_id=one.id, action=f"{one.id} {n}", success=n % 2 == 0) for one in made for n in range(2)]
            )
            for one in made[:5]:
                await space.episodes.update(one.id, status="completed", reward_score=0.0)
            await space.episodes.delete(made[-1].id)
            await space.episodes.put(Episode(task_type="once", domain="d"), idempotency_key=KEY)


async def change_source(url: str, round_: int = 0) -> None:
    """Change, delete and add records all over a database, moving steps to numbers that others had."""
    async with MemoryStore(url, cache_path="") as store:
        for name in NAMESPACES[:3]:
            space = store.namespace(name)
            first = f"e{round_}"
            steps = await space.steps.of(first)
            await space.steps.delete(steps[0].id)
            await space.steps.update(steps[1].id, step_number=1)
            await space.steps.append(first, Step(action=f"added {round_}"))
            await space.episodes.update(first, context={"changed": round_})
            await space.episodes.delete(f"e{round_ + 10}")
            await space.episodes.put(Episode(id=f"a{round_}", task_type="new", domain="d"))
            await space.episodes.put(Episode(task_type="new", domain="d"), idempotency_key=f"{KEY} {round_}")


async def require_copied(source: str, target: str, report: CopyReport) -> None:
    """Check that one database holds what the other holds, each in its own order of positions."""
    ours, theirs = await contents(source), await contents(target)
    kept = len(ours.heads) == len(theirs.heads)
    assert report.positions_kept == kept
    for name, rows in ours.rows.items():
        if name == "idempotency" and not kept:
            rows = {key: (*row[:-1], 1) for key, row in rows.items()}
        assert theirs.rows[name] == rows, name
    own = theirs.log.pop("")
    assert [row[4] for row in own].count("copy") == len(theirs.heads)
    assert theirs.log == {name: rows for name, rows in ours.log.items() if name}
    if kept:
        assert {name: theirs.places[name] for name in theirs.log} == {name: ours.places[name] for name in theirs.log}
    require_no_gaps(theirs)
    assert [head.position for head in theirs.heads] == report.target_positions
    assert min(report.target_positions) > max(0 if kept else position for position in report.source_positions)
    assert ours.heads[0].store_id != theirs.heads[0].store_id
    assert len({head.epoch for head in theirs.heads}) == 1
    assert theirs.heads[0].epoch > ours.heads[0].epoch
    assert await exported(source) == await exported(target)
    assert (await upkeep.verify(target)).problems == []


def require_no_gaps(found: Contents) -> None:
    """Check that positions rise by one, but before the row that begins the copy's epoch; that commits are whole."""
    commits: dict[tuple[int, int], list[int]] = defaultdict(list)
    for places in found.places.values():
        for shard, position, index in places:
            commits[shard, position].append(index)
    assert all(sorted(indexes) == list(range(len(indexes))) for indexes in commits.values())
    for head in found.heads:
        positions = sorted(position for shard, position in commits if shard == head.shard)
        assert positions[-1] == head.position
        before = positions[:-1]
        assert before == list(range(before[0], before[0] + len(before))) if before else True


async def copy_and_tell(parent: Parent, source: str, target: str) -> str:
    """Copy, telling of each step."""
    await copy_store(source, target, on_progress=lambda now: parent.send(now.what))
    return "copied"


MakePlace = Callable[[str], str]
"""Returns the URL of an empty database: "sqlite", or "postgresql-N" with so many heads."""
