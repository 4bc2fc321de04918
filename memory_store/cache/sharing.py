"""One shard's traffic with the shared cache level: asking it on a miss, moving its watermark on, putting what was read.

What is taken from there is as good as a read of the database at the shared watermark's commit, so it is taken only
where this process knows that commit, and had not seen a newer one when it asked. Everything else is a miss, and the
database is asked.

Who commits moves the watermark on, in the background: nobody waits for it, since until then what lies there is refused
for its age. If it never does, because it died, a reader notices and moves it on instead: by what this process has seen
of the log, else by the log itself. All that is sent is compared and set in one step with the watermark it was made for,
so it may come late, twice or never.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from memory_store.cache.entries import Space
from memory_store.cache.shared import (
    Link,
    Mark,
    Names,
    Put,
    SharedCounters,
    SharedFlight,
    new_generation,
    seal,
    unseal,
)
from memory_store.cache.trail import EVERYTHING, Gone, SharingTier, touched_by
from memory_store.clock import boot_s
from memory_store.codec import Row, append_rows, entry_as_of, entry_expiry
from memory_store.durable.changes import HeadState
from memory_store.durable.log import Run
from memory_store.durable.reader import PlainKey
from memory_store.errors import CacheError, CodecError, MemoryStoreError

__all__ = ["SharedShard"]

# Keys of one request, so that handing its answers out does not hold up the event loop.
_ASK_AT_ONCE = 128
# One request puts no more than this, and no entry of more than a part of it: others wait behind it on the server.
_PUT_KEYS, _PUT_BYTES, _MOST_ENTRY_BYTES = 256, 1024 * 1024, 256 * 1024
# Puts that wait; what comes on top is not shared.
_MOST_WAITING = 4096
_MEND_PAUSE_S = 0.05
_GATHER_S = 0.005
# Two processes that move the watermark at once see each other's at the second try.
_TRIES = 4
_CLOSING_TIMEOUTS = 4

_UNKNOWN = b"?"
"""The watermark has not been heard yet."""


class _Plan(NamedTuple):
    """What is to be sent: `new` follows from `expected` by removing what is gone."""

    expected: bytes
    new: Mark
    gone: Gone
    keys: list[PlainKey]
    """Of what is put."""


class SharedShard:
    """The shared level of one shard, as one process uses it.

    Args:
        link: the server.
        tier: the shard's own cache.
        look: reads what leads from a commit to the newest one, from the database.
        pass_on: asks the database for flights that the shared level has no answer for.
    """

    def __init__(
        self,
        link: Link,
        tier: SharingTier,
        look: Callable[[HeadState], Awaitable[Run]],
        pass_on: Callable[[Sequence[Any]], None],
    ) -> None:
        self._link, self._tier = link, tier
        self._look, self._pass_on = look, pass_on
        self.counters = SharedCounters()
        self._names = Names(tier.head, link.version_key)
        self._heard = _UNKNOWN
        """The watermark's value when it was last heard."""
        self._strange = b""
        """A watermark that was not known here when it was last read."""
        self._puts: dict[PlainKey, None] = {}
        self._due = False
        """Whether the watermark is to be moved on."""
        self._asking: list[tuple[SharedFlight, int, float]] = []
        self._reading: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._gathering: asyncio.TimerHandle | None = None
        self._mended_at = float("-inf")
        self._closed = False
        tier.committed = self._share

    # Asking

    def ask(self, flight: SharedFlight) -> bool:
        """Ask for a flight's key; return False where it must ask the database instead."""
        if self._closed or not self._link.up or not Names.can_name(flight.id):
            return False
        # An older answer may miss what this process has seen, or promised, already.
        self._asking.append((flight, self._tier.position, boot_s()))
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return True

    async def _read(self) -> None:
        """Ask for all that waits, one request after another; when one fails, nobody waits for a second one."""
        try:
            while self._asking and self._link.up and not self._closed:
                batch = self._asking[:_ASK_AT_ONCE]
                names = self._current_names()
                wanted = [names.entry((f.space.kind, f.space.namespace, f.id)) for f, _, _ in batch]
                values = await self._link.read([names.mark, *wanted], batch[0][2] + self._link.timeout_s - boot_s())
                del self._asking[: len(batch)]
                self._answer(batch, names, wanted, values)
        except CacheError:
            pass  # the link counts it; the database has everything
        finally:
            self._reading = None
            rest, self._asking = self._asking, []
            self._pass_on([flight for flight, _, _ in rest])

    def _answer(
        self,
        batch: Sequence[tuple[SharedFlight, int, float]],
        names: Names,
        wanted: Sequence[bytes],
        values: Sequence[bytes | None],
    ) -> None:
        counters, missed = self.counters, []
        mark = self._hear(names, values[0])
        head = HeadState(mark.position, mark.nonce, *names.past) if mark is not None else None
        for (flight, since, _), name, value in zip(batch, wanted, values[1:], strict=True):
            rows = None
            if mark is None or head is None or value is None:
                counters.misses += 1
            elif head.position < since or not self._tier.knows(head):
                counters.refused += 1
            else:
                rows = self._open(flight.space.kind, name, mark, value)
            if rows is None or head is None:
                missed.append(flight)
            else:
                counters.hits += 1
                flight.land_shared(head, rows)
        self._pass_on(missed)

    def _open(self, kind: str, name: bytes, mark: Mark, value: bytes) -> list[Row] | None:
        try:
            rows = unseal(kind, name, mark.generation, value)
        except CodecError:
            self.counters.damaged += 1
            return None
        self.counters.misses += rows is None
        return rows

    def _hear(self, names: Names, value: bytes | None) -> Mark | None:
        """Take what the watermark was, and see to it that it moves on where it was left behind."""
        if names is not self._current_names():
            return None
        self._heard, mark = value or b"", Mark.parse(value)
        if mark is not None and not self._tier.knows(HeadState(mark.position, mark.nonce, *names.past)):
            # Ahead, most likely: the read of the database that follows will know it. If it does not, it is of a past
            # that is none any more, or has been left far behind.
            self._due |= self._heard == self._strange or mark.position <= self._tier.position
            self._strange = self._heard
        elif mark is None or mark.position < self._tier.position:
            self._due = True
        if self._due:
            self._start_sending()
        return mark

    def _current_names(self) -> Names:
        if self._names.past != self._tier.head[2:]:
            self._names, self._heard = Names(self._tier.head, self._link.version_key), _UNKNOWN
            self._puts.clear()
        return self._names

    # Moving on and putting

    def offer(self, space: Space, id_: str) -> None:
        """Share what was just read from the database into this process's cache."""
        self._want((space.kind, space.namespace, id_))
        # A request each would double what a miss costs; nobody waits for it.
        if self._gathering is None and self._sending is None and self._puts:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER_S, self._start_sending)

    def _want(self, key: PlainKey) -> None:
        if len(self._puts) < _MOST_WAITING and Names.can_name(key[2]) and self._link.up and not self._closed:
            self._puts[key] = None

    def _share(self, gone: Gone) -> None:
        """Share a commit of this process, and what it wrote."""
        self._due = True
        for key in gone.keys:
            self._want(key)
        self._start_sending()

    def _start_sending(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._sending is None and self._link.up and not self._closed and (self._due or self._puts):
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            tries = 0
            while (self._due or self._puts) and self._link.up:
                self._due = False
                names, mark = self._current_names(), Mark.parse(self._heard)
                plan = await self._plan(names, mark)
                if plan is None:
                    self._puts.clear()
                    continue
                tries = 0 if await self._carry_out(names, plan) else tries + 1
                if tries == _TRIES:
                    self._puts.clear()  # too many at once: who reads next finds it behind, and moves it on
                    return
        except CacheError:
            self._heard, self._due = _UNKNOWN, False
            self._puts.clear()
        finally:
            self._sending = None

    async def _plan(self, names: Names, mark: Mark | None) -> _Plan | None:
        """Return how to bring the watermark to this process's own, or what the log says; None for not at all."""
        head, heard = self._tier.head, self._heard
        if mark is None:
            new = Mark(head.position, head.nonce, new_generation())
            return _Plan(heard, new, EVERYTHING, list(islice(self._puts, _PUT_KEYS)))
        gone = self._tier.trail.since(mark)
        if gone is not None:
            return _Plan(heard, _moved(mark, head, gone), gone, list(islice(self._puts, _PUT_KEYS)))
        if mark.position > head.position and heard != self._strange:
            return None  # another process is ahead
        return await self._mend(names, mark)

    async def _mend(self, names: Names, mark: Mark) -> _Plan | None:
        """Ask the database what leads on from a watermark that this process knows nothing of."""
        heard, began = self._heard, boot_s()
        if began - self._mended_at < _MEND_PAUSE_S:
            return None
        self._mended_at = began
        self.counters.mends += 1
        try:
            run = await self._look(HeadState(mark.position, mark.nonce, *names.past))
        except MemoryStoreError:
            return None  # who needs the database is told himself
        if run.head[2:] != names.past:
            return None
        gone = EVERYTHING if run.changes is None else touched_by(run.changes)
        return _Plan(heard, _moved(mark, run.head, gone), gone, [])

    async def _carry_out(self, names: Names, plan: _Plan) -> bool:
        """Send a plan; return False where the watermark is another one by now."""
        expected, new = plan.expected, bytes(plan.new)
        # In the turn in which it was planned, so that the tier still stands where the watermark is moved to.
        puts = self._sealed(names, plan) if expected != _UNKNOWN else []
        gone = [names.entry(key) for key in plan.gone.keys if Names.can_name(key[2])]
        if expected != new or puts:
            heard = await self._link.replace(names.mark, expected, new, gone, puts)
            if names is not self._current_names():
                return True
            self._heard = heard
            if heard != new:
                self._due = True
                return False
        for key in plan.keys:
            self._puts.pop(key, None)
        self.counters.puts += len(puts)
        if expected != new:
            self.counters.advances += not plan.gone.everything
            self.counters.flushes += plan.gone.everything
        return True

    def _sealed(self, names: Names, plan: _Plan) -> list[Put]:
        """Return what is to be put: entries of this process's cache, which equal the database at its watermark."""
        tier, puts, size = self._tier, [], 0
        now = tier.shelf.age_s()
        for key in plan.keys:
            space = tier.space(key[0], key[1])
            entry = tier.shelf.peek(space.prefix + key[2])
            if entry is None or entry_as_of(entry) < space.floor or len(entry) > _MOST_ENTRY_BYTES:
                continue
            ttl_ms = int((entry_expiry(entry) - now) * 1000)
            size += len(entry)
            if ttl_ms < 1 or size > _PUT_BYTES:
                continue
            name = names.entry(key)
            # Its deadline is on this process's clock, which is nobody else's.
            puts.append(
                Put(name, seal(name, plan.new.generation, append_rows(entry, 0.0, entry_as_of(entry), ())), ttl_ms)
            )
        return puts

    async def settle(self) -> None:
        """Send what is to be sent, and wait until nothing is."""
        self._start_sending()
        while self._sending is not None:
            await asyncio.wait({self._sending})

    async def close(self) -> None:
        """Send what is due, for some timeouts at most, and pass every read on to the database."""
        self._start_sending()
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=_CLOSING_TIMEOUTS * self._link.timeout_s)
        self._closed = True
        tasks = {task for task in (self._sending, self._reading) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _moved(mark: Mark, head: HeadState, gone: Gone) -> Mark:
    generation = new_generation() if gone.everything else mark.generation
    return Mark(head.position, head.nonce, generation)
