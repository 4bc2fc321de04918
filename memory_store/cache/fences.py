"""Fences: what keeps a slow read from putting an old value back.

A read may return an older state than a commit that was published while it was under way. Whoever reads sets a `Watch`
on the key first, or a `Fence` when there are many; what is published meanwhile is noted there with its position, and
nothing that was touched after the position the read saw may enter the cache.
"""

from __future__ import annotations

__all__ = ["Fence", "Watch"]


class Watch:
    """A key that is being read, and the newest position at which it was published meanwhile (0: it was not)."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched = 0

    def lets_pass(self, key: str, as_of: int) -> bool:
        """Return whether what was read at position `as_of` is still the newest."""
        return as_of >= self.touched


class Fence:
    """All keys published while many are being read, each with its newest position. Use as a context manager.

    `floor` is a position before which anything may have changed.
    """

    __slots__ = ("_fences", "floor", "touched")

    def __init__(self, fences: set[Fence]) -> None:
        self._fences = fences
        self.touched: dict[str, int] = {}
        self.floor = 0

    def lets_pass(self, key: str, as_of: int) -> bool:
        """Return whether a value read at position `as_of` is still the newest."""
        return as_of >= self.floor and as_of >= self.touched.get(key, 0)

    def __enter__(self) -> Fence:
        self._fences.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._fences.discard(self)
