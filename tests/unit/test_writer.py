"""Group commit: writers share commits, one that fails fails alone, and the order is the order they came in."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator

import msgpack
import pytest

from memory_store import ConflictError, DurableError, Limits, MemoryStore, RecordNotFoundError
from memory_store.codec import CODECS
from memory_store.durable.batches import run_batch
from memory_store.durable.checkpoint import Checkpointer
from memory_store.durable.commits import LogWriter
from memory_store.durable.lane import Lane
from memory_store.durable.lock import FileLock
from memory_store.durable.log import Commit, Logged
from memory_store.durable.operations import Delete, Put, Update
from memory_store.durable.writer import Writer, Written
from memory_store.records import RECORDS, Record
from tests.unit.conftest import Blocker, Ears
from tests.unit.samples import make_episode, make_step

LIMITS = Limits()


def put(record: Record) -> Put:
    """The put of one record."""
    return Put(RECORDS[record.kind], "n", [CODECS[record.kind].encode(record, LIMITS)])


@pytest.fixture
def commits(ears: Ears) -> list[Commit]:
    """What the writer has published."""
    return ears.commits


@pytest.fixture
async def writer(lane: Lane, path: str, ears: Ears) -> AsyncIterator[Writer]:
    """A writer on the lane, and on a migrated database: its first commit is not the log's first."""
    lock = FileLock(path + "-lock", 5.0)
    made = Writer(lane, Checkpointer(path, lock), LogWriter("me", ears.head.epoch), ears)
    yield made
    await made.drain()
    lock.close()


async def test_concurrent_writers_share_a_commit(writer: Writer, lane: Lane, ears: Ears) -> None:
    start = ears.head.position
    async with Blocker(lane).block():
        futures = [writer.submit(put(make_episode(id=f"e{number}"))) for number in range(64)]
    written = await asyncio.gather(*futures)
    assert [result[0][0] for result, _ in written] == [f"e{number}" for number in range(64)]
    # The first went on its way alone, all that came while the lane was busy went together.
    assert [len(commit.changes) for commit in ears.commits] == [1, 63]
    assert [commit.position for commit in ears.commits] == [start + 1, start + 2]
    assert [position for _, position in written] == [start + 1] + [start + 2] * 63
    assert [commit.before for commit in ears.commits] == [None, None], "nobody else wrote"


async def test_puts_of_a_store_share_commits(file_store: MemoryStore) -> None:
    before = file_store.stats()
    await asyncio.gather(*(file_store.episodes.put(make_episode()) for _ in range(200)))
    after = file_store.stats()
    assert after.writes - before.writes == 200
    assert after.position - before.position < 20


async def test_one_failing_write_fails_alone(
    writer: Writer, lane: Lane, connection: sqlite3.Connection, ears: Ears
) -> None:
    start = ears.head.position
    await writer.submit(put(make_episode(id="e")))
    # Something the library does not foresee, so that the database itself refuses halfway.
    connection.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON episodes WHEN NEW.id = 'refused' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    async with Blocker(lane).block():
        first = writer.submit(put(make_episode(id="a")))
        futures = [
            writer.submit(put(make_episode(id="b"))),
            writer.submit(put(make_episode(id="refused"))),
            writer.submit(put(make_step("nothing"))),
            writer.submit(Update(RECORDS["episode"], "n", "e", {"domain": "x"}, 9, LIMITS)),
            writer.submit(put(make_step("e"))),
            writer.submit(Delete(RECORDS["episode"], "n", "a", None)),
            writer.submit(put(make_episode(id="c"))),
        ]
    outcomes = await asyncio.gather(first, *futures, return_exceptions=True)
    assert [type(outcome.result if isinstance(outcome, Written) else outcome) for outcome in outcomes] == [
        list,
        list,
        outcomes[2].__class__,
        RecordNotFoundError,
        ConflictError,
        list,
        bool,
        list,
    ]
    assert isinstance(outcomes[2], DurableError)
    assert [outcome.position - start for outcome in outcomes if isinstance(outcome, Written)] == [2, 3, 3, 3, 3]
    ids = [id_ for (id_,) in connection.execute("SELECT id FROM episodes ORDER BY id")]
    assert ids == ["b", "c", "e"]
    rows = connection.execute("SELECT kind, key, operation FROM changes WHERE position = ? ORDER BY idx", (start + 3,))
    logged = [(kind, None if kind == "step" else key, operation) for kind, key, operation in rows]
    assert logged == [
        ("episode", "b", "insert"),
        ("step", None, "insert"),
        ("episode", "a", "delete"),
        ("episode", "c", "insert"),
    ]


