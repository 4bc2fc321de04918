"""Which patterns may be near-duplicates of something: a MinHash index kept true by following the change log.

It is a follower like the cache: it has a watermark, and before it answers it takes what was committed since. Where the
log does not lead on (a restored backup, more changes than it is worth reading) it is built anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypeAlias

from memory_store.codec import CODECS
from memory_store.collection import Access
from memory_store.durable.changes import HeadState
from memory_store.records import Pattern
from memory_store.search.similarity import NearDuplicates, Shingles, Signature, shingles

__all__ = ["PatternIndex"]

ReadAll: TypeAlias = Callable[[], AsyncIterator[Pattern]]

# Patterns signed in one go of a thread, and put into the index in one turn of the event loop (0.1 ms each).
_AT_ONCE = 64


class PatternIndex:
    """The patterns of one namespace by their MinHash signatures, in this process.

    Args:
        namespace: whose patterns.
        access: to the tiers.
    """

    def __init__(self, namespace: str, access: Access) -> None:
        self._namespace, self._access = namespace, access
        self._head: HeadState | None = None
        """The watermark; None before it was built, and in a transaction, whose own changes no log has yet."""
        self._near: NearDuplicates | None = None
        self._stale: set[str] = set()
        """Changed up to the watermark, and not yet read again."""
        self._lock = asyncio.Lock()

    async def candidates(self, content: Shingles, threshold: float, read_all: ReadAll) -> list[str]:
        """Return the ids of the patterns that may be as similar as the threshold, of all that were committed before.

        At most one pattern in a hundred that is exactly as similar is missing, and fewer of those that are more so.

        Args:
            content: what they are to be similar to.
            threshold: how similar, as `NearDuplicates` takes it.
            read_all: reads every pattern of the namespace.
        """
        async with self._lock:
            near = await self._caught_up(threshold, read_all)
            signature = await asyncio.to_thread(near.sign, content)
            return near.candidates(signature)

    async def _caught_up(self, threshold: float, read_all: ReadAll) -> NearDuplicates:
        run = await self._access.changes_since(self._head)
        near = self._near
        if run is None or run.changes is None or near is None or threshold < near.threshold:
            return await self._rebuild(threshold, None if run is None else run.head, read_all)
        # Noted before anything is awaited: cancelled in between, the rest is read the next time.
        kind, ours = Pattern.kind, self._namespace
        self._stale.update(c.key for c in run.changes if c.kind == kind and c.namespace == ours and c.key is not None)
        self._head = run.head
        while self._stale:
            await self._read_again(near, list(self._stale)[:_AT_ONCE])
        return near

    async def _rebuild(self, threshold: float, head: HeadState | None, read_all: ReadAll) -> NearDuplicates:
        """Build it anew from what is stored at `head` or later: what changes meanwhile is in the log behind it."""
        near = await asyncio.to_thread(NearDuplicates, threshold)
        chunk: list[Pattern] = []
        async for pattern in read_all():
            chunk.append(pattern)
            if len(chunk) == _AT_ONCE:
                await asyncio.to_thread(_put_all, near, chunk)
                chunk = []
        await asyncio.to_thread(_put_all, near, chunk)
        self._near, self._head, self._stale = near, head, set()
        return near

    async def _read_again(self, near: NearDuplicates, ids: Sequence[str]) -> None:
        rows = await self._access.rows_by_id(Pattern.kind, self._namespace, list(ids))
        signed = await asyncio.to_thread(_sign_all, near, [CODECS[Pattern.kind].decode(row) for row in rows.values()])
        for id_ in ids:
            near.put(id_, signed.get(id_))
        self._stale.difference_update(ids)


def _put_all(near: NearDuplicates, patterns: Iterable[Pattern]) -> None:
    for id_, signature in _sign_all(near, patterns).items():
        near.put(id_, signature)


def _sign_all(near: NearDuplicates, patterns: Iterable[Pattern]) -> dict[str, Signature | None]:
    return {pattern.id: near.sign(shingles(pattern.pattern_data)) for pattern in patterns}
