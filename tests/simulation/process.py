"""One process of the simulation: the library's own objects on stepped threads, wired as `MemoryStore` wires them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from io import BytesIO
from typing import Any, TypeVar, cast

from memory_store.access import TieredAccess
from memory_store.cache import snapshot
from memory_store.cache.entries import Space
from memory_store.cache.keeper import CacheKeeper
from memory_store.cache.shard import Shards
from memory_store.cache.shelf import Shelf
from memory_store.cache.tier import CacheTier
from memory_store.cache.watch import HeadWatch
from memory_store.codec import ENTRY_PREFIX_BYTES, entry_as_of, pack_row
from memory_store.config import Limits, Settings
from memory_store.durable.lane import Lane, ThreadLane
from memory_store.durable.log import read_head
from memory_store.durable.probe import Probe
from memory_store.durable.statements import head_select
from memory_store.errors import CacheError
from tests.simulation.connection import Connection
from tests.simulation.database import Database, Row
from tests.simulation.loop import Clock, Driver, SteppedLoop, SteppedThread
from tests.simulation.tier import ManyLanes, ServerConnection, Tier

__all__ = ["Disk", "Process", "SavedCache", "packed", "save"]

LIMITS = Limits()
T = TypeVar("T")
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
        on_server: whether it has no way to look at the head at once, and lists on several connections.
    """

    def __init__(
        self, number: int, database: Database, clock: Clock, disk: Disk, rng: random.Random, *, on_server: bool
    ) -> None:
        self.number, self.database, self.clock = number, database, clock
        self.loop = SteppedLoop(clock)
        self.staleness_s = rng.choice((1 / 16, 1 / 16, 1 / 8))
        self.freshness: Any = "linearizable" if rng.random() < 0.2 else "bounded"
        budget = rng.choice((1 << 20, 1 << 20, 1 << 20, 4000, 1500))
        self.on_server = on_server
        self.shelf = Shelf(budget, {"episode": 1.0, "step": 0.75, "query_result": 1.0})
        self.cache = CacheTier(self.shelf)
        self.access = TieredAccess("a", LIMITS, self.shelf)
        self._rng, self._disk, self._interval_s = rng, disk, rng.choice((0.0, 0.0, 0.25))
        roles = ("write", "read", "scan", "scan 2" if self.on_server else "probe")
        connect = ServerConnection if on_server else Connection
        self.connections = {role: connect(database, self, role) for role in roles}
        self.threads: list[SteppedThread] = []
        self.keeper: CacheKeeper | None = None
        self.watch: HeadWatch | None = None
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
        lane = ThreadLane(None, cast(Any, driver), self.loop)
        lane.settles = self.on_server
        return lane

    async def open(self) -> None:
        """Open, as `MemoryStore._open` and `EmbeddedTier._start` do."""
        lanes = {role: self._lane(role) for role in self.connections if role != "probe"}
        self.threads.append(self.loop.executor)
        self.write_thread = self.threads[0]
        head = await lanes["write"].run(read_head)
        for lane in list(lanes.values())[1:]:
            await lane.run(read_head)
        probe = None
        if self.on_server:
            lanes["scan"] = ManyLanes([lanes["scan"], lanes["scan 2"]], self._rng)
        else:
            probe = Probe.__new__(Probe)
            probe._connection, probe._head = cast(Any, self.connections["probe"]), head_select()
        durable: Any = Tier(head, lanes, probe, f"process {self.number}")
        settings = Settings(freshness=self.freshness, staleness_s=self.staleness_s)
        self.shards = shards = Shards(durable, self.shelf, settings)
        [shard] = shards
        self.cache, self.coherence, self.writer = shard.tier, shard.coherence, shard.writer
        if self.on_server and self.freshness == "bounded":
            self.watch = HeadWatch(shards, self.staleness_s)
        self.access.attach(shards)
        self.keeper = CacheKeeper(shards, cast(Any, self._disk), "", self._interval_s)
        self.keeper.start()
        self.is_open = True

    async def close(self) -> None:
        """Close, as `MemoryStore.close` does."""
        assert self.keeper is not None
        self.is_open = False
        self.access.detach("the store is closed")
        if self.watch is not None:
            self.watch.close()
        self.shards.detach()
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
        self._under_way = [one for one in self.threads if one.answers or one is self.loop.running]
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
        for key in self.shelf.keys():  # noqa: SIM118 - it is no dictionary
            entry = self.shelf.peek(key)
            space, id_ = self.shelf.space_of(key)
            if entry is None or space.kind == "query_result" or entry_as_of(entry) < space.floor:
                continue
            if entry[ENTRY_PREFIX_BYTES:] != packed(tables.get((space.kind, space.namespace, id_), ())):
                wrong.append(f"{space.kind} {space.namespace}/{id_} as of {entry_as_of(entry)}")
        return wrong

    def space(self, kind: str, namespace: str) -> Space:
        """Return a space of its cache."""
        return self.shards.space(kind, namespace)


def packed(rows: tuple[Row, ...]) -> bytes:
    """Return rows as the cache keeps them."""
    known = _PACKED.get(id(rows))
    if known is None or known[0] is not rows:
        if len(_PACKED) > 10_000:
            _PACKED.clear()
        known = _PACKED[id(rows)] = (rows, b"".join(pack_row(row) for row in rows))
    return known[1]
