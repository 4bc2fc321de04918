"""Whole tables in pages, of any database and into any other: what a copy reads, compares and writes.

A page is read by its key, so that a copy can go on behind any row. Rows are tuples of stored values, namespace first,
in one form whatever the database: a boolean is `True` or `False`, JSON its text, a time microseconds.
"""

# ruff: noqa: S608 - statements are made of our own names

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import msgpack
from sqlalchemy import JSON, Boolean, Column, Float, LargeBinary, String, Table
from sqlalchemy.types import TypeDecorator

from memory_store.durable.changes import CHANGES, IDEMPOTENCY
from memory_store.durable.connection import Connection, KeyedText, keyed_condition
from memory_store.durable.log import STORE
from memory_store.durable.statements import STATEMENTS, idempotency_insert, in_batches
from memory_store.errors import CodecError
from memory_store.records import RECORDS

__all__ = [
    "STREAMS",
    "Page",
    "Row",
    "Stream",
    "Sum",
    "Sums",
    "add_up",
    "count_rows",
    "delete_rows",
    "find_rows",
    "first_log_positions",
    "first_row",
    "insert_rows",
    "read_log_page",
    "read_page",
]

Row = tuple[Any, ...]

# A page ends here: its transaction is large enough that a commit costs little, and memory stays small.
_MOST_ROWS = 4096
_MOST_BYTES = 4 * 1024 * 1024
_FIRST_ROWS = 128


class Page(NamedTuple):
    """Some rows in the order of their keys.

    Args:
        rows: the rows.
        ask: how many to ask for next: a server sends all that is asked for, however large they are.
        more: whether there may be more behind them.
    """

    rows: list[Row]
    ask: int = _FIRST_ROWS
    more: bool = True


def _types(column: Column[Any]) -> frozenset[type]:
    kind = column.type.impl if isinstance(column.type, TypeDecorator) else column.type
    known = ((Boolean, bool), (Float, float), (LargeBinary, bytes), (String, str), (JSON, str))
    found = next((python for sql, python in known if isinstance(kind, sql)), int)
    return frozenset({found, type(None)} if column.nullable else {found})


