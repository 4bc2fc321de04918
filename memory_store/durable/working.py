"""Long work on a database that tells how far it is and can be cancelled: in a thread, or over a server's connection."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

from memory_store.config import Settings
from memory_store.durable.catalogue import expected_objects
from memory_store.durable.connection import Connection
from memory_store.durable.dialects.sqlite import translate
from memory_store.durable.engine import ServerTarget, Target
from memory_store.durable.examine import require_file
from memory_store.durable.findings import Watcher
from memory_store.durable.verify import opened_to_read
from memory_store.durable.visiting import visit
from memory_store.errors import DurableUnavailableError
from memory_store.waiting import wait_out

__all__ = ["Progress", "in_thread", "over", "run_watched"]

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called on the event loop with what is being done, how much of it is done, and how much there is."""


async def over(
    target: Target | ServerTarget,
    settings: Settings,
    work: Callable[[Connection, Watcher], T],
    on_progress: Progress | None,
) -> T:
    """Run work over a connection of its own: to a server in a greenlet, to a file in a thread and without rights."""
    if isinstance(target, ServerTarget):
        await asyncio.to_thread(expected_objects)  # reads the migrations, once
        return await run_watched(
            lambda watcher: visit(target, settings.timeout_s, lambda connection: work(connection, watcher)),
            on_progress,
            cancel=True,
        )

    def run(watcher: Watcher) -> T:
        require_file(target)
        with opened_to_read(target.path, settings.timeout_s) as connection:
            return work(connection, watcher)

    return await in_thread(run, on_progress)


async def in_thread(work: Callable[[Watcher], T], on_progress: Progress | None) -> T:
    """Run work in a thread. Cancelled, the caller waits until the work has cleaned up."""
    return await run_watched(lambda watcher: asyncio.to_thread(work, watcher), on_progress)


async def run_watched(
    start: Callable[[Watcher], Awaitable[T]], on_progress: Progress | None, *, cancel: bool = False
) -> T:
    """Wait for work. Cancelled, it stops it (in a thread: asks it to end), waits until it has ended, and raises."""
    loop = asyncio.get_running_loop()

    def tell(what: str, done: int, total: int) -> None:
        if on_progress is not None:
            loop.call_soon_threadsafe(on_progress, what, done, total)

    watcher = Watcher(tell)
    running = asyncio.ensure_future(start(watcher))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        watcher.stop()
        if cancel:
            running.cancel()
        await wait_out(running)
        if not running.cancelled():
            running.exception()  # looked at: it ended because it was told to
        raise
    except sqlite3.Error as error:
        raise translate(error) from error
    except OSError as error:
        raise DurableUnavailableError(f"{error.filename or 'a file'}: {error.strerror or error}") from error
