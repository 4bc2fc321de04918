"""Looking at a database file without changing it: versions, integrity, sizes."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from memory_store.config import Settings
from memory_store.durable.connection import Connection
from memory_store.durable.dialects.sqlite import translate
from memory_store.durable.engine import ServerTarget, Target
from memory_store.durable.findings import Findings, Watcher, is_server
from memory_store.durable.log import one_state, read_heads
from memory_store.durable.scans import count_changes, count_rows, list_namespaces
from memory_store.durable.schema import HEAD_REVISION, read_revision
from memory_store.durable.verify import CHECKS, FILE_CHECKS, check_database, opened_to_read
from memory_store.errors import DurableUnavailableError
from memory_store.records import RECORDS

__all__ = [
    "Contents",
    "Examination",
    "cache_folder",
    "examine",
    "has_wal_reset_race",
    "read_contents",
    "require_file",
]

_MOST_PROBLEMS = 20


def has_wal_reset_race(version: tuple[int, int, int]) -> bool:
    """Return whether a SQLite library can corrupt a WAL when a checkpoint and a writer meet (see `lock`)."""
    if version >= (3, 51, 3) or version < (3, 7, 0):
        return False
    fixed = {(3, 50): 7, (3, 44): 6}.get(version[:2])
    return fixed is None or version[2] < fixed


def require_file(target: Target | ServerTarget) -> None:
    """Check that there is a database to read; on a server, opening it tells.

    Raises:
        DurableUnavailableError: there is none.
    """
    if isinstance(target, ServerTarget):
        return
    target.require_folder()
    if not target.memory and not Path(target.path).exists():
        raise DurableUnavailableError(
            f"there is no database at {target.path}; `memory-store import` or `memory-store upgrade` makes one"
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds.

    Args:
        rows: number of records by namespace and kind.
        position: the newest commit; on a server, whose heads count for themselves, the sum of theirs.
        changes: length of the change log.
    """

    rows: dict[str, dict[str, int]]
    position: int
    changes: int


def read_contents(connection: Connection) -> Contents:
    """Count what a database holds, as of one commit."""
    with one_state(connection):
        if is_server(connection):
            rows = _count_all(connection)
        else:
            rows = {
                namespace: {kind: count_rows(connection, kind, namespace) for kind in RECORDS}
                for namespace in list_namespaces(connection)
            }
        position = sum(head.position for head in read_heads(connection))
        return Contents(rows, position, count_changes(connection))


def _count_all(connection: Connection) -> dict[str, dict[str, int]]:
    """Count on a server, where each namespace asked for alone is a round trip."""
    rows: dict[str, dict[str, int]] = {}
    for kind, spec in RECORDS.items():
        asked = f"SELECT namespace, count(*) FROM {spec.table.name} GROUP BY namespace"  # noqa: S608 - our own names
        for namespace, count in connection.execute(asked):
            rows.setdefault(namespace, dict.fromkeys(RECORDS, 0))[kind] = count
    return dict(sorted(rows.items()))


@dataclass(slots=True)
class Examination:
    """What was found in a database file.

    Args:
        revision: its schema revision, None for an empty one.
        journal_mode: "wal" in a sound one.
        findings: what is wrong with it.
        contents: what it holds; None where its schema is another, or damage keeps it from being counted.
    """

    revision: str | None
    journal_mode: str
    findings: Findings
    contents: Contents | None = None


def examine(target: Target, timeout_s: float) -> Examination:
    """Check a whole database file, read-only. Blocks, for seconds where it is large.

    Raises:
        DurableUnavailableError: there is none, it is not a database, or it cannot be read.
        DurableTimeoutError: another program keeps it locked.
        SchemaMismatchError: it holds tables of something else.
    """
    require_file(target)
    try:
        with opened_to_read(target.path, timeout_s) as connection:
            revision = read_revision(connection)
            [(mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
            found = Examination(revision, mode, Findings(_MOST_PROBLEMS))
            if revision is not None:
                ours = revision == HEAD_REVISION
                check_database(connection, found.findings, Watcher(), CHECKS if ours else FILE_CHECKS)
                if ours and not found.findings.counts["integrity"]:
                    found.contents = read_contents(connection)
    except sqlite3.Error as error:
        raise translate(error) from error
    return found


def cache_folder(target: Target | ServerTarget, settings: Settings) -> str:
    """Return the folder of a database's saved cache, "" where none is kept."""
    if settings.cache_path is not None:
        return settings.cache_path
    return "" if target.memory or isinstance(target, ServerTarget) else target.path + ".cache"
