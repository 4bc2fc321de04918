"""Uses, learning and merging of patterns: a process that is killed, another process, a caller that is cancelled."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from memory_store import MemoryStore, Pattern, Step
from tests.fault.cancelling import MOMENTS, cancel_everywhere
from tests.fault.support import Child, Parent, database, episode, fields, integrity_problems, log_problems, plain_rows
from tests.fault.test_fault_write_paths import run_together

USES = 200
GROUPS = 6


def alike(group: int, number: int) -> Pattern:
    """One of three near-duplicates of a group, each used once."""
    names = [f"tool{i}" for i in range(20)] + ["abc"[number]]
    return Pattern(
        id=f"g{group}-{number}",
        pattern_type="tool_sequence",
        pattern_data={"tools": names},
        domain=f"d{group}",
        success_rate=1.0,
        usage_count=1,
    )


async def put_groups(store: MemoryStore) -> None:
    """Put groups of near-duplicates."""
    await store.patterns.put_many(alike(group, number) for group in range(GROUPS) for number in range(3))


def check_groups(path: Path) -> int:
    """Check that each group was merged as a whole or not at all; return how many were."""
    with database(path) as connection:
        rows = connection.execute("SELECT domain, usage_count FROM patterns ORDER BY domain").fetchall()
    merged = 0
    for _, members in itertools.groupby(rows, key=lambda row: row[0]):
        uses = [row[1] for row in members]
        assert uses in ([3], [1, 1, 1])
        merged += uses == [3]
    assert len({row[0] for row in rows}) == GROUPS
    return merged


async def put_runs(store: MemoryStore) -> None:
    """Put episodes with some sequences in common."""
    for number in range(8):
        await store.episodes.put(episode(f"e{number}", status="failed" if number % 3 else "completed"))
        await store.steps.append(f"e{number}", [Step(action="x", tool_name=tool) for tool in "abcdefgh"[number % 4 :]])


async def _use_for_ever(parent: Parent, url: str) -> None:
    async with MemoryStore(url) as store:
        parent.send("open")
        for number in itertools.count():
            used = await store.patterns.record_use("p", success=number % 2 == 0)
            parent.send((used.usage_count, used.successes))


async def test_acknowledged_uses_survive_kills(file_url: str, tmp_path: Path) -> None:
    path, seeded = tmp_path / "agent.db", random.Random(11)
    async with MemoryStore(file_url) as store:
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=1))
    uses = successes = 0
    for _ in range(8):
        with Child(_use_for_ever, file_url) as child:
            assert child.receive() == "open"
            acknowledged = [child.receive() for _ in range(seeded.randrange(20))]
            child.arrived_within(seeded.uniform(0, 0.004))
            child.kill()
            acknowledged += child.messages_left()
        for number, told in enumerate(acknowledged):
            assert told == (uses + number + 1, successes + number // 2 + 1)
        async with MemoryStore(file_url) as store:
            found = await store.patterns.get("p")
        assert found is not None
        missing = found.usage_count - uses - len(acknowledged)
        assert missing in (0, 1), "the one that was under way may have been counted"
        assert found.successes == successes + (found.usage_count - uses + 1) // 2
        uses, successes = found.usage_count, found.successes
    assert integrity_problems(path) == []
    assert log_problems(path) == []


async def _merge(parent: Parent, url: str) -> None:
    async with MemoryStore(url) as store:
        parent.send("open")
        await store.patterns.merge_duplicates()
        parent.send("merged")


async def test_a_merge_that_is_killed_is_there_as_a_whole_or_not_at_all(file_url: str, tmp_path: Path) -> None:
    path, seeded = tmp_path / "agent.db", random.Random(12)
    async with MemoryStore(file_url) as store:
        await put_groups(store)
    for _ in range(4):
        with Child(_merge, file_url) as child:
            assert child.receive() == "open"
            child.arrived_within(seeded.uniform(0, 1.0))
            child.kill()
        check_groups(path)
    async with MemoryStore(file_url) as store:
        await store.patterns.merge_duplicates()
    assert check_groups(path) == GROUPS
    assert integrity_problems(path) == []
    assert log_problems(path) == []


async def _learn(parent: Parent, url: str) -> None:
    async with MemoryStore(url) as store:
        parent.send("open")
        await store.patterns.learn()
        parent.send("learned")


async def test_learning_that_was_killed_is_simply_repeated(file_url: str, tmp_path: Path) -> None:
    seeded = random.Random(13)
    async with MemoryStore(file_url) as store:
        await put_runs(store)
    for _ in range(4):
        with Child(_learn, file_url) as child:
            assert child.receive() == "open"
            child.arrived_within(seeded.uniform(0, 0.02))
            child.kill()
    async with MemoryStore(file_url) as store, MemoryStore("sqlite:///:memory:") as untouched:
        await put_runs(untouched)
        learned, expected = await store.patterns.learn(), await untouched.patterns.learn()
        assert [(one.id, one.usage_count, one.successes) for one in learned] == [
            (one.id, one.usage_count, one.successes) for one in expected
        ]
        assert await store.patterns.count() == len(expected)
    assert log_problems(tmp_path / "agent.db") == []


async def _use(parent: Parent, url: str, process: int) -> list[int]:
    async with MemoryStore(url) as store:
        parent.send("ready")
        parent.wait_for("go")
        return [(await store.patterns.record_use("p", success=process == 0)).usage_count for _ in range(USES)]


async def test_no_use_is_lost_between_processes(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=1))
    first, second = run_together(_use, file_url)
    assert sorted(first + second) == list(range(1, 2 * USES + 1))
    async with MemoryStore(file_url) as store:
        found = await store.patterns.get("p")
        assert found is not None
        assert (found.usage_count, found.successes, found.revision) == (2 * USES, USES, 2 * USES + 1)
    assert integrity_problems(tmp_path / "agent.db") == []
    assert log_problems(tmp_path / "agent.db") == []


async def test_no_use_is_lost_between_processes_on_a_server(server_url: str) -> None:
    async with MemoryStore(server_url) as store:
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=1))
        first, second = run_together(_use, server_url)
        assert sorted(first + second) == list(range(1, 2 * USES + 1))
        found = await store.patterns.get("p", freshness="linearizable")
        assert found is not None
        assert (found.usage_count, found.successes, found.revision) == (2 * USES, USES, 2 * USES + 1)


async def _merge_together(parent: Parent, url: str, process: int) -> int:
    async with MemoryStore(url) as store:
        parent.send("ready")
        parent.wait_for("go")
        return len(await store.patterns.merge_duplicates())


async def test_two_processes_that_merge_at_once_merge_each_group_once(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await put_groups(store)
    assert sum(run_together(_merge_together, file_url)) == GROUPS
    assert check_groups(tmp_path / "agent.db") == GROUPS


async def record(store: MemoryStore, key: str) -> None:
    await store.patterns.record_use(key, success=True)


async def record_with_a_key(store: MemoryStore, key: str) -> None:
    await store.patterns.record_use(key, success=True, idempotency_key=f"use of {key}")


async def record_in_a_transaction(store: MemoryStore, key: str) -> None:
    async with store.transaction() as tx:
        await tx.patterns.record_use(key, success=True)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("use", [record, record_with_a_key, record_in_a_transaction])
async def test_a_cancelled_use_is_counted_or_not(
    use: Callable[[MemoryStore, str], Awaitable[None]], moment: str, file_store: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "agent.db"
    await file_store.patterns.put_many(Pattern(id=f"p{i}", pattern_type="t", pattern_data=i) for i in range(60))

    async def check(number: int) -> None:
        """One more goes through, so no lock was left, and tells whether the cancelled one was counted."""
        key = f"p{number}"
        again = await file_store.patterns.record_use(key, success=False)
        assert again.usage_count in (1, 2)
        assert (again.successes, again.revision) == (again.usage_count - 1, again.usage_count + 1)
        with database(path) as connection:
            [row] = plain_rows(connection, file_store.patterns._spec, "id = ?", key)
        assert fields(again) == row == fields(await file_store.patterns.get(key))
        if use is record_with_a_key:
            await use(file_store, key)
            retried = await file_store.patterns.get(key)
            assert retried is not None
            assert (retried.usage_count, retried.successes) == (2, 1), "the retry counts what was not counted"

    async def run(number: int) -> None:
        await use(file_store, f"p{number}")

    assert await cancel_everywhere(run, check, moment)
    assert log_problems(path) == []


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_cancelled_merge_leaves_whole_groups(moment: str, file_store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    await put_groups(file_store)

    async def merge(_: int) -> None:
        await file_store.patterns.merge_duplicates()

    async def check(_: int) -> None:
        check_groups(path)
        await put_groups(file_store)  # which waits for what was under way, and makes the next run begin anew

    assert await cancel_everywhere(merge, check, moment) > 3
    assert await file_store.patterns.merge_duplicates()
    assert check_groups(path) == GROUPS
    assert log_problems(path) == []


@pytest.mark.parametrize("moment", MOMENTS)
async def test_cancelled_learning_is_simply_repeated(moment: str, file_store: MemoryStore, tmp_path: Path) -> None:
    await put_runs(file_store)
    expected = {pattern.id: pattern.usage_count for pattern in await file_store.patterns.learn()}

    async def learn(_: int) -> None:
        await file_store.patterns.learn()

    async def check(_: int) -> None:
        assert {pattern.id: pattern.usage_count for pattern in await file_store.patterns.learn()} == expected
        for id_ in expected:
            await file_store.patterns.delete(id_)

    await check(0)
    assert await cancel_everywhere(learn, check, moment) > 3
    assert log_problems(tmp_path / "agent.db") == []


@pytest.mark.parametrize("moment", MOMENTS)
async def test_the_index_is_right_after_a_cancelled_search(moment: str, file_store: MemoryStore, file_url: str) -> None:
    """Cancelled while it is built, and while it takes what was changed."""
    asked = alike(0, 0)

    async def search(number: int) -> None:
        await file_store.patterns.similar(asked, threshold=0.8)

    async def change(number: int) -> None:
        async with MemoryStore(file_url, namespace=file_store.name) as other:
            await other.patterns.put(alike(number, number % 3))
            await other.patterns.delete(alike(number - 1, (number - 1) % 3).id)

    async def check(number: int) -> None:
        similar = await file_store.patterns.similar(asked, threshold=0.8, limit=1000)
        stored = {pattern.id async for pattern in file_store.patterns.stream()}
        assert {pattern.id for pattern, _ in similar} == stored - {asked.id}
        await change(number)

    await file_store.patterns.put_many(alike(-group, 1) for group in range(1, 100))
    assert await cancel_everywhere(search, check, moment) > 2
