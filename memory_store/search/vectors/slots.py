"""Which record lies in which slot, which episode it belongs to, and which slots are live.

Slots are numbered as they are taken, and none is taken twice: a vector that replaces another takes a new slot, and the
old one is given up. So nothing that another thread may be reading ever changes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import InvalidRecordError
from memory_store.search.vectors.rows import Slice

__all__ = ["Entries", "Slots", "check_name"]

_MOST_BYTES = 256
_SMALLEST = 256
# Names entered into a dictionary in one go, which holds the interpreter's lock: 100,000 would take 10 ms.
_BLOCK = 8192


def check_name(field: str, name: object) -> None:
    """Check the name of a record.

    Raises:
        InvalidRecordError: it is empty, longer than 256 bytes, or holds what a key may not.
        TypeError: it is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"{field} must be text, got {type(name).__name__}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidRecordError(f"{field} must be text that UTF-8 can hold", field=field) from error
    if "\0" in name:
        raise InvalidRecordError(f"{field} must not hold NUL, it is a key", field=field)
    if not 1 <= size <= _MOST_BYTES:
        raise InvalidRecordError(
            f"{field} must have 1 to {_MOST_BYTES} bytes, has {size}", field=field, limit=_MOST_BYTES, size=size
        )


class Entries(NamedTuple):
    """The slots at one moment, column by column.

    Args:
        keys: of each slot; of a slot that is not live it may be "".
        live: of each slot, whether it is.
        numbers: of each slot, which of the parents is its.
        parents: each once. May hold more than the numbers say.
    """

    keys: list[str]
    live: NDArray[np.bool_]
    numbers: NDArray[np.int32]
    parents: list[str]

    def of(self, slots: Slice) -> Entries:
        """Return the entries of some slots, which are numbered anew; they share nothing with these."""
        places: list[int] = slots.tolist()
        live = self.live[slots]
        keys = [self.keys[place] if is_live else "" for place, is_live in zip(places, live.tolist(), strict=True)]
        used, numbers = np.unique(self.numbers[slots], return_inverse=True)
        return Entries(keys, live, numbers.astype(np.int32), _picked(self.parents, used))


class Slots:
    """The slots of an index.

    Args:
        entries: what is there; they are the slots' own from now on.
        base: how many of them are those of the base.

    Raises:
        ValueError: a key is live twice.
    """

    def __init__(self, entries: Entries | None = None, base: int = 0) -> None:
        entries = entries or Entries([], np.empty(0, np.bool_), np.empty(0, np.int32), [])
        self.count = len(entries.keys)
        self._keys, self._parents = list(entries.keys), list(entries.parents)
        self._live, self._numbers = entries.live, entries.numbers
        self.slot_of = _places(self._keys)
        """The live slot of each key."""
        self.slot_of.pop("", None)
        if len(self.slot_of) != np.count_nonzero(self.live):
            raise ValueError("a key is live twice")
        self._base = base
        self.live_in_base = int(np.count_nonzero(self.live[:base]))

    @cached_property
    def _number_of(self) -> dict[str, int]:
        """The number of each parent. Who opens an index to search it needs none: for 100,000 it takes 20 ms."""
        return _places(self._parents)

    @property
    def live(self) -> NDArray[np.bool_]:
        """Of each slot, whether it is."""
        return self._live[: self.count]

    def frozen(self) -> Entries:
        """Return the entries as they are now, for another thread: keys and parents are only ever appended."""
        return Entries(self._keys, self.live.copy(), self._numbers[: self.count], self._parents)

    def key(self, slot: int) -> str:
        """Return the key that took a slot."""
        return self._keys[slot]

    def parent_of(self, slot: int) -> str:
        """Return the parent of what took a slot."""
        return self._parents[int(self._numbers[slot])]

    def find(self, keys: Collection[str]) -> Slice:
        """Return the live slots of those keys that have one, in order, each once."""
        found = np.fromiter(map(self.slot_of.get, keys, repeat(-1)), np.int64, len(keys))
        found.sort()  # np.unique takes four times as long
        return found[np.flatnonzero(np.diff(found, prepend=-1))]

    def extend(self, keys: Sequence[str], parents: Sequence[str]) -> None:
        """Take a slot for each key, in order; a key that has one already gives it up. No key may come twice."""
        for key in keys:
            if (slot := self.slot_of.get(key)) is not None:
                self._give_up(slot)
        self._take(keys, parents)
        self._live[self.count - len(keys) : self.count] = True
        self.slot_of.update(zip(keys, range(self.count - len(keys), self.count), strict=True))

    def follow(self, taken: Slice, entries: Entries, count: int) -> None:
        """Bring slots that were made from others up to what those are now.

        Args:
            taken: of each slot here, the slot it was made from.
            entries: of the others, now.
            count: how many slots the others had then.
        """
        for slot in np.flatnonzero(~entries.live[taken]).tolist():
            self.remove(self._keys[slot])
        start = self.count
        later = entries.live[count:]
        self._take(entries.keys[count:], _picked(entries.parents, entries.numbers[count:]))
        self._live[start : self.count] = later
        self.slot_of.update((self._keys[slot], slot) for slot in (start + np.flatnonzero(later)).tolist())

    def _take(self, keys: Sequence[str], parents: Sequence[str]) -> None:
        end = self.count + len(keys)
        if end > len(self._live):
            room = max(end, 2 * self.count, _SMALLEST) - len(self._live)
            self._live = np.concatenate([self._live, np.zeros(room, np.bool_)])
            self._numbers = np.concatenate([self._numbers, np.zeros(room, np.int32)])
        for parent in parents:
            if parent not in self._number_of:
                self._number_of[parent] = len(self._parents)
                self._parents.append(parent)
        self._keys.extend(keys)
        self._numbers[self.count : end] = [self._number_of[parent] for parent in parents]
        self.count = end

    def remove(self, key: str) -> None:
        """Give up the slot of a key, if it has one."""
        slot = self.slot_of.pop(key, None)
        if slot is not None:
            self._give_up(slot)

    def _give_up(self, slot: int) -> None:
        self._live[slot] = False
        self.live_in_base -= slot < self._base

    def remove_parent(self, parent: str) -> None:
        """Give up every slot of a parent."""
        number = self._number_of.get(parent)
        if number is not None:
            # All slots are looked at, which takes 20 µs for 100,000: a list for each parent would be made on opening.
            for slot in np.flatnonzero((self._numbers[: self.count] == number) & self.live).tolist():
                self.remove(self._keys[slot])


def _places(names: Sequence[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for start in range(0, len(names), _BLOCK):
        places.update(zip(names[start : start + _BLOCK], range(start, len(names)), strict=False))
    return places


def _picked(names: list[str], numbers: NDArray[np.int32]) -> list[str]:
    places: list[int] = numbers.tolist()
    return [names[place] for place in places]
