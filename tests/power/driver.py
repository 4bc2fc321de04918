"""An apsw connection that answers as `sqlite3.Connection` does, as far as the library asks."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apsw

from tests.power import vfs
from tests.power.machine import Session

__all__ = ["Connection", "Cursor"]


class Cursor:
    """A statement's rows, all of them fetched."""

    def __init__(self, rows: list[tuple[Any, ...]], description: Sequence[Any] | None, rowcount: int) -> None:
        self._rows, self.description, self.rowcount = rows, description, rowcount

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        rows, self._rows = self._rows, []
        return rows

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row."""
        return self._rows.pop(0) if self._rows else None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())


class Connection:
    """A connection of a session to its database.

    Every call raises `PowerCut` or `Killed` once the session has ended, whatever SQLite made of it.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        with self._translated():
            self._apsw = apsw.Connection(f"{session.folder}/{name}", vfs=vfs.NAME, statementcachesize=100)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        self._session.check()
        try:
            yield
        except apsw.Error as error:
            self._session.check()
            raise _as_sqlite3(error) from error
        self._session.check()

    def beside_sqlite(self, work: Callable[[], None]) -> None:
        """Do something with the session's files that is none of SQLite's own."""
        with self._translated():
            work()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        self._session.check()
        return bool(self._apsw.in_transaction)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Run a statement to its end."""
        with self._translated():
            cursor = self._apsw.cursor()
            rows, description = [], None
            for row in cursor.execute(sql, tuple(parameters)):
                description = description or cursor.get_description()
                rows.append(row)
            # A SELECT without rows has no description here; -1 rows make none of it, as with the real driver.
            changes = sql.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE")
            return Cursor(rows, description, self._apsw.changes() if changes else -1)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> Cursor:
        """Run a statement once for each; the count is that of all of them."""
        with self._translated():
            cursor, count = self._apsw.cursor(), 0
            for values in parameters:
                cursor.execute(sql, tuple(values))
                count += self._apsw.changes()
            return Cursor([], None, count)

    def executescript(self, script: str) -> None:
        """Run several statements."""
        with self._translated():
            self._apsw.execute(script).fetchall()

    def image(self) -> bytes:
        """Return the database as this connection sees it, as one file without a WAL."""
        with self._translated():
            return self._apsw.serialize("main")

    def close(self) -> None:
        """Close, with the checkpoint that SQLite makes when the last one closes; for the dead, without."""
        try:
            self._apsw.close(True)
        except apsw.Error as error:
            self._session.check()
            raise _as_sqlite3(error) from error
        self._session.check()


def _as_sqlite3(error: apsw.Error) -> sqlite3.Error:
    code = int(getattr(error, "extendedresult", getattr(error, "result", apsw.SQLITE_ERROR)))
    kind = sqlite3.IntegrityError if code & 0xFF == sqlite3.SQLITE_CONSTRAINT else sqlite3.OperationalError
    made = kind(str(error))
    made.sqlite_errorcode = code
    made.sqlite_errorname = apsw.mapping_extended_result_codes.get(code) or apsw.mapping_result_codes.get(code, "")
    return made
