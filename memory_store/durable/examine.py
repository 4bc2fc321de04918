"""Looking at a database file without changing it: versions, integrity, sizes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from memory_store.durable.changes import HeadState
from memory_store.durable.dialects.sqlite import translate
from memory_store.durable.engine import Target
from memory_store.durable.reader import read_head
from memory_store.durable.scans import count_changes, count_rows, list_namespaces
from memory_store.durable.schema import HEAD_REVISION, read_revision
from memory_store.errors import DurableUnavailableError
from memory_store.records import RECORDS

__all__ = ["Contents", "Examination", "examine", "has_wal_reset_race", "read_contents", "require_file"]

_MOST_PROBLEMS = 20


def has_wal_reset_race(version: tuple[int, int, int]) -> bool:
    """Return whether a SQLite library can corrupt a WAL when a checkpoint and a writer meet (see `lock`)."""
    if version >= (3, 51, 3) or version < (3, 7, 0):
        return False
    fixed = {(3, 50): 7, (3, 44): 6}.get(version[:2])
    return fixed is None or version[2] < fixed


def require_file(target: Target) -> None:
    """Check that there is a database to read.

    Raises:
        DurableUnavailableError: there is none.
    """
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
        head: the newest commit.
        changes: length of the change log.
    """

    rows: dict[str, dict[str, int]]
    head: HeadState
    changes: int


def read_contents(connection: sqlite3.Connection) -> Contents:
    """Count what a database holds, as of one commit."""
    connection.execute("BEGIN")
    try:
        rows = {
            namespace: {kind: count_rows(connection, kind, namespace) for kind in RECORDS}
            for namespace in list_namespaces(connection)
        }
        return Contents(rows, read_head(connection), count_changes(connection))
    finally:
        connection.execute("COMMIT")


@dataclass(slots=True)
class Examination:
    """What was found in a database file.

    Args:
        revision: its schema revision, None for an empty one.
        journal_mode: "wal" in a sound one.
        integrity: what SQLite's integrity check found; empty when all is well.
        foreign_keys: parts without their episode; empty when all is well.
        contents: what it holds; None where its schema is another.
    """

    revision: str | None = None
    journal_mode: str = ""
    integrity: list[str] = field(default_factory=list)
    foreign_keys: list[str] = field(default_factory=list)
    contents: Contents | None = None


def examine(target: Target, timeout_s: float) -> Examination:
    """Check a whole database file, read-only. Blocks, for seconds where it is large.

    Raises:
        DurableUnavailableError: there is none, it is not a database, or it cannot be read.
        DurableTimeoutError: another program keeps it locked.
        SchemaMismatchError: it holds tables of something else.
    """
    require_file(target)
    found = Examination()
    try:
        uri = f"{Path(target.path).as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)) as connection:
            found.revision = read_revision(connection)
            [(found.journal_mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
            answers = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})")]
            found.integrity = [] if answers == ["ok"] else answers
            for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check").fetchmany(_MOST_PROBLEMS):
                found.foreign_keys.append(f"row {rowid} of {table} belongs to none of {parent}")
            if found.revision == HEAD_REVISION:
                found.contents = read_contents(connection)
    except sqlite3.Error as error:
        raise translate(error) from error
    return found
