"""Files damaged one bit at a time, and what a store may answer over them."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from memory_store import Embedding, Episode, MemoryStore, MemoryStoreError, Parts, Pattern, SpatiotemporalEntry, Step
from memory_store.cache.snapshot import Snapshot
from memory_store.errors import CacheError
from memory_store.records import RECORDS
from tests.fault.support import Parent, database, fields, plain_rows

EPISODES = [f"e{i}" for i in range(6)]
CACHE_FILE = "cache.msgpack"


async def fill(store: MemoryStore, mark: str = "ours") -> None:
    """Write a few records of every kind; `mark` is in each of them."""
    for i, id_ in enumerate(EPISODES):
        context = {"mark": mark, "goal": "find the bug", "tags": ["a", "b", i], "text": "é😀" * 20}
        await store.episodes.put(Episode(id=id_, task_type="testing", domain=mark, context=context, reward_score=i / 7))
        steps = [Step(id=f"{id_}-{n}", action=f"{mark} {n}", result="line\n" * 30, success=n > 0) for n in range(3)]
        await store.steps.append(id_, steps)
        vector = [i / 8 + n for n in range(16)]
        await store.embeddings.append(
            id_,
            Embedding(id=f"v{i}", episode_id=id_, content=mark, embedding=vector, model_name="own", vector_dim=16),
        )
        entry = SpatiotemporalEntry(id=f"p{i}", episode_id=id_, spatial_key=mark, temporal_key="2026-W47")
        await store.spatiotemporal.append(id_, entry)
        await store.patterns.put(Pattern(id=f"n{i}", pattern_type="tool_sequence", pattern_data=[mark, i], domain=mark))
    await store.episodes.update("e0", status="completed")


async def everything(store: MemoryStore) -> dict[str, Any]:
    """Read every record through the cache and return it field by field, JSON and times decoded."""
    found: dict[str, Any] = {}
    for id_ in EPISODES:
        for read in (read_episodes, read_patterns, read_parts):
            found |= await read(store, id_)
    return found


async def read_episodes(store: MemoryStore, id_: str) -> dict[str, Any]:
    """Read an episode."""
    return {id_: fields(await store.episodes.get(id_))}


async def read_patterns(store: MemoryStore, id_: str) -> dict[str, Any]:
    """Read the pattern that was written with an episode."""
    pattern = f"n{id_[1:]}"
    return {pattern: fields(await store.patterns.get(pattern))}


async def read_parts(store: MemoryStore, id_: str) -> dict[str, Any]:
    """Read all that belongs to an episode."""
    kinds: list[Parts[Any]] = [store.steps, store.embeddings, store.spatiotemporal]
    return {part.id: fields(part) for parts in kinds for part in await parts.of(id_)}


def flips(size: int, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yield bytes and bits to flip, seeded; each run of a seed the same."""
    seeded = random.Random(seed)
    for _ in range(count):
        yield seeded.randrange(size), 1 << seeded.randrange(8)


def flipped(sound: bytes, place: int, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    return b"".join((sound[:place], bytes([sound[place] ^ bit]), sound[place + 1 :]))


def saved_entries(folder: Path) -> set[tuple[Any, ...]]:
    """Return what the reader of saved caches believes, deadlines included; nothing where it refuses the file."""
    believed = set()
    try:
        with Snapshot(str(folder)) as snapshot:
            spaces = snapshot.header.spaces
            for keys, entries in snapshot.batches():
                for key, entry in zip(keys, entries, strict=True):
                    number, _, id_ = key.partition("/")
                    believed.add((*spaces[int(number, 16)], id_, entry))
    except CacheError:
        pass
    return believed


def wrongly_believed(folder: Path, sound: bytes, places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the flips of a saved cache after which the reader believes anything that was not saved."""
    file = folder / CACHE_FILE
    file.write_bytes(sound)
    right = saved_entries(folder)
    assert right, "the sound file is not believed"
    wrong = []
    for place, bit in places:
        file.write_bytes(flipped(sound, place, bit))
        if not saved_entries(folder) <= right:
            wrong.append((place, bit))
    return wrong


async def read_damaged_databases(
    parent: Parent, sound: str, folder: str, places: list[tuple[int, int]], expected: dict[str, Any]
) -> tuple[Counter[str], list[str]]:
    """Open a damaged copy for each flip, use it, and return how often what happened, and what must not have.

    Announces each flip before it is tried, so that the parent knows which one ended or hung this process.
    """
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    content = Path(sound).read_bytes()
    for number, (place, bit) in enumerate(places):
        parent.send((place, bit))
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context, at=(place, bit): problems.append(f"{at}, in the background: {context}")
        )
        path = Path(folder) / f"{number}.db"
        path.write_bytes(flipped(content, place, bit))
        rows = _stored_rows(path)
        try:
            outcomes[await _use(path, expected, rows)] += 1
        except MemoryStoreError as error:
            outcomes[type(error).__name__] += 1
        except Exception:
            problems.append(f"byte {place} bit {bit}: {traceback.format_exc(limit=-4)}")
        for left in Path(folder).glob(f"{number}.db*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return outcomes, problems


async def _use(path: Path, expected: dict[str, Any], rows: list[Any] | None) -> str:
    """Read and write whatever still can be; return the name of the first error, or what was read."""
    errors: list[str] = []
    found: dict[str, Any] = {}
    async with MemoryStore(f"sqlite:///{path}", timeout_s=2, cache_path="") as store:
        for read in (read_episodes, read_patterns, read_parts):
            for id_ in EPISODES:
                try:
                    found |= await read(store, id_)
                except MemoryStoreError as error:
                    errors.append(type(error).__name__)
        by_time = Episode.c.created_at.desc()
        try:
            found |= {record.id: fields(record) async for record in store.episodes.stream(order_by=by_time)}
            await store.episodes.count(Episode.c.status == "completed")
            await store.cache.wait()
            await store.episodes.put(Episode(id="new", task_type="testing", domain="web"))
            await store.steps.append("e1", Step(action="more"))
            await store.episodes.delete("e2")
        except MemoryStoreError as error:
            errors.append(type(error).__name__)
    strange = [record for key, record in found.items() if record is not None and record != expected.get(key)]
    # SQLite keeps no checksum of a page, so the file may say another text now; the store must not add to it.
    if rows is not None:
        known = [row for row in [*rows, *expected.values()] if row is not None]
        made_up = [value for record in strange for value in _made_up(record, known)]
        assert made_up == [], f"the store says what was not written and is not in the file: {made_up}"
    if errors:
        return errors[0]
    return "the file says something else" if found != expected else "right"


_INDEXED = {
    column.name
    for spec in RECORDS.values()
    for index in (*spec.table.indexes, *spec.table.constraints)
    for column in index.columns
}


def _made_up(record: dict[str, Any], rows: list[dict[str, Any]]) -> list[Any]:
    """Return the values no row has in that column; SQLite may take those of an index from there, so not of those."""
    return [
        (name, value)
        for name, value in record.items()
        if name not in _INDEXED and not any(name in row and row[name] == value for row in rows)
    ]


def _stored_rows(path: Path) -> list[Any] | None:
    """Return all records as the plain driver reads them, None where it cannot."""
    try:
        with database(path) as connection:
            return [row for spec in RECORDS.values() for row in plain_rows(connection, spec, "1 = 1")]
    except (sqlite3.Error, ValueError, OverflowError):
        return None
