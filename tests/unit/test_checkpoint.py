"""The WAL stays small while much is written, and a checkpoint never meets another process's writer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from memory_store import MemoryStore
from memory_store.durable.checkpoint import Checkpointer
from memory_store.durable.lock import FileLock
from tests.unit.samples import make_episode

MIB = 1024 * 1024


async def write_much(store: MemoryStore, mebibytes: int) -> int:
    """Write this much in commits of a quarter MiB; return the largest WAL that was seen."""
    largest = 0
    for _ in range(mebibytes * 4):
        await store.episodes.put_many([make_episode(reflection="x" * 16_000) for _ in range(16)])
        largest = max(largest, store.stats().wal_bytes)
    return largest


async def test_the_wal_stays_bounded_while_much_is_written(file_store: MemoryStore) -> None:
    largest = await write_much(file_store, 48)
    assert file_store.stats().checkpoints >= 3
    assert largest < 16 * MIB


async def test_one_large_commit_is_checkpointed_soon(file_store: MemoryStore) -> None:
    await file_store.episodes.put_many([make_episode(reflection="x" * 16_000) for _ in range(1500)])
    before = file_store.stats()
    assert before.wal_bytes > 20 * MIB
    largest = await write_much(file_store, 20)
    assert file_store.stats().checkpoints > before.checkpoints or before.checkpoints
    assert largest < before.wal_bytes + 8 * MIB, "the file is written over, not continued for ever"


async def test_a_reader_puts_the_checkpoint_off_and_it_recovers(file_store: MemoryStore, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "agent.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM episodes").fetchone()
        grown = await write_much(file_store, 24)
        assert grown > 20 * MIB, "the reader still needs the pages of before"
        assert reader.execute("SELECT count(*) FROM episodes").fetchone() == (0,)
        reader.execute("COMMIT")
    after = await write_much(file_store, 24)
    assert after < grown + 12 * MIB
    assert await file_store.episodes.count() == 2 * 24 * 4 * 16


def test_a_checkpoint_waits_for_no_writer_of_another_process(path: str, connection: sqlite3.Connection) -> None:
    lock, other = FileLock(path + "-lock", 0.05), FileLock(path + "-lock", 0.05)
    checkpointer = Checkpointer(path, lock)
    connection.execute("UPDATE head SET epoch = 2")
    with other.shared():
        assert checkpointer.checkpoint(connection) is False
    assert checkpointer.checkpoints == 0
    assert checkpointer.checkpoint(connection) is True
    assert checkpointer.checkpoints == 1
    lock.close()
    other.close()


def test_a_checkpoint_that_fails_fails_nothing_else(path: str, connection: sqlite3.Connection) -> None:
    lock = FileLock(path + "-lock", 0.05)
    checkpointer = Checkpointer(path, lock)
    connection.execute("BEGIN IMMEDIATE")  # inside a transaction SQLite refuses to checkpoint
    connection.execute("UPDATE head SET epoch = 2")
    checkpointer.after_commit(connection, 1_000_000)
    assert checkpointer.failures == 1
    connection.execute("COMMIT")
    checkpointer.after_commit(connection, 1_000_000)
    assert (checkpointer.failures, checkpointer.checkpoints) == (1, 1)
    lock.close()


def test_the_size_of_no_wal_is_nothing(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "x-lock"), 1.0)
    assert Checkpointer(str(tmp_path / "x.db"), lock).wal_bytes() == 0
    lock.close()


@pytest.mark.parametrize("closed", [True, False])
async def test_everything_is_there_whether_it_was_checkpointed_or_not(closed: bool, tmp_path: Path) -> None:
    store = await MemoryStore(f"sqlite:///{tmp_path}/agent.db").open()
    await write_much(store, 6)
    if closed:
        await store.close()
    with closing(sqlite3.connect(tmp_path / "agent.db")) as other:
        assert other.execute("SELECT count(*) FROM episodes").fetchone() == (6 * 4 * 16,)
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    await store.close()
