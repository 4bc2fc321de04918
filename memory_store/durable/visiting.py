"""One connection to a server for one piece of work, without opening a store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from memory_store.durable.connection import Connection
from memory_store.durable.engine import ServerTarget
from memory_store.durable.runner import settle

__all__ = ["visit"]

T = TypeVar("T")


async def visit(target: ServerTarget, timeout_s: float, work: Callable[[Connection], T]) -> T:
    """Run `work(connection)` on the event loop, which goes on meanwhile; cancelled, it ends at the next answer.

    Args:
        target: the database.
        timeout_s: longest wait for the server to take the connection, in seconds.
        work: what to do; a transaction it leaves open is rolled back.

    Raises:
        DurableUnavailableError: the server cannot be reached, or refuses.
    """
    from memory_store.durable.dialects.postgresql import Connection as ServerConnection
    from memory_store.durable.dialects.postgresql import connect

    # No session settings and no prepared statements: a pooler that gives a server connection for each transaction
    # would refuse the one and lose the other.
    driver: Any = await connect(target.dsn, timeout_s, {}, statement_cache_size=0)
    connection = ServerConnection(driver)
    running: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    try:
        connection.runner.run(work, connection, partial(settle, running))
        done = await asyncio.shield(running)
        await driver.close(timeout=timeout_s)
        return done
    except asyncio.CancelledError:
        driver.terminate()  # which ends what the work waits for
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # looked at: it ended because it was told to
        raise
    finally:
        connection.close()
