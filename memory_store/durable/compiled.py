"""Users' expressions as text and parameters for the driver, compiled once a shape.

Building, compiling and executing a page through a SQLAlchemy connection took 600 µs, four times the query itself. So
the text is kept by the expression's shape (SQLAlchemy's own cache key), and only the values are taken from each new
expression. Reaches into SQLAlchemy at two places, `_generate_cache_key` and `_bind_processors`, both pinned by
`tests/unit/test_compiled.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from cachetools import LRUCache
from sqlalchemy import Column, Dialect, Select
from sqlalchemy.sql.elements import ColumnElement

from memory_store.durable.statements import written_in
from memory_store.errors import ConfigurationError

__all__ = ["compiled"]


class _Slot(NamedTuple):
    """Where a parameter's value comes from: the expressions' own by number, the named values, or a constant."""

    own: int | None
    name: str
    constant: Any
    process: Callable[[Any], Any] | None


class _Compiled(NamedTuple):
    text: str
    slots: list[_Slot]


_INT64 = 1 << 63
_KEPT: LRUCache[Hashable, _Compiled] = LRUCache(maxsize=512)


def compiled(
    dialect: Dialect,
    shape: Hashable,
    expressions: Sequence[ColumnElement[Any]],
    values: Mapping[str, Any],
    build: Callable[[], Select[Any]],
) -> tuple[str, list[Any]]:
    """Return the text and the parameters of a statement.

    Args:
        dialect: in which.
        shape: everything the statement depends on besides the expressions and values.
        expressions: the user's expressions in it.
        values: values of the statement's named parameters.
        build: makes the statement, when its shape is new.

    Raises:
        ConfigurationError: an expression holds a value that no database takes.
    """
    columns = [expression for expression in expressions if isinstance(expression, Column)]  # these are their own shape
    keys = [e._generate_cache_key() for e in expressions if not isinstance(e, Column)]
    own = [parameter for key in keys if key is not None for parameter in key.bindparams]
    if None in keys or any(parameter.expanding for parameter in own):  # `in_` has as many parameters as values
        return _compile_now(dialect, build(), values)
    # The same parameter object in two places is one parameter of the statement; two that look alike are two.
    places = {id(parameter): index for index, parameter in enumerate(own)}
    shared = tuple(places[id(parameter)] for parameter in own)
    kinds = tuple(isinstance(expression, Column) for expression in expressions)
    full_shape = (dialect.name, shape, kinds, tuple(columns), tuple(key.key for key in keys if key is not None), shared)
    kept = _KEPT.get(full_shape)
    if kept is None:
        kept = _KEPT[full_shape] = _compile(dialect, build(), places)
    parameters = []
    for slot in kept.slots:
        value = values.get(slot.name, slot.constant) if slot.own is None else own[slot.own].effective_value
        parameters.append(_stored(value, slot.process))
    return kept.text, parameters


def _stored(value: Any, process: Callable[[Any], Any] | None) -> Any:
    """Return a value as the driver takes it, checked here: drivers refuse with errors that name neither."""
    if isinstance(value, dict | list | set):
        raise ConfigurationError(
            f"an expression compares with a {type(value).__name__}; compare with a part of it, such as "
            "Episode.c.context['goal'].as_string() == ..."
        )
    if process is not None:
        value = process(value)
    if type(value) is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"an expression holds a text with a lone surrogate at character {error.start}, which no database stores"
            ) from error
    elif type(value) is int and not -_INT64 <= value < _INT64:
        raise ConfigurationError(f"an expression holds an integer of {value.bit_length():,} bits, the limit is 64")
    return value


def _compile(dialect: Dialect, statement: Select[Any], places: Mapping[int, int]) -> _Compiled:
    made = statement.compile(dialect=dialect)
    slots = [
        _Slot(places.get(id(made.binds[name])), name, made.binds[name].value, made._bind_processors.get(name))  # type: ignore[arg-type]
        for name in made.positiontup or ()
    ]
    return _Compiled(written_in(dialect, made.string), slots)


def _compile_now(dialect: Dialect, statement: Select[Any], values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    made = statement.compile(dialect=dialect)
    state = made.construct_expanded_state(dict(values))
    processors: dict[str, Any] = {**made._bind_processors, **state.processors}
    parameters = []
    for name in state.positiontup or ():
        parameters.append(_stored(state.parameters[name], processors.get(name)))
    return written_in(dialect, state.statement), parameters
