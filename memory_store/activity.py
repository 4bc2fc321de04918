"""What agents do with a database, seen from another process, which cannot see what they count themselves."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from memory_store.cache.snapshot import FILE_NAME
from memory_store.clock import boot_s, utc_now
from memory_store.config import resolve_settings
from memory_store.durable.activity import Growth, read_growth
from memory_store.durable.changes import HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.engine import Target
from memory_store.durable.examine import cache_folder
from memory_store.durable.findings import is_server
from memory_store.durable.server_state import ServerUse, read_use
from memory_store.namespace import Namespace

__all__ = ["Activity", "Watch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """A database at one moment, and what all processes together did with it since the moment before.

    Args:
        at: when it was looked at, by this machine's clock.
        elapsed_s: seconds since the look before; None for the first one.
        position: newest commit; on a server, whose heads count for themselves, the sum of theirs.
        commits_per_s: commits a second since then; None for the first look, and when the database was replaced,
            restored, upgraded or repaired meanwhile.
        changes_per_s: changes a second by kind, plain SQL's as well; None as before.
        database_bytes: size of the database file; on a server that of the store's tables and indexes.
        wal_bytes: size of its write-ahead log; 0 on a server, where it belongs to all databases.
        cache_bytes: size of the saved cache, 0 where there is none.
        cache_s_ago: seconds since it was saved; None where there is none.
        connections: programs' connections to the database on a server, this one included; None for a file.
        busy_connections: those of the others that are in the middle of something, as far as the role may see them;
            None for a file.
    """

    at: datetime
    elapsed_s: float | None
    position: int
    commits_per_s: float | None
    changes_per_s: dict[str, float] | None
    database_bytes: int
    wal_bytes: int
    cache_bytes: int
    cache_s_ago: float | None
    connections: int | None = None
    busy_connections: int | None = None


class Watch:
    """Looks at a database again and again; what it reads is the new part of the log, never the records.

    Args:
        store: an open store; its own cache has nothing to do with it.
    """

    def __init__(self, store: Namespace) -> None:
        self._access = store._access
        target = self._access.durable.target
        folder = cache_folder(target, resolve_settings(target.parameters, {}))
        self._files = [target.path, target.path + "-wal"] if isinstance(target, Target) else []
        self._cache = folder and str(Path(folder) / FILE_NAME)
        self._last: tuple[list[HeadState], float] | None = None

    async def look(self) -> Activity:
        """Return what has happened since the look before.

        Raises:
            DurableError: the database cannot be read.
        """
        self._access.require_usable()
        known = None if self._last is None else self._last[0]
        growth, use = await self._access.durable.scan.run(lambda connection: _look(connection, known))
        last, now = self._last, boot_s()
        self._last = growth.heads, now
        position = sum(head.position for head in growth.heads)
        elapsed_s = commits_per_s = changes_per_s = None
        if last is not None:
            elapsed_s = max(now - last[1], 1e-6)
            if growth.changes is not None:
                commits_per_s = (position - sum(head.position for head in last[0])) / elapsed_s
                changes_per_s = {kind: count / elapsed_s for kind, count in growth.changes.items()}
        sizes = [_stat(path) for path in self._files]
        database, wal = (found.st_size if found else 0 for found in sizes) if use is None else (use.bytes, 0)
        cache = _stat(self._cache)
        return Activity(
            at=utc_now(),
            elapsed_s=elapsed_s,
            position=position,
            commits_per_s=commits_per_s,
            changes_per_s=changes_per_s,
            database_bytes=database,
            wal_bytes=wal,
            cache_bytes=cache.st_size if cache else 0,
            cache_s_ago=max(time.time() - cache.st_mtime, 0.0) if cache else None,
            connections=None if use is None else use.connections,
            busy_connections=None if use is None else use.busy,
        )


def _look(connection: Connection, known: list[HeadState] | None) -> tuple[Growth, ServerUse | None]:
    return read_growth(connection, known), read_use(connection) if is_server(connection) else None


def _stat(path: str) -> os.stat_result | None:
    try:
        return Path(path).stat() if path else None
    except OSError:
        return None
