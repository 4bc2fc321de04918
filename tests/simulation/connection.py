"""A connection that answers the library's own statements, without SQL: `statements.py` says which text is which."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from memory_store.durable.changes import HeadState
from memory_store.durable.log import Logged
from memory_store.records import PARTS, RecordSpec
from tests.simulation.database import Database, Row, Tables, Version

__all__ = ["COUNT", "Connection", "Cursor", "Handler", "driver_error"]

COUNT = "count the episodes of a namespace"


def driver_error(code: int, text: str) -> sqlite3.OperationalError:
    """Return an error as the driver raises it."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class Cursor:
    """What a statement returned."""

    __slots__ = ("_rows", "description", "rowcount")

    def __init__(self, rows: Sequence[Row] | None, rowcount: int = -1) -> None:
        self._rows = rows or ()
        self.description = rows is not None
        self.rowcount = rowcount

    def fetchall(self) -> list[Row]:
        return list(self._rows)

    def fetchone(self) -> Row | None:
        return self._rows[0] if self._rows else None

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)


Handler = Callable[[Any, Sequence[Any]], Cursor]


def is_of_index(text: str) -> bool:
    """Whether a statement is of the full-text index, which no promise of this simulation rests on."""
    return any(name in text for name in (" documents", " backlog", " unindexed", " indexed"))  # two are savepoints


