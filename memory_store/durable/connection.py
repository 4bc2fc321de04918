"""What the durable tier needs of a connection: the part of `sqlite3.Connection` that every database here offers.

The tier is written once, as plain functions over a connection. SQLite's own connection is one; for PostgreSQL
`dialects/postgresql.py` has one over asyncpg. The words for beginning a transaction are SQLite's: "BEGIN" for reads
that are to see one state, "BEGIN IMMEDIATE" for writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

__all__ = ["Connection", "Cursor", "ServerText"]


class ServerText(str):
    """A statement in a server's own words, with `$1` for parameters."""

    __slots__ = ()


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
