"""Looking at a server's heads for as long as somebody reads, so that a hit does not have to wait for the look.

Polling is what the bound of staleness rests on, and the reader himself checks on every hit that it has been kept. Where
processes tell each other of their commits, that only shortens the wait: nothing depends on a hint that arrives.
"""

from __future__ import annotations

import asyncio

from memory_store.cache.shard import Shards
from memory_store.clock import boot_s
from memory_store.durable.changes import HeadState
from memory_store.durable.log import read_heads

__all__ = ["HeadWatch"]

# Of the bound: the next look must have come back before what the last one vouches for has run out.
_SHARE = 0.4
_SHORTEST_PAUSE_S = 0.005
# Nobody reads for this long: it ends, and the next read begins it anew.
_PATIENCE_S = 1.0


class HeadWatch:
    """Reads all heads now and then, in one statement, on behalf of every shard of an open store.

    Args:
        shards: told what is seen.
        staleness_s: how long ago a look may have begun.
    """

    def __init__(self, shards: Shards, staleness_s: float) -> None:
        self._shards, self._pause_s = shards, max(staleness_s * _SHARE, _SHORTEST_PAUSE_S)
        self._timer: asyncio.TimerHandle | None = None
        self._looking = self._closed = False
        self._reads, self._read_at = 0, 0.0
        for shard in shards:
            shard.coherence.wanted = self.begin

    def begin(self) -> None:
        """Look from now on, unless that is being done."""
        self._read_at = boot_s()
        if self._timer is None and not self._looking and not self._closed:
            self._shards.durable.begin_hints(self.hinted)
            self._wait()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def hinted(self, number: int, position: int) -> None:
        """Take another process's word that a shard has reached a position: look whether that is so."""
        if not self._closed and number < len(self._shards):
            coherence = self._shards[number].coherence
            if position > coherence.head.position:
                coherence.look_soon()

    def _wait(self) -> None:
        self._timer = self._shards.loop.call_later(self._pause_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._closed or not self._is_wanted():
            return
        self._looking = True
        began, known = boot_s(), self._shards.heads
        self._shards.durable.scan.post(read_heads, lambda heads, error: self._seen(known, began, heads, error))

    def _is_wanted(self) -> bool:
        counters = self._shards.shelf.counters.values()
        reads = sum(one.hits + one.misses for one in counters)
        if reads != self._reads or any(shard.feeds for shard in self._shards):
            self._reads, self._read_at = reads, boot_s()
        return boot_s() - self._read_at < _PATIENCE_S

    def _seen(
        self, known: list[HeadState], began: float, heads: list[HeadState] | None, error: BaseException | None
    ) -> None:
        self._looking = False
        if heads is None or self._closed:
            return  # whoever reads next looks for himself, is told what is wrong, and begins this anew
        for shard, head, then in zip(self._shards, heads, known, strict=True):
            shard.coherence.see(head, then, began)
        self._wait()
