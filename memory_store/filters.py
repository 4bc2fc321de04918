"""Filters and orders given as data: a small, whitelisted JSON language, translated into SQLAlchemy expressions.

    {"domain": "web", "created_at": {"$gte": "2026-01-01T00:00:00Z"}, "status": {"$in": ["failed", "archived"]}}

All conditions must hold. Only the kind's own plain columns can be named, and values are only ever bound as parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, and_
from sqlalchemy.sql.elements import ColumnElement

from memory_store.errors import ConfigurationError
from memory_store.records import RecordSpec
from memory_store.records.columns import Float32Vector, UtcDateTime

__all__ = ["parse_filter", "parse_order_by"]

_MAX_VALUES = 1000


def parse_filter(spec: RecordSpec[Any], conditions: Any) -> ColumnElement[bool] | None:
    """Return the expression of a filter, None for one without conditions.

    Args:
        spec: the kind it filters.
        conditions: `{column: value}` or `{column: {operator: value, ...}, ...}` with the operators $eq $ne $gt $gte $lt
            $lte $in. Times are ISO 8601 text (UTC where they have no zone); null is allowed with $eq and $ne.

    Raises:
        ConfigurationError: it is no such object, or names an unknown column or operator, or a value of the wrong type.
    """
    if type(conditions) is not dict:
        raise ConfigurationError(
            f'a filter is an object such as {{"domain": {{"$eq": "web"}}}}, got {conditions!r:.60}'
        )
    expressions: list[ColumnElement[bool]] = []
    for name, condition in conditions.items():
        column = _column(spec, name)
        if type(condition) is not dict:
            condition = {"$eq": condition}
        if not condition:
            raise ConfigurationError(f"filter on {name!r} has no operator; known: {', '.join(_OPERATORS)}")
        for operator, value in condition.items():
            expressions.append(_expression(spec, column, operator, value))
    return and_(*expressions) if expressions else None


def parse_order_by(spec: RecordSpec[Any], name: str, *, descending: bool) -> ColumnElement[Any]:
    """Return the order by a column's name.

    Raises:
        ConfigurationError: there is no such column, or it has no order.
    """
    column = _column(spec, name)
    return column.desc() if descending else column.asc()


def _column(spec: RecordSpec[Any], name: str) -> Column[Any]:
    plain = [name for name in spec.columns if not isinstance(spec.table.c[name].type, JSON | Float32Vector)]
    if name not in plain:
        raise ConfigurationError(
            f"{spec.kind} has no column {name!r:.80} to filter or order by; it has {', '.join(plain)}"
        )
    column: Column[Any] = spec.table.c[name]
    return column


_OPERATORS: dict[str, Callable[[Column[Any], Any], ColumnElement[bool]]] = {
    # Unlike SQL's = and <>, these two treat null as a value.
    "$eq": lambda column, value: column.is_(None) if value is None else column == value,
    "$ne": lambda column, value: column.is_not(None) if value is None else column.is_distinct_from(value),
    "$gt": lambda column, value: column > value,
    "$gte": lambda column, value: column >= value,
    "$lt": lambda column, value: column < value,
    "$lte": lambda column, value: column <= value,
    "$in": lambda column, value: column.in_(value),
}


def _expression(spec: RecordSpec[Any], column: Column[Any], operator: str, value: Any) -> ColumnElement[bool]:
    make = _OPERATORS.get(operator)
    if make is None:
        raise ConfigurationError(f"unknown operator {operator!r:.40}; known: {', '.join(_OPERATORS)}")
    if operator == "$in":
        if type(value) is not list or len(value) > _MAX_VALUES:
            raise ConfigurationError(f"$in on {column.name!r} takes a list of at most {_MAX_VALUES:,} values")
        return make(column, [_value(spec, column, item) for item in value])
    if value is None and operator in ("$eq", "$ne"):
        return make(column, None)
    if isinstance(column.type, Boolean) and operator not in ("$eq", "$ne"):
        raise ConfigurationError(f"{operator} has no meaning for {column.name!r}, which is true or false")
    return make(column, _value(spec, column, value))


def _value(spec: RecordSpec[Any], column: Column[Any], value: Any) -> Any:
    kind = column.type
    if isinstance(kind, UtcDateTime):
        return _time(spec, column, value)
    if isinstance(kind, Boolean):
        fits, wanted = type(value) is bool, "true or false"
    elif isinstance(kind, BigInteger):
        fits, wanted = type(value) is int and -(1 << 63) <= value < 1 << 63, "an integer of 64 bits"
    elif isinstance(kind, Float):
        fits = type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
        value, wanted = float(value) if fits else value, "a finite number"
    else:
        fits, wanted = type(value) is str and _is_unicode(value), "text"
    if not fits:
        raise ConfigurationError(f"{spec.kind}.{column.name} is compared with {wanted}, got {value!r:.60}")
    return value


def _time(spec: RecordSpec[Any], column: Column[Any], value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{spec.kind}.{column.name} is compared with a time as ISO 8601 text, got {value!r:.60}"
        ) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
