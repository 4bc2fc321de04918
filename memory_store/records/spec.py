"""`RecordSpec`: all there is to say about a kind, said once, in the kind's own file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, String, Table, Text

from memory_store.clock import from_us
from memory_store.records.base import (
    Check,
    Record,
    check_boolean,
    check_float,
    check_integer,
    check_json,
    check_key,
    check_text,
    check_time,
    parse_json,
)
from memory_store.records.columns import Float32Vector, UtcDateTime

__all__ = ["R", "RecordSpec"]

R = TypeVar("R", bound=Record)


def _keep(record: Record, name: str, value: object) -> object:
    return value  # the record's own __post_init__ has brought it into form


def _check_for(column: Column[object]) -> Check:
    kind = column.type
    if isinstance(kind, UtcDateTime):
        return check_time
    if isinstance(kind, Float32Vector):
        return _keep
    if isinstance(kind, JSON):
        return check_json
    if isinstance(kind, Text):
        return check_text
    if isinstance(kind, String):
        return check_key
    if isinstance(kind, Boolean):
        return check_boolean
    if isinstance(kind, Float):
        return check_float
    if isinstance(kind, BigInteger):
        return check_integer
    raise TypeError(f"column {column} has type {kind!r}, which records/columns.py does not list")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordSpec(Generic[R]):
    """One kind of record.

    Args:
        record: the dataclass; its fields have the names of the table's columns, in the same order, without `namespace`.
        table: where the durable tier keeps it.
        ttl_s: seconds a cached entry lives.
        size_limit: name of the `Limits` field that bounds one whole record, or None.
        field_limits: `Limits` field that bounds one field's bytes, by field name.
        parent: column that names the episode a record belongs to. Records with a parent are cached together: one entry
            holds all of an episode's, in `order`.
        order: columns that order the records of one parent.
        number: integer column the store fills per parent (1, 2, 3, ...) when it is None.
        warm_by: column whose highest values are cached first in a rebuild; parts come with their episode.
        history: whether the change log keeps the versions that were replaced or deleted.
        searched: fields whose text full-text search looks at.
    """

    record: type[R]
    table: Table
    ttl_s: float
    size_limit: str | None = None
    field_limits: tuple[tuple[str, str], ...] = ()
    parent: str | None = None
    order: tuple[str, ...] = ()
    number: str | None = None
    warm_by: str = "created_at"
    history: bool = False
    searched: tuple[str, ...] = ()
    columns: tuple[str, ...] = field(init=False)
    """Names of the columns in row order, without `namespace`."""
    parent_index: int | None = field(init=False)
    """Where the parent stands in the row, None for a kind without one."""

    def __post_init__(self) -> None:
        names = tuple(item.name for item in fields(self.record))
        object.__setattr__(self, "parent_index", None if self.parent is None else names.index(self.parent))
        object.__setattr__(self, "columns", tuple(c.name for c in self.table.columns if c.name != "namespace"))
        if names != self.columns:
            raise TypeError(f"{self.record.__name__} has fields {names}, its table has columns {self.columns}")
        columns = [self.table.c[name] for name in names]
        record = self.record
        record.c = self.table.c
        record._checks = tuple(
            (column.name, _check_for(column), bool(column.nullable) or column.name == self.number) for column in columns
        )
        decoders: list[tuple[type, Callable[..., object]]] = [(UtcDateTime, from_us), (JSON, parse_json)]
        record._lazy = {
            column.name: (index, decode)
            for index, column in enumerate(columns)
            for type_, decode in decoders
            if isinstance(column.type, type_)
        }
        # `dataclass(frozen=True)` would hash the JSON fields too, which cannot be hashed.
        record.__hash__ = Record.__hash__  # type: ignore[method-assign]

    @property
    def kind(self) -> str:
        """Name of the kind, as in the change log, the counters and the export."""
        return self.record.kind

    def index(self, column: str) -> int:
        """Return where a column stands in the row."""
        return self.columns.index(column)
