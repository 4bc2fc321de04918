"""The lane, and what it relies on inside the installed aiosqlite."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from functools import partial
from pathlib import Path

import aiosqlite
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_store import ConstraintError, DurableUnavailableError
from memory_store.durable.engine import Target, make_engine
from memory_store.durable.lane import Lane, ThreadLane
from tests.unit.conftest import Blocker


async def test_aiosqlite_has_what_the_lane_reaches_into() -> None:
    """`_tx` takes (future, function) pairs for the connection's thread; `_conn` is the sqlite3 connection itself."""
    async with aiosqlite.connect(":memory:") as driver:
        assert isinstance(driver._conn, sqlite3.Connection)
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(3)]
        ran: list[tuple[int, int]] = []

        def work(number: int, connection: sqlite3.Connection) -> int:
            ran.append((number, threading.get_ident()))
            return int(connection.execute("SELECT ?", (number,)).fetchone()[0])

        for number, future in enumerate(futures):
            driver._tx.put_nowait((future, partial(work, number, driver._conn)))
        assert await asyncio.gather(*futures) == [0, 1, 2]
        assert [number for number, _ in ran] == [0, 1, 2]
        threads = {thread for _, thread in ran}
        assert len(threads) == 1
        assert threads != {threading.get_ident()}
        assert await driver.execute_fetchall("SELECT 1") == [(1,)]


async def test_aiosqlite_hands_an_exception_to_the_future_and_goes_on() -> None:
    async with aiosqlite.connect(":memory:") as driver:
        failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection = driver._conn
        assert connection is not None
        driver._tx.put_nowait((failing, lambda: connection.execute("SELECT broken")))
        with pytest.raises(sqlite3.OperationalError, match="broken"):
            await failing
        assert await driver.execute_fetchall("SELECT 1") == [(1,)]


async def test_functions_run_one_after_another_on_one_thread(lane: Lane) -> None:
    order: list[int] = []
    threads: set[int] = set()

    def work(number: int, _connection: sqlite3.Connection) -> int:
        order.append(number)
        threads.add(threading.get_ident())
        return number

    assert await asyncio.gather(*(lane.submit(partial(work, number)) for number in range(50))) == list(range(50))
    assert order == list(range(50))
    assert len(threads) == 1


async def test_a_cancelled_caller_does_not_stop_the_function(lane: Lane, blocker: type[Blocker]) -> None:
    ran: list[str] = []
    async with blocker(lane).block():
        task = asyncio.create_task(lane.run(lambda _: ran.append("ran")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ran
    assert await lane.run(lambda _: "after") == "after"
    assert ran == ["ran"]


async def test_run_translates_driver_errors_and_submit_does_not(lane: Lane) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        await lane.submit(lambda connection: connection.execute("INSERT INTO episodes (namespace) VALUES ('n')"))
    with pytest.raises(ConstraintError, match="NOT NULL") as caught:
        await lane.run(lambda connection: connection.execute("INSERT INTO episodes (namespace) VALUES ('n')"))
    assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)

    def mistake(_connection: sqlite3.Connection) -> None:
        raise TypeError("a programmer's mistake stays one")

    with pytest.raises(TypeError, match="stays one"):
        await lane.run(mistake)


async def test_closing_waits_for_what_is_queued(path: str, blocker: type[Blocker]) -> None:
    engine = make_engine(Target(path, False, {}), 5.0)
    lane = await ThreadLane.open(engine)
    async with blocker(lane).block():
        queued = lane.submit(lambda connection: connection.execute("SELECT 1").fetchone())
        closing = asyncio.create_task(lane.close())
        await asyncio.sleep(0)
        assert not closing.done()
    await closing
    assert queued.result() == (1,)
    await engine.dispose()


async def test_every_connection_is_set_up(lane: Lane) -> None:
    def pragma(name: str, connection: sqlite3.Connection) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "wal_autocheckpoint": 0,
        "busy_timeout": 5000,
        "trusted_schema": 0,
    }
    assert {name: await lane.run(partial(pragma, name)) for name in wanted} == wanted
    assert await lane.run(lambda connection: connection.isolation_level) is None


async def test_opening_what_is_no_database_is_translated(tmp_path: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"this is not a database" * 100)
    engine = make_engine(Target(str(junk), False, {}), 1.0)
    # Where SQLite first looks at the file is its own affair; the store only needs the error translated.
    with pytest.raises(DurableUnavailableError):
        await look_into(engine)
    await engine.dispose()


async def look_into(engine: AsyncEngine) -> None:
    """Open a lane and read."""
    opened = await ThreadLane.open(engine)
    try:
        await opened.run(lambda connection: connection.execute("SELECT * FROM sqlite_master").fetchall())
    finally:
        await opened.close()
