"""Fences: what keeps a slow read from putting an old value back.

A read may return an older state than a commit that was published while it was under way. Whoever reads sets a `Watch`
on the key first, or a `Fence` when there are many; what is published meanwhile is noted there with its position, and
nothing that was touched after the position the read saw may enter the cache.
"""

from __future__ import annotations

__all__ = ["NEVER", "Fence", "Watch"]

NEVER = float("inf")


class Watch:
    """A key that is being read, and the newest position at which it was published meanwhile (0: it was not)."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched: float = 0

    def lets_pass(self, key: str, as_of: int) -> bool:
        """Return whether what was read at position `as_of` is still the newest."""
        return as_of >= self.touched


class Fence:
    """All keys published while many are being read, each with its newest position. Use as a context manager.

    `floors` holds, by the prefix of a space, the position before which anything in it may have changed; `floor` is the
    same for all.
    """

    __slots__ = ("_fences", "floor", "floors", "touched")

    def __init__(self, fences: set[Fence]) -> None:
        self._fences = fences
        self.touched: dict[str, float] = {}
        self.floors: dict[str, int] = {}
        self.floor: float = 0

    @property
    def is_untouched(self) -> bool:
        """Whether nothing at all was published since."""
        return not self.touched and not self.floors and not self.floor

    def lets_pass(self, key: str, as_of: int) -> bool:
        """Return whether a value read at position `as_of` is still the newest."""
        if as_of < self.floor or as_of < self.touched.get(key, 0):
            return False
        return not self.floors or as_of >= self.floors.get(key[: key.index("/") + 1], 0)

    def __enter__(self) -> Fence:
        self._fences.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._fences.discard(self)
