"""For each way to write: another process writes at the same time. Dying and being cancelled have their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memory_store import ConflictError, DurableTimeoutError, MemoryStore, Step
from tests.fault.support import Child, Parent, database, episode, integrity_problems, log_problems

ROUNDS = 40


def run_together(function: Any, *arguments: Any, processes: int = 2) -> list[Any]:
    """Run a function in several processes that start at the same time; each is told its number last."""
    children = [Child(function, *arguments, number) for number in range(processes)]
    try:
        for child in children:
            assert child.receive() == "ready"
        for child in children:
            child.send("go")
        return [child.receive() for child in children]
    finally:
        for child in children:
            child.__exit__(None, None, None)


def check(path: Path) -> None:
    """Check that file and log are whole."""
    assert integrity_problems(path) == []
    assert log_problems(path) == []


async def _append_steps(parent: Parent, url: str, process: int) -> list[int]:
    async with MemoryStore(url) as store:
        parent.send("ready")
        parent.wait_for("go")
        numbers = []
        for i in range(ROUNDS):
            steps = [Step(action=f"{process}.{i}.{j}") for j in range(1 + i % 3)]
            numbers += [step.step_number for step in await store.steps.append("shared", steps)]
    return numbers


async def test_steps_appended_by_two_processes_have_numbers_without_gap_or_repetition(
    file_url: str, tmp_path: Path
) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("shared"))
    first, second = run_together(_append_steps, file_url)
    assert first == sorted(first)
    assert second == sorted(second)
    assert sorted(first + second) == list(range(1, len(first) + len(second) + 1))
    async with MemoryStore(file_url) as store:
        steps = await store.steps.of("shared")
        assert [step.step_number for step in steps] == sorted(first + second)
        assert len({step.action for step in steps}) == len(steps)
    check(tmp_path / "agent.db")


async def _count_up(parent: Parent, url: str, process: int) -> list[tuple[int, int | None, int | None]]:
    told = []
    async with MemoryStore(url) as store:
        parent.send("ready")
        parent.wait_for("go")
        for _ in range(ROUNDS):
            while True:
                # The cache may be a moment behind the other process, never behind what a conflict has told.
                found = await store.episodes.get("counter")
                assert found is not None
                assert found.revision >= max((actual or 0 for _, _, actual in told), default=0)
                try:
                    context = {"count": found.context["count"] + 1}
                    await store.episodes.update("counter", expected_revision=found.revision, context=context)
                    break
                except ConflictError as error:
                    told.append((found.revision, error.expected, error.actual))
    return told


async def test_no_update_is_lost_when_two_processes_count(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("counter", context={"count": 0}))
    for told in run_together(_count_up, file_url):
        for read, expected, actual in told:
            assert expected == read
            assert actual is not None
            assert actual > read
    async with MemoryStore(file_url) as store:
        found = await store.episodes.get("counter")
        assert found is not None
        assert found.context == {"count": 2 * ROUNDS}
        assert found.revision == 2 * ROUNDS + 1
    check(tmp_path / "agent.db")


async def _write_the_same_keys(parent: Parent, url: str, process: int) -> dict[str, int]:
    """Put, put many, delete and change in transactions, all on the same few ids."""
    seen: dict[str, int] = {}
    async with MemoryStore(url) as store:
        parent.send("ready")
        parent.wait_for("go")
        for i in range(ROUNDS):
            seen["put"] = (await store.episodes.put(episode("a", context=[process, i]))).revision
            await store.episodes.put_many([episode(id_, context=[process, i]) for id_ in ("a", "b", "c")])
            if i % 5 == process:
                await store.episodes.delete("c")
            async with store.transaction() as tx:
                before = await tx.episodes.get("a")
                assert before is not None
                after = await tx.episodes.update("a", context=[process, i, "in a transaction"])
                assert after.revision == before.revision + 1
    return seen


async def test_every_way_to_write_from_two_processes_leaves_no_gap(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("a"))
    run_together(_write_the_same_keys, file_url)
    async with MemoryStore(file_url) as store:
        found = await store.episodes.get("a")
        assert found is not None
        assert found.revision == 1 + 2 * ROUNDS * 3
    check(tmp_path / "agent.db")


async def _hold_a_transaction(parent: Parent, url: str) -> None:
    async with MemoryStore(url) as store, store.transaction() as tx:
        await tx.episodes.put(episode("a", domain="first"))
        parent.send("holding")
        parent.wait_for("commit")


async def _write_and_tell(parent: Parent, url: str, timeout_s: float) -> list[Any]:
    async with MemoryStore(url, timeout_s=timeout_s) as store:
        parent.send("ready")
        try:
            stored = await store.episodes.put(episode("a", domain="second"))
        except DurableTimeoutError as error:
            return ["timeout", error.retryable]
        return ["stored", stored.revision]


async def test_a_writer_waits_for_the_transaction_of_another_process(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url):
        pass
    with Child(_hold_a_transaction, file_url) as holder:
        assert holder.receive() == "holding"
        with Child(_write_and_tell, file_url, 30.0) as writer:
            assert writer.receive() == "ready"
            assert not writer.arrived_within(0.2), "it did not wait"
            holder.send("commit")
            assert writer.receive() == ["stored", 2]
        holder.receive()
    with database(tmp_path / "agent.db") as connection:
        assert connection.execute("SELECT domain, revision FROM episodes").fetchall() == [("second", 2)]
    check(tmp_path / "agent.db")


async def test_a_writer_that_waits_too_long_has_written_nothing(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url):
        pass
    with Child(_hold_a_transaction, file_url) as holder:
        assert holder.receive() == "holding"
        with Child(_write_and_tell, file_url, 0.2) as writer:
            assert writer.receive() == "ready"
            assert writer.receive() == ["timeout", True]
        holder.send("commit")
        holder.receive()
    with database(tmp_path / "agent.db") as connection:
        assert connection.execute("SELECT domain, revision FROM episodes").fetchall() == [("first", 1)]
    check(tmp_path / "agent.db")


async def test_a_transaction_whose_process_is_killed_leaves_nothing_and_nobody_waiting(
    file_url: str, tmp_path: Path
) -> None:
    async with MemoryStore(file_url, timeout_s=5) as store:
        with Child(_hold_a_transaction, file_url) as holder:
            assert holder.receive() == "holding"
            holder.kill()
        assert (await store.episodes.put(episode("a", domain="after"))).revision == 1
    check(tmp_path / "agent.db")


async def _read_what_is_committed(parent: Parent, url: str) -> tuple[list[int], int]:
    """Read all of a batch again and again until told to stop; return the different counts of its marks, and marks."""
    counts, marks = set(), set()
    async with MemoryStore(url, cache_max_bytes=0) as store:
        parent.send("ready")
        while not parent.was_told("stop"):
            seen = {found.domain for found in (await store.episodes.list(limit=100)).items}
            counts.add(len(seen))
            marks |= seen
    return sorted(counts), len(marks)


@pytest.mark.parametrize("way", ["put_many", "transaction"])
async def test_another_process_sees_a_batch_whole_or_not_at_all(way: str, file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put_many([episode(f"b{i}", domain="0") for i in range(50)])
        with Child(_read_what_is_committed, file_url) as reader:
            assert reader.receive() == "ready"
            for round_ in range(60):
                batch = [episode(f"b{i}", domain=str(round_)) for i in range(50)]
                if way == "put_many":
                    await store.episodes.put_many(batch)
                else:
                    async with store.transaction() as tx:
                        for record in batch:
                            await tx.episodes.put(record)
            reader.send("stop")
            counts, marks = reader.receive()
            assert counts == [1]
            assert marks > 1, "nothing was read while batches were written"
