"""Pages by value: joined together they are the list that Python would sort, whatever the order, ties and NULLs."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func

from memory_store import ConfigurationError, Episode, Limits
from memory_store.codec import CODECS
from memory_store.durable.query import count_query, cursor_after, page_query, parse_order
from memory_store.durable.statements import STATEMENTS, dialect
from memory_store.records import RECORDS
from tests.unit.samples import make_episode

SPEC = RECORDS["episode"]
CODEC = CODECS["episode"]
START = datetime(2026, 11, 21, tzinfo=UTC)
c = Episode.c

# Each part of an order: the expression, and the same value in Python.
PARTS: dict[str, tuple[Any, Any]] = {
    "id": (c.id, lambda e: e.id),
    "domain": (c.domain, lambda e: e.domain),
    "created_at": (c.created_at, lambda e: e.created_at),
    "reward_score": (c.reward_score, lambda e: e.reward_score),
    "completed_at": (c.completed_at, lambda e: e.completed_at),
    "reflection": (c.reflection, lambda e: e.reflection),
    "length": (func.length(c.reflection), lambda e: None if e.reflection is None else len(e.reflection)),
    "json": (c.context["n"].as_integer(), lambda e: e.context.get("n")),
    "json text": (c.context["t"].as_string(), lambda e: e.context.get("t")),
}

few_times = st.integers(0, 2).map(lambda hours: START + timedelta(hours=hours))
episodes = st.lists(
    st.builds(
        make_episode,
        domain=st.sampled_from(["", "a", "B", "b", "ä", "\U0001f600"]),
        reward_score=st.none() | st.sampled_from([-1.5, -0.0, 0.0, 2.0]),
        created_at=few_times,
        completed_at=st.none() | few_times,
        reflection=st.none() | st.sampled_from(["", "a", "b", "ab"]),
        context=st.fixed_dictionaries({}, optional={"n": st.integers(-1, 1), "t": st.sampled_from(["", "x", "y"])}),
    ),
    max_size=14,
)
orders = st.lists(st.tuples(st.sampled_from(list(PARTS)), st.booleans()), max_size=3)


def sorted_in_python(records: list[Episode], parts: list[tuple[str, bool]]) -> list[Episode]:
    """Sort by each part, NULL before every value, then by id in the direction of the last part."""
    ordered = sorted(records, key=lambda record: record.id, reverse=bool(parts) and parts[-1][1])
    for name, descending in reversed(parts):
        value = PARTS[name][1]

        def key(record: Episode, value: Any = value) -> Any:
            found = value(record)
            found = found.encode() if isinstance(found, str) else found  # SQLite compares bytes
            return (found is not None, found) if found is not None else (False,)

        ordered.sort(key=key, reverse=descending)
    return ordered


def all_pages(connection: sqlite3.Connection, order_by: Any, limit: int, where: Any = None) -> list[list[Episode]]:
    """Every page of namespace n, as a collection would ask for them."""
    pages: list[list[Episode]] = []
    cursor: str | None = None
    parsed = parse_order(SPEC, order_by)
    while True:
        query = page_query(dialect(), SPEC, "n", where, parsed, limit + 1, cursor)
        rows = connection.execute(*query).fetchall()
        pages.append([CODEC.decode(row[: len(SPEC.columns)]) for row in rows[:limit]])
        if len(rows) <= limit:
            return pages
        cursor = cursor_after(SPEC, parsed, rows[limit - 1])


def fill(connection: sqlite3.Connection, records: list[Episode]) -> None:
    """Put the records, and the same ones in a namespace that must never be seen."""
    connection.execute("SAVEPOINT fill")  # one sync at most
    connection.execute("DELETE FROM episodes")
    rows = [CODEC.encode(record, Limits()) for record in records]
    for namespace in ("n", "other"):
        connection.executemany(STATEMENTS["episode"].insert, [(namespace, *row) for row in rows])
    connection.execute("RELEASE fill")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=episodes, parts=orders, limit=st.integers(1, 5))
def test_pages_joined_are_the_sorted_list(
    connection: sqlite3.Connection, records: list[Episode], parts: list[tuple[str, bool]], limit: int
) -> None:
    with_transaction(connection, lambda: check_pages(connection, records, parts, limit))


def with_transaction(connection: sqlite3.Connection, work: Any) -> None:
    """Run and roll back, which spares the syncs."""
    connection.execute("BEGIN")
    try:
        work()
    finally:
        connection.execute("ROLLBACK")


def check_pages(
    connection: sqlite3.Connection, records: list[Episode], parts: list[tuple[str, bool]], limit: int
) -> None:
    """Compare the pages with Python's order."""
    fill(connection, records)
    order_by = [PARTS[name][0].desc() if descending else PARTS[name][0] for name, descending in parts]
    pages = all_pages(connection, order_by, limit)
    assert [record.id for page in pages for record in page] == [r.id for r in sorted_in_python(records, parts)]
    assert all(len(page) == limit for page in pages[:-1])
    assert len(pages) == max(1, -(-len(records) // limit))


def test_the_forms_of_an_order() -> None:
    def parsed(order_by: Any) -> list[tuple[str, bool]]:
        return [(str(order.expression), order.descending) for order in parse_order(SPEC, order_by)]

    assert parsed(None) == [("episodes.id", False)]
    assert parsed(c.domain) == parsed(c.domain.asc()) == [("episodes.domain", False), ("episodes.id", False)]
    assert parsed(c.domain.desc()) == [("episodes.domain", True), ("episodes.id", True)]
    assert parsed([c.domain.desc(), c.status]) == [
        ("episodes.domain", True),
        ("episodes.status", False),
        ("episodes.id", False),
    ]
    assert parsed((c.domain,)) == parsed([c.domain])
    with pytest.raises(TypeError, match=r"order_by must be an expression over Episode\.c"):
        parse_order(SPEC, "domain")
    with pytest.raises(ConfigurationError, match=r"order_by of episode reads patterns\.id; it may only read episodes"):
        page_query(dialect(), SPEC, "n", None, parse_order(SPEC, RECORDS["pattern"].table.c.id), 10, None)


def plan(connection: sqlite3.Connection, query: Any) -> str:
    """SQLite's plan of a query."""
    rows = connection.execute("EXPLAIN QUERY PLAN " + query.text, query.parameters).fetchall()
    return "\n".join(row[3] for row in rows)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("follows", [False, True])
def test_the_listing_by_domain_and_time_walks_its_index(
    connection: sqlite3.Connection, descending: bool, follows: bool
) -> None:
    fill(connection, [make_episode(domain="web", created_at=START + timedelta(hours=n % 50)) for n in range(500)])
    connection.execute("ANALYZE")
    parsed = parse_order(SPEC, c.created_at.desc() if descending else c.created_at)
    cursor = None
    if follows:
        first = page_query(dialect(), SPEC, "n", c.domain == "web", parsed, 51, None)
        cursor = cursor_after(SPEC, parsed, connection.execute(*first).fetchall()[49])
    found = plan(connection, page_query(dialect(), SPEC, "n", c.domain == "web", parsed, 51, cursor))
    bound = ("<" if descending else ">") if follows else ""
    assert "USING INDEX ix_episodes_namespace_domain_created_at (namespace=? AND domain=?" in found
    assert not follows or f"created_at{bound}?" in found
    # At most the ids of one moment are sorted, never the whole answer.
    assert "USE TEMP B-TREE FOR ORDER BY" not in found.split("\n")


@pytest.mark.parametrize(
    ("where", "index"),
    [
        (c.status == "failed", "ix_episodes_namespace_status"),
        (c.task_type == "debugging", "ix_episodes_namespace_task_type"),
        (c.created_at >= START, "ix_episodes_namespace_created_at"),
    ],
)
def test_counts_use_their_index(connection: sqlite3.Connection, where: Any, index: str) -> None:
    assert index in plan(connection, count_query(dialect(), SPEC, "n", where))


def test_queries_share_an_id_only_if_they_ask_the_same() -> None:
    asked = [
        count_query(dialect(), SPEC, "n", None),
        count_query(dialect(), SPEC, "m", None),
        count_query(dialect(), RECORDS["pattern"], "n", None),
        count_query(dialect(), SPEC, "n", c.domain == "a"),
        count_query(dialect(), SPEC, "n", c.domain == "b"),
        count_query(dialect(), SPEC, "n", c.status == "a"),
        count_query(dialect(), SPEC, "n", c.reward_score == 1),
        count_query(dialect(), SPEC, "n", c.reward_score > 1),
        count_query(dialect(), SPEC, "n", c.created_at > START),
    ]
    assert len({query.id for query in asked}) == len(asked)
    assert count_query(dialect(), SPEC, "n", c.domain == "a").id == asked[3].id
