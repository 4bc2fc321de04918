"""Files damaged one bit at a time, and what a store may answer over them."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Boolean

from memory_store import Embedding, Episode, MemoryStore, MemoryStoreError, Pattern, SpatiotemporalEntry, Step
from memory_store.cache.snapshot import Snapshot
from memory_store.clock import from_us
from memory_store.codec import ENTRY_PREFIX_BYTES, entry_as_of
from memory_store.errors import CacheError
from memory_store.records import RECORDS
from memory_store.records.columns import UtcDateTime
from tests.fault.support import Parent, database

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
    for i, id_ in enumerate(EPISODES):
        found[id_] = fields(await store.episodes.get(id_))
        found[f"n{i}"] = fields(await store.patterns.get(f"n{i}"))
        for parts in (store.steps, store.embeddings, store.spatiotemporal):
            for part in await parts.of(id_):
                found[part.id] = fields(part)
    return found


def fields(record: Any) -> dict[str, Any] | None:
    """Return a record's fields, each looked at."""
    return None if record is None else {name: getattr(record, name) for name in RECORDS[record.kind].columns}


def flips(size: int, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yield bytes and bits to flip, seeded; each run of a seed the same."""
    seeded = random.Random(seed)
    for _ in range(count):
        yield seeded.randrange(size), 1 << seeded.randrange(8)


def flipped(sound: bytes, place: int, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    return b"".join((sound[:place], bytes([sound[place] ^ bit]), sound[place + 1 :]))


def saved_entries(folder: Path) -> set[tuple[Any, ...]]:
    """Return what the reader of saved caches believes, without the deadlines; nothing where it refuses the file."""
    believed = set()
    try:
        with Snapshot(str(folder)) as snapshot:
            for batch in snapshot.batches():
                for saved in batch:
                    body = saved.entry[ENTRY_PREFIX_BYTES:]
                    believed.add((saved.kind, saved.namespace, saved.id, entry_as_of(saved.entry), body))
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
        path = Path(folder) / f"{number}.db"
        path.write_bytes(flipped(content, place, bit))
        try:
            outcomes[await _use(path, expected)] += 1
        except MemoryStoreError as error:
            outcomes[type(error).__name__] += 1
        except Exception:
            problems.append(f"byte {place} bit {bit}: {traceback.format_exc(limit=-4)}")
        for left in Path(folder).glob(f"{number}.db*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return outcomes, problems


async def _use(path: Path, expected: dict[str, Any]) -> str:
    async with MemoryStore(f"sqlite:///{path}", timeout_s=2, cache_path="") as store:
        found = await everything(store)
        listed = [fields(record) async for record in store.episodes.stream(order_by=Episode.c.created_at.desc())]
        assert all(record is not None for record in listed)
        await store.episodes.count(Episode.c.status == "completed")
        await store.cache.wait()
        await store.episodes.put(Episode(id="new", task_type="testing", domain="web"))
        await store.steps.append("e1", Step(action="more"))
        await store.episodes.delete("e2")
    if found == expected:
        return "right"
    # SQLite keeps no checksum of a page: what the file says now may be another text, but the store must not add to it.
    for key, record in found.items():
        if record is not None and record != expected[key] and key not in ("e2", "new"):
            assert record == _plain(path, key), f"{key} is neither what was written nor what the file says"
    return "the file says something else"


def _plain(path: Path, id_: str) -> dict[str, Any] | None:
    """Return a record as the plain driver reads it."""
    for spec in RECORDS.values():
        with database(path) as connection:
            columns = ", ".join(spec.columns)
            try:
                row = connection.execute(f"SELECT {columns} FROM {spec.table.name} WHERE id = ?", (id_,)).fetchone()
            except sqlite3.Error:
                continue
        if row is not None:
            return {name: _decoded(spec.table.c[name].type, value) for name, value in zip(spec.columns, row)}
    return None


def _decoded(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, JSON) or (kind.__class__.__name__ == "Variant"):
        return json.loads(value)
    if isinstance(kind, UtcDateTime):
        return from_us(value)
    return value == 1 if isinstance(kind, Boolean) else value
