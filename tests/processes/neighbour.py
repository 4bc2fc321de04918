"""A process that keeps writing the records of another one, and tells when it could write again."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from memory_store import MemoryStore, RecordNotFoundError, Step
from tests.fault.support import Child, Parent, episode

KEYS = [f"key-{i}" for i in range(12)]
# Long enough for the store under test to begin transactions of its own: SQLite's busy handler does not queue.
_PAUSE_S = 0.001


async def write_for_ever(parent: Parent, url: str, namespace: str) -> None:
    """Put, append to and delete the keys at random; answer each "write" message once a write begun after it is done."""
    seeded = random.Random(7)
    async with MemoryStore(url, namespace=namespace, actor="neighbour", cache_path="", timeout_s=30) as store:
        for number in itertools.count():
            asked = parent._connection.poll()
            if asked and parent._connection.recv() == "stop":
                break
            key = seeded.choice(KEYS)
            if asked or (what := seeded.random()) < 0.5:
                await store.episodes.put(episode(key, context={"neighbour": number}))
            elif what < 0.6:
                await store.episodes.delete(key)
            elif what < 0.8:
                async with store.transaction() as tx:
                    await tx.episodes.put_many([episode(one, status="failed") for one in (key, "key-pair")])
            else:
                try:
                    await store.steps.append(key, Step(action=f"neighbour {number}"))
                except RecordNotFoundError:
                    await store.episodes.put(episode(key))
            if asked:
                parent.send(number)
            await asyncio.sleep(_PAUSE_S)


class Neighbour:
    """The other process, seen from this one."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.written = -1

    async def writes(self) -> None:
        """Wait until it has begun a write after this call and been answered; fail if something keeps it from that."""
        self._child.send("write")
        async with asyncio.timeout(10):
            while not self._child.arrived_within(0):
                await asyncio.sleep(0.0005)
        number = self._child.receive()
        assert number > self.written
        self.written = number


@asynccontextmanager
async def neighbour_of(url: str, namespace: str) -> AsyncIterator[Neighbour]:
    """Have a neighbour on this database."""
    with Child(write_for_ever, url, namespace) as child:
        neighbour = Neighbour(child)
        await neighbour.writes()
        yield neighbour
        child.send("stop")
        assert child.receive() is None