class Connection:
    """One connection, in autocommit unless a transaction was begun.

    Args:
        database: what it is connected to.
        owner: author of its commits.
        role: "probe", "read", "scan" or "write".
    """

    handlers: ClassVar[dict[str, Handler]] = {}
    """What answers a statement, by its text; filled by `statements.py`."""

    def __init__(self, database: Database, owner: object, role: str) -> None:
        self.database, self.owner, self.role = database, owner, role
        self.in_transaction = False
        self._seen: Version | None = None
        self._work: Tables | None = None
        """The tables as a write transaction sees them."""
        self._head: HeadState | None = None
        self._log: list[Logged] = []
        self._saved: Tables | None = None
        self.fails_commit: Callable[[], str] = lambda: ""
        """Asked at each commit whether its sync fails: "lost", "kept" or ""."""

    def execute(self, text: str, parameters: Sequence[Any] = ()) -> Cursor:
        if is_of_index(text):
            return Cursor([(0,)] if "max(key)" in text else [])
        self.database.tick(self, text)
        return self.handlers[text](self, parameters)

    def executemany(self, text: str, rows: Iterable[Sequence[Any]]) -> Cursor:
        if is_of_index(text):
            return Cursor(None)
        self.database.tick(self, text)
        handler = self.handlers[text]
        return Cursor(None, sum(handler(self, row).rowcount for row in rows))

    def version(self) -> Version:
        """Return the version a read sees: the newest, or the one the transaction has seen first."""
        if not self.in_transaction:
            return self.database.current
        if self._seen is None:
            self._seen = self.database.current
        return self._seen

    def tables(self) -> Tables:
        """Return the tables as a read sees them."""
        return self.version().tables if self._work is None else self._work

    def head(self) -> HeadState:
        """Return the head as a read sees it."""
        return self.version().head if self._head is None else self._head

    def abandon(self) -> None:
        """End as a killed process does."""
        self._end()

    # Transactions

    def begin(self, _: Sequence[Any]) -> Cursor:
        assert not self.in_transaction
        self.in_transaction = True
        return Cursor(None)

    def begin_immediate(self, _: Sequence[Any]) -> Cursor:
        assert self.database.locked_by is None, "the scheduler lets a writer wait for the lock"
        self.begin(())
        self.database.locked_by = self
        self._work = dict(self.version().tables)
        return Cursor(None)

    def commit(self, _: Sequence[Any]) -> Cursor:
        assert self.in_transaction
        if self._log:
            assert self._work is not None
            assert self._head is not None
            fails = self.fails_commit()
            if fails != "lost":
                self.database.commit(self._head, self._work, tuple(self._log), self.owner)
            self._end()
            if fails:
                raise driver_error(sqlite3.SQLITE_IOERR, "the sync failed")
        else:
            self._end()
        return Cursor(None)

    def roll_back(self, _: Sequence[Any]) -> Cursor:
        self._end()
        return Cursor(None)

    def _end(self) -> None:
        if self.database.locked_by is self:
            self.database.locked_by = None
        self.in_transaction = False
        self._seen = self._work = self._head = self._saved = None
        self._log = []

    def savepoint(self, _: Sequence[Any]) -> Cursor:
        assert self._work is not None
        self._saved = dict(self._work)
        return Cursor(None)

    def roll_back_to(self, _: Sequence[Any]) -> Cursor:
        assert self._saved is not None
        self._work = dict(self._saved)
        return Cursor(None)

    def release(self, _: Sequence[Any]) -> Cursor:
        self._saved = None
        return Cursor(None)

    def restore(self, version: Version) -> None:
        """Put the rows of an older version back, in the open write transaction."""
        assert self._work is not None
        self._work = dict(version.tables)

    # Head and log

    def select_head(self, _: Sequence[Any]) -> Cursor:
        return Cursor([self.head()])

    def claim_head(self, _: Sequence[Any]) -> Cursor:
        return Cursor([self.head()])

    def update_head(self, parameters: Sequence[Any]) -> Cursor:
        position = self.database.next_position()
        self._head = self.head()._replace(position=position, nonce=parameters[0])
        return Cursor([(position,)])

    def set_head(self, parameters: Sequence[Any]) -> Cursor:
        position, nonce, epoch, _ = parameters
        self._head = HeadState(position, nonce, self.head().store_id, epoch)
        return Cursor(None, 1)

    def insert_log(self, row: Sequence[Any]) -> Cursor:
        self._log.append(Logged(row[1], row[11], row[3], row[4], row[5], row[6]))
        return Cursor(None, 1)

    def select_tail(self, parameters: Sequence[Any]) -> Cursor:
        _, after, last, limit = parameters
        return Cursor([row for row in self.version().tail(after, limit) if row.position <= last])

    def select_nonce(self, parameters: Sequence[Any]) -> Cursor:
        nonce = self.version().nonce_at(parameters[1])
        return Cursor([] if nonce is None else [(nonce,)])

    # Rows

    def count(self, parameters: Sequence[Any]) -> Cursor:
        [namespace] = parameters
        return Cursor([(sum(key[0] == "episode" and key[1] == namespace for key in self.tables()),)])

    def get(self, kind: str, parameters: Sequence[Any]) -> Cursor:
        namespace, *ids = parameters
        tables = self.tables()
        if len(ids) == 1:
            return Cursor(tables.get((kind, namespace, ids[0]), ()))
        return Cursor([row for id_ in dict.fromkeys(ids) for row in tables.get((kind, namespace, id_), ())])

    def get_with_head(self, spec: RecordSpec[Any], parameters: Sequence[Any]) -> Cursor:
        *asked, _ = parameters
        rows = self.get(spec.kind, asked).fetchall() or [(None,) * len(spec.columns)]
        return Cursor([(*row, *self.head()) for row in rows])

    def get_by_id(self, spec: RecordSpec[Any], parameters: Sequence[Any]) -> Cursor:
        if spec.parent is None:
            return self.get(spec.kind, parameters)
        namespace, *ids = parameters
        return Cursor([row for row in self._rows(spec.kind, namespace) if row[0] in ids])

    def _rows(self, kind: str, namespace: str) -> list[Row]:
        return [row for key, rows in self.tables().items() if key[:2] == (kind, namespace) for row in rows]

    def insert(self, spec: RecordSpec[Any], parameters: Sequence[Any]) -> Cursor:
        namespace, row = parameters[0], tuple(parameters[1:])
        assert self._work is not None
        place = row[0] if spec.parent_index is None else row[spec.parent_index]
        key = (spec.kind, namespace, place)
        stored = self._work.get(key, ())
        if any(row[0] == one[0] for one in (stored if spec.parent is None else self._rows(spec.kind, namespace))):
            return Cursor(None, 0)
        number = 0 if spec.number is None else spec.index(spec.number)
        self._work[key] = tuple(sorted((*stored, row), key=lambda one: one[number]))
        return Cursor(None, 1)

    def replace(self, spec: RecordSpec[Any], parameters: Sequence[Any]) -> Cursor:
        *values, namespace, id_ = parameters
        self._remove(spec, namespace, id_)
        return self.insert(spec, (namespace, id_, *values))

    def renumber(self, spec: RecordSpec[Any], parameters: Sequence[Any]) -> Cursor:
        number, namespace, id_ = parameters
        row = list(self._remove(spec, namespace, id_))
        row[spec.index(spec.number or "")] = number
        return self.insert(spec, (namespace, *row))

    def delete(self, spec: RecordSpec[Any], parameters: Sequence[Any]) -> Cursor:
        namespace, id_ = parameters
        assert self._work is not None
        self._remove(spec, namespace, id_)
        if spec.kind == "episode":
            for part in PARTS:
                self._work.pop((part.kind, namespace, id_), None)
        return Cursor(None, 1)

    def _remove(self, spec: RecordSpec[Any], namespace: str, id_: str) -> Row:
        assert self._work is not None
        for key, rows in self._work.items():
            if key[:2] == (spec.kind, namespace):
                for row in rows:
                    if row[0] == id_:
                        self._work[key] = tuple(one for one in rows if one is not row)
                        if len(rows) == 1:
                            del self._work[key]
                        return row
        raise AssertionError(f"there is no {spec.kind} {id_}")

    def has_parts(self, kind: str, parameters: Sequence[Any]) -> Cursor:
        return Cursor([(int((kind, *parameters) in self.tables()),)])

    def numbers(self, spec: RecordSpec[Any], parameters: Sequence[Any]) -> Cursor:
        number = spec.index(spec.number or "")
        return Cursor([(row[0], row[number]) for row in self.tables().get((spec.kind, *parameters), ())])  # type: ignore[arg-type]

    def last_numbers(self, spec: RecordSpec[Any], parameters: Sequence[Any]) -> Cursor:
        namespace, *parents = parameters
        tables, found = self.tables(), []
        for parent in dict.fromkeys(parents):
            if ("episode", namespace, parent) in tables:
                rows = tables.get((spec.kind, namespace, parent), ())
                found.append((parent, max((row[spec.index(spec.number)] for row in rows), default=None)))
        return Cursor(found)

    def newest(self, kind: str, parameters: Sequence[Any]) -> Cursor:
        return Cursor([key[1:] for key in self.tables() if key[0] == kind][: parameters[0]])
