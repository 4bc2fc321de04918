"""The compiled statements do what their comments say, on the plan they are meant for."""

from __future__ import annotations

import sqlite3

import pytest

from memory_store import Limits
from memory_store.codec import CODECS, Row
from memory_store.durable.changes import CHANGES
from memory_store.durable.statements import (
    STATEMENTS,
    head_claim,
    head_select,
    head_update,
    heads_select,
    in_batches,
    log_insert,
)
from memory_store.records import PARTS, RECORDS
from tests.unit.samples import MAKE

KINDS = list(RECORDS)


def row_of(kind: str, id_: str, number: int = 1) -> Row:
    """A row of a kind that belongs to episode e1."""
    changes = {"step_number": number} if kind == "step" else {}
    return CODECS[kind].encode(MAKE[kind]("e1", id=id_, **changes), Limits())


@pytest.fixture
def filled(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Episode e1 and three records of every kind in namespace n; the first of each in namespace other too."""
    for namespace, count in (("n", 3), ("other", 1)):
        connection.execute(STATEMENTS["episode"].insert, (namespace, *row_of("episode", "e1")))
        for kind in KINDS:
            for number in range(count):
                row = row_of(kind, f"{kind}{number}", number + 1)
                connection.execute(STATEMENTS[kind].insert, (namespace, *row))
    return connection


@pytest.mark.parametrize("kind", KINDS)
def test_insert_get_replace_delete(kind: str, connection: sqlite3.Connection) -> None:
    statements = STATEMENTS[kind]
    connection.execute(STATEMENTS["episode"].insert, ("n", *row_of("episode", "e1")))
    row = row_of(kind, "x")
    assert connection.execute(statements.insert, ("n", *row)).rowcount == 1
    assert connection.execute(statements.insert, ("n", *row)).rowcount == 0, "an existing row is left alone"
    assert [list(found) for found in connection.execute(statements.get, ("n", "x"))] == [row]
    assert connection.execute(statements.get, ("other", "x")).fetchall() == []
    changed = [*row[:1], 7, *row[2:]]
    assert connection.execute(statements.replace, (*changed[1:], "n", "x")).rowcount == 1
    assert connection.execute(statements.replace, (*changed[1:], "other", "x")).rowcount == 0
    assert [list(found) for found in connection.execute(statements.get, ("n", "x"))] == [changed]
    assert connection.execute(statements.delete, ("other", "x")).rowcount == 0
    assert connection.execute(statements.delete, ("n", "x")).rowcount == 1


@pytest.mark.parametrize("kind", KINDS)
def test_reading_many(kind: str, filled: sqlite3.Connection) -> None:
    statements = STATEMENTS[kind]
    ids = [f"{kind}0", "nothing", f"{kind}2"]
    found = filled.execute(statements.get_by_id(4), ("n", *next(in_batches(ids)))).fetchall()
    assert sorted(row[0] for row in found) == [f"{kind}0", f"{kind}2"]
    keys = ["e1", "e2"] if RECORDS[kind].parent else ids
    wanted = [f"{kind}{number}" for number in range(3)] if RECORDS[kind].parent else [f"{kind}0", f"{kind}2"]
    [batch] = in_batches(keys)
    found = filled.execute(statements.get_many(len(batch)), ("n", *batch)).fetchall()
    assert [row[0] for row in found] == wanted


@pytest.mark.parametrize("kind", [spec.kind for spec in PARTS])
def test_what_parts_ask(kind: str, filled: sqlite3.Connection) -> None:
    statements = STATEMENTS[kind]
    found = dict(filled.execute(statements.last_numbers(4), ("n", *next(in_batches(["e1", "nothing", "episode0"])))))
    assert found == {"e1": 3 if RECORDS[kind].number else None, "episode0": None}
    assert filled.execute(statements.has_parts, ("n", "e1")).fetchone() == (1,)
    assert filled.execute(statements.has_parts, ("n", "episode0")).fetchone() == (0,)


def test_step_numbers(filled: sqlite3.Connection) -> None:
    statements = STATEMENTS["step"]
    assert sorted(filled.execute(statements.numbers, ("n", "e1"))) == [("step0", 1), ("step1", 2), ("step2", 3)]
    assert filled.execute(statements.renumber, (9, "n", "step1")).rowcount == 1
    assert sorted(filled.execute(statements.numbers, ("n", "e1"))) == [("step0", 1), ("step1", 9), ("step2", 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_at_once(kind: str, connection: sqlite3.Connection) -> None:
    connection.execute(STATEMENTS["episode"].insert, ("n", *row_of("episode", "e1")))
    rows = [("n", *row_of(kind, f"x{number}", number + 1)) for number in range(45)]
    assert connection.executemany(STATEMENTS[kind].insert, rows[:20]).rowcount == 20
    # The rows that exist are left alone and not counted: that is how a collision is noticed.
    assert connection.executemany(STATEMENTS[kind].insert, rows).rowcount == 25


def plan(connection: sqlite3.Connection, sql: str, parameters: int) -> str:
    """SQLite's plan of a statement."""
    rows = connection.execute("EXPLAIN QUERY PLAN " + sql, ("x",) * parameters).fetchall()
    return "\n".join(row[3] for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_no_point_statement_scans_a_table(kind: str, connection: sqlite3.Connection) -> None:
    statements = STATEMENTS[kind]
    asked = [
        (statements.get, 2),
        (statements.delete, 2),
        (statements.get_by_id(8), 9),
        (statements.get_many(8), 9),
        (statements.replace, len(RECORDS[kind].columns) + 1),
    ]
    if RECORDS[kind].parent:
        asked += [(statements.last_numbers(8), 9), (statements.has_parts, 2)]
    if RECORDS[kind].number:
        asked += [(statements.numbers, 2), (statements.renumber, 3)]
    for sql, parameters in asked:
        found = plan(connection, sql, parameters)
        assert "SEARCH" in found
        # "SCAN CONSTANT ROW" is the SELECT around an EXISTS and reads no table.
        assert not [line for line in found.split("\n") if line.startswith("SCAN") and line != "SCAN CONSTANT ROW"]


def test_the_head_is_one_row_that_counts_up(connection: sqlite3.Connection) -> None:
    [head] = connection.execute(heads_select()).fetchall()
    position, nonce, store_id, epoch, shard = head
    assert connection.execute(head_select(), (shard,)).fetchall() == [head]
    assert connection.execute(head_select(), (shard + 1,)).fetchall() == []
    assert len(store_id) == 32
    # The upgrade that made the database is its first commit, and began its second epoch.
    logged = connection.execute("SELECT position, kind, operation, nonce FROM changes").fetchall()
    assert logged == [(position, "store", "upgrade", nonce)]
    assert (position, epoch, shard) == (1, 2, 0)
    assert connection.execute(head_claim(), (shard,)).fetchall() == [head]
    assert connection.execute("SELECT writing FROM head").fetchall() == [(1,)]
    assert connection.execute(head_update(), (77, shard)).fetchall() == [(2,)]
    assert connection.execute(head_select(), (shard,)).fetchall() == [(2, 77, store_id, 2, 0)]
    assert connection.execute("SELECT writing FROM head").fetchall() == [(0,)], "no committed head is claimed"
    assert log_insert().count("?") == len(CHANGES.columns)


def test_batches_have_few_sizes() -> None:
    sizes = {count: len(next(in_batches(["a"] * count))) for count in range(1, 513)}
    assert [sizes[count] for count in (1, 2, 3, 5, 64, 65, 512)] == [1, 2, 4, 8, 64, 128, 512]
    assert len(set(sizes.values())) == 10
    assert list(in_batches(["a", "b", "c"])) == [["a", "b", "c", "c"]]
    assert [len(batch) for batch in in_batches(["a"] * 1030)] == [512, 512, 8]
    assert list(in_batches([])) == []
