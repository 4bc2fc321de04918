"""One process of the simulation: the library's own objects on stepped threads, wired as `MemoryStore` wires them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from io import BytesIO
from types import SimpleNamespace
from typing import Any, cast

from memory_store.access import TieredAccess
from memory_store.cache import snapshot
from memory_store.cache.coherence import Coherence
from memory_store.cache.entries import Space
from memory_store.cache.keeper import CacheKeeper
from memory_store.cache.tier import CacheTier
from memory_store.codec import ENTRY_PREFIX_BYTES, entry_as_of, pack_row
from memory_store.config import Limits
from memory_store.durable.commits import LogWriter
from memory_store.durable.lane import Lane
from memory_store.durable.log import read_head
from memory_store.durable.probe import Probe
from memory_store.durable.reader import Reader
from memory_store.durable.statements import head_select
from memory_store.durable.writer import Writer
from memory_store.errors import CacheError
from tests.simulation.connection import Connection
from tests.simulation.database import Database, Row
from tests.simulation.loop import Clock, Driver, SteppedLoop, SteppedThread

__all__ = ["Disk", "Process", "SavedCache", "packed", "save"]

LIMITS = Limits()
_PACKED: dict[int, tuple[tuple[Row, ...], bytes]] = {}


class Disk:
    """The file of the saved cache, which all processes share; it is replaced whole or not at all."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.older: list[bytes] = []


def save(disk: Any, header: snapshot.Header, keys: Sequence[str], entries: Sequence[bytes]) -> int:
    """Stand in for `snapshot.save`: the same bytes, without files."""
    file = BytesIO()
    count = snapshot._write(cast(Any, file.write), header, keys, entries)
    disk.content = file.getvalue()
    disk.older.append(disk.content)
    return count


class SavedCache(snapshot.Snapshot):
    """A saved cache read from the simulation's disk; everything behind the opening is the library's own."""

    def __init__(self, folder: Any) -> None:
        if folder.content is None:
            raise CacheError("there is no saved cache")
        self._file = BytesIO(folder.content)  # type: ignore[assignment]
        if self._file.read(len(snapshot._MAGIC)) != snapshot._MAGIC:
            raise CacheError("the file is not a saved cache of this format")
        self.header = snapshot._parse_header(self._next(snapshot._MOST_SPACES))
        self._kinds = {f"{number:x}/": kind for number, (kind, _) in enumerate(self.header.spaces)}


