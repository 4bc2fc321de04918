"""How steps are numbered, and concurrent appends."""

from __future__ import annotations

import asyncio

import pytest

from memory_store import ConflictError, Episode, MemoryStore, MemoryStoreError
from tests.unit.samples import make_episode, make_step


@pytest.fixture(autouse=True)
async def episode(store: MemoryStore) -> None:
    """Episode e1."""
    await store.episodes.put(make_episode(id="e1"))


async def numbers(store: MemoryStore) -> list[int | None]:
    """The numbers of e1's steps as the cache has them, checked against the database."""
    cached = await store.steps.of("e1")
    await store.cache.clear()
    assert await store.steps.of("e1") == cached
    return [step.step_number for step in cached]


async def append(store: MemoryStore, *given: int | None) -> list[int | None]:
    """Append steps with these numbers; return the numbers they got."""
    return [s.step_number for s in await store.steps.append("e1", [make_step(step_number=number) for number in given])]


async def test_absent_numbers_count_from_one(store: MemoryStore) -> None:
    assert await append(store, None) == [1]
    assert await append(store, None, None) == [2, 3]
    assert await numbers(store) == [1, 2, 3]


async def test_explicit_numbers_are_kept_and_counting_goes_on_behind_them(store: MemoryStore) -> None:
    assert await append(store, 0) == [0]
    assert await append(store, 10, None) == [10, 11]
    assert await append(store, 5) == [5]
    assert await append(store, None) == [12]
    assert await numbers(store) == [0, 5, 10, 11, 12]


async def test_mixed_and_unordered_numbers(store: MemoryStore) -> None:
    assert await append(store, None, 7, None, 3) == [8, 7, 9, 3]
    assert await numbers(store) == [3, 7, 8, 9]


async def test_a_gap_left_by_a_delete_is_not_filled(store: MemoryStore) -> None:
    first, second, third = await store.steps.append("e1", [make_step() for _ in range(3)])
    await store.steps.delete(second.id)
    assert await append(store, None) == [4]
    assert await numbers(store) == [1, 3, 4]
    await store.steps.delete(first.id)
    await store.steps.delete(third.id)
    assert await append(store, 2) == [2]
    assert await numbers(store) == [2, 4]


@pytest.mark.parametrize("given", [[2], [None, 1], [4, 4]])
async def test_a_taken_number_is_a_conflict_and_nothing_is_written(store: MemoryStore, given: list[int | None]) -> None:
    await append(store, None, None)
    position = store.stats().position
    with pytest.raises(ConflictError, match=r"step number \d of episode 'e1' is taken"):
        await append(store, *given)
    assert store.stats().position == position
    assert await numbers(store) == [1, 2]


async def test_concurrent_appends_get_numbers_of_their_own(store: MemoryStore) -> None:
    made = await asyncio.gather(*(store.steps.append("e1", make_step(action=str(number))) for number in range(50)))
    assert sorted(step.step_number or 0 for [step] in made) == list(range(1, 51))
    assert await numbers(store) == list(range(1, 51))
    assert [step.action for step in await store.steps.of("e1")] == [str(number) for number in range(50)]


async def test_concurrent_appends_of_one_number_let_one_win(store: MemoryStore) -> None:
    outcomes = await asyncio.gather(*(append(store, 5) for _ in range(10)), return_exceptions=True)
    assert sum(outcome == [5] for outcome in outcomes) == 1
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 9
    assert await numbers(store) == [5]


async def test_two_steps_swap_their_numbers_in_one_batch(store: MemoryStore) -> None:
    await store.steps.put_many([make_step(id="a", step_number=1), make_step(id="b", step_number=2)])
    await store.steps.put_many([make_step(id="a", step_number=2), make_step(id="b", step_number=1)])
    assert [step.id for step in await store.steps.of("e1")] == ["b", "a"]


async def test_an_update_can_renumber(store: MemoryStore) -> None:
    first, second = await store.steps.append("e1", [make_step(), make_step()])
    await store.steps.of("e1")
    await store.steps.update(first.id, step_number=9)
    assert [step.id for step in await store.steps.of("e1")] == [second.id, first.id]
    with pytest.raises(ConflictError):
        await store.steps.update(second.id, step_number=9)
    assert await numbers(store) == [2, 9]


async def test_there_is_no_number_after_the_largest(store: MemoryStore) -> None:
    largest = (1 << 63) - 1
    assert await append(store, largest) == [largest]
    outcomes = await asyncio.gather(append(store, None), store.episodes.put(make_episode()), return_exceptions=True)
    assert isinstance(outcomes[0], MemoryStoreError), f"{outcomes[0]!r} is no error of the library"
    assert isinstance(outcomes[1], Episode), "another task's write must not fail with it"
    assert await numbers(store) == [largest]
