"""`Moment`: what is remembered of a search is true at a commit, and until something it was found in changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from memory_store.access import TieredAccess
from memory_store.clock import boot_s

__all__ = ["Moment"]

# What a query says of the time, or a model of a text, does not change with a commit.
_TTL_S = 300.0


class Moment(NamedTuple):
    """The commit something is true at, how often the cache had been restarted by then, and when it ends in any case."""

    position: int
    restarts: int
    until: float

    @classmethod
    def of(cls, access: TieredAccess) -> Moment:
        """Return that of the newest commit this process knows of: to be taken before anything is read."""
        return cls(access.cache.position, access.cache.restarts, boot_s() + _TTL_S)

    def lasts(self, access: TieredAccess, kinds: Iterable[str], now: float) -> bool:
        """Return whether no record of these kinds has changed since, as far as this process knows."""
        tier = access.cache
        changed = max([tier.space(kind, access.namespace).changed for kind in kinds])
        return changed <= self.position and tier.restarts == self.restarts and now < self.until