@dataclass(frozen=True, slots=True)
class Stream:
    """A table that is copied page by page.

    Args:
        name: the kind of its records, or what it is called in messages.
        table: where they are.
        key: its primary key; namespace first.
        insert: the statement that inserts a row.
        fixed: a column that is not copied but has one value in every row of the copy.
    """

    name: str
    table: Table
    key: tuple[str, str]
    insert: Callable[[], str]
    fixed: tuple[str, Any] | None = None
    columns: tuple[str, ...] = field(init=False)
    _allowed: tuple[frozenset[type], ...] = field(init=False)
    _changed: tuple[tuple[int, Callable[[Any], Any]], ...] = field(init=False)
    _floats: tuple[int, ...] = field(init=False)
    _seen: set[tuple[type, ...]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        columns = tuple(self.table.columns)
        object.__setattr__(self, "columns", tuple(column.name for column in columns))
        object.__setattr__(self, "_allowed", tuple(map(_types, columns)))
        floats = tuple(index for index, column in enumerate(columns) if isinstance(column.type, Float))
        object.__setattr__(self, "_floats", floats)
        changed: list[tuple[int, Callable[[Any], Any]]] = [
            (index, lambda value: None if value is None else value == 1)
            for index, column in enumerate(columns)
            if isinstance(column.type, Boolean)
        ]
        if self.fixed is not None:
            name, always = self.fixed
            changed.append((self.columns.index(name), lambda _: always))
        object.__setattr__(self, "_changed", tuple(changed))

    def with_fixed(self, name: str, value: Any) -> Stream:
        """Return this stream with one value in a column."""
        return replace(self, fixed=(name, value))

    def normal(self, rows: Iterable[Sequence[Any]]) -> list[Row]:
        """Return rows in the one form.

        Raises:
            CodecError: a value is of a type that its column does not have; SQLite stores any, when plain SQL does.
        """
        made = [tuple(row) for row in rows]
        for index, change in self._changed:
            made = [(*row[:index], change(row[index]), *row[index + 1 :]) for row in made]
        for row in made:
            types = tuple(map(type, row))
            if types not in self._seen:
                self._check(row, types)
                self._seen.add(types)
        return made

    def comparable(self, rows: list[Row]) -> list[Row]:
        """Return rows such that those of two databases are equal if they hold the same: SQLite has no negative zero."""
        for index in self._floats:
            rows = [(*row[:index], 0.0, *row[index + 1 :]) if row[index] == 0 else row for row in rows]
        return rows

    def _check(self, row: Row, types: tuple[type, ...]) -> None:
        for name, found, allowed in zip(self.columns, types, self._allowed, strict=True):
            if found not in allowed:
                raise CodecError(
                    f"{self.name} {row[1]!r:.120} in namespace {row[0]!r:.120} cannot be copied: its {name} is stored "
                    f"as {found.__name__}, which only plain SQL on SQLite does",
                    kind=self.name,
                    namespace=str(row[0]),
                    key=str(row[1]),
                )


def _kind_stream(kind: str) -> Stream:
    return Stream(kind, RECORDS[kind].table, ("namespace", "id"), lambda: STATEMENTS[kind].insert)


# What has no parent first: parts refer to their episode.
STREAMS = (
    *map(_kind_stream, sorted(RECORDS, key=lambda kind: RECORDS[kind].parent is not None)),
    Stream("idempotency", IDEMPOTENCY, ("namespace", "key"), idempotency_insert),
)
"""The tables of records in an order in which they can be filled, and the idempotency keys."""

_LOG = Stream("change", CHANGES, ("namespace", "key"), str)


@cache
def _quoted(columns: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


def read_page(connection: Connection, stream: Stream, after: Sequence[str] | None, ask: int = _FIRST_ROWS) -> Page:
    """Return the next rows behind a key, bounded in number and in bytes.

    Args:
        connection: where from.
        stream: the table.
        after: namespace and key of the last row known, None for the first page.
        ask: how many rows at most, as the page before said.
    """
    behind = "" if after is None else f"WHERE ({_quoted(stream.key)}) > (?, ?) "
    sql = f"SELECT {_quoted(stream.columns)} FROM {stream.table.name} {behind}ORDER BY {_quoted(stream.key)} LIMIT ?"
    page = _bounded(connection, sql, (*(after or ()), ask), ask)
    return page._replace(rows=stream.normal(page.rows))


def read_log_page(connection: Connection, shard: int, after: Sequence[int], ask: int = _FIRST_ROWS) -> Page:
    """Return the next rows of a shard's log behind a position and idx, bounded as `read_page` is."""
    sql = (
        f"SELECT {_quoted(_LOG.columns)} FROM changes WHERE shard = ? AND (position, idx) > (?, ?) "
        "ORDER BY position, idx LIMIT ?"
    )
    page = _bounded(connection, sql, (shard, *after, ask), ask)
    return page._replace(rows=[tuple(row) for row in page.rows])


def _bounded(connection: Connection, sql: str, parameters: Sequence[Any], ask: int) -> Page:
    rows: list[Any] = []
    size = 0
    cursor = connection.execute(sql, parameters)
    for row in cursor:
        rows.append(row)
        size += sum([len(value) for value in row if value.__class__ is str or value.__class__ is bytes])
        if size >= _MOST_BYTES:
            break
    cursor.close()
    more = len(rows) == ask or size >= _MOST_BYTES
    fitting = int(len(rows) * _MOST_BYTES / max(size, 1) / 2)
    return Page(rows, max(1, min(ask * 2, fitting, _MOST_ROWS)), more)


def find_rows(connection: Connection, stream: Stream, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Row]:
    """Return the rows of those keys that exist. No order is needed, which two databases might see differently."""
    groups: dict[str, list[str]] = {}
    for namespace, key in keys:
        groups.setdefault(namespace, []).append(key)
    found: list[Any] = []
    for namespace, wanted in groups.items():
        for batch in in_batches(wanted):
            found += connection.execute(_find_text(stream, len(batch)), (namespace, *batch)).fetchall()
    return {(row[0], row[1]): row for row in stream.normal(found)}


def _find_text(stream: Stream, places: int) -> str:
    table, key = stream.table.name, stream.key[1]
    text = f"SELECT {_quoted(stream.columns)} FROM {table} WHERE {keyed_condition(table, key, places)}"
    return text if places == 1 else KeyedText(text, table, key, places)


def insert_rows(connection: Connection, stream: Stream, rows: Sequence[Row]) -> None:
    """Insert rows none of which exists."""
    connection.executemany(stream.insert(), rows)


def delete_rows(connection: Connection, stream: Stream, keys: Sequence[tuple[str, str]]) -> None:
    """Delete the rows of some keys, and what belongs to them."""
    connection.executemany(f'DELETE FROM {stream.table.name} WHERE namespace = ? AND "{stream.key[1]}" = ?', keys)


def count_rows(connection: Connection, table: str) -> int:
    """Return how many rows a table holds."""
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def first_log_positions(connection: Connection, shards: int) -> list[int]:
    """Return the oldest position in the log of each shard, 0 where it holds nothing."""
    sql = "SELECT coalesce(min(position), 0) FROM changes WHERE shard = ?"
    return [int(connection.execute(sql, (shard,)).fetchone()[0]) for shard in range(shards)]


def first_row(connection: Connection) -> str | None:
    """Return the name of the first table that holds something, None where the database is as good as new.

    What the log says of the database as a whole (that its tables were partitioned) is nothing that would be lost.
    """
    for stream in STREAMS:
        if connection.execute(f"SELECT 1 FROM {stream.table.name} LIMIT 1").fetchone() is not None:
            return stream.table.name
    logged = connection.execute(f"SELECT 1 FROM changes WHERE kind <> '{STORE}' LIMIT 1").fetchone()
    return None if logged is None else CHANGES.name


class Sum(NamedTuple):
    """How many rows, and the sum of their digests: the same in whatever order they come."""

    rows: int
    digest: int


Sums = dict[str, Sum]
"""By namespace."""

_NOTHING = Sum(0, 0)


def add_up(rows: Iterable[Row], namespace_at: int = 0, start: int = 0) -> Sums:
    """Return what rows add up to.

    Args:
        rows: in the one form.
        namespace_at: where in a row its namespace stands.
        start: the first value of a row that counts.
    """
    sums: Sums = {}
    pack = msgpack.Packer().pack  # as `pack_row`, which makes one for each row
    for row in rows:
        packed = pack(row[start:] if start else row)
        digest = int.from_bytes(hashlib.blake2b(packed, digest_size=16).digest(), "big")
        known = sums.get(row[namespace_at], _NOTHING)
        sums[row[namespace_at]] = Sum(known.rows + 1, known.digest + digest)
    return sums
