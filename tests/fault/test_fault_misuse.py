"""Wrong use of a store: each has a defined answer, and none is a deadlock."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import (
    ConfigurationError,
    ConflictError,
    DurableTimeoutError,
    Episode,
    InvalidRecordError,
    MemoryStore,
    Step,
    StoreClosedError,
    Transaction,
)
from tests.fault.support import Parent, database, episode, in_child, integrity_problems, log_problems

pytestmark = pytest.mark.usefixtures("no_thread_left")


async def exhaust(store: MemoryStore) -> None:
    """Stream to the end."""
    async for _ in store.episodes.stream():
        pass


async def transact(store: MemoryStore) -> None:
    """Open a transaction and leave it."""
    async with store.transaction():
        pass


USES: dict[str, Callable[[MemoryStore], Awaitable[Any]]] = {
    "get": lambda store: store.episodes.get("known"),
    "get_many": lambda store: store.episodes.get_many(["known"]),
    "put": lambda store: store.episodes.put(episode("new")),
    "put_many": lambda store: store.episodes.put_many([episode("new")]),
    "update": lambda store: store.episodes.update("known", status="failed"),
    "delete": lambda store: store.episodes.delete("known"),
    "list": lambda store: store.episodes.list(),
    "stream": exhaust,
    "count": lambda store: store.episodes.count(),
    "steps.of": lambda store: store.steps.of("known"),
    "steps.append": lambda store: store.steps.append("known", Step(action="a")),
    "steps.get": lambda store: store.steps.get("a"),
    "transaction": transact,
    "another namespace": lambda store: store.namespace("other").episodes.get("known"),
    "cache.status": lambda store: store.cache.status(),
    "cache.rebuild": lambda store: store.cache.rebuild(),
    "cache.clear": lambda store: store.cache.clear(),
    "cache.save": lambda store: store.cache.save(),
    "cache.wait": lambda store: store.cache.wait(),
}


@pytest.mark.parametrize("use", USES)
async def test_a_store_that_was_never_opened_says_so(use: str, absent_url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreClosedError, match="not open"):
        await USES[use](MemoryStore(absent_url))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("use", USES)
async def test_a_closed_store_says_so(use: str, file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("known"))
    with pytest.raises(StoreClosedError, match="closed"):
        await USES[use](store)
    with pytest.raises(StoreClosedError, match="closed"):
        store.stats()


@pytest.mark.parametrize("use", USES)
async def test_another_event_loop_is_told_so(use: str, file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("known"))

        def elsewhere() -> None:
            async def main() -> None:
                await USES[use](store)

            with pytest.raises(StoreClosedError, match="another event loop"):
                asyncio.run(main())

        await asyncio.to_thread(elsewhere)
        assert (await store.episodes.update("known", expected_revision=1, status="completed")).revision == 2
        assert await store.episodes.count() == 1


async def test_closing_from_another_loop_is_refused_and_the_store_goes_on(file_url: str) -> None:
    async with MemoryStore(file_url) as store:

        def elsewhere() -> None:
            with pytest.raises(StoreClosedError, match="another event loop"):
                asyncio.run(store.close())

        await asyncio.to_thread(elsewhere)
        await store.episodes.put(episode("known"))


async def _fork_and_use(parent: Parent, url: str) -> list[str]:
    """Fork with an open store; return what the fork was told, having gone on in between."""
    async with MemoryStore(url) as store:
        await store.episodes.put(episode("before"))
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            told = asyncio.run(_told_in_a_fork(store))  # a fork has no running loop, whatever its parent has
            os.write(writable, told.encode())
            os._exit(0)
        os.close(writable)
        await store.episodes.put(episode("meanwhile"))
        with os.fdopen(readable) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        await store.episodes.put(episode("after"))
        assert await store.episodes.count() == 3
    return told.splitlines()


async def _told_in_a_fork(store: MemoryStore) -> str:
    lines = []
    for use in USES.values():
        try:
            await use(store)
            lines.append("nothing")
        except Exception as error:
            lines.append(f"{type(error).__name__}: {error}")
    await store.close()
    return "\n".join(lines)


def test_a_fork_is_told_so_and_the_parent_goes_on(file_url: str, tmp_path: Path) -> None:
    told = in_child(_fork_and_use, file_url)
    assert len(told) == len(USES)
    for use, text in zip(USES, told, strict=True):
        assert text.startswith("StoreClosedError"), f"{use}: {text}"
        assert "fork" in text
    assert integrity_problems(tmp_path / "agent.db") == []
    assert log_problems(tmp_path / "agent.db") == []
    with database(tmp_path / "agent.db") as connection:
        rows = connection.execute("SELECT id FROM episodes ORDER BY id").fetchall()
    assert rows == [("after",), ("before",), ("meanwhile",)]


async def test_closing_twice_at_once_and_before_opening_is_quiet(file_url: str) -> None:
    store = MemoryStore(file_url)
    await store.close()
    await store.open()
    await store.episodes.put(episode("known"))
    await asyncio.gather(store.close(), store.close())
    await store.close()


async def test_opening_twice_is_refused(file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        with pytest.raises(ConfigurationError, match="once"):
            await store.open()
        await store.episodes.put(episode("known"))
    with pytest.raises(ConfigurationError, match="once"):
        await store.open()


async def test_closing_waits_for_the_writes_under_way(file_url: str) -> None:
    store = await MemoryStore(file_url).open()
    writes = [asyncio.ensure_future(store.episodes.put(episode(f"e{i}"))) for i in range(100)]
    await asyncio.sleep(0)
    await store.close()
    assert [write.result().revision for write in writes] == [1] * 100
    async with MemoryStore(file_url) as again:
        assert await again.episodes.count() == 100


async def _leave_open(parent: Parent, url: str) -> list[str]:
    """Drop an open store without closing it; return the warnings."""
    store = await MemoryStore(url).open()
    await store.episodes.put(episode("known"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del store
        gc.collect()
        told = [f"{item.category.__name__}: {item.message}" for item in caught]
    # Its threads are still there: this process cannot end by itself, which is what the warning is about.
    parent.send(told)
    os._exit(0)


def test_a_store_left_open_warns(file_url: str, tmp_path: Path) -> None:
    told = in_child(_leave_open, file_url)
    [ours] = [text for text in told if "MemoryStore" in text]
    assert ours.startswith("ResourceWarning")
    assert str(tmp_path / "agent.db") in ours
    assert "async with" in ours
    assert integrity_problems(tmp_path / "agent.db") == []


NESTED: dict[str, Callable[[MemoryStore], Awaitable[Any]]] = {
    name: USES[name] for name in ("put", "put_many", "update", "delete", "steps.append", "transaction")
} | {
    "write of another namespace": lambda store: store.namespace("other").episodes.put(episode("new")),
    "transaction of another namespace": lambda store: transact_other(store),
    "close": lambda store: store.close(),
}


async def transact_other(store: MemoryStore) -> None:
    """Open a transaction of another namespace and leave it."""
    async with store.namespace("other").transaction():
        pass


@pytest.mark.parametrize("use", NESTED)
async def test_waiting_for_oneself_inside_a_transaction_is_refused_at_once(use: str, file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("known"))
        async with asyncio.timeout(5), store.transaction() as tx:
            await tx.episodes.update("known", status="completed")
            with pytest.raises(ConfigurationError, match="transaction") as raised:
                await NESTED[use](store)
            assert not isinstance(raised.value, StoreClosedError)
        found = await store.episodes.get("known")
        assert found is not None
        assert (found.status, found.revision) == ("completed", 2)
        await store.episodes.put(episode("new"))


async def test_reading_the_store_inside_a_transaction_sees_what_was_before(file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("known"))
        async with store.transaction() as tx:
            await tx.episodes.update("known", status="completed")
            await tx.episodes.put(episode("new"))
            outside = await store.episodes.get("known")
            assert outside is not None
            assert outside.status == "active"
            assert await store.episodes.get("new") is None
            assert await store.episodes.count() == 1
            assert await tx.episodes.count() == 2
        # What was read in between must not be what the cache answers now.
        changed, new = await store.episodes.get_many(["known", "new"])
        assert changed is not None
        assert changed.status == "completed"
        assert new is not None


async def test_a_transaction_that_takes_too_long_is_rolled_back_and_others_go_on(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url, transaction_timeout_s=0.1) as store:
        await store.episodes.put(episode("known"))
        rolled_back = asyncio.Event()

        async def too_long() -> None:
            async with store.transaction() as tx:
                await tx.episodes.update("known", status="failed")
                await tx.episodes.put(episode("never"))
                # Another task's write gets its turn only when the transaction has been ended.
                await asyncio.create_task(store.episodes.put(episode("other")))
                rolled_back.set()
                with pytest.raises(DurableTimeoutError):
                    await tx.episodes.get("known")
                await tx.episodes.put(episode("late"))

        with pytest.raises(DurableTimeoutError, match=r"0\.1 s"):
            await too_long()
        assert rolled_back.is_set()
        known, never, late, other = await store.episodes.get_many(["known", "never", "late", "other"])
        assert known is not None
        assert (known.status, known.revision) == ("active", 1)
        assert (never, late) == (None, None)
        assert other is not None
    assert log_problems(tmp_path / "agent.db") == []


async def test_a_transaction_that_ends_quietly_after_its_time_was_not_committed(file_url: str) -> None:
    async with MemoryStore(file_url, transaction_timeout_s=0.05) as store:

        async def too_long() -> None:
            async with store.transaction() as tx:
                await tx.episodes.put(episode("never"))
                await asyncio.create_task(store.episodes.put(episode("other")))

        with pytest.raises(DurableTimeoutError):
            await too_long()
        assert await store.episodes.get("never") is None


async def test_operations_gathered_in_one_transaction_are_one_commit(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        before = store.stats().position
        async with store.transaction() as tx:
            made = await asyncio.gather(*(tx.episodes.put(episode(f"e{i}")) for i in range(50)))
            await asyncio.gather(
                *(tx.steps.append(record.id, [Step(action="a"), Step(action="b")]) for record in made),
                *(tx.episodes.update(record.id, status="completed") for record in made),
            )
        assert store.stats().position == before + 1
        found = await store.episodes.get_many([record.id for record in made])
        assert {record.status for record in found if record} == {"completed"}
        assert [len(await store.steps.of(record.id)) for record in made] == [2] * 50
    assert log_problems(tmp_path / "agent.db") == []


async def test_a_failure_among_gathered_operations_rolls_all_back(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("known"))
        with pytest.raises(ConflictError):
            async with store.transaction() as tx:
                await asyncio.gather(
                    *(tx.episodes.put(episode(f"e{i}")) for i in range(10)),
                    tx.episodes.update("known", expected_revision=7, status="failed"),
                    *(tx.episodes.put(episode(f"f{i}")) for i in range(10)),
                )
        assert await store.episodes.count() == 1
        assert await store.episodes.get_many([f"{letter}{i}" for letter in "ef" for i in range(10)]) == [None] * 20
    assert log_problems(tmp_path / "agent.db") == []


async def test_an_exception_in_the_block_leaves_no_trace_in_cache_or_database(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("known"))
        await store.steps.append("known", Step(id="s1", action="a"))

        async def fail() -> None:
            async with store.transaction() as tx:
                await tx.episodes.put(episode("new"))
                await tx.episodes.update("known", status="failed")
                await tx.steps.append("known", Step(action="b"))
                await tx.steps.delete("s1")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        for _ in ("cached", "read again"):
            known = await store.episodes.get("known")
            assert known is not None
            assert (known.status, known.revision) == ("active", 1)
            assert await store.episodes.get("new") is None
            assert [step.id for step in await store.steps.of("known")] == ["s1"]
            await store.cache.clear()
    assert log_problems(tmp_path / "agent.db") == []


async def test_a_refused_operation_inside_a_transaction_undoes_itself_alone(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        async with store.transaction() as tx:
            await tx.episodes.put(episode("a"))
            with pytest.raises(ConflictError):
                await tx.episodes.update("a", expected_revision=9, status="failed")
            with pytest.raises(InvalidRecordError):
                await tx.episodes.put_many([episode("b"), episode("b")])
            await tx.steps.append("a", Step(action="first", step_number=1))
            with pytest.raises(ConflictError):
                await tx.steps.append("a", [Step(action="x", step_number=2), Step(action="y", step_number=1)])
        assert await store.episodes.count() == 1
        assert [step.action for step in await store.steps.of("a")] == ["first"]
    assert log_problems(tmp_path / "agent.db") == []


AFTER_THE_END: dict[str, Callable[[Transaction], Awaitable[Any]]] = {
    "put": lambda tx: tx.episodes.put(episode("b")),
    "get": lambda tx: tx.episodes.get("a"),
    "list": lambda tx: tx.episodes.list(),
    "count": lambda tx: tx.episodes.count(),
    "delete": lambda tx: tx.episodes.delete("a"),
    "steps.of": lambda tx: tx.steps.of("a"),
}


@pytest.mark.parametrize("use", AFTER_THE_END)
async def test_a_transaction_is_of_no_use_after_its_end(use: str, file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        async with store.transaction() as tx:
            await tx.episodes.put(episode("a"))
        with pytest.raises(ConfigurationError, match="ended"):
            await AFTER_THE_END[use](tx)
        assert await store.episodes.count() == 1


async def test_a_stream_left_in_the_middle_holds_nothing(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put_many([episode(f"e{i:04}") for i in range(600)])
        stream = store.episodes.stream(order_by=Episode.c.id)
        assert (await anext(stream)).id == "e0000"
        await store.episodes.delete("e0001")
        with database(tmp_path / "agent.db") as other_program:
            other_program.execute("BEGIN IMMEDIATE")
            other_program.execute("ROLLBACK")
            [(busy, _, _)] = other_program.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            assert busy == 0
        await stream.aclose()
