"""Writes as generators of statements, driven against a plain sqlite3 connection."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgpack
import pytest

from memory_store import ConflictError, InvalidRecordError, Limits, RecordNotFoundError
from memory_store.codec import CODECS
from memory_store.durable.batches import drive
from memory_store.durable.changes import PUBLISH_LIMIT, Change
from memory_store.durable.operations import Collision, Context, Delete, IndexWork, Operation, Put, PutTogether, Update
from memory_store.records import RECORDS, Record
from tests.unit.samples import CHANGE, MAKE, make_episode, make_step

LIMITS = Limits()
KINDS = list(RECORDS)


class Bench:
    """Runs operations one after another, each with a commit time and position of its own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection, self.now_us, self.position = connection, 1_000_000, 0
        self.changes: list[Change] = []

    def run(self, operation: Operation | PutTogether) -> Any:
        """Run one operation; its changes are `self.changes` afterwards."""
        self.now_us += 1
        self.position += 1
        self.changes = []
        return drive(self.connection, operation.run(Context(self.now_us, self.changes, self.position, IndexWork())))

    def put(self, *records: Record, namespace: str = "n") -> list[Any]:
        """Put records and return them as stored."""
        codec = CODECS[records[0].kind]
        rows = self.run(Put(codec.spec, namespace, [codec.encode(record, LIMITS) for record in records]))
        return [codec.decode(row) for row in rows]

    def update(self, kind: str, id_: str, expected: int | None = None, **values: Any) -> Any:
        """Update a record and return it as stored."""
        row = self.run(Update(RECORDS[kind], "n", id_, values, expected, LIMITS))
        return CODECS[kind].decode(row)

    def delete(self, kind: str, id_: str, expected: int | None = None, namespace: str = "n") -> bool:
        """Delete a record."""
        return bool(self.run(Delete(RECORDS[kind], namespace, id_, expected)))

    def noted(self) -> list[tuple[Any, ...]]:
        """The changes of the last operation, without their rows."""
        return [change[:1] + change[2:6] + change[7:8] for change in self.changes]


