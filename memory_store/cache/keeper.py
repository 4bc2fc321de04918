"""Keeps the cache over restarts: loads the saved one if it can be believed, else rebuilds; saves now and then."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from itertools import compress
from typing import Literal

from memory_store.cache.entries import Entries, Space
from memory_store.cache.fences import Fence
from memory_store.cache.rebuild import Progress, rebuild
from memory_store.cache.reconcile import Changed, reconcile
from memory_store.cache.shard import Shards
from memory_store.cache.snapshot import Header, SavedEntries, Snapshot, save
from memory_store.clock import boot_s
from memory_store.codec import fingerprint
from memory_store.durable.changes import HeadState
from memory_store.durable.reader import PlainKey
from memory_store.durable.schema import HEAD_REVISION
from memory_store.errors import CacheError, MemoryStoreError
from memory_store.records import RECORDS
from memory_store.telemetry import Telemetry, spanned

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
        shared: how the shared level is: "up", or what is wrong with it; "" where none is set.
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
    shared: str


async def _let_go(entries: Entries) -> None:
    """Free dropped entries, letting other tasks run between some and some."""
    while entries:
        for _ in range(min(len(entries), _COPY_AT_ONCE)):
            entries.popitem()
        await asyncio.sleep(0)


class CacheKeeper:
    """The life of one store's cache.

    Args:
        shards: keep the entries true.
        folder: where it is saved, None for nowhere.
        own_version: the user's part of the version key.
        interval_s: seconds between saves; 0 for on close only.
        telemetry: records loading, rebuilding and saving as spans; None records none.
    """

    def __init__(
        self,
        shards: Shards,
        folder: str | None,
        own_version: str,
        interval_s: float,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._shards, self._shelf, self._scan, self._folder = shards, shards.shelf, shards.durable.scan, folder
        self._interval_s, self._telemetry = interval_s, telemetry
        self._version_key = version_key(own_version)
        self._state: Literal["ready", "loading", "rebuilding", "off"] = "ready" if self._shelf.max_bytes else "off"
        self._reason = self._error = ""
        self._progress = Progress()
        self._work: asyncio.Task[None] | None = None
        self._saver: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._saved_at: list[HeadState] = []

    def start(self) -> None:
        """Begin loading or rebuilding in the background, and saving now and then."""
        if self._state == "off":
            return
        self._begin(self._load)
        if self._folder is not None and self._interval_s > 0:
            # In a context of its own: it outlives the span in which the store was opened.
            saving = self._save_now_and_then()
            self._saver = asyncio.create_task(saving, name="memory_store cache saver", context=Context())

    def status(self) -> CacheStatus:
        """Return how the cache is now."""
        return CacheStatus(
            state=self._state,
            reason=self._reason,
            entries=len(self._shelf),
            used_bytes=self._shelf.used_bytes,
            max_bytes=self._shelf.max_bytes,
            done=self._progress.done,
            total=self._progress.total,
            version_key=self._version_key,
            path=self._folder,
            error=self._error,
            shared=self._shards.shared_state(),
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
            await _let_go(self._shelf.clear())
        await self.save()

    async def save(self) -> None:
        """Save the cache now. A failure is noted in the status and never raised: the durable tier has everything."""
        if self._folder is None or self._state == "off":
            return
        # Before the entries are collected: a later watermark would vouch for changes that they have not seen.
        heads, restarts = self._shards.heads, self._shards.restarts
        try:
            with spanned(self._telemetry, "memory_store.cache.save") as span:
                keys, entries = await self._collect(heads)
                if self._shards.restarts != restarts:
                    return  # some entries may belong to another past; what is on the disk is told apart by its nonce
                header = Header(self._version_key, heads, self._shelf.age_s(), self._shelf.spaces())
                await asyncio.to_thread(save, self._folder, header, keys, entries)
                span.set(entries=len(keys), position=max(head.position for head in heads))
        except MemoryStoreError as error:
            self._error = str(error)
        else:
            self._saved_at = heads

    async def _collect(self, heads: list[HeadState]) -> tuple[list[str], list[bytes]]:
        """Return the keys and entries as of some watermarks, letting other tasks run between some and some.

        What changes meanwhile is left out.
        """
        order, positions = self._shelf.keys(), [head.position for head in heads]
        keys: list[str] = []
        entries: list[bytes] = []
        for start in range(0, len(order), _COPY_AT_ONCE):
            is_now = self._shards.heads == heads
            some, theirs = self._shelf.entries(order[start : start + _COPY_AT_ONCE], positions, is_now=is_now)
            keys += some
            entries += theirs
            await asyncio.sleep(0)
        return keys, entries

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
            if self._shards.heads != self._saved_at and self._work is None:
                await self.save()

    async def _load(self) -> None:
        self._state = "loading"
        used: list[PlainKey] = []
        refused = None
        with spanned(self._telemetry, "memory_store.cache.load") as span:
            try:
                if self._folder is None:
                    raise CacheError("no cache is saved")
                await self._adopt_saved(self._folder, used)
                span.set(entries=self._progress.done)
            except CacheError as error:
                refused = str(error)
                span.set(refused=refused)
        # What the processes share is not read from the database by each of them anew.
        if refused is not None and self._shards.link is None:
            await self._rebuild(refused, used)

    async def _adopt_saved(self, folder: str, used: list[PlainKey]) -> None:
        """Load what has not changed of the saved cache, or raise why it cannot be used, having noted its keys."""
        # Opened here and not in a thread, where a cancelled task would lose the open file: it is one small read.
        # The fences stand before the database is compared: what is committed after that is seen by one of them.
        with self._shards.fenced() as fences, Snapshot(folder) as snapshot:
            header = snapshot.header
            if not self._shelf:
                self._shelf.age_offset_s = header.age_s - boot_s()
            # The spaces too are made first: what is published of a space that nobody knows is noted nowhere.
            spaces = {
                f"{number:x}/": self._shards.space(*names)
                for number, names in enumerate(header.spaces)
                if names[0] in RECORDS
            }
            changed = await self._scan.run(lambda connection: reconcile(connection, header, self._version_key))
            # Another process may have saved it after this one last looked: its entries must not be ahead of the rest.
            for shard in self._shards:
                await shard.coherence.catch_up()
            if not changed.reason and not self._shards.know(changed.heads):
                changed = Changed("the database was taken back while the cache was loaded")
            batches = snapshot.batches()
            while batch := await asyncio.to_thread(next, batches, None):
                if not changed.reason:
                    self._adopt(batch, spaces, changed, fences)
                elif [head.store_id for head in header.heads] == [head.store_id for head in self._shards.heads]:
                    used += [(space.kind, space.namespace, id_) for space, id_ in _split(batch.keys, spaces)]
                await asyncio.sleep(0)
        if changed.reason:
            used.reverse()  # saved least recently used first
            raise CacheError(changed.reason)

    def _adopt(
        self, batch: SavedEntries, spaces: Mapping[str, Space], changed: Changed, fences: Sequence[Fence]
    ) -> None:
        self._progress.done += len(batch.keys)
        self._progress.total = self._progress.done
        if changed.prefixes or not changed.keys.isdisjoint(batch.keys):
            kept = [key not in changed.keys and key[: key.index("/") + 1] not in changed.prefixes for key in batch.keys]
            batch = SavedEntries(list(compress(batch.keys, kept)), list(compress(batch.entries, kept)))
        keys = batch.keys
        if any(number != space.prefix for number, space in spaces.items()):
            keys = [space.prefix + id_ for space, id_ in _split(keys, spaces)]
        self._shards.adopt(keys, batch.entries, fences)

    async def _rebuild_from_nothing(self, reason: str) -> None:
        self._state, self._reason = "rebuilding", reason
        await _let_go(self._shelf.clear())
        await self._rebuild(reason, [])

    async def _rebuild(self, reason: str, used: list[PlainKey]) -> None:
        self._state, self._reason = "rebuilding", reason
        self._progress = Progress()
        with spanned(self._telemetry, "memory_store.cache.rebuild") as span:
            span.set(reason=reason)
            await rebuild(self._shards, used, self._progress)
            span.set(keys=self._progress.done)


def _split(keys: Sequence[str], spaces: Mapping[str, Space]) -> Iterator[tuple[Space, str]]:
    """Yield space and id of keys of a saved file, whose spaces may have other numbers there."""
    for key in keys:
        end = key.index("/") + 1
        yield spaces[key[:end]], key[end:]
