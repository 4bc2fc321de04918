"""Filters, orders and pages: SQLAlchemy expressions over a kind's table, kept inside one namespace."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack
from sqlalchemy import (
    Column,
    Dialect,
    Integer,
    Select,
    and_,
    bindparam,
    false,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import (
    BindParameter,
    ColumnClause,
    ColumnElement,
    Grouping,
    TextClause,
    UnaryExpression,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import asc_op, custom_op, desc_op
from sqlalchemy.sql.selectable import Exists, FromClause, ScalarSelect, SelectBase
from sqlalchemy.types import NullType

from memory_store.codec import pack_row
from memory_store.durable.changes import HEAD, HeadState
from memory_store.durable.compiled import compiled
from memory_store.durable.statements import HEAD_STATE, raw_columns
from memory_store.errors import ConfigurationError
from memory_store.records import RecordSpec

__all__ = [
    "Order",
    "Query",
    "check_inside",
    "count_query",
    "cursor_after",
    "head_in",
    "page_query",
    "parse_order",
    "within",
]


class Order(NamedTuple):
    """One part of an order: an expression and its direction."""

    expression: ColumnElement[Any]
    descending: bool


def parse_order(spec: RecordSpec[Any], order_by: Any) -> tuple[Order, ...]:
    """Return the order with the id as the last part, which makes it total, so that a page ends at one exact place.

    Args:
        spec: the kind.
        order_by: None (by id, which is by time for ids the store made), one expression, or several; `.desc()` allowed.

    Raises:
        TypeError: a part is no column expression.
        ConfigurationError: a part reads another table.
    """
    parts = () if order_by is None else order_by if isinstance(order_by, list | tuple) else (order_by,)
    orders = []
    for part in parts:
        descending = isinstance(part, UnaryExpression) and part.modifier is desc_op
        if isinstance(part, UnaryExpression) and part.modifier in (desc_op, asc_op):
            part = part.element
        orders.append(Order(_own_expression(spec, part, "order_by"), descending))
    last = orders[-1].descending if orders else False
    return (*orders, Order(spec.table.c.id, last))


def _own_expression(spec: RecordSpec[Any], expression: Any, name: str) -> ColumnElement[Any]:
    if not isinstance(expression, ColumnElement):
        raise TypeError(
            f"{name} must be an expression over {spec.record.__name__}.c, such as {spec.record.__name__}.c.id == ..., "
            f"got {type(expression).__name__}"
        )
    return expression


def check_inside(spec: RecordSpec[Any], name: str, expression: ColumnElement[Any]) -> None:
    """Check that an expression reads this kind's columns and nothing else, so that it cannot leave the namespace.

    Raises:
        ConfigurationError: it reads another table, or holds SQL text, whose extent nobody can see.
    """
    for element in visitors.iterate(expression):
        if isinstance(element, Column):
            if element.table is not spec.table:
                raise ConfigurationError(f"{name} of {spec.kind} reads {element}; it may only read {spec.table.name}")
        elif isinstance(element, FromClause | SelectBase | ScalarSelect | Exists):
            if element is not spec.table and not isinstance(element, FunctionElement):
                raise ConfigurationError(f"{name} of {spec.kind} has a query in it; it may only read {spec.table.name}")
        elif isinstance(element, TextClause | ColumnClause):
            raise ConfigurationError(f"{name} of {spec.kind} holds SQL text: {str(element)!r:.80}")
        elif isinstance(element, BindParameter) and not element.unique:
            raise ConfigurationError(
                f"{name} of {spec.kind} holds a named parameter, {element.key!r:.80}: give the value"
            )
        operator = getattr(element, "operator", None)
        words = [operator.opstring] if isinstance(operator, custom_op) else []
        words += [element.name] if isinstance(element, FunctionElement) and hasattr(element, "name") else []
        if not all(_HARMLESS.fullmatch(word) for word in words):
            raise ConfigurationError(f"{name} of {spec.kind} holds SQL text: {words[0]!r:.80}")


_HARMLESS = re.compile(r"[\w <>=!~|&@#%^*/+?-]+")


class Query(NamedTuple):
    """A statement ready for the driver."""

    text: str
    parameters: list[Any]

    @property
    def id(self) -> str:
        """A hash that two queries share only if they ask the same."""
        return hashlib.blake2b(f"{self.text}{self.parameters!r}".encode(), digest_size=16).hexdigest()


def page_query(
    dialect: Dialect,
    spec: RecordSpec[Any],
    namespace: str,
    where: ColumnElement[bool] | None,
    orders: Sequence[Order],
    limit: int,
    cursor: str | None,
    shard: int | None = None,
) -> Query:
    """Return the query of one page: the row's values, then those of each part of the order that is no column of it.

    A page continues by value, not by offset: it costs the same wherever it starts, and rows that come or go meanwhile
    are neither repeated nor skipped. With a shard, its head as the rows' snapshot saw it stands last, for `head_in`.

    The limit is part of the text: with a parameter in its place, PostgreSQL makes a new plan for each page (100 µs),
    since the one it could keep would be for a tenth of the rows.
    """
    after = None if cursor is None else _read_cursor(spec, orders, cursor)
    values = {"namespace_": namespace, "shard_": shard}
    values.update({f"after_{i}": value for i, value in enumerate(after or ())})
    nulls = None if after is None else tuple(value is None for value in after)

    def build() -> Select[Any]:
        if where is not None:
            check_inside(spec, "where", where)
        for order in orders:
            check_inside(spec, "order_by", order.expression)
        beside = [_raw(order.expression) for order in orders if _place(spec, order) is None]
        statement = select(*raw_columns(spec), *beside).where(within(spec, where))
        if nulls is not None:
            statement = statement.where(_after(orders, nulls))
        if shard is not None:
            statement = statement.add_columns(_HEAD)
        return statement.order_by(*map(_direction, orders)).limit(literal_column(str(limit)))

    given = [*([] if where is None else [_own_expression(spec, where, "where")]), *(o.expression for o in orders)]
    shape = ("page", spec.kind, limit, where is None, tuple(order.descending for order in orders), nulls, shard is None)
    return Query(*compiled(dialect, shape, given, values, build))


# One text, made once a query: five more columns made a page of 50 rows 30 µs slower on the wire alone.
_HEAD = (
    select(func.concat_ws(" ", *HEAD_STATE))
    .where(HEAD.c.shard == bindparam("shard_", type_=Integer()))
    .scalar_subquery()
)


def head_in(row: Sequence[Any]) -> HeadState:
    """Return the head that stands in a row of a page's query for a shard."""
    position, nonce, store_id, epoch, shard = row[-1].split(" ")
    return HeadState(int(position), int(nonce), store_id, int(epoch), int(shard))


