"""An event loop and threads that do nothing by themselves: the scheduler says what happens next.

A process has one loop, whose callbacks run in the order they were added, as asyncio promises. What its threads do, and
when their answers reach the loop, is up to the scheduler: a thread's job runs in one step, its answer comes in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Clock", "Driver", "SteppedLoop", "SteppedThread"]


class Clock:
    """The boot clock of the machine all processes run on.

    Its steps are multiples of 1/1024 s, so that sums and differences are exact.
    """

    def __init__(self) -> None:
        self.now = 1024.0
        self.tick: Callable[[], bool] = lambda: False
        """Called at a reading: time may pass there. Returns whether that was behind the reading, not before it."""

    def read(self) -> float:
        """Return the time."""
        before = self.now
        return before if self.tick() else self.now

    def pass_(self, ticks: int) -> None:
        """Let time pass."""
        self.now += ticks / 1024


class _Timer:
    __slots__ = ("arguments", "cancelled", "function")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments, self.cancelled = function, arguments, False

    def cancel(self) -> None:
        self.cancelled = True


class SteppedLoop(asyncio.AbstractEventLoop):
    """The event loop of one process; `step` runs one callback."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.ready: deque[tuple[Callable[..., Any], tuple[Any, ...], Any]] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._count = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.executor = SteppedThread()
        self.running: SteppedThread | None = None
        """The thread whose job runs now: what it hands to the loop waits for the scheduler."""

    def step(self) -> None:
        """Run the next callback."""
        function, arguments, context = self.ready.popleft()
        asyncio._set_running_loop(self)
        try:
            if context is None:
                function(*arguments)
            else:
                context.run(function, *arguments)
        finally:
            asyncio._set_running_loop(None)

    def run_thread(self, thread: SteppedThread) -> None:
        """Run the next job of a thread."""
        self.running = thread
        try:
            thread.run()
        finally:
            self.running = None

    def hand_over(self, thread: SteppedThread) -> None:
        """Let the answers of a thread reach the loop."""
        self.ready += thread.answers
        thread.answers.clear()

    def ring(self) -> None:
        """Make the timers ready whose time has come."""
        timers, now = self._timers, self._clock.now
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled:
                self.ready.append((timer.function, timer.arguments, None))

    def kill(self) -> None:
        """End as a killed process does; coroutines are closed only so that Python does not complain about them."""
        self.ready.clear()
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(RuntimeError):  # it waits for something in its `finally`
                    task.get_coro().close()  # type: ignore[union-attr]
        self.ready.clear()
        self.tasks.clear()
        self._timers.clear()
        self.errors.clear()

    # What asyncio asks of a loop

    def call_soon(self, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> None:  # type: ignore[override]
        self.ready.append((callback, arguments, context))

    def call_soon_threadsafe(self, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> None:  # type: ignore[override]
        if self.running is None:
            self.ready.append((callback, arguments, context))
        else:
            self.running.answers.append((callback, arguments, context))

    def call_later(self, delay: float, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> Any:
        timer = _Timer(callback, arguments)
        self._count += 1
        heapq.heappush(self._timers, (self._clock.now + delay, self._count, timer))
        return timer

    def time(self) -> float:
        return self._clock.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coroutine: Coroutine[Any, Any, Any], *, name: Any = None, context: Any = None) -> Any:  # type: ignore[override]
        task = asyncio.Task(coroutine, loop=self, name=name or "task")
        self.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        assert not arguments
        future = self.create_future()
        self.executor.put_nowait((future, function))
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)


class SteppedThread:
    """A thread with a queue of jobs, as aiosqlite's: `(future or None, function)`."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[asyncio.Future[Any] | None, Callable[[], Any]]] = deque()
        self.answers: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = []

    def put_nowait(self, job: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        """Queue a job."""
        self.jobs.append(job)

    def run(self) -> None:
        """Run the next job."""
        future, function = self.jobs.popleft()
        try:
            result = function()
        except Exception as error:
            self._answer(future, asyncio.Future.set_exception, error)
        else:
            self._answer(future, asyncio.Future.set_result, result)

    def _answer(self, future: asyncio.Future[Any] | None, set_: Callable[..., None], value: Any) -> None:
        def answer() -> None:
            assert future is not None
            if not future.done():
                set_(future, value)

        if future is not None:
            self.answers.append((answer, (), None))
        elif isinstance(value, Exception):
            raise value


class Driver:
    """What a lane reaches into of an aiosqlite connection."""

    def __init__(self, connection: Any) -> None:
        self._tx, self._conn = SteppedThread(), connection
