"""What the durable tier needs of a connection: the part of `sqlite3.Connection` that every database here offers.

The tier is written once, as plain functions over a connection. SQLite's own connection is one; for PostgreSQL
`dialects/postgresql.py` has one over asyncpg. The words for beginning a transaction are SQLite's: "BEGIN" for reads
that are to see one state, "BEGIN IMMEDIATE" for writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, Self

__all__ = ["Connection", "Cursor", "KeyedText", "ServerText", "keyed_condition"]


class ServerText(str):
    """A statement in a server's own words, with `$1` for parameters."""

    __slots__ = ()


class KeyedText(str):
    """A statement for several keys in a namespace, which its parameters begin with.

    Args:
        text: with `condition`, word for word, as all that it says of them.
        table: where the keys are looked up.
        column: what holds them.
        places: how many.
    """

    table: str
    column: str
    places: int

    def __new__(cls, text: str, table: str, column: str, places: int) -> Self:
        """Return the text; see the class."""
        made = super().__new__(cls, text)
        made.table, made.column, made.places = table, column, places
        assert made.condition in text, text
        return made

    @property
    def condition(self) -> str:
        """What restricts the table to the keys."""
        return keyed_condition(self.table, self.column, self.places)


def keyed_condition(table: str, column: str, places: int) -> str:
    """Return what restricts a table to so many keys of a namespace."""
    return f"{table}.namespace = ? AND {table}.{column} IN ({', '.join('?' * places)})"


class Cursor(Protocol):
    """What a statement returned."""

    @property
    def description(self) -> Any:
        """None where the statement returns no rows."""
        ...

    @property
    def rowcount(self) -> int:
        """Rows the statement touched."""
        ...

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, None behind the last one."""
        ...

    def __iter__(self) -> Iterator[Any]: ...

    def close(self) -> None:
        """Drop the rows that are left."""
        ...


class Connection(Protocol):
    """One connection, in autocommit unless a transaction was begun by its own statement."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        ...

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor:
        """Run a statement with positional parameters, marked "?"."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run a statement once for each member of `parameters`; its rowcount is that of all."""
        ...