def count_query(dialect: Dialect, spec: RecordSpec[Any], namespace: str, where: ColumnElement[bool] | None) -> Query:
    """Return the query that counts."""

    def build() -> Select[Any]:
        if where is not None:
            check_inside(spec, "where", where)
        return select(func.count()).select_from(spec.table).where(within(spec, where))

    given = [] if where is None else [_own_expression(spec, where, "where")]
    return Query(*compiled(dialect, ("count", spec.kind, where is None), given, {"namespace_": namespace}, build))


def within(spec: RecordSpec[Any], where: ColumnElement[bool] | None) -> ColumnElement[bool]:
    """Return the condition of being of the namespace `namespace_`, and meeting an expression."""
    inside = spec.table.c.namespace == bindparam("namespace_")
    # Grouped: whatever the expression renders as, an OR in it cannot reach past the namespace.
    return inside if where is None else and_(inside, Grouping(where))


def _direction(order: Order) -> ColumnElement[Any]:
    expression = order.expression
    part = expression.desc() if order.descending else expression.asc()
    if isinstance(expression, Column) and not expression.nullable:
        return part  # to say more keeps PostgreSQL from using an index: a page took nine times as long
    # NULL sorts before all values in SQLite; said, so that every database and `_after` agree.
    return part.nulls_last() if order.descending else part.nulls_first()


def _raw(expression: ColumnElement[Any]) -> ColumnElement[Any]:
    return type_coerce(expression, NullType())  # the stored value, untouched by its type


def _after(orders: Sequence[Order], nulls: Sequence[bool], index: int = 0) -> ColumnElement[bool]:
    """Return the condition of standing after a cursor's values (parameters `after_0`, ...), of which some are NULL.

    Later in this part of the order, or equal in it and later in the rest.
    """
    first, descending = orders[index]
    expression = _raw(first)
    open_end = descending and not (isinstance(first, Column) and not first.nullable)  # NULL comes last then
    bound: ColumnElement[bool] | None = None
    ways: list[ColumnElement[bool]] = []
    if nulls[index]:
        same: ColumnElement[bool] = expression.is_(None)
        if not descending:
            ways.append(expression.is_not(None))
    else:
        value = bindparam(f"after_{index}", type_=NullType())
        same = expression == value
        ways.append(expression < value if descending else expression > value)
        if open_end:
            ways.append(expression.is_(None))
        else:  # a range for the index, which an OR alone is not
            bound = expression <= value if descending else expression >= value
    if index + 1 < len(orders):
        ways.append(and_(same, _after(orders, nulls, index + 1)))
    condition = or_(false(), *ways)
    return condition if bound is None else and_(bound, condition)


def _place(spec: RecordSpec[Any], order: Order) -> int | None:
    """Return where in a row the value of a part of the order stands, None where it is no column of the row."""
    expression = order.expression
    return spec.index(expression.key) if isinstance(expression, Column) and expression.key in spec.columns else None


def cursor_after(spec: RecordSpec[Any], orders: Sequence[Order], row: Sequence[Any]) -> str:
    """Return the cursor of the page that follows this result row."""
    beside = iter(row[len(spec.columns) :])
    places = [_place(spec, order) for order in orders]
    values = [next(beside) if place is None else row[place] for place in places]
    return base64.urlsafe_b64encode(pack_row([_order_digest(orders), values])).decode().rstrip("=")


def _read_cursor(spec: RecordSpec[Any], orders: Sequence[Order], cursor: str) -> list[Any]:
    try:
        if not isinstance(cursor, str):
            raise TypeError(f"cursor must be the text of a page's cursor, got {type(cursor).__name__}")
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        digest, values = msgpack.unpackb(packed, max_ext_len=0)
    except (ValueError, binascii.Error, msgpack.UnpackException) as error:
        raise ConfigurationError(f"not a cursor of a page of {spec.kind}: {cursor!r:.80}") from error
    if digest != _order_digest(orders) or not isinstance(values, list) or len(values) != len(orders):
        raise ConfigurationError(f"the cursor belongs to another kind or order: {cursor!r:.80}")
    return values


def _order_digest(orders: Sequence[Order]) -> bytes:
    # Rendering an expression takes 100 µs and most orders are plain columns, whose name says as much.
    text = ";".join(
        f"{o.expression.key if isinstance(o.expression, Column) else o.expression} {o.descending}" for o in orders
    )
    return hashlib.blake2b(text.encode(), digest_size=6).digest()
