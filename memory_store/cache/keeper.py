"""Keeps the cache over restarts: loads the saved one if it can be believed, else rebuilds; saves now and then."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Literal

from memory_store.cache.entries import Entries, Space
from memory_store.cache.fences import Fence
from memory_store.cache.rebuild import Progress, rebuild
from memory_store.cache.snapshot import Header, SavedEntry, Snapshot, save
from memory_store.cache.tier import CacheTier
from memory_store.codec import fingerprint
from memory_store.durable.changes import HeadState
from memory_store.durable.lane import Lane
from memory_store.durable.reader import PlainKey
from memory_store.durable.schema import HEAD_REVISION
from memory_store.errors import CacheError, MemoryStoreError

__all__ = ["CacheKeeper", "CacheStatus", "version_key"]

# Entries collected or freed before other tasks get a turn: about 1 ms.
_COPY_AT_ONCE = 1000


def version_key(own_version: str) -> str:
    """Return what a saved cache must have been written with: its format, record shapes, schema, the user's part."""
    return hashlib.blake2b(f"{fingerprint()}|{HEAD_REVISION}|{own_version}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """How the cache tier is.

    Args:
        state: "ready", "loading" (a saved cache), "rebuilding" (from the durable tier) or "off" (no budget).
        reason: why it was rebuilt last, or "".
        entries: entries held.
        used_bytes: memory they take, bookkeeping included.
        max_bytes: the budget.
        done: keys handled by the load or rebuild that runs or ran last.
        total: keys it has to handle, as far as is known.
        version_key: what a saved cache must match.
        path: folder of the saved cache, None where none is kept.
        error: what went wrong last with loading, rebuilding or saving, or "".
    """

    state: Literal["ready", "loading", "rebuilding", "off"]
    reason: str
    entries: int
    used_bytes: int
    max_bytes: int
    done: int
    total: int
    version_key: str
    path: str | None
    error: str


async def _let_go(entries: Entries) -> None:
    """Free dropped entries, letting other tasks run between some and some."""
    while entries:
        for _ in range(min(len(entries), _COPY_AT_ONCE)):
            entries.popitem()
        await asyncio.sleep(0)


class CacheKeeper:
    """The life of one store's cache.

    Args:
        cache: the entries.
        scan: the lane for long reads.
        folder: where it is saved, None for nowhere.
        own_version: the user's part of the version key.
        interval_s: seconds between saves; 0 for on close only.
        head: reads the newest position now.
    """

    def __init__(
        self,
        cache: CacheTier,
        scan: Lane,
        folder: str | None,
        own_version: str,
        interval_s: float,
        head: Callable[[], Awaitable[HeadState]],
    ) -> None:
        self._cache, self._scan, self._folder, self._head = cache, scan, folder, head
        self._interval_s = interval_s
        self._version_key = version_key(own_version)
        self._state: Literal["ready", "loading", "rebuilding", "off"] = "ready" if cache.max_bytes else "off"
        self._reason = self._error = ""
        self._progress = Progress()
        self._work: asyncio.Task[None] | None = None
        self._saver: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._saved_at = -1

    def start(self, head: HeadState) -> None:
        """Begin loading or rebuilding in the background, and saving now and then."""
        if self._state == "off":
            return
        self._begin(lambda: self._load(head))
        if self._folder is not None and self._interval_s > 0:
            self._saver = asyncio.create_task(self._save_now_and_then(), name="memory_store cache saver")

    def status(self) -> CacheStatus:
        """Return how the cache is now."""
        return CacheStatus(
            state=self._state,
            reason=self._reason,
            entries=len(self._cache),
            used_bytes=self._cache.used_bytes,
            max_bytes=self._cache.max_bytes,
            done=self._progress.done,
            total=self._progress.total,
            version_key=self._version_key,
            path=self._folder,
            error=self._error,
        )

    async def rebuild(self, reason: str = "asked for") -> None:
        """Drop everything and fill the cache again; returns when it is filled.

        Cancelling stops it; what has been filled stays and is right. A load or rebuild that runs is stopped first.
        """
        if self._state == "off":
            return
        async with self._one_at_a_time:
            await self._stop_work()
            work = self._begin(lambda: self._rebuild_from_nothing(reason))
        try:
            await asyncio.wait({work})
            self._work_has_ended(work)
        except asyncio.CancelledError:
            work.cancel()
            raise

    async def wait(self) -> None:
        """Wait until no load or rebuild runs; cancelling the wait leaves it alone."""
        while (work := self._work) is not None:
            await asyncio.wait({work})
            self._work_has_ended(work)

    async def clear(self) -> None:
        """Drop every entry, stop a rebuild, and remove the saved cache's use by saving an empty one."""
        async with self._one_at_a_time:
            await self._stop_work()
            await _let_go(self._cache.clear())
        await self.save()

    async def save(self) -> None:
        """Save the cache now. A failure is noted in the status and never raised: the durable tier has everything."""
        if self._folder is None or self._state == "off":
            return
        position = self._cache.position
        try:
            head = await self._head()
            # The nonce of a newer head would vouch for entries that are older: such a snapshot is not written, and the
            # one on disk, whose position is older still, is not used either.
            if head.position != position:
                return
            header = self._header(head)
            entries = await self._entries(position)
            await asyncio.to_thread(save, self._folder, header, entries)
        except MemoryStoreError as error:
            self._error = str(error)
        else:
            self._saved_at = position

    def _header(self, head: HeadState) -> Header:
        return Header(self._version_key, head.store_id, head.epoch, head.position, head.nonce)

    async def _entries(self, position: int) -> list[tuple[Space, str, bytes]]:
        """Return the entries as of a position, letting other tasks run between some and some.

        One that changes meanwhile is left out: a backup restored at this very position must not find the future.
        """
        keys = self._cache.keys()
        entries: list[tuple[Space, str, bytes]] = []
        for start in range(0, len(keys), _COPY_AT_ONCE):
            entries += self._cache.entries(keys[start : start + _COPY_AT_ONCE], position)
            await asyncio.sleep(0)
        return entries

    async def close(self) -> None:
        """Stop the background work and save."""
        if self._saver is not None:
            self._saver.cancel()
            await asyncio.wait({self._saver})
        loading = self._state == "loading"
        await self._stop_work()
        if not loading:  # a half-loaded cache is no reason to lose the saved one
            await self.save()

    def _begin(self, work: Callable[[], Coroutine[None, None, None]]) -> asyncio.Task[None]:
        self._work = asyncio.create_task(self._guard(work), name="memory_store cache filler")
        # A callback, not a `finally`: a task that is cancelled before its first step runs no code of its own.
        self._work.add_done_callback(self._work_has_ended)
        return self._work

    async def _guard(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()
        except Exception as error:  # the store serves without it; the status says what happened
            self._error = f"{type(error).__name__}: {error}"

    def _work_has_ended(self, work: asyncio.Task[None]) -> None:
        if self._work is work:
            self._state, self._work = "ready", None

    async def _stop_work(self) -> None:
        while (work := self._work) is not None:
            work.cancel()
            await asyncio.wait({work})
            self._work_has_ended(work)

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            if self._cache.position != self._saved_at and self._work is None:
                await self.save()

    async def _load(self, head: HeadState) -> None:
        self._state = "loading"
        used: list[PlainKey] = []
        try:
            if self._folder is None:
                raise CacheError("no cache is saved")
            await self._adopt_saved(self._folder, head, used)
        except CacheError as error:
            await self._rebuild(str(error), used)

    async def _adopt_saved(self, folder: str, head: HeadState, used: list[PlainKey]) -> None:
        """Load the saved cache, or raise why it cannot be used, having noted the keys it held."""
        # Opened here and not in a thread, where a cancelled task would lose the open file: it is one small read.
        with self._cache.fence() as fence, Snapshot(folder) as snapshot:
            reason = snapshot.header.mismatch(self._header(head))
            batches = snapshot.batches()
            while batch := await asyncio.to_thread(next, batches, None):
                if reason is None:
                    self._adopt(batch, fence)
                elif snapshot.header.store_id == head.store_id:
                    used.extend((saved.kind, saved.namespace, saved.id) for saved in batch)
                await asyncio.sleep(0)
        if reason is not None:
            used.reverse()  # saved least recently used first
            raise CacheError(reason)

    def _adopt(self, batch: list[SavedEntry], fence: Fence) -> None:
        for saved in batch:
            space = self._cache.space(saved.kind, saved.namespace)
            self._cache.adopt(space, saved.id, saved.entry, fence)
        self._progress.done += len(batch)
        self._progress.total = self._progress.done

    async def _rebuild_from_nothing(self, reason: str) -> None:
        self._state, self._reason = "rebuilding", reason
        await _let_go(self._cache.clear())
        await self._rebuild(reason, [])

    async def _rebuild(self, reason: str, used: list[PlainKey]) -> None:
        self._state, self._reason = "rebuilding", reason
        self._progress = Progress()
        await rebuild(self._cache, self._scan, used, self._progress)
