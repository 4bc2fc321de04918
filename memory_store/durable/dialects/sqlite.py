"""SQLite: its settings, its error codes, its backup."""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

from sqlalchemy.exc import DBAPIError

from memory_store.errors import (
    ConstraintError,
    DurableError,
    DurableTimeoutError,
    DurableUnavailableError,
    IndexDamagedError,
    MemoryStoreError,
    StorageFullError,
)

__all__ = [
    "DAMAGED_INDEX",
    "allow_shadow_writes",
    "connection_pragmas",
    "copy_database",
    "error_code",
    "is_index_damage",
    "leave_log_to_us",
    "translate",
]


def connection_pragmas(timeout_s: float, *, durable: bool) -> str:
    """Return the script every connection runs first.

    Args:
        timeout_s: how long SQLite waits for another program's lock, in seconds.
        durable: False for a database that ends with the process anyway: nothing is synced.
    """
    return (
        f"PRAGMA busy_timeout = {int(timeout_s * 1000)};"
        f"PRAGMA synchronous = {'FULL' if durable else 'OFF'};"
        "PRAGMA foreign_keys = ON;"
        # Checkpoints are ours, under the lock file (see lock.py); SQLite's own would run inside any commit. A private
        # database has one writing connection, which cannot meet itself.
        f"PRAGMA wal_autocheckpoint = {0 if durable else 1000};"
        "PRAGMA trusted_schema = OFF;"
    )


def leave_log_to_us(connection: sqlite3.Connection) -> None:
    """Switch off the triggers that log plain SQL for a connection whose transactions log for themselves.

    They do nothing there anyway (see `head.writing`), but that they exist costs 3 µs a row. Python offers the switch
    from 3.12 on. Foreign keys and what they cascade to are not concerned.
    """
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False)


def allow_shadow_writes(connection: Any) -> None:
    """Let plain SQL write the tables in which FTS5 keeps an index: some builds of SQLite forbid it from the start."""
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, False)


# Primary result codes, https://sqlite.org/rescode.html
_HINTS: dict[int, tuple[type[DurableError], str]] = {
    sqlite3.SQLITE_BUSY: (DurableTimeoutError, "another program keeps the database locked"),
    sqlite3.SQLITE_LOCKED: (DurableTimeoutError, "another connection keeps the table locked"),
    sqlite3.SQLITE_INTERRUPT: (DurableTimeoutError, "the statement was interrupted"),
    sqlite3.SQLITE_FULL: (StorageFullError, "the disk is full"),
    sqlite3.SQLITE_CONSTRAINT: (ConstraintError, "the database refused the rows"),
    sqlite3.SQLITE_TOOBIG: (ConstraintError, "a value is larger than SQLite stores"),
    sqlite3.SQLITE_READONLY: (
        DurableUnavailableError,
        "the database cannot be written; check the rights of file and folder",
    ),
    sqlite3.SQLITE_PERM: (DurableUnavailableError, "the rights of the file forbid it"),
    sqlite3.SQLITE_CANTOPEN: (
        DurableUnavailableError,
        "the database file cannot be opened; check that its folder exists",
    ),
    sqlite3.SQLITE_NOTADB: (DurableUnavailableError, "the file is not a SQLite database"),
    sqlite3.SQLITE_CORRUPT: (DurableUnavailableError, "the database is damaged; restore a backup"),
    sqlite3.SQLITE_IOERR: (DurableUnavailableError, "reading or writing the database file failed"),
}


DAMAGED_INDEX = "the full-text index is damaged; `memory-store reindex` makes it anew"
"""Records can still be read and written."""


def error_code(error: BaseException) -> int | None:
    """Return the primary SQLite result code behind an error, or None."""
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


# An ordinary table has other codes for both: that of a damaged page, and one for each kind of constraint. FTS5 has its
# own tables refuse rows when it takes them for emptier than they are.
_OF_INDEX = (sqlite3.SQLITE_CORRUPT_VTAB, sqlite3.SQLITE_CONSTRAINT)


def is_index_damage(error: BaseException) -> bool:
    """Return whether an error says that a virtual table is damaged: the full-text index is the only one here."""
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "sqlite_errorcode", None) in _OF_INDEX


def translate(error: BaseException) -> BaseException:
    """Return the library's error for a driver's error; anything that is no driver error comes back as it is.

    This is the only place where driver errors are given a meaning.
    """
    if isinstance(error, MemoryStoreError):
        return error
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, UnicodeDecodeError):  # text in the file that is no text
        return DurableUnavailableError(f"the database is damaged; restore a backup ({original})")
    if not isinstance(original, sqlite3.Error):
        return error
    code = error_code(original)
    if code is None:
        return DurableUnavailableError(f"the driver refused: {original}")
    kind, hint = _HINTS.get(code, (DurableError, "the database failed"))
    if is_index_damage(original):
        kind, hint = IndexDamagedError, DAMAGED_INDEX
    name = getattr(original, "sqlite_errorname", "")
    return kind(f"{hint} ({name}: {original})")


def copy_database(source: str, target: str) -> None:
    """Write a consistent copy of a database while others use it (SQLite's online backup)."""
    origin, copy = sqlite3.connect(source), sqlite3.connect(target)
    try:
        origin.backup(copy)
    finally:
        copy.close()
        origin.close()
