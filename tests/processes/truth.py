"""What a database file held, commit by commit: its change log read with the plain driver, and replayed."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from memory_store.records import RECORDS

STORE = "store"
"""The kind under which the log notes what concerns no record: an upgrade, a barrier."""


class Logged(NamedTuple):
    """One row of the log."""

    position: int
    idx: int
    kind: str
    namespace: str
    key: str | None
    parent: str | None
    operation: str
    revision: int | None
    actor: str


class Log(NamedTuple):
    """The whole log, and the revision of every stored record, of one snapshot."""

    head: int
    rows: list[Logged]
    stored: dict[tuple[str, str, str], int]

    def commits(self) -> Iterator[tuple[int, list[Logged]]]:
        """Yield each position with its rows."""
        for position, rows in itertools.groupby(self.rows, key=lambda row: row.position):
            yield position, list(rows)


def read_log(path: Path) -> Log:
    """Read it in one snapshot; others may go on writing."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN")
        [(head,)] = connection.execute("SELECT position FROM head").fetchall()
        rows = connection.execute(
            "SELECT position, idx, kind, namespace, key, parent, operation, revision, actor FROM changes "
            "ORDER BY position, idx"
        ).fetchall()
        stored = {
            (kind, namespace, id_): revision
            for kind, spec in RECORDS.items()
            for namespace, id_, revision in connection.execute(f"SELECT namespace, id, revision FROM {spec.table.name}")
        }
        connection.execute("COMMIT")
    return Log(head, [Logged(*row) for row in rows], stored)


def log_disagreements(log: Log) -> list[str]:
    """Return every gap of the log, every step of it that does not follow from the one before, and how it ends wrong."""
    problems = []
    positions = [position for position, _ in log.commits()]
    if positions != list(range(1, log.head + 1)):
        gaps = sorted(set(range(1, log.head + 1)) ^ set(positions))
        problems.append(f"the positions are not 1 to {log.head:,}: {gaps[:5]}")
    replayed: dict[tuple[str, str, str], tuple[int, str | None]] = {}
    for position, rows in log.commits():
        if [row.idx for row in rows] != list(range(len(rows))):
            problems.append(f"position {position:,} has the numbers {[row.idx for row in rows]}")
        for row in rows:
            problems += _replay(replayed, row)
    if {record: revision for record, (revision, _) in replayed.items()} != log.stored:
        different = {record for record, (revision, _) in replayed.items() if log.stored.get(record) != revision}
        different |= log.stored.keys() - replayed.keys()
        problems.append(f"log and tables differ in {sorted(different)[:5]}")
    return problems


def _replay(replayed: dict[tuple[str, str, str], tuple[int, str | None]], row: Logged) -> list[str]:
    if row.kind == STORE or row.operation == "move":  # a move is followed by the update that carries the revision
        return []
    if row.key is None:
        for record, (_, parent) in list(replayed.items()):
            if record[:2] == (row.kind, row.namespace) and parent == row.parent:
                del replayed[record]
        return []
    record = (row.kind, row.namespace, row.key)
    known = replayed[record][0] if record in replayed else None
    if row.operation == "delete":
        replayed.pop(record, None)
        fits = known is not None and row.revision == known
    else:
        replayed[record] = (row.revision or 0, row.parent)
        fits = row.revision == (1 if row.operation == "insert" else (known or 0) + 1)
        fits = fits and (known is None) == (row.operation == "insert")
    if fits:
        return []
    return [f"position {row.position:,}: {row.operation} of {record} to revision {row.revision}, it was at {known}"]


def integrity_problems(path: Path) -> list[Any]:
    """Return what SQLite itself finds wrong with a file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        wrong = [row for row in connection.execute("PRAGMA integrity_check") if row != ("ok",)]
        return wrong + connection.execute("PRAGMA foreign_key_check").fetchall()
