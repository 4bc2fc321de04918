"""The hot statements, built from the tables and compiled once; their text is run by the driver itself.

Going through SQLAlchemy for each execution measured 13 to 56 times the driver's own time on point reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import Any

from sqlalchemy import (
    Column,
    Dialect,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.sql.expression import ClauseElement, ColumnElement
from sqlalchemy.types import NullType

from memory_store.durable.changes import CHANGES, HEAD, IDEMPOTENCY
from memory_store.durable.connection import Connection, KeyedText, ServerText
from memory_store.records import RECORDS, RecordSpec

__all__ = [
    "HEAD_STATE",
    "STATEMENTS",
    "Statements",
    "dialect",
    "dialect_of",
    "feed_select",
    "head_claim",
    "head_release",
    "head_select",
    "head_update",
    "heads_select",
    "idempotency_insert",
    "idempotency_select",
    "in_batches",
    "log_insert",
    "nonce_select",
    "raw_columns",
    "server_dialect",
    "tail_select",
    "written_in",
]

_MAX_BATCH = 512
_ONE: ColumnElement[int] = literal_column("1")


@cache
def dialect() -> Dialect:
    """Return the dialect whose text and parameter style the driver takes."""
    from sqlalchemy.dialects import sqlite

    return sqlite.dialect(paramstyle="qmark")


@cache
def server_dialect() -> Dialect:
    """Return PostgreSQL's dialect as its driver takes it, with `$1` for parameters."""
    from memory_store.durable.dialects.postgresql_json import made_dialect

    return made_dialect("numeric_dollar")


def dialect_of(connection: Connection) -> Dialect:
    """Return the dialect a connection's database speaks."""
    return getattr(connection, "dialect", None) or dialect()


def written_in(dialect: Dialect, text: str) -> str:
    """Return the text of a statement compiled in a dialect, as its connections take it."""
    return text if dialect.name == "sqlite" else ServerText(text)


def _text(statement: ClauseElement) -> str:
    return str(statement.compile(dialect=dialect(), compile_kwargs={"render_postcompile": True}))


def raw_columns(spec: RecordSpec[Any]) -> list[ColumnElement[Any]]:
    """Return the columns of a row such that a result holds the stored values, untouched by their types."""
    return [type_coerce(spec.table.c[name], NullType()).label(name) for name in spec.columns]


_OUR_HEAD = HEAD.c.shard == bindparam("shard")
HEAD_STATE = (HEAD.c.position, HEAD.c.nonce, HEAD.c.store_id, HEAD.c.epoch, HEAD.c.shard)


class Statements:
    """The statements of one kind, each compiled when it is first used. Parameters are positional, as each one says."""

    def __init__(self, spec: RecordSpec[Any]) -> None:
        self._spec, self._table = spec, spec.table
        self._in_namespace = spec.table.c.namespace == bindparam("namespace")
        self._one = and_(self._in_namespace, spec.table.c.id == bindparam("id"))
        self._many: dict[tuple[str, int], str] = {}

    @cached_property
    def insert(self) -> str:
        """namespace, row...; what exists is left alone: the row count says how many were new."""
        from sqlalchemy.dialects import sqlite

        return _text(
            sqlite.insert(self._table)
            .values({name: bindparam(name) for name in ["namespace", *self._spec.columns]})
            .on_conflict_do_nothing(index_elements=["namespace", "id"])
        )

    @cached_property
    def replace(self) -> str:
        """Row without id, namespace, id."""
        values: dict[str, Any] = {name: bindparam(f"v_{name}") for name in self._spec.columns if name != "id"}
        return _text(update(self._table).where(self._one).values(values))

    @cached_property
    def renumber(self) -> str:
        """Number, namespace, id."""
        return _text(update(self._table).where(self._one).values({self._spec.number or "": bindparam("new_number")}))

    @cached_property
    def delete(self) -> str:
        """namespace, id."""
        return _text(delete(self._table).where(self._one))

    @cached_property
    def get(self) -> str:
        """namespace, id -> row."""
        return _text(select(*raw_columns(self._spec)).where(self._one))

    @cached_property
    def newest(self) -> str:
        """Limit -> namespace, id."""
        order = self._table.c[self._spec.warm_by].desc()
        statement = select(self._table.c.namespace, self._table.c.id).order_by(order).limit(bindparam("limit"))
        return _text(statement).removesuffix(" OFFSET ?")

    @cached_property
    def has_parts(self) -> str:
        """namespace, parent -> 1 or 0."""
        return _text(select(exists(select(_ONE).where(self._of_parent))))

    @cached_property
    def numbers(self) -> str:
        """namespace, parent -> id, number."""
        return _text(select(self._table.c.id, self._table.c[self._spec.number or ""]).where(self._of_parent))

    def get_many(self, places: int) -> str:
        """namespace, `places` keys -> rows; for a part the keys are parents and the rows come in their order."""
        return self._get_in(self._spec.parent or "id", places)

    def get_with_head(self, places: int) -> str:
        """namespace, `places` keys, shard -> rows as `get_many`, then its head; one row of None where there is none."""
        return self._get_in(self._spec.parent or "id", places, with_head=True)

    def get_by_id(self, places: int) -> str:
        """namespace, `places` ids -> rows, in no order."""
        return self._get_in("id", places)

    def last_numbers(self, places: int) -> str:
        """namespace, `places` parents -> parent, its highest number; a parent that does not exist is missing."""
        text = self._many.get(("last_numbers", places))
        if text is None:
            table, episodes = self._table, RECORDS["episode"].table
            highest: Any = null()
            if self._spec.number is not None:
                belongs = and_(
                    table.c.namespace == episodes.c.namespace, table.c[self._spec.parent or ""] == episodes.c.id
                )
                highest = select(func.max(table.c[self._spec.number])).where(belongs).scalar_subquery()
            found = _text(select(episodes.c.id, highest).where(_keyed(episodes.c.id, places)))
            text = self._many["last_numbers", places] = _keyed_text(found, episodes.c.id, places)
        return text

    @property
    def _of_parent(self) -> ColumnElement[bool]:
        return and_(self._in_namespace, self._table.c[self._spec.parent or ""] == bindparam("parent"))

    def _get_in(self, name: str, places: int, *, with_head: bool = False) -> str:
        shape = (f"{name} {with_head}", places)
        text = self._many.get(shape)
        if text is None:
            column = self._table.c[name]
            ours = _keyed(column, places)
            statement: Select[Any] = select(*raw_columns(self._spec))
            if with_head:
                statement = statement.add_columns(*HEAD_STATE)
                statement = statement.select_from(HEAD.outerjoin(self._table, ours)).where(_OUR_HEAD)
            else:
                statement = statement.where(ours)
            if name != "id":
                statement = statement.order_by(column, *(self._table.c[part] for part in self._spec.order))
            text = self._many[shape] = _keyed_text(_text(statement), column, places)
        return text


