"""The judge of histories, tried on histories that are right and on ones made wrong by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.processes.checker import Verdict, judge
from tests.processes.history import Operation, Seen, Wrote
from tests.processes.truth import Log, Logged

NAMESPACE = "n"
ACTORS = ["process 0", "process 1"]
MS = 1_000_000


def episode(position: int, key: str, revision: int, *, idx: int = 0, operation: str = "", by: int = 0) -> Logged:
    operation = operation or ("insert" if revision == 1 else "update")
    return Logged(position, idx, "episode", NAMESPACE, key, None, operation, revision, ACTORS[by])


def step(position: int, key: str | None, revision: int | None, *, idx: int = 0, operation: str = "insert") -> Logged:
    return Logged(position, idx, "step", NAMESPACE, key, "x", operation, revision, ACTORS[0])


def wrote(position: int, began: int, ended: int, *records: Wrote, by: int = 0, **more: Any) -> Operation:
    """A write, its times in milliseconds."""
    return Operation(by, "write", began * MS, ended * MS, "", position=position, wrote=records, **more)


def read(began: float, ended: float, *reads: Seen, fresh: str = "linearizable", by: int = 1, **more: Any) -> Operation:
    """A read by process 1, its times in milliseconds."""
    return Operation(by, "read", int(began * MS), int(ended * MS), fresh, reads, **more)


# x is written at 1 and 3, y at 2; a step of x comes at 4; at 5 x goes, and its step with it; both are written at 6.
ROWS = [
    episode(1, "x", 1),
    episode(2, "y", 1),
    episode(3, "x", 2),
    step(4, "s", 1),
    step(5, None, None, operation="delete"),
    episode(5, "x", 2, idx=1, operation="delete"),
    episode(6, "x", 1),
    episode(6, "y", 2, idx=1),
]
WRITES = [
    wrote(1, 10, 20, ("episode", "x", 1, "0.1")),
    wrote(2, 30, 40, ("episode", "y", 1, "0.2")),
    wrote(3, 100, 110, ("episode", "x", 2, "0.3")),
    wrote(4, 200, 210, ("step", "s", 1, "x")),
    Operation(0, "delete", 300 * MS, 310 * MS, "", wrote=(("episode", "x", None, ""),)),
    wrote(6, 400, 410, ("episode", "x", 1, "0.6"), ("episode", "y", 2, "0.6")),
]
STORED = {("episode", NAMESPACE, "x"): 1, ("episode", NAMESPACE, "y"): 2}
X1: Seen = ("episode/x", ("0.1", 1))
X3: Seen = ("episode/x", ("0.3", 2))
X6: Seen = ("episode/x", ("0.6", 1))
X_GONE: Seen = ("episode/x", None)
Y2: Seen = ("episode/y", ("0.2", 1))
Y6: Seen = ("episode/y", ("0.6", 2))


def verdict_on(*reads: Operation, rows: list[Logged] = ROWS, writes: list[Operation] = WRITES) -> Verdict:
    history = sorted([*writes, *reads], key=lambda operation: operation.began)
    head = rows[-1].position
    return judge(Log(head, rows, STORED), history, ACTORS, NAMESPACE, staleness_s=0.05)


def words(verdict: Verdict) -> list[str]:
    return [violation.partition(":")[0] for violation in verdict.violations]


def test_a_history_that_is_right_is_called_so() -> None:
    verdict = verdict_on(
        read(1, 2, X_GONE),
        read(12, 15, X1),  # not answered yet, but under way
        read(12, 15, X_GONE, fresh="bounded"),
        read(41, 42, ("count/", 2)),
        read(50, 51, ("list/d1", (("x", "0.1", 1),)), ("list/d2", (("y", "0.2", 1),))),
        read(105, 106, X1),
        read(120, 130, X3),
        read(150, 151, X3, fresh="bounded"),
        read(211, 212, ("steps/x", (("s", 1),)), ("step/s", 1)),
        read(311, 320, X_GONE, ("steps/x", ()), ("step/s", None), ("count/", 1)),
        read(411, 420, X6, Y6, ("count/d0", 2)),
    )
    assert verdict.violations == []
    assert sum(verdict.checks.values()) == 6 + 11


def test_a_bounded_read_may_be_behind_and_says_how_far() -> None:
    verdict = verdict_on(read(140, 141, X1, fresh="bounded"))
    assert verdict.violations == []
    assert verdict.behind_s == [pytest.approx(0.030)]


@pytest.mark.parametrize(
    ("word", "reads"),
    [
        ("stale", [read(111, 112, X1)]),
        ("stale", [read(161, 162, X1, fresh="bounded")]),
        ("stale", [read(41, 42, ("count/", 1))]),
        ("stale", [read(311, 312, ("steps/x", (("s", 1),)))]),
        ("stale", [read(411, 412, ("list/d2", (("y", "0.2", 1),)))]),
        ("stale", [read(111, 112, X1), read(120, 121, X3)]),
        # Somebody else has seen the commit, though its writer has not been answered yet.
        ("stale", [read(101, 102, X3, by=0), read(103, 104, X1)]),
        ("backwards", [read(120, 121, X3), read(122, 123, X1, fresh="bounded")]),
        ("backwards", [read(42, 43, Y2), read(44, 45, X_GONE, fresh="bounded")]),  # of another record, but older
        ("backwards", [read(112, 113, X1, fresh="bounded", by=0)]),  # its own write
        ("lost hand-over", [read(111, 112, X1, fresh="bounded", at_least=3)]),
        ("future", [read(50, 51, X3)]),
        ("future", [read(390, 395, Y6, fresh="bounded")]),
        ("torn", [read(411, 412, ("episode/x", ("0.3", 1)))]),
        ("torn", [read(411, 412, ("episode/x", ("torn", "0.3", "0.6")))]),
        ("torn", [read(350, 450, X6, Y2)]),  # half of a transaction
        ("torn", [read(350, 450, X6, ("count/", 1))]),
        ("torn", [read(1, 500, ("steps/x", (("s", 2),)))]),
        ("wrong", [read(120, 130, X3, wrong="in the place of y")]),
    ],
)
def test_a_wrong_read_is_found(word: str, reads: list[Operation]) -> None:
    assert words(verdict_on(*reads)) == [word]


def test_a_transaction_that_read_something_else_than_its_predecessor_left_is_found() -> None:
    right = WRITES[-1]._replace(fresh="before commit", reads=(X_GONE, Y2))
    assert words(verdict_on(writes=[*WRITES[:-1], right])) == []
    wrong = right._replace(reads=(X3, Y2))
    assert words(verdict_on(writes=[*WRITES[:-1], wrong])) == ["torn"]


def test_commits_in_another_order_than_their_calls_are_found() -> None:
    early = WRITES[2]._replace(began=22 * MS, ended=28 * MS)  # answered at 3 before the call that got 2 began
    assert words(verdict_on(writes=[early if write is WRITES[2] else write for write in WRITES])) == ["order"]


@pytest.mark.parametrize(
    ("word", "write"),
    [
        ("lost", wrote(6, 500, 510, ("episode", "z", 1, "0.7"))),
        ("lost", Operation(0, "delete", 500 * MS, 510 * MS, "", wrote=(("episode", "y", None, ""),))),
        ("lost", wrote(2, 30, 40, ("episode", "y", 1, "0.2"), by=1)),  # the log says that somebody else wrote it
    ],
)
def test_an_acknowledged_write_that_the_log_does_not_hold_is_found(word: str, write: Operation) -> None:
    assert word in words(verdict_on(writes=[*WRITES, write]))


def test_a_write_nobody_asked_for_is_found() -> None:
    assert words(verdict_on(writes=[write for write in WRITES if write is not WRITES[1]])) == ["unasked"]


@pytest.mark.parametrize(
    "rows",
    [
        [row for row in ROWS if row.position != 4],
        [row._replace(revision=3) if row is ROWS[2] else row for row in ROWS],
        [row._replace(operation="update") if row is ROWS[1] else row for row in ROWS],
        [row._replace(idx=2) if row is ROWS[-1] else row for row in ROWS],
        [*ROWS, episode(7, "z", 1)],
    ],
)
def test_a_log_that_does_not_follow_from_itself_is_found(rows: list[Logged]) -> None:
    assert "log" in words(verdict_on(rows=rows))
