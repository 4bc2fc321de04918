"""Reading a whole database in pages, past the cache: what export and the inspection commands run on the scan lane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, func, literal, select, tuple_, type_coerce
from sqlalchemy.types import NullType

from memory_store.durable.changes import CHANGES
from memory_store.durable.connection import Connection, Cursor
from memory_store.durable.statements import dialect_of, raw_columns, written_in
from memory_store.records import RECORDS, RecordSpec

__all__ = ["Portion", "count_changes", "count_rows", "list_namespaces", "read_portion"]

_PORTION_ROWS = 256
# A portion ends here at the latest: rows may be a megabyte each.
_PORTION_BYTES = 2 * 1024 * 1024


class Portion(NamedTuple):
    """Some rows of a kind, written out.

    Args:
        lines: what `write` made of each row.
        ids: their ids.
        after: where the next portion starts; None when this was the last.
    """

    lines: list[bytes]
    ids: list[str]
    after: tuple[Any, ...] | None


def read_portion(
    connection: Connection,
    spec: RecordSpec[Any],
    namespace: str,
    parents: Sequence[str] | None,
    after: tuple[Any, ...],
    write: Callable[[str, Sequence[Any]], bytes],
) -> Portion:
    """Read the next rows of a kind, bounded in number and in bytes; parts in their episode's order.

    Args:
        connection: where from, on its own thread.
        spec: the kind.
        namespace: whose.
        parents: only the parts of these episodes; None for all.
        after: where the portion before ended, () for the first.
        write: turns namespace and row into bytes.
    """
    table = spec.table
    names = tuple(dict.fromkeys((*((spec.parent,) if spec.parent else ()), *spec.order, "id")))
    order = [type_coerce(table.c[name], NullType()) for name in names]
    statement = select(*raw_columns(spec)).where(table.c.namespace == namespace).order_by(*order).limit(_PORTION_ROWS)
    if parents is not None:
        statement = statement.where(table.c[spec.parent or "id"].in_(parents))
    if after:
        statement = statement.where(tuple_(*order) > tuple_(*(literal(value, NullType()) for value in after)))
    lines: list[bytes] = []
    ids: list[str] = []
    size, row = 0, ()
    rows = _run(connection, statement)
    for row in rows:
        lines.append(write(namespace, row))
        ids.append(row[0])
        size += len(lines[-1])
        if size >= _PORTION_BYTES:
            break
    rows.close()  # an unfinished statement would keep this lane's reads at this commit
    is_last = size < _PORTION_BYTES and len(lines) < _PORTION_ROWS
    return Portion(lines, ids, None if is_last else tuple(row[spec.index(name)] for name in names))


def list_namespaces(connection: Connection) -> list[str]:
    """Return every namespace that holds a record, sorted."""
    tables = [spec.table for spec in RECORDS.values() if spec.parent is None]  # parts stand beside their episode
    found: list[str] = []
    while True:  # jumping from one to the next through the primary key costs nothing, a DISTINCT reads every key
        last = found[-1] if found else ""
        following = [
            _one(connection, select(func.min(table.c.namespace)).where(table.c.namespace > last)) for table in tables
        ]
        known = [namespace for namespace in following if namespace is not None]
        if not known:
            return found
        found.append(min(known))


def count_rows(connection: Connection, kind: str, namespace: str) -> int:
    """Return how many records of a kind a namespace holds."""
    table = RECORDS[kind].table
    return int(_one(connection, select(func.count()).select_from(table).where(table.c.namespace == namespace)))


def count_changes(connection: Connection) -> int:
    """Return the length of the change log."""
    return int(_one(connection, select(func.count()).select_from(CHANGES)))


def _one(connection: Connection, statement: Select[Any]) -> Any:
    return _run(connection, statement).fetchone()[0]


def _run(connection: Connection, statement: Select[Any]) -> Cursor:
    dialect = dialect_of(connection)
    made = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    values = made.construct_params()
    return connection.execute(written_in(dialect, made.string), [values[name] for name in made.positiontup or ()])
