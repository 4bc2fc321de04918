"""Writes that follow from what is stored, driven against a plain sqlite3 connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from memory_store import ConflictError, InvalidRecordError, Limits, Pattern, RecordNotFoundError
from memory_store.codec import CODECS
from memory_store.durable.computed import Compute, Merge
from memory_store.durable.outcomes import UpdateOnce
from memory_store.records import RECORDS
from tests.unit.samples import make_pattern
from tests.unit.test_operations import Bench

SPEC = RECORDS["pattern"]
LIMITS = Limits()


@pytest.fixture
def bench(connection: sqlite3.Connection) -> Bench:
    """A bench with patterns a, b and c in namespace n."""
    made = Bench(connection)
    made.put(*(make_pattern(id=id_, usage_count=number) for number, id_ in enumerate("abc", 1)))
    return made


def one_more(pattern: Pattern) -> Pattern:
    """The pattern, used once more."""
    return pattern.recounted(pattern.usage_count + 1, 0, None)


def compute(id_: str, function: Any = one_more, **options: Any) -> Compute[Any]:
    """An operation on a pattern in namespace n."""
    return Compute(SPEC, "n", id_, function, LIMITS, **options)


def pattern_of(row: Any) -> Pattern:
    """The record of a row."""
    found: Pattern = CODECS["pattern"].decode(row)
    return found


def stored(bench: Bench) -> dict[str, tuple[int, int]]:
    """Revision and uses of what is stored, by id."""
    rows = bench.connection.execute("SELECT id, revision, usage_count FROM patterns WHERE namespace = 'n'")
    return {id_: (revision, uses) for id_, revision, uses in rows}


def test_compute_writes_what_follows_from_what_is_stored(bench: Bench) -> None:
    before = bench.connection.execute("SELECT usage_count FROM patterns WHERE id = 'a'").fetchone()
    changed = pattern_of(bench.run(compute("a")))
    assert (changed.usage_count, changed.revision) == (before[0] + 1, 2)
    [change] = bench.changes
    assert (change.operation, change.key, change.revision) == ("update", "a", 2)
    assert change.body is not None
    assert change.image is not None
    assert pattern_of(msgpack.unpackb(change.body)) == changed
    assert pattern_of(msgpack.unpackb(change.image)).usage_count == before[0]


def test_compute_writes_nothing_where_nothing_is_to_change(bench: Bench) -> None:
    assert pattern_of(bench.run(compute("a", lambda pattern: pattern))).revision == 1
    assert bench.changes == []
    assert stored(bench)["a"] == (1, 1)


def test_compute_of_nothing_is_refused_or_begins_with_what_stands_in_for_it(bench: Bench) -> None:
    with pytest.raises(RecordNotFoundError, match="pattern 'new' does not exist in namespace 'n'") as caught:
        bench.run(compute("new"))
    assert (caught.value.kind, caught.value.namespace, caught.value.key) == ("pattern", "n", "new")
    made = pattern_of(bench.run(compute("new", initial=make_pattern(id="new", usage_count=5))))
    assert (made.usage_count, made.revision) == (6, 1)
    assert [change.operation for change in bench.changes] == ["insert"]
    again = pattern_of(bench.run(compute("new", initial=make_pattern(id="new", usage_count=5))))
    assert (again.usage_count, again.revision) == (7, 2), "what is stored counts, not what stood in for it"


def test_compute_refuses_before_it_writes(bench: Bench) -> None:
    large = lambda pattern: replace(pattern, pattern_data="x" * LIMITS.pattern_bytes)  # noqa: E731
    for id_, options in [("a", {}), ("new", {"initial": make_pattern(id="new")})]:
        with pytest.raises(InvalidRecordError, match="the limit is"):
            bench.run(compute(id_, large, **options))
        assert bench.changes == []
    assert stored(bench) == {"a": (1, 1), "b": (1, 2), "c": (1, 3)}


def together(kept: Pattern, others: Sequence[Pattern]) -> Pattern:
    """All uses together."""
    return kept.recounted(kept.usage_count + sum(other.usage_count for other in others), 0, None)


def test_merge_is_one_update_and_the_deletes(bench: Bench) -> None:
    merge = Merge(SPEC, "n", "a", ["c", "b"], together, LIMITS)
    assert merge.size == 3
    assert pattern_of(bench.run(merge)).usage_count == 6
    assert stored(bench) == {"a": (2, 6)}
    assert [(c.operation, c.key, c.revision) for c in bench.changes] == [
        ("update", "a", 2),
        ("delete", "c", 1),
        ("delete", "b", 1),
    ]
    assert all(change.image is not None for change in bench.changes)


@pytest.mark.parametrize(("kept", "merged"), [("nothing", ["a", "b"]), ("a", ["b", "nothing"])])
def test_merge_with_what_does_not_exist_changes_nothing(kept: str, merged: list[str], bench: Bench) -> None:
    with pytest.raises(RecordNotFoundError, match="'nothing'"):
        bench.run(Merge(SPEC, "n", kept, merged, together, LIMITS))
    assert bench.changes == []
    assert stored(bench) == {"a": (1, 1), "b": (1, 2), "c": (1, 3)}


def test_merge_that_is_refused_changes_nothing(bench: Bench) -> None:
    def refuse(kept: Pattern, others: Sequence[Pattern]) -> Pattern:
        raise ConflictError("changed")

    with pytest.raises(ConflictError, match="changed"):
        bench.run(Merge(SPEC, "n", "a", ["b"], refuse, LIMITS))
    assert bench.changes == []
    assert stored(bench) == {"a": (1, 1), "b": (1, 2), "c": (1, 3)}


def test_an_update_with_a_key_is_made_once(bench: Bench) -> None:
    row, noted = bench.run(UpdateOnce(compute("a"), "key", [True]))
    position = bench.position
    assert (pattern_of(row).usage_count, noted) == (2, 0), "its commit is to come"
    bench.run(compute("a"))
    row, noted = bench.run(UpdateOnce(compute("a"), "key", [True]))
    assert bench.changes == []
    assert (pattern_of(row).usage_count, noted) == (3, position), "as it is by then"


@pytest.mark.parametrize(("id_", "asked"), [("b", [True]), ("a", [False]), ("a", []), ("a", [True, 1])])
def test_a_key_for_another_update_is_a_conflict(id_: str, asked: list[Any], bench: Bench) -> None:
    bench.run(UpdateOnce(compute("a"), "key", [True]))
    with pytest.raises(ConflictError, match="idempotency key 'key' was used for another pattern") as caught:
        bench.run(UpdateOnce(compute(id_), "key", asked))
    assert caught.value.key == "a"
    assert bench.changes == []


def test_a_keyed_update_of_nothing_leaves_the_key_free(bench: Bench) -> None:
    with pytest.raises(RecordNotFoundError):
        bench.run(UpdateOnce(compute("nothing"), "key", [True]))
    bench.run(UpdateOnce(compute("a"), "key", [False]))
    bench.delete("pattern", "a")
    with pytest.raises(RecordNotFoundError, match="pattern 'a'"):
        bench.run(UpdateOnce(compute("a"), "key", [False]))
