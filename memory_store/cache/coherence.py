"""The snapshot-prefix protocol: why what the cache answers is what the database held at one commit.

The cache stands at a watermark A and every live entry of it equals the database at A. Whatever a lane or the probe
reads, it reads with the newest position H and the part of the change log between A and H, in one snapshot; here that
part is applied, in one turn of the event loop, and A becomes H. `docs/design.md` has the whole protocol and its proof.

How old A may be is asked on every hit, on the clock: not by a task that polls, which a busy event loop would hold up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from memory_store.cache.tier import CacheTier
from memory_store.clock import boot_s
from memory_store.config import Freshness, check_freshness
from memory_store.durable.changes import HeadState
from memory_store.durable.log import Commit, Run, advance, is_rewind
from memory_store.errors import DurableTimeoutError, MemoryStoreError, PositionLostError

__all__ = ["Coherence", "Source"]

_NEVER = float("-inf")


class Source(Protocol):
    """Where the head is read, without waiting: only an embedded database has one."""

    def look(self, known: HeadState) -> Run | None:
        """Return what leads from `known` to the newest commit, None where it is the newest itself.

        Raises:
            DurableTimeoutError: that cannot be said at once.
        """
        ...


class Coherence:
    """Keeps one process's cache true, and says whether it is fresh enough for a caller.

    Args:
        cache: what is kept true.
        freshness: what holds where a call says nothing: "bounded" or "linearizable".
        staleness_s: how long ago the head may have been read, in "bounded".
        outage_staleness_s: as that, where the head cannot be read.
    """

    def __init__(
        self, cache: CacheTier, freshness: Freshness, staleness_s: float, outage_staleness_s: float = 0
    ) -> None:
        self.cache = cache
        self.staleness_s, self._outage_staleness_s = staleness_s, outage_staleness_s
        self._freshness = freshness
        self.fresh_until = _NEVER
        """Until then, on the boot clock, a hit needs no look at the head. Never in "linearizable"."""
        self.looked_at = _NEVER
        """When the last look at the head began."""
        self._source: Source | None = None
        self._slow_look: Callable[[HeadState], Awaitable[Run]] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._next_look: asyncio.Task[None] | None = None
        self.unsure = False
        """Whether the last look could not be taken at once: the next read must take the slow one."""
        self._doubted_at = _NEVER
        self.looks = self.rewinds = 0
        self.lag = 0
        """How many positions the last look found the cache behind."""
        self.moved: Callable[[], None] | None = None
        """Called when the watermark has moved."""
        self.wanted: Callable[[], None] | None = None
        """Called when a look was wanted that could not be taken at once."""

    def detach(self) -> None:
        """Look no more."""
        self._source = self._slow_look = None

    def attach(self, source: Source | None, slow_look: Callable[[HeadState], Awaitable[Run]]) -> None:
        """Begin to look.

        Args:
            source: looks at once; None where that cannot be done.
            slow_look: looks by way of a lane, where `source` cannot say.
        """
        self._source, self._slow_look = source, slow_look

    @property
    def head(self) -> HeadState:
        """The watermark."""
        return self.cache.head

    def refresh(self, now: float, freshness: Freshness | None, at_least: int | None) -> bool:
        """Make the cache as fresh as asked; return False where only `refresh_slowly` can.

        Raises:
            ConfigurationError: there is no such freshness.
            PositionLostError: the database has not reached `at_least`.
            DurableError: the database cannot be read.
        """
        linearizable = (check_freshness(freshness) or self._freshness) == "linearizable"
        stale = linearizable or now - self.looked_at >= self.staleness_s
        if (stale or (at_least or 0) > self.cache.head.position) and not self.look():
            return False
        self.require(at_least)
        return True

    def is_tolerable(self, now: float, freshness: Freshness | None, at_least: int | None) -> bool:
        """Return whether the cache is fresh enough while the head cannot be read."""
        bounded = (freshness or self._freshness) == "bounded"
        recent = now - self.looked_at < self._outage_staleness_s
        return bounded and recent and (at_least or 0) <= self.cache.head.position

    async def catch_up(self, at_least: int | None = None) -> None:
        """Bring the cache up to the newest commit.

        Raises:
            PositionLostError: that is before `at_least`.
            DurableError: the database cannot be read.
        """
        if self.look():
            self.require(at_least)
        else:
            await self.refresh_slowly(at_least)

    async def refresh_slowly(self, at_least: int | None) -> None:
        """Look at the head by way of a lane, together with whoever else asks before the look begins.

        Raises:
            PositionLostError: the database has not reached `at_least`.
            DurableError: the database cannot be read.
        """
        await asyncio.shield(self.look_soon())
        self.require(at_least)

    def look_soon(self) -> asyncio.Task[None]:
        """Begin a look by way of a lane, as soon as the one under way has ended; return what can be waited for."""
        look = self._next_look
        if look is None:
            look = self._next_look = asyncio.create_task(self._look_next(self._looking))
            look.add_done_callback(_seen)
        return look

    def see(self, head: HeadState, known: HeadState, began: float) -> None:
        """Take the head that was read for all shards at once.

        Args:
            head: what was read.
            known: the watermark when the read began.
            began: when, on the boot clock.
        """
        if self._slow_look is None:
            return
        # An older head than the watermark of then is no look that came late: the database was taken back.
        if head.position >= known.position and self.cache.knows(head):
            self._looked(began, None)
        else:
            self.look_soon()

    async def _look_next(self, running: asyncio.Task[None] | None) -> None:
        if running is not None and not running.done():
            await asyncio.wait({running})
        # From here on it has begun: who asks now needs another one.
        self._looking, self._next_look = self._next_look, None
        while self._slow_look is not None:
            known, began = self.cache.head, boot_s()
            run = await self._slow_look(known)
            if self.cache.head == known:
                self._take(run)
                self._looked(began, run)
                return
            # The watermark moved meanwhile: what was seen is one read of many. It counts as a look only if it is taken.
            if not is_rewind(run):
                self.deliver(run)
                if self.cache.knows(run.head):
                    self._looked(began, run)
                    return

    def look(self) -> bool:
        """Read the head and bring the cache up to it; return False where it cannot be read at once."""
        if self._slow_look is None:  # the store is being closed: reads under way end, and nothing is served after them
            return True
        if self._source is None:
            self.unsure = True
            if self.wanted is not None:
                self.wanted()
            return False
        # Before the read: a process that is stopped in between must not believe that it has just looked.
        began = boot_s()
        try:
            run = self._source.look(self.cache.head)
        except DurableTimeoutError:
            self.unsure = True
            self.doubt()
            return False
        if run is not None:
            self._take(run)
        self._looked(began, run)
        return True

    def _take(self, run: Run) -> None:
        """Take what a look from the watermark saw: unlike a read's, it is known to be the newest."""
        if run.head == run.after:
            return
        if run.changes is None:
            self.rewinds += is_rewind(run)
            self.cache.restart(run.head)
        else:
            self.cache.apply(run.changes, run.head)
        self._tell()

    def _looked(self, began: float, run: Run | None) -> None:
        self.looks += 1
        self.lag = 0 if run is None else max(run.head.position - run.after.position, 0)
        self._fresh_since(began)

    def _fresh_since(self, began: float) -> None:
        self.unsure = False
        # What began before a doubt says nothing about it.
        if began > self.looked_at and began > self._doubted_at:
            self.looked_at = began
            if self._freshness == "bounded":
                self.fresh_until = began + self.staleness_s

    def deliver(self, run: Run, began: float | None = None) -> None:
        """Take what a read or a write saw of the log, late and in any order; `began`, on the boot clock, is a look."""
        known = self.cache.head
        if advance(self.cache, run) and self.cache.knows(run.head):
            if began is not None:
                self._fresh_since(began)
            if self.cache.head != known:
                self._tell()
        # Else the run's past is none any more, or the cache's.
        elif not self._look_or_doubt() and is_rewind(run) and run.after == known:
            self.cache.restart(run.head)  # it is the cache's; whoever reads next looks where the database stands now
            self._tell()

    def _look_or_doubt(self) -> bool:
        """Look where no caller could be told of a failure: whoever reads next looks again, and is."""
        try:
            if self.look():
                return True
        except MemoryStoreError:
            pass
        self.doubt()
        return False

    def doubt(self) -> None:
        """Serve nothing before the head has been read again."""
        self.looked_at = self.fresh_until = _NEVER
        self._doubted_at = boot_s()

    def publish(self, commit: Commit) -> None:
        """Take a commit of this process, before its callers are answered."""
        if commit.before is not None:
            self.deliver(commit.before)
        known = self.cache.head
        if known in (commit.follows, commit.head):
            self.cache.publish(commit)
            self._tell()
        elif not self.cache.knows(commit.head):
            self._look_or_doubt()  # as in `deliver`
        # Else a read was faster, and saw it in the log with more behind it: what it touched is gone already.

    def _tell(self) -> None:
        if self.moved is not None:
            self.moved()

    def require(self, at_least: int | None) -> None:
        """Check that the watermark has reached a position.

        Raises:
            PositionLostError: it has not.
        """
        head = self.cache.head.position
        if at_least is not None and at_least > head and self._slow_look is not None:
            raise PositionLostError(
                f"the database is at position {head:,}, not yet at {at_least:,}: the position belongs to another "
                "database, or a backup was restored",
                position=at_least,
                head=head,
            )


def _seen(look: asyncio.Task[None]) -> None:
    """Take a look's error as told: everyone who waited for it may have been cancelled."""
    if not look.cancelled():
        look.exception()
