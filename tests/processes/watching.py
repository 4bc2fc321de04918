"""What must hold of a store whatever happened to it: its cache is the database, and nothing of it is left open."""

from __future__ import annotations

import sqlite3
import threading
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from memory_store import MemoryStore
from memory_store.clock import boot_s
from memory_store.records import RECORDS

_TRIES = 200


async def stale_entries(store: MemoryStore, path: Path) -> tuple[int, list[str]]:
    """Compare every live entry of a store's cache with the rows, both at the newest commit.

    Returns how many were compared, and what differs. Another process may be writing: the rows are read with the plain
    driver in one snapshot, and what it shows counts only if the cache stands at exactly that commit.
    """
    for _ in range(_TRIES):
        await store.episodes.get("looks at the head", freshness="linearizable")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as driver:
            driver.execute("BEGIN")
            head = driver.execute("SELECT position, nonce, store_id, epoch, shard FROM head").fetchone()
            # No await from here on: the cache stays where it is.
            if head != tuple(store._access.cache.head):
                continue
            return _differences(store, driver)
    raise AssertionError("the cache never came to the newest commit")


def _differences(store: MemoryStore, driver: sqlite3.Connection) -> tuple[int, list[str]]:
    rows = {kind: _rows(driver, kind) for kind in RECORDS}
    shelf, compared, wrong = store._shelf, 0, []
    for key in shelf.keys():  # noqa: SIM118 - no dict
        space, id_ = shelf.space_of(key)
        hit = shelf.read(space, id_, boot_s()) if space.kind in RECORDS else None  # as a reader is served
        if hit is None:
            continue
        as_of, cached = hit[1], hit[2:]
        compared += 1
        stored = rows[space.kind].get((space.namespace, id_), [])
        if [list(row) for row in cached] != stored:
            wrong.append(f"{space.kind} {id_} as of {as_of}: {cached!r:.200}, stored: {stored!r:.200}")
    return compared, wrong


def _rows(driver: sqlite3.Connection, kind: str) -> dict[tuple[str, str], list[list[Any]]]:
    """Return a kind's rows as the cache holds them: in lists by the id they are cached by."""
    spec = RECORDS[kind]
    by = spec.index(spec.parent or "id")
    found: defaultdict[tuple[str, str], list[list[Any]]] = defaultdict(list)
    columns, order = ", ".join(spec.columns), ", ".join(spec.order or ("id",))
    for namespace, *row in driver.execute(f"SELECT namespace, {columns} FROM {spec.table.name} ORDER BY {order}"):
        found[namespace, row[by]].append(row)
    return found


def left_open(path: Path) -> list[str]:
    """Return the files of a database that this process has open."""
    names = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [name for name in names if name.startswith(str(path))]


def threads_since(before: set[threading.Thread]) -> list[str]:
    """Return the connections' threads that were started since and are still there, after a moment to end in."""
    # asyncio.to_thread keeps its workers with the loop; they are no connection's.
    started = [thread for thread in threading.enumerate() if thread not in before and "asyncio" not in thread.name]
    for thread in started:
        thread.join(timeout=3)
    return [thread.name for thread in started if thread.is_alive()]
