"""Plain functions run on the event loop: where one waits for the server's answer, the loop goes on.

Each connection has a greenlet of its own, which runs one function after another. SQLAlchemy's `greenlet_spawn` makes a
greenlet for each function and is awaited by a task: that took 30 µs a function more, half of a point read's own time,
most of it for the new greenlet's stack and the turns of the loop in which a task begins and tells of its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple, TypeVar

from greenlet import getcurrent, greenlet

__all__ = ["Done", "Runner", "settle"]

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]
"""Takes a function's result, or its error."""


class _Ended(NamedTuple):
    result: Any
    error: BaseException | None


class Runner:
    """Runs functions, one at a time, in a greenlet."""

    def __init__(self) -> None:
        self._greenlet: Any = None
        self._done: Done | None = None

    def run(self, function: Callable[[Any], Any], argument: Any, done: Done) -> None:
        """Begin `function(argument)` here and now; `done` is called with its end, perhaps before this returns."""
        assert self._done is None, "a connection runs one function at a time"
        self._done = done
        worker = self._greenlet
        if worker is None:
            worker = self._greenlet = greenlet(_work)
        worker.parent = getcurrent()
        self._go_on(worker.switch(function, argument))

    async def call(self, function: Callable[[Any], T], argument: Any) -> T:
        """Run `function(argument)` and return its result; it goes on when the caller is cancelled."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.run(function, argument, partial(settle, future))
        return await future

    def wait(self, answer: Coroutine[Any, Any, T]) -> T:
        """Inside a function: let the loop go on until there is an answer.

        Only for what needs no task, as what the driver does on an open connection.
        """
        worker = getcurrent()
        assert worker is self._greenlet, "only a function that this runner runs can wait"
        assert worker.parent is not None
        result: T = worker.parent.switch(answer)
        return result

    def close(self) -> None:
        """End the greenlet: left to the garbage collector, it would be ended wherever that happens to run."""
        worker, self._greenlet = self._greenlet, None
        if worker is not None and not worker.dead:
            worker.throw()

    def _go_on(self, said: _Ended | Coroutine[Any, Any, Any]) -> None:
        """Take what the greenlet said when it switched back: its function's end, or what it waits for."""
        if self._greenlet is None and not isinstance(said, _Ended):  # closed while it waited
            said.close()
            return
        while not isinstance(said, _Ended):
            waiting = said
            try:
                future = waiting.send(None)
            except StopIteration as stop:
                said = self._answer(stop.value)
            except BaseException as error:
                said = self._answer_error(error)
            else:
                self._call_back(waiting, future)
                return
        done, self._done = self._done, None
        assert done is not None
        done(said.result, said.error)

    def _call_back(self, waiting: Coroutine[Any, Any, Any], future: asyncio.Future[Any] | None) -> None:
        if future is None:  # a bare yield: go on in the next turn
            asyncio.get_running_loop().call_soon(self._go_on, waiting)
        else:
            future._asyncio_future_blocking = False  # as a task says that it has taken the future
            future.add_done_callback(partial(self._woken, waiting))

    def _woken(self, waiting: Coroutine[Any, Any, Any], future: asyncio.Future[Any]) -> None:
        if self._greenlet is None and not future.cancelled():
            future.exception()  # is for nobody: taken, or the loop complains that nobody did
        self._go_on(waiting)

    def _answer(self, value: Any) -> _Ended | Coroutine[Any, Any, Any]:
        assert self._greenlet is not None
        self._greenlet.parent = getcurrent()
        said: _Ended | Coroutine[Any, Any, Any] = self._greenlet.switch(value)
        return said

    def _answer_error(self, error: BaseException) -> _Ended | Coroutine[Any, Any, Any]:
        assert self._greenlet is not None
        self._greenlet.parent = getcurrent()
        said: _Ended | Coroutine[Any, Any, Any] = self._greenlet.throw(error)
        return said


def _work(function: Callable[[Any], Any], argument: Any) -> None:
    while True:
        try:
            ended = _Ended(function(argument), None)
        except BaseException as error:
            ended = _Ended(None, error)
        parent = getcurrent().parent
        assert parent is not None
        del function, argument  # nothing is kept alive until the next one
        function, argument = parent.switch(ended)


def settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Give a future its end, unless it has one."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(error)
