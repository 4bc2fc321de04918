"""The hot statements, built from the tables and compiled once; their text is run by the driver itself.

Going through SQLAlchemy for each execution measured 13 to 56 times the driver's own time on point reads and writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Dialect,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.expression import ClauseElement, ColumnElement
from sqlalchemy.types import NullType

from memory_store.durable.changes import CHANGES, HEAD, SHARD
from memory_store.records import RECORDS, RecordSpec

__all__ = [
    "DIALECT",
    "STATEMENTS",
    "Statements",
    "batch_size",
    "head_select",
    "head_update",
    "log_insert",
    "pad",
    "raw_columns",
]

DIALECT: Dialect = sqlite.dialect(paramstyle="qmark")
_MAX_BATCH = 512
_ONE: ColumnElement[int] = literal_column("1")


def _text(statement: ClauseElement) -> str:
    return str(statement.compile(dialect=DIALECT, compile_kwargs={"render_postcompile": True}))


def raw_columns(spec: RecordSpec[Any]) -> list[ColumnElement[Any]]:
    """Return the columns of a row such that a result holds the stored values, untouched by their types."""
    return [type_coerce(spec.table.c[name], NullType()).label(name) for name in spec.columns]


def batch_size(count: int) -> int:
    """Return the places of the statement that reads `count` keys: few sizes, so the driver's cache holds them."""
    return min(1 << (count - 1).bit_length(), _MAX_BATCH)


class Statements:
    """The statements of one kind. Parameters are positional: namespace first, then as each comment says."""

    def __init__(self, spec: RecordSpec[Any]) -> None:
        self._spec = spec
        table = spec.table
        namespace = table.c.namespace == bindparam("namespace")
        one = and_(namespace, table.c.id == bindparam("id"))
        values: dict[str, Any] = {name: bindparam(f"v_{name}") for name in spec.columns if name != "id"}
        # namespace, id, row...; ON CONFLICT DO NOTHING: the row count says whether it was new
        self.insert = _text(
            sqlite.insert(table)
            .values({name: bindparam(name) for name in ["namespace", *spec.columns]})
            .on_conflict_do_nothing(index_elements=["namespace", "id"])
        )
        # row without id, namespace, id
        self.replace = _text(update(table).where(one).values(values))
        # namespace, id
        self.delete = _text(delete(table).where(one))
        # namespace, id -> row
        self.get = _text(select(*raw_columns(spec)).where(one))
        # limit -> namespace, id
        self.newest = _text(
            select(table.c.namespace, table.c.id).order_by(table.c[spec.warm_by].desc()).limit(bindparam("limit"))
        ).removesuffix(" OFFSET ?")
        self.parent_exists = self.last_number = self.has_parts = self.numbers = ""
        if spec.parent is not None:
            episodes = RECORDS["episode"].table
            parts = and_(namespace, table.c[spec.parent] == bindparam("parent"))
            # namespace, parent
            self.parent_exists = _text(
                select(episodes.c.id).where(episodes.c.namespace == bindparam("n"), episodes.c.id == bindparam("p"))
            )
            # namespace, parent -> 1 or 0
            self.has_parts = _text(select(exists(select(_ONE).where(parts))))
            if spec.number is not None:
                # namespace, parent -> the highest number
                self.last_number = _text(select(func.max(table.c[spec.number])).where(parts))
                # namespace, parent -> id, number
                self.numbers = _text(select(table.c.id, table.c[spec.number]).where(parts))

    @lru_cache(maxsize=16)  # noqa: B019 - lives as long as the registry
    def get_many(self, places: int) -> str:
        """namespace, `places` keys -> rows; for a part the keys are parents and the rows come in their order."""
        spec, table = self._spec, self._spec.table
        column = table.c[spec.parent or "id"]
        statement: Select[Any] = select(*raw_columns(spec)).where(
            table.c.namespace == bindparam("namespace"), column.in_([bindparam(f"k{i}") for i in range(places)])
        )
        if spec.parent is not None:
            statement = statement.order_by(column, *(table.c[name] for name in spec.order))
        return _text(statement)

    @lru_cache(maxsize=16)  # noqa: B019 - lives as long as the registry
    def get_by_id(self, places: int) -> str:
        """namespace, `places` ids -> rows, in no order."""
        table = self._spec.table
        return _text(
            select(*raw_columns(self._spec)).where(
                table.c.namespace == bindparam("namespace"),
                table.c.id.in_([bindparam(f"k{i}") for i in range(places)]),
            )
        )


def pad(keys: Sequence[str], places: int) -> list[str]:
    """Return the keys repeated at the end until they fill the places; a repeated key reads no second row."""
    return [*keys, *([keys[-1]] * (places - len(keys)))]


STATEMENTS: dict[str, Statements] = {kind: Statements(spec) for kind, spec in RECORDS.items()}

# () -> position, nonce, store_id, epoch
_OUR_HEAD = HEAD.c.shard == literal_column(str(SHARD))
head_select = _text(select(HEAD.c.position, HEAD.c.nonce, HEAD.c.store_id, HEAD.c.epoch).where(_OUR_HEAD))
# nonce -> position
head_update = _text(
    update(HEAD)
    .where(_OUR_HEAD)
    .values(position=HEAD.c.position + _ONE, nonce=bindparam("new_nonce"))
    .returning(HEAD.c.position)
)
# a row of `changes`, its columns in their order
log_insert = _text(insert(CHANGES).values({column.name: bindparam(column.name) for column in CHANGES.columns}))
