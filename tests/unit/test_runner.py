"""What becomes of a function that is under way when its runner is closed."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from memory_store.durable.runner import Runner


@pytest.fixture
async def complaints() -> list[dict[str, Any]]:
    """What the event loop has complained of so far."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


async def wait_on(future: asyncio.Future[None]) -> None:
    await future


@pytest.mark.parametrize("fails", [True, False])
async def test_an_answer_after_the_end_is_for_nobody_and_is_not_complained_of(
    fails: bool, complaints: list[dict[str, Any]]
) -> None:
    """As a driver's, which tells who waits that the connection was closed."""
    runner, answer = Runner(), asyncio.get_running_loop().create_future()
    went_on = []

    def work(future: asyncio.Future[None]) -> None:
        runner.wait(wait_on(future))
        went_on.append(True)

    runner.run(work, answer, lambda result, error: went_on.append(True))
    runner.close()
    if fails:
        answer.set_exception(ConnectionError("closed in the middle of operation"))
    else:
        answer.cancel()
    await asyncio.sleep(0)
    del answer
    gc.collect()

    assert went_on == []
    assert complaints == []