class Process:
    """One process, from its start until it is closed or killed.

    Args:
        number: its name in the trace.
        database: the database of all.
        clock: the clock of all.
        disk: where the cache is saved.
        rng: draws its settings.
    """

    def __init__(self, number: int, database: Database, clock: Clock, disk: Disk, rng: random.Random) -> None:
        self.number, self.database, self.clock = number, database, clock
        self.loop = SteppedLoop(clock)
        self.staleness_s = rng.choice((1 / 16, 1 / 16, 1 / 8))
        self.freshness: Any = "linearizable" if rng.random() < 0.2 else "bounded"
        budget = rng.choice((1 << 20, 1 << 20, 1 << 20, 4000, 1500))
        self.cache = CacheTier(budget, {"episode": 1.0, "step": 0.75, "query_result": 1.0})
        self.coherence = Coherence(self.cache, self.freshness, self.staleness_s)
        self.access = TieredAccess(LIMITS, self.cache, self.coherence)
        self._disk, self._interval_s = disk, rng.choice((0.0, 0.0, 0.25))
        self.connections = {role: Connection(database, self, role) for role in ("write", "read", "scan", "probe")}
        self.threads: list[SteppedThread] = []
        self.keeper: CacheKeeper | None = None
        self.alive = True
        self.is_open = False
        self.stalled = 0
        """Steps of the scheduler for which it stays stopped."""
        self.changed = False
        """Whether anything has run since the invariant was checked."""
        self.calls: list[Any] = []
        """Tasks of clients under way."""
        self.floors = [0] * len(database.lineages)
        """For each past of the database, the newest position that was observed or acknowledged here."""
        self.past = len(database.lineages) - 1
        """The newest past that this process has proved to know."""
        self.landed = [float("-inf")] * self.past
        """For each past that is over, when the last answer had arrived that was made in it."""
        self._under_way: list[SteppedThread] = []
        self.loop.create_task(self.open(), name=f"open {number}")

    def _lane(self, role: str) -> Lane:
        driver = Driver(self.connections[role])
        self.threads.append(driver._tx)
        return Lane(None, cast(Any, driver), self.loop)

    async def open(self) -> None:
        """Open, as `MemoryStore._open` and `Durable._start` do."""
        write, read, scan = self._lane("write"), self._lane("read"), self._lane("scan")
        self.threads.append(self.loop.executor)
        self.write_thread = self.threads[0]
        head = await write.run(read_head)
        for lane in (read, scan):
            await lane.run(read_head)
        log = LogWriter(f"process {self.number}", head.epoch)
        lock: Any = SimpleNamespace(shared=nullcontext)
        checkpointer: Any = SimpleNamespace(after_commit=lambda connection, changes: None)
        writer = Writer(write, lock, checkpointer, log, self.coherence)
        probe = Probe.__new__(Probe)
        probe._connection, probe._head = cast(Any, self.connections["probe"]), head_select()
        durable: Any = SimpleNamespace(writer=writer, reader=Reader(read, self.coherence), scan=scan, probe=probe)
        self.cache.head = head
        self.access.attach(durable)
        self.writer = writer
        self.keeper = CacheKeeper(self.coherence, scan, cast(Any, self._disk), "", self._interval_s)
        self.keeper.start()
        self.is_open = True

    async def close(self) -> None:
        """Close, as `MemoryStore.close` does."""
        assert self.keeper is not None
        self.is_open = False
        self.access.detach("the store is closed")
        await self.writer.drain()
        await self.keeper.close()
        self.alive = False

    def kill(self) -> None:
        """Die: what was under way has happened or not, and nobody will be told."""
        self.alive = self.is_open = False
        for connection in self.connections.values():
            connection.abandon()
        self.threads.clear()
        self.loop.kill()

    def options(self) -> list[SteppedThread | None]:
        """Return what can go on: None for the loop, else a thread."""
        loop = self.loop
        if loop._timers:
            loop.ring()
        found: list[SteppedThread | None] = [None] if loop.ready else []
        for thread in self.threads:
            if thread.answers:
                found.append(thread)
            elif thread.jobs:
                lock = self.database.locked_by
                if thread is not self.write_thread or lock is None or lock is self.connections["write"]:
                    found.append(thread)
        return found

    def rewound(self) -> None:
        """Note that the database was taken back: answers made before that may be on their way."""
        self._under_way = [thread for thread in self.threads if thread.answers]
        self.landed.append(float("inf"))
        self._land()

    def _land(self) -> None:
        if not self._under_way and not self.loop.ready:
            now = self.clock.now
            self.landed = [min(time, now) for time in self.landed]

    def go_on(self, what: SteppedThread | None) -> str:
        """Do one step, and return what it was."""
        self.changed = True
        if what is None:
            self.loop.step()
            if self.landed and self.landed[-1] > self.clock.now:
                self._land()
            return "loop"
        index = self.threads.index(what)
        if what.answers:
            self.loop.hand_over(what)
            if what in self._under_way:
                self._under_way.remove(what)
            return f"answer of thread {index}"
        self.loop.run_thread(what)
        return f"thread {index}"

    def wrong_entries(self) -> list[str]:
        """Return the live entries that differ from the database at the watermark; there must be none."""
        cache, wrong = self.cache, []
        version = self.database.by_nonce.get(cache.head.nonce)
        if version is None or version.head.position != cache.head.position:
            return [f"the watermark {cache.head} is no commit"]
        tables = version.tables
        for key in cache.keys():  # noqa: SIM118 - it is no dictionary
            entry = cache._entries.peek(key)
            space, id_ = cache.space_of(key)
            if entry is None or space.kind == "query_result" or entry_as_of(entry) < space.floor:
                continue
            if entry[ENTRY_PREFIX_BYTES:] != packed(tables.get((space.kind, space.namespace, id_), ())):
                wrong.append(f"{space.kind} {space.namespace}/{id_} as of {entry_as_of(entry)}")
        return wrong

    def space(self, kind: str, namespace: str) -> Space:
        """Return a space of its cache."""
        return self.cache.space(kind, namespace)


def packed(rows: tuple[Row, ...]) -> bytes:
    """Return rows as the cache keeps them."""
    known = _PACKED.get(id(rows))
    if known is None or known[0] is not rows:
        if len(_PACKED) > 10_000:
            _PACKED.clear()
        known = _PACKED[id(rows)] = (rows, b"".join(pack_row(row) for row in rows))
    return known[1]