def _keyed(column: Column[Any], places: int) -> ColumnElement[bool]:
    keys: list[ColumnElement[Any]] = [bindparam(f"k{i}") for i in range(places)]
    return and_(column.table.c.namespace == bindparam("namespace"), column.in_(keys))


def _keyed_text(text: str, column: Column[Any], places: int) -> str:
    # One key is looked up by equality, which leaves a server no choice.
    return text if places == 1 else KeyedText(text, column.table.name, column.name, places)


def in_batches(keys: Sequence[str]) -> Iterator[list[str]]:
    """Yield the keys in parts, each with its last key again until it fills the places of a statement.

    There are few sizes, so the driver's cache holds the statements; a repeated key reads no second row.
    """
    for start in range(0, len(keys), _MAX_BATCH):
        part = keys[start : start + _MAX_BATCH]
        places = min(1 << (len(part) - 1).bit_length(), _MAX_BATCH)
        yield [*part, *([part[-1]] * (places - len(part)))]


STATEMENTS: dict[str, Statements] = {kind: Statements(spec) for kind, spec in RECORDS.items()}


@cache
def head_select() -> str:
    """Shard -> the values of a `HeadState`."""
    return _text(select(*HEAD_STATE).where(_OUR_HEAD))


@cache
def heads_select() -> str:
    """() -> the values of each shard's `HeadState`."""
    return _text(select(*HEAD_STATE).order_by(HEAD.c.shard))


@cache
def head_claim() -> str:
    """Shard -> the values of its `HeadState`; from here to `head_update` the triggers leave the log to us."""
    return _text(update(HEAD).where(_OUR_HEAD).values(writing=_ONE).returning(*HEAD_STATE))


@cache
def head_release() -> str:
    """() -> nothing: as `head_update`, for a transaction that has nothing to log."""
    return _text(update(HEAD).values(writing=literal_column("0")))


@cache
def head_update() -> str:
    """Nonce, shard -> position."""
    values = {"position": HEAD.c.position + _ONE, "nonce": bindparam("new_nonce"), "writing": literal_column("0")}
    return _text(update(HEAD).where(_OUR_HEAD).values(values).returning(HEAD.c.position))


@cache
def log_insert() -> str:
    """A row of `changes`, its columns in their order."""
    return _text(insert(CHANGES).values({column.name: bindparam(column.name) for column in CHANGES.columns}))


_OUR_LOG = CHANGES.c.shard == bindparam("shard")


@cache
def tail_select() -> str:
    """Shard, two positions, limit -> position, nonce, kind, namespace, key, parent of what is behind the first."""
    columns = [CHANGES.c[name] for name in ("position", "nonce", "kind", "namespace", "key", "parent")]
    behind = and_(CHANGES.c.position > bindparam("after"), CHANGES.c.position <= bindparam("last"))
    statement = select(*columns).where(_OUR_LOG, behind)
    ordered = statement.order_by(CHANGES.c.position, CHANGES.c.idx).limit(bindparam("limit"))
    return _text(ordered).removesuffix(" OFFSET ?")


@cache
def feed_select() -> str:
    """Shard, position, idx, limit -> the log's rows behind them, in order, without shard and image."""
    columns = [type_coerce(c, NullType()) for c in CHANGES.columns if c.name not in ("shard", "image")]
    behind = tuple_(CHANGES.c.position, CHANGES.c.idx) > tuple_(bindparam("position"), bindparam("idx"))
    ordered = select(*columns).where(_OUR_LOG, behind).order_by(CHANGES.c.position, CHANGES.c.idx)
    return _text(ordered.limit(bindparam("limit"))).removesuffix(" OFFSET ?")


@cache
def nonce_select() -> str:
    """Shard, position -> nonce of the commit there."""
    statement = select(CHANGES.c.nonce).where(_OUR_LOG, CHANGES.c.position == bindparam("position")).limit(_ONE)
    return _text(statement).removesuffix(" OFFSET ?").removesuffix(" OFFSET 0")


@cache
def idempotency_select() -> str:
    """namespace, key -> its row without them."""
    columns = [type_coerce(column, NullType()) for column in list(IDEMPOTENCY.columns)[2:]]
    ours = and_(IDEMPOTENCY.c.namespace == bindparam("namespace"), IDEMPOTENCY.c.key == bindparam("key"))
    return _text(select(*columns).where(ours))


@cache
def idempotency_insert() -> str:
    """A row of `idempotency`, its columns in their order."""
    return _text(insert(IDEMPOTENCY).values({column.name: bindparam(column.name) for column in IDEMPOTENCY.columns}))