async def test_nothing_of_a_collision_is_logged(writer: Writer, lane: Lane, commits: list[Commit]) -> None:
    await writer.submit(put(make_episode(id="b")))
    async with Blocker(lane).block():
        first = writer.submit(put(make_episode(id="first")))
        futures = [writer.submit(put(make_episode(id=id_))) for id_ in "abca"]
    written = await asyncio.gather(first, *futures)
    assert [outcome.result[0][:2] for outcome in written[1:]] == [["a", 1], ["b", 2], ["c", 1], ["a", 2]]
    assert [(change.key, change.operation) for change in commits[-1].changes] == [
        ("a", "insert"),
        ("b", "update"),
        ("c", "insert"),
        ("a", "update"),
    ]


async def test_writes_keep_the_order_they_came_in(writer: Writer, lane: Lane, commits: list[Commit]) -> None:
    async with Blocker(lane).block():
        futures = [writer.submit(put(make_episode(id="x", domain=str(number)))) for number in range(20)]
        futures += [writer.submit(Delete(RECORDS["episode"], "n", "x", None))]
        futures += [writer.submit(put(make_episode(id="x", domain="last")))]
    outcomes = await asyncio.gather(*futures)
    revisions = [outcome.result[0][1] for outcome in outcomes if isinstance(outcome.result, list)]
    assert revisions == [*range(1, 21), 1]
    bodies = [change.body for commit in commits for change in commit.changes]
    domains = [None if body is None else msgpack.unpackb(body)[5] for body in bodies]
    assert domains == [*map(str, range(20)), None, "last"]


async def test_a_write_is_published_before_it_is_answered(lane: Lane, path: str, ears: Ears) -> None:
    order: list[str] = []

    class Noting(Ears):
        def publish(self, commit: Commit) -> None:
            super().publish(commit)
            order.append("published")

    lock = FileLock(path + "-lock", 5.0)
    writer = Writer(lane, Checkpointer(path, lock), LogWriter("", ears.head.epoch), Noting(ears.head))
    future = writer.submit(put(make_episode()))
    future.add_done_callback(lambda _: order.append("answered"))
    await future
    await asyncio.sleep(0)
    assert order == ["published", "answered"]
    await writer.drain()
    lock.close()


async def test_a_write_cancelled_in_the_queue_is_taken_out(
    writer: Writer, lane: Lane, connection: sqlite3.Connection
) -> None:
    async with Blocker(lane).block():
        running = writer.submit(put(make_episode(id="running")))
        waiting = writer.submit(put(make_episode(id="waiting")))
        running.cancel()  # too late: it is on its way
        waiting.cancel()
    await writer.drain()
    assert connection.execute("SELECT id FROM episodes").fetchall() == [("running",)]


async def test_a_large_write_does_not_wait_for_company(writer: Writer, lane: Lane, commits: list[Commit]) -> None:
    def many(prefix: str) -> Put:
        rows = [CODECS["episode"].encode(make_episode(id=f"{prefix}{n}"), LIMITS) for n in range(400)]
        return Put(RECORDS["episode"], "n", rows)

    async with Blocker(lane).block():
        futures = [writer.submit(put(make_episode(id="first")))]
        futures += [writer.submit(many(prefix)) for prefix in "abc"]
    await asyncio.gather(*futures)
    assert [len(commit.changes) for commit in commits] == [1, 400, 400, 400]


async def test_an_exclusive_holder_stands_in_the_queue(writer: Writer, lane: Lane, commits: list[Commit]) -> None:
    async with Blocker(lane).block():
        before = [writer.submit(put(make_episode())) for _ in range(3)]
        granting = asyncio.create_task(writer.exclusive())
        await asyncio.sleep(0)
        after = [writer.submit(put(make_episode())) for _ in range(3)]
    exclusive = await granting
    assert all(future.done() for future in before)
    await lane.run(lambda connection: connection.execute("SELECT 1"))
    assert not any(future.done() for future in after)
    exclusive.release()
    exclusive.release()
    await asyncio.gather(*after)
    assert [len(commit.changes) for commit in commits] == [1, 2, 3]


