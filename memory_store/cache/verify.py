"""The saved cache against the rows: what the next opening would use of it must be what the database holds."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import msgpack

from memory_store.cache.reconcile import reconcile
from memory_store.cache.snapshot import FILE_NAME, SavedEntries, Snapshot
from memory_store.codec import ENTRY_PREFIX_BYTES, Row, pack_row
from memory_store.durable.changes import HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.findings import Findings, Problem, Watcher, is_damage
from memory_store.durable.log import read_heads, read_run
from memory_store.durable.reader import read_keys
from memory_store.errors import CacheError, DurableError

__all__ = ["CHECK", "check_saved_cache"]

CHECK = "saved cache"
_CHANGES_MEANWHILE = 100_000


def check_saved_cache(connection: Connection, folder: str, key: str, findings: Findings, watcher: Watcher) -> str:
    """Compare what the next opening would use of a saved cache with the rows; return "sound" or why there is nothing.

    Args:
        connection: to the database, without a transaction.
        folder: where the cache is saved, "" for nowhere.
        key: the version key that is needed now.
        findings: takes what is wrong.
        watcher: told how far it is.
    """
    if not folder or not os.path.lexists(Path(folder) / FILE_NAME):
        return "there is none"
    findings.begin(CHECK)
    try:
        if connection.execute("SELECT count(*) FROM head").fetchone() == (0,):
            return "not compared: the database has no head"
        with Snapshot(folder) as snapshot, watcher.over(connection):
            # Read before the cache is compared, so that nothing can change unseen between that and our own snapshot.
            before = read_heads(connection)
            changed = reconcile(connection, snapshot.header, key)
            if changed.reason:
                return f"not used: {changed.reason}"
            connection.execute("BEGIN")
            try:
                meanwhile = _changed_since(connection, before)
                if meanwhile is None:
                    return "not compared: the database changes too fast"
                compare = _Comparison(connection, snapshot.header.spaces, changed.keys, changed.prefixes, meanwhile)
                for number, batch in enumerate(snapshot.batches()):
                    watcher.note(f"checking {CHECK}", number, number + 1)
                    compare.entries(batch, findings)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
    except CacheError as error:
        findings.add(Problem(CHECK, str(error)))
    except (sqlite3.DatabaseError, DurableError) as error:
        if not is_damage(error):
            raise
        return f"not compared: {error}"
    return "damaged or wrong" if findings.counts[CHECK] else "sound"


def _changed_since(connection: Connection, before: list[HeadState]) -> set[tuple[str, str, str | None]] | None:
    """Return kind, namespace and id of what has changed in any shard since then; None where that is not known."""
    changed: set[tuple[str, str, str | None]] = set()
    for then, now in zip(before, read_heads(connection), strict=True):
        run = read_run(connection, then, now, _CHANGES_MEANWHILE)
        if run.changes is None:
            return None
        changed.update((change.kind, change.namespace, change.parent or change.key) for change in run.changes)
    return changed


class _Comparison:
    """Compares saved entries with the rows.

    Args:
        connection: in the snapshot to compare with.
        spaces: kind and namespace by number.
        keys: what has changed since the cache was saved, as keys of the file.
        prefixes: spaces in which everything may have changed.
        meanwhile: kind, namespace and id of what changed while it was being opened.
    """

    def __init__(
        self,
        connection: Connection,
        spaces: list[tuple[str, str]],
        keys: frozenset[str],
        prefixes: frozenset[str],
        meanwhile: set[tuple[str, str, str | None]],
    ) -> None:
        self._connection, self._spaces = connection, spaces
        self._keys, self._prefixes, self._meanwhile = keys, prefixes, meanwhile

    def entries(self, batch: SavedEntries, findings: Findings) -> None:
        """Compare some."""
        asked, saved = [], []
        for key, entry in zip(batch.keys, batch.entries, strict=True):
            number, slash, id_ = key.partition("/")
            kind, namespace = self._spaces[int(number, 16)]
            skip = {(kind, namespace, id_), (kind, namespace, None)} & self._meanwhile
            if key not in self._keys and number + slash not in self._prefixes and not skip:
                asked.append((kind, namespace, id_))
                saved.append(entry)
        for place, rows, entry in zip(asked, read_keys(self._connection, asked) if asked else [], saved, strict=True):
            # The store saves bools as it was given them, SQLite answers 0 and 1: both decode to the same record.
            stored = b"".join(pack_row(row) for row in rows)
            if entry[ENTRY_PREFIX_BYTES:] != stored and _plain(entry) != _plain_rows(rows):
                findings.add(Problem(CHECK, "is in the saved cache with other content", *place))


def _plain(entry: bytes) -> bytes:
    return _plain_rows(msgpack.unpackb(entry)[2:])


def _plain_rows(rows: list[Row]) -> bytes:
    return b"".join(pack_row([int(value) if type(value) is bool else value for value in row]) for row in rows)
