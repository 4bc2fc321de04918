"""Point reads are joined: what is asked for while one runs goes into the next."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from memory_store import Limits
from memory_store.codec import CODECS
from memory_store.durable.changes import HeadState
from memory_store.durable.lane import Lane
from memory_store.durable.log import Logged, Run, read_head
from memory_store.durable.reader import Key, Reader, newest_keys, read_by_id, read_keys, snapshot_of
from memory_store.durable.statements import STATEMENTS
from tests.unit.conftest import Blocker, Ears
from tests.unit.samples import MAKE, make_episode, make_pattern


@pytest.fixture
def filled(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Six hundred episodes, some with two steps and a pattern."""
    connection.execute("BEGIN")
    for number in range(600):
        episode = make_episode(id=f"e{number:03}")
        connection.execute(STATEMENTS["episode"].insert, ("n", *CODECS["episode"].encode(episode, Limits())))
        for step in range(2 if number < 10 else 0):
            made = MAKE["step"](episode.id, id=f"{episode.id}-{step}", step_number=2 - step)
            connection.execute(STATEMENTS["step"].insert, ("n", *CODECS["step"].encode(made, Limits())))
    for count in (1, 3, 2):
        pattern = make_pattern(id=f"p{count}", usage_count=count)
        connection.execute(STATEMENTS["pattern"].insert, ("n", *CODECS["pattern"].encode(pattern, Limits())))
    connection.execute("COMMIT")
    return connection


def test_reading_keys_of_several_kinds_and_namespaces(filled: sqlite3.Connection) -> None:
    keys = [
        Key("episode", "n", "e001"),
        Key("step", "n", "e001"),
        Key("episode", "other", "e001"),
        Key("pattern", "n", "p2"),
        Key("step", "n", "e599"),
        Key("episode", "n", "e001"),
    ]
    found = [[row[0] for row in rows] for rows in read_keys(filled, keys)]
    assert found == [["e001"], ["e001-1", "e001-0"], [], ["p2"], [], ["e001"]]
    assert [[row[0] for row in rows] for rows in read_keys(filled, keys[1:2])] == [["e001-1", "e001-0"]]


def test_more_keys_than_one_statement_takes(filled: sqlite3.Connection) -> None:
    ids = [f"e{number:03}" for number in range(599, -1, -1)]
    found = read_keys(filled, [Key("episode", "n", id_) for id_ in ids])
    assert [rows[0][0] for rows in found] == ids
    assert list(read_by_id(filled, "episode", "n", [*ids, "nothing"])) != []
    assert set(read_by_id(filled, "episode", "n", [*ids, "nothing"])) == set(ids)


def test_a_snapshot_is_of_one_moment_and_leaves_no_transaction(filled: sqlite3.Connection) -> None:
    known = read_head(filled)
    filled.execute("UPDATE episodes SET domain = 'changed' WHERE id = 'e001'")
    run, [[row]] = snapshot_of(filled, [Key("episode", "n", "e001")], known)
    assert (run.after, run.head) == (known, read_head(filled))
    assert run.changes == [Logged(*run.head[:2], "episode", "n", "e001", None)]
    assert run.head.position == known.position + 1
    assert row[5] == "changed"
    assert not filled.in_transaction
    assert isinstance(read_head(filled), HeadState)
    with pytest.raises(KeyError):
        snapshot_of(filled, [Key("no such kind", "n", "x")], known)
    assert not filled.in_transaction


def test_the_newest_and_most_used_come_first(filled: sqlite3.Connection) -> None:
    keys = [Key(*key) for key in newest_keys(filled, 10_000)]
    assert [key.id for key in keys if key.kind == "pattern"] == ["p3", "p2", "p1"]
    episodes = [key.id for key in keys if key.kind == "episode"]
    assert episodes == [f"e{number:03}" for number in range(599, -1, -1)]
    assert [key.kind for key in keys[:4]] == ["episode", "step", "embedding", "spatiotemporal"]
    assert len(newest_keys(filled, 7)) == 7


async def test_reads_asked_for_meanwhile_are_read_together(lane: Lane, filled: sqlite3.Connection) -> None:
    ears = Ears(read_head(filled))
    reader = Reader(lane, ears)
    statements: list[str] = []
    await lane.run(lambda connection: connection.set_trace_callback(statements.append))
    answered: dict[str, list[str]] = {}
    done = asyncio.Event()

    def ask(number: int) -> None:
        key = Key("episode", "n", f"e{number:03}")

        def answer(head: HeadState | None, rows: list[list[object]], error: BaseException | None) -> None:
            assert error is None
            assert head == ears.head
            answered[key.id] = [str(row[0]) for row in rows]
            if len(answered) == 101:
                done.set()

        reader.request(key, answer)

    async with Blocker(lane).block():
        for number in range(101):
            ask(number)
    await done.wait()
    assert answered == {f"e{number:03}": [f"e{number:03}"] for number in range(101)}
    reads = [statement for statement in statements if "JOIN episodes" in statement]
    assert len(reads) == 2, "the first alone, the hundred that came meanwhile together"


async def test_what_a_read_saw_of_the_log_is_told_before_its_rows(lane: Lane, filled: sqlite3.Connection) -> None:
    order: list[str] = []

    class Noting(Ears):
        def deliver(self, run: Run, began: float | None = None) -> None:
            super().deliver(run, began)
            order.append("told")

    ears = Noting(read_head(filled))
    reader, known = Reader(lane, ears), ears.head
    filled.execute("DELETE FROM episodes WHERE id = 'e001'")
    answered: asyncio.Future[tuple[HeadState | None, list[list[object]]]] = asyncio.get_running_loop().create_future()

    def answer(head: HeadState | None, rows: list[list[object]], error: BaseException | None) -> None:
        order.append("answered")
        answered.set_result((head, rows))

    reader.request(Key("episode", "n", "e001"), answer)
    assert await answered == (read_head(filled), [])
    assert order == ["told", "answered"]
    [run] = ears.runs
    # SQL of somebody else's: its cascade took the steps along, and each of them has a position of its own.
    assert (run.after, run.head.position) == (known, known.position + 3)
    assert sorted((change.kind, change.key, change.parent) for change in run.changes or ()) == [
        ("episode", "e001", None),
        ("step", "e001-0", "e001"),
        ("step", "e001-1", "e001"),
    ]


async def test_an_error_reaches_every_answer_and_the_reader_goes_on(lane: Lane, ears: Ears) -> None:
    reader = Reader(lane, ears)
    loop = asyncio.get_running_loop()

    async def ask(kind: str) -> BaseException | None:
        told: asyncio.Future[BaseException | None] = loop.create_future()

        def answer(head: HeadState | None, rows: list[list[object]], error: BaseException | None) -> None:
            assert rows == []
            assert head == (None if error else ears.head)
            told.set_result(error)

        reader.request(Key(kind, "n", "x"), answer)
        return await told

    first, second = await asyncio.gather(ask("no such kind"), ask("no such kind"))
    assert isinstance(first, KeyError)
    assert isinstance(second, KeyError)
    assert await ask("episode") is None