@pytest.fixture
def bench(connection: sqlite3.Connection) -> Bench:
    """A bench with episodes e1 and e2 in namespace n."""
    made = Bench(connection)
    made.put(make_episode(id="e1"), make_episode(id="e2"))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_put_inserts_then_replaces_as_a_whole(kind: str, bench: Bench) -> None:
    [first] = bench.put(MAKE[kind]("e1", id="x", revision=99))
    assert (first.revision, first.updated_at.microsecond) == (1, bench.now_us % 1_000_000)
    assert [change[3] for change in bench.noted()] == ["insert"]
    [second] = bench.put(MAKE[kind]("e1", id="x", **CHANGE[kind]))
    assert second.revision == 2
    assert getattr(second, next(iter(CHANGE[kind]))) == next(iter(CHANGE[kind].values()))
    assert [change[3] for change in bench.noted()] == ["update"]
    stored = bench.connection.execute(f"SELECT revision FROM {RECORDS[kind].table.name} WHERE id = 'x'").fetchall()
    assert stored == [(2,)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_mixes_new_and_known(kind: str, bench: Bench) -> None:
    bench.put(MAKE[kind]("e1", id="b"))
    stored = bench.put(*(MAKE[kind]("e1", id=id_) for id_ in "abc"))
    assert [(record.id, record.revision) for record in stored] == [("a", 1), ("b", 2), ("c", 1)]
    assert [(change[1], change[3]) for change in bench.noted()] == [("a", "insert"), ("b", "update"), ("c", "insert")]
    for change, record in zip(bench.changes, stored, strict=True):
        assert change.body is not None
        assert CODECS[kind].decode(msgpack.unpackb(change.body)) == record


def test_a_batch_that_names_an_id_twice_is_refused() -> None:
    rows = [CODECS["episode"].encode(make_episode(id=id_), LIMITS) for id_ in ("a", "b", "a")]
    with pytest.raises(InvalidRecordError, match="episode 'a' appears twice in one batch") as caught:
        Put(RECORDS["episode"], "n", rows)
    assert (caught.value.field, caught.value.key, caught.value.namespace) == ("id", "a", "n")


def test_a_batch_of_more_than_one_statements_places(bench: Bench) -> None:
    records = [make_episode(id=f"x{number:04}") for number in range(1100)]
    bench.put(*records[::2])
    stored = bench.put(*records)
    assert [record.revision for record in stored] == [2, 1] * 550
    assert len(bench.changes) == 1100 > PUBLISH_LIMIT


@pytest.mark.parametrize("kind", [kind for kind in KINDS if RECORDS[kind].parent])
def test_a_part_needs_its_episode_in_the_same_namespace(kind: str, bench: Bench) -> None:
    with pytest.raises(RecordNotFoundError, match=f"{kind} belongs to episode 'e9', which does not exist") as caught:
        bench.put(MAKE[kind]("e9"))
    assert (caught.value.kind, caught.value.key, caught.value.namespace) == ("episode", "e9", "n")
    with pytest.raises(RecordNotFoundError):
        bench.put(MAKE[kind]("e1"), namespace="other")
    assert bench.changes == []


NUMBERING: list[tuple[list[int | None], list[int | None], list[int]]] = [
    ([], [None, None, None], [1, 2, 3]),
    ([], [5, None], [5, 6]),
    ([], [None, 5, None], [6, 5, 7]),
    ([], [0], [0]),
    ([0], [None], [1]),
    ([1, 2], [None], [3]),
    ([10], [None, None], [11, 12]),
    ([10], [3, None], [3, 11]),
    ([1, 5], [3, 4], [3, 4]),
    ([], [9, 3, 6], [9, 3, 6]),
]


@pytest.mark.parametrize(("there", "given", "expected"), NUMBERING)
def test_step_numbers(there: list[int | None], given: list[int | None], expected: list[int], bench: Bench) -> None:
    if there:
        bench.put(*(make_step(step_number=number) for number in there))
    stored = bench.put(*(make_step(step_number=number) for number in given))
    assert [step.step_number for step in stored] == expected
    last = max([number for number in there if number is not None], default=None)
    in_order = expected == sorted(expected)
    append = in_order and (last is None or expected[0] > last)
    assert [change.follows for change in bench.changes] == [
        (index > 0 or last is not None) if append else None for index in range(len(expected))
    ]


@pytest.mark.parametrize(("there", "given"), [([2], [2]), ([1, 2, 3], [None, 2]), ([], [4, 4]), ([0], [0])])
def test_a_taken_step_number_is_a_conflict(there: list[int], given: list[int | None], bench: Bench) -> None:
    if there:
        bench.put(*(make_step(step_number=number) for number in there))
    with pytest.raises(ConflictError, match=r"step number \d+ of episode 'e1' is taken") as caught:
        bench.put(*(make_step(step_number=number) for number in given))
    assert (caught.value.kind, caught.value.namespace) == ("step", "n")
    assert bench.changes == []


def test_numbers_are_counted_for_each_episode(bench: Bench) -> None:
    stored = bench.put(make_step("e1"), make_step("e2"), make_step("e1"), make_step("e2"))
    assert [(step.episode_id, step.step_number) for step in stored] == [("e1", 1), ("e2", 1), ("e1", 2), ("e2", 2)]


def test_a_step_put_again_keeps_its_number(bench: Bench) -> None:
    first, second = bench.put(make_step(id="a"), make_step(id="b"))
    assert [first.step_number, second.step_number] == [1, 2]
    again, new = bench.put(make_step(id="a", result="again"), make_step(id="c"))
    assert [again.step_number, again.revision, new.step_number] == [1, 2, 3]


def test_two_steps_swap_their_numbers(bench: Bench) -> None:
    bench.put(make_step(id="a", step_number=1), make_step(id="b", step_number=2))
    stored = bench.put(make_step(id="a", step_number=2), make_step(id="b", step_number=1))
    assert [(step.id, step.step_number) for step in stored] == [("a", 2), ("b", 1)]


def test_a_part_that_moves_is_noted_at_both_episodes(bench: Bench) -> None:
    bench.put(make_step("e1", id="a"), make_step("e1", id="b"))
    [moved] = bench.put(make_step("e2", id="a"))
    assert (moved.episode_id, moved.step_number, moved.revision) == ("e2", 1, 2)
    assert [(change.operation, change.parent) for change in bench.changes] == [("move", "e1"), ("update", "e2")]


@pytest.mark.parametrize("kind", KINDS)
def test_update_changes_what_it_is_told(kind: str, bench: Bench) -> None:
    [before] = bench.put(MAKE[kind]("e1", id="x"))
    after = bench.update(kind, "x", 1, **CHANGE[kind])
    changed = {name for name in RECORDS[kind].columns if getattr(before, name) != getattr(after, name)}
    assert changed == {*CHANGE[kind], "revision", "updated_at"}
    assert after.revision == 2


@pytest.mark.parametrize("kind", KINDS)
def test_update_refuses_before_it_writes(kind: str, bench: Bench) -> None:
    bench.put(MAKE[kind]("e1", id="x"))
    with pytest.raises(ConflictError, match="is at revision 1, expected revision 2") as conflict:
        bench.update(kind, "x", 2, **CHANGE[kind])
    assert (conflict.value.expected, conflict.value.actual, conflict.value.key) == (2, 1, "x")
    with pytest.raises(RecordNotFoundError, match="does not exist in namespace 'n'") as missing:
        bench.update(kind, "y", **CHANGE[kind])
    assert (missing.value.kind, missing.value.key) == (kind, "y")
    with pytest.raises(InvalidRecordError):
        bench.update(kind, "x", created_at="yesterday")
    assert bench.changes == []
    assert bench.update(kind, "x", **CHANGE[kind]).revision == 2


def test_an_update_may_not_take_a_number(bench: Bench) -> None:
    bench.put(make_step(id="a"), make_step(id="b"))
    with pytest.raises(ConflictError, match="step number 1 of episode 'e1' is taken"):
        bench.update("step", "b", step_number=1)
    assert bench.update("step", "b", step_number=2).step_number == 2
    assert bench.update("step", "b", step_number=9).step_number == 9
    assert bench.update("step", "a", step_number=None).step_number == 1


def test_an_update_obeys_the_limits(bench: Bench) -> None:
    with pytest.raises(InvalidRecordError, match="the limit is 4"):
        bench.run(Update(RECORDS["episode"], "n", "e1", {"domain": "12345"}, None, Limits(key_bytes=4)))


@pytest.mark.parametrize("kind", KINDS)
def test_delete(kind: str, bench: Bench) -> None:
    [record] = bench.put(MAKE[kind]("e1", id="x"))
    with pytest.raises(ConflictError, match="is at revision 1, expected revision 7"):
        bench.delete(kind, "x", 7)
    assert bench.delete(kind, "x", namespace="other") is False
    assert bench.delete(kind, "x", 1) is True
    parent = getattr(record, "episode_id", None)
    assert bench.noted() == [(kind, "x", parent, "delete", 1, None)]
    assert bench.delete(kind, "x") is False
    assert bench.changes == []
    with pytest.raises(ConflictError, match="does not exist, expected revision 1") as caught:
        bench.delete(kind, "x", 1)
    assert (caught.value.expected, caught.value.actual) == (1, None)


def test_deleting_an_episode_notes_its_parts_first_and_takes_them_along(bench: Bench) -> None:
    bench.put(make_step("e1"), make_step("e1"), make_step("e2"))
    bench.put(MAKE["embedding"]("e1"))
    assert bench.delete("episode", "e1")
    assert bench.noted() == [
        ("step", None, "e1", "delete", None, None),
        ("embedding", None, "e1", "delete", None, None),
        ("episode", "e1", None, "delete", 1, None),
    ]
    left = bench.connection.execute("SELECT (SELECT count(*) FROM steps), (SELECT count(*) FROM embeddings)").fetchone()
    assert left == (1, 0)


def test_a_large_batch_packs_no_rows(bench: Bench) -> None:
    count = PUBLISH_LIMIT + 1
    bench.put(*(make_step("e1") for _ in range(count)))
    assert {change.body for change in bench.changes} == {b""}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_with_history_note_the_version_that_goes(kind: str, bench: Bench) -> None:
    [first] = bench.put(MAKE[kind]("e1", id="x"))
    assert bench.changes[-1].image is None
    second = bench.update(kind, "x", **CHANGE[kind])
    images = [bench.changes[-1].image]
    [third] = bench.put(MAKE[kind]("e1", id="x"))
    images.append(bench.changes[-1].image)
    assert bench.delete(kind, "x")
    images.append(bench.changes[-1].image)
    if RECORDS[kind].history:
        replaced = [CODECS[kind].decode(msgpack.unpackb(image)) for image in images if image is not None]
        assert replaced == [first, second, third]
    else:
        assert images == [None, None, None]


def test_which_kinds_keep_history() -> None:
    assert {kind for kind, spec in RECORDS.items() if spec.history} == {"episode", "pattern"}


def test_simple_puts_are_inserted_together_or_collide(bench: Bench) -> None:
    puts = [Put(RECORDS["episode"], "n", [CODECS["episode"].encode(make_episode(id=id_), LIMITS)]) for id_ in "abc"]
    outcomes = bench.run(PutTogether(puts))
    assert [rows[0][:2] for rows in outcomes] == [["a", 1], ["b", 1], ["c", 1]]
    assert [change.operation for change in bench.changes] == ["insert"] * 3
    with pytest.raises(Collision):
        bench.run(PutTogether(puts))
    row = CODECS["episode"].encode(make_episode(id="z"), LIMITS)
    with pytest.raises(Collision):  # twice the same new id in one batch
        bench.run(PutTogether([Put(RECORDS["episode"], "n", [row])] * 2))
