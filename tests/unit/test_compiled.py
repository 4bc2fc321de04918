"""What `compiled` relies on inside SQLAlchemy, and that kept text takes its values from the new expression."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import bindparam, func, literal, select
from sqlalchemy.sql.elements import ColumnElement

from memory_store import ConfigurationError, Episode
from memory_store.durable.query import count_query, page_query, parse_order
from memory_store.durable.statements import dialect
from memory_store.records import RECORDS

SPEC = RECORDS["episode"]
c = Episode.c
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_sqlalchemys_cache_key_tells_the_shape_and_lists_the_values() -> None:
    first = ((c.domain == "a") & (c.reward_score > 1))._generate_cache_key()
    second = ((c.domain == "b") & (c.reward_score > 2))._generate_cache_key()
    other = ((c.domain == "a") & (c.reward_score < 1))._generate_cache_key()
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.key == second.key != other.key
    assert [parameter.effective_value for parameter in first.bindparams] == ["a", 1]
    assert [parameter.effective_value for parameter in second.bindparams] == ["b", 2]


def test_sqlalchemys_bind_processors_turn_values_into_stored_ones() -> None:
    made = select(c.id).where(c.created_at > NOON).compile(dialect=dialect())
    [name] = made.positiontup or ()
    process: Any = made._bind_processors[name]
    assert process(NOON) == int(NOON.timestamp()) * 1_000_000


TWICE: list[tuple[ColumnElement[bool], ColumnElement[bool]]] = [
    (c.domain == "a", c.domain == "b"),
    ((c.domain == "a") | (c.domain == "b"), (c.domain == "x") | (c.domain == "y")),
    (c.created_at > NOON, c.created_at > NOON.replace(hour=13)),
    (c.context["a"].as_integer() > 1, c.context["b"].as_integer() > 2),
    (c.id.in_(["a", "b"]), c.id.in_(["c"])),
    (c.id.in_([]), c.id.in_(["c"])),
    (func.lower(c.domain) == "a", func.lower(c.domain) == "b"),
    (c.domain == literal("a"), c.domain == literal("b")),
    (c.reward_score.between(1, 2), c.reward_score.between(3, 4)),
    (c.domain.like("a%", escape="/"), c.domain.like("b%", escape="!")),
]


@pytest.mark.parametrize("number", range(len(TWICE)))
def test_kept_text_takes_the_new_values(number: int) -> None:
    """The second expression of a shape must be asked exactly as if it had been compiled alone."""
    for where in (*TWICE[number], *TWICE[number]):
        query = count_query(dialect(), SPEC, "n", where)
        namespaced = (c.namespace == "n") & where
        alone = select(func.count()).select_from(SPEC.table).where(namespaced)
        made = alone.compile(dialect=dialect(), compile_kwargs={"render_postcompile": True})
        expected = [made.construct_params()[name] for name in made.positiontup or ()]
        processed = [
            value if (process := made._bind_processors.get(name)) is None else process(value)  # type: ignore[operator]
            for name, value in zip(made.positiontup or (), expected, strict=True)
        ]
        assert query.parameters == processed


def test_one_expression_in_filter_and_order_then_two_of_the_same_shape(connection: sqlite3.Connection) -> None:
    both = c.context["i"].as_integer()
    page_query(dialect(), SPEC, "n", both > 1, parse_order(SPEC, both), 10, None)
    other = c.context["j"].as_integer()
    query = page_query(dialect(), SPEC, "n", both > 1, parse_order(SPEC, other), 10, None)
    assert query.parameters.count('$."i"') == 1
    connection.execute(*query).fetchall()


@pytest.mark.parametrize("name", ["namespace_", "limit_", "after_0", "mine"])
def test_named_parameters_are_refused_for_they_could_stand_in_for_the_stores(name: str) -> None:
    where = c.domain == bindparam(name, "other")
    with pytest.raises(ConfigurationError, match="holds a named parameter"):
        count_query(dialect(), SPEC, "n", where)
    with pytest.raises(ConfigurationError, match="holds a named parameter"):
        page_query(dialect(), SPEC, "n", where, parse_order(SPEC, None), 10, None)
