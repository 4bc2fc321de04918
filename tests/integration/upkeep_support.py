"""Child processes that write while a database is backed up and restored, and looks at the files that come of it."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

from memory_store import MemoryStore, upkeep
from tests.fault.support import Parent, database, episode, integrity_problems


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def names(folder: Path) -> set[str]:
    """What lies in a folder, without what belongs to an open database."""
    kept = ("-wal", "-shm", "-lock", ".cache")
    return {path.name for path in folder.iterdir() if not path.name.endswith(kept)}


def held(path: Path) -> dict[str, tuple[int, str]]:
    """Id, revision and context of every episode, read with the plain driver."""
    with database(path) as connection:
        rows = connection.execute("SELECT id, revision, context FROM episodes")
        return {id_: (revision, context) for id_, revision, context in rows}


def head_of(path: Path) -> tuple[int, int, str, int]:
    """Position, nonce, store id, epoch."""
    with database(path) as connection:
        [head] = connection.execute("SELECT position, nonce, store_id, epoch FROM head")
        return tuple(head)


def torn_pairs(path: Path) -> set[str]:
    """Return the ids of pairs of which one half is there without the other, or at another round."""
    halves: dict[str, set[Any]] = {}
    for id_, (_, context) in held(path).items():
        if id_.startswith("pair"):
            halves.setdefault(id_[:-2], set()).add((id_[-1], context))
    return {id_ for id_, found in halves.items() if len(found) != 2 or len({context for _, context in found}) != 1}


async def require_sound(path: Path) -> None:
    """Check a database whole, also with SQLite's own checks alone."""
    found = await upkeep.verify(url_of(path))
    assert (found.problems, found.total) == ([], 0)
    assert integrity_problems(path) == []


async def write_pairs(parent: Parent, path: str, name: str) -> None:
    """Write pairs of episodes for ever, each pair in one transaction, telling of each commit its position and round."""
    async with MemoryStore(f"sqlite:///{path}", cache_save_interval_s=0, timeout_s=60) as store:
        for round_ in itertools.count():
            async with store.transaction() as tx:
                for half in "ab":
                    id_ = f"pair-{name}{round_ % 7}-{half}"
                    await tx.episodes.put(episode(id_, context={"round": round_, "filler": "x" * 2000}))
            alone = await store.episodes.put(episode(f"{name}-{round_}"))
            parent.send((tx.position, alone.position, alone.id))


async def read_for_ever(parent: Parent, path: str, ids: list[str]) -> None:
    """Read episodes from the cache until killed, telling the values whenever one of them changes."""
    last = None
    async with MemoryStore(f"sqlite:///{path}") as store:
        while True:
            now = [record and record.context for record in await store.episodes.get_many(ids)]
            if now != last:
                parent.send(now)
                last = now
            await asyncio.sleep(0.001)


async def back_up_for_ever(parent: Parent, path: str, file: str) -> None:
    """Make backups one after another, telling when each begins to copy."""
    while True:
        await upkeep.backup(f"sqlite:///{path}", file, overwrite=True, on_progress=lambda *now: parent.send(now[0]))


async def restore_once(parent: Parent, file: str, path: str) -> str:
    """Restore a backup, telling each step."""
    await upkeep.restore(file, f"sqlite:///{path}", on_progress=lambda *now: parent.send(now[0]))
    return "restored"