async def test_who_gives_up_waiting_for_the_lane_does_not_keep_it(writer: Writer, lane: Lane) -> None:
    async with Blocker(lane).block():
        first = writer.submit(put(make_episode()))
        granting = asyncio.create_task(writer.exclusive())
        await asyncio.sleep(0)
        granting.cancel()
        await asyncio.sleep(0)
        last = writer.submit(put(make_episode()))
    await asyncio.gather(first, last)


async def test_the_log_says_what_was_done(writer: Writer, connection: sqlite3.Connection, ears: Ears) -> None:
    start = ears.head.position
    await writer.submit(put(make_episode(id="e")))
    await writer.submit(put(make_step("e", id="s")))
    await writer.submit(put(make_episode(id="e")))
    await writer.submit(Delete(RECORDS["episode"], "n", "e", None))
    columns = "position - ?1, idx, kind, namespace, key, parent, operation, revision, actor, image IS NULL"
    sql = f"SELECT {columns} FROM changes WHERE position > ?1 ORDER BY position, idx"
    assert connection.execute(sql, (start,)).fetchall() == [
        (1, 0, "episode", "n", "e", None, "insert", 1, "me", 1),
        (2, 0, "step", "n", "s", "e", "insert", 1, "me", 1),
        (3, 0, "episode", "n", "e", None, "update", 2, "me", 0),
        (4, 0, "step", "n", None, "e", "delete", None, "me", 1),
        (4, 1, "episode", "n", "e", None, "delete", 2, "me", 0),
    ]
    nonces = connection.execute("SELECT DISTINCT position, nonce FROM changes ORDER BY position").fetchall()[-4:]
    assert len({nonce for _, nonce in nonces}) == 4
    assert nonces == [(commit.position, commit.nonce) for commit in ears.commits]
    assert connection.execute("SELECT position, nonce, writing FROM head").fetchall() == [(*nonces[-1], 0)]


async def test_a_batch_that_changes_nothing_commits_nothing(
    writer: Writer, ears: Ears, connection: sqlite3.Connection
) -> None:
    assert await writer.submit(Delete(RECORDS["episode"], "n", "nothing", None)) == Written(False, 0)
    with pytest.raises(RecordNotFoundError):
        await writer.submit(put(make_step("nothing")))
    assert (ears.commits, ears.runs) == ([], [])
    assert connection.execute("SELECT writing FROM head").fetchall() == [(0,)]


@pytest.mark.parametrize("changes", [True, False], ids=["a commit", "a batch that changes nothing"])
async def test_a_batch_tells_what_others_committed_before_it(
    changes: bool, writer: Writer, ears: Ears, connection: sqlite3.Connection
) -> None:
    known = ears.head
    connection.execute("INSERT INTO episodes SELECT 'n', 'theirs', 1, 0, 0, 't', 'd', '{}', 's', 0, 0, 0, '', '{}'")
    if changes:
        assert (await writer.submit(put(make_episode(id="ours")))).position == known.position + 2
        assert [commit.before for commit in ears.commits] == ears.runs
    else:
        assert (await writer.submit(Delete(RECORDS["episode"], "n", "nothing", None))).position == 0
        assert ears.commits == []
    [run] = ears.runs
    assert (run.after, run.head.position) == (known, known.position + 1)
    assert run.changes == [Logged(*run.head[:2], "episode", "n", "theirs", None)]


def test_an_error_outside_the_rows_undoes_the_whole_batch(connection: sqlite3.Connection, ears: Ears) -> None:
    class BrokenError(Exception):
        """A mistake in an operation."""

    class Broken(Delete):
        def run(self, context: object) -> object:  # type: ignore[override]
            raise BrokenError

    operations = [put(make_episode(id="a")), Broken(RECORDS["episode"], "n", "x", None)]
    before = connection.execute("SELECT * FROM head").fetchall()
    with pytest.raises(BrokenError):
        run_batch(connection, operations, LogWriter("", ears.head.epoch), ears.head)
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM episodes").fetchone() == (0,)
    assert connection.execute("SELECT * FROM head").fetchall() == before, "the log is not claimed any more"
