"""Cancels a coroutine at each of its suspensions in turn, at three different moments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

MOMENTS = ["at once", "a tick later", "with the answer"]
"""When a task is cancelled that has begun to wait: before anything it asked for has started, while it runs, or in the
same tick in which the answer arrives (the caller never sees it, though it is there)."""

_MOST_SUSPENSIONS = 500


class CancelledAt:
    """Awaits a coroutine and cancels its task when it suspends for the n-th time, and the times after it as asked.

    Args:
        coroutine: what is awaited.
        suspension: at which suspension, from 1.
        moment: one of `MOMENTS`.
        times: how often, at suspensions that follow each other.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], suspension: int, moment: str, times: int = 1) -> None:
        self._coroutine, self._suspension, self._moment, self._times = coroutine, suspension, moment, times
        self.reached = False
        """Whether the coroutine suspended that often."""

    def __await__(self) -> Generator[Any, None, Any]:
        inner = self._coroutine.__await__()
        count, error = 0, None
        while True:
            try:
                awaited = inner.send(None) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            count, error = count + 1, None
            if self._suspension <= count < self._suspension + self._times:
                self.reached = True
                self._cancel(awaited)
            try:
                yield awaited
            except BaseException as raised:
                error = raised

    def _cancel(self, awaited: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._moment == "with the answer" and awaited is not None:
            awaited.add_done_callback(lambda _: task.cancel())
        elif self._moment == "a tick later":
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            task.cancel()


async def cancel_everywhere(
    make: Callable[[int], Coroutine[Any, Any, Any]], check: Callable[[int], Awaitable[None]], moment: str
) -> int:
    """Cancel at suspension 1, 2, ... until the coroutine ends before that; check after each; return how many.

    A cancellation must come out as one: swallowed, it would leave `asyncio.timeout` and task groups waiting.

    Args:
        make: makes the coroutine of the n-th run.
        check: checks what the n-th run left behind.
        moment: one of `MOMENTS`.
    """
    for number in range(1, _MOST_SUSPENSIONS):
        run = CancelledAt(make(number), number, moment)
        async with asyncio.timeout(30):
            cancelled = await _run(run)
        assert cancelled == run.reached, f"the cancellation at suspension {number} was swallowed"
        async with asyncio.timeout(30):
            await check(number)
        if not run.reached:
            return number - 1
    raise AssertionError("it never ends")


async def _run(run: CancelledAt) -> bool:
    async def awaiting() -> None:
        await run

    task = asyncio.create_task(awaiting())
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return False


async def awaited(run: CancelledAt) -> None:
    """Await it, as a task's coroutine."""
    await run
