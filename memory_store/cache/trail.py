"""What led to a process's watermark: it brings a shared one that is behind on, without asking the database."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from memory_store.cache.shared import Mark
from memory_store.cache.shelf import Shelf
from memory_store.cache.tier import CacheTier
from memory_store.durable.changes import PUBLISH_LIMIT, Change, HeadState
from memory_store.durable.log import STORE, Commit, Logged
from memory_store.durable.reader import PlainKey

__all__ = ["EVERYTHING", "NOTHING_GONE", "Gone", "SharingTier", "Trail", "touched_by"]

# Commits and keys a trail goes back: a watermark that is further behind is led on by the change log itself.
_MOST_STEPS, _MOST_KEYS = 1024, 8 * PUBLISH_LIMIT


class Gone(NamedTuple):
    """What may have changed between a watermark and a commit; where that is `everything`, the keys say nothing."""

    keys: frozenset[PlainKey]
    everything: bool = False


NOTHING_GONE, EVERYTHING = Gone(frozenset()), Gone(frozenset(), everything=True)


def touched_by(changes: Iterable[Logged | Change]) -> Gone:
    """Return what some changes touch."""
    keys: set[PlainKey] = set()
    for change in changes:
        if change.kind == STORE:  # the database as a whole: if that is more than a note, the epoch is another one
            continue
        id_ = change.parent or change.key
        if id_ is None:
            return EVERYTHING
        keys.add((change.kind, change.namespace, id_))
    return _bounded(keys)


def _bounded(keys: set[PlainKey]) -> Gone:
    """Return some keys, or everything where they are too many to be removed one by one while others wait."""
    return EVERYTHING if len(keys) > PUBLISH_LIMIT else Gone(frozenset(keys))


class _Step(NamedTuple):
    position: int
    nonce: int
    gone: Gone


class Trail:
    """What the newest commits touched, as far as this process has followed the log from somewhere without a gap.

    Args:
        head: where it begins.
    """

    def __init__(self, head: HeadState) -> None:
        self.restart(head)

    def restart(self, head: HeadState) -> None:
        """Begin again at a commit."""
        self.head = self._start = head
        self._steps: deque[_Step] = deque()
        self._keys = 0

    def follow(self, changes: Sequence[Logged], head: HeadState) -> None:
        """Take what led from its head to another one."""
        by_commit: dict[tuple[int, int], list[Logged]] = {}
        for change in changes:
            by_commit.setdefault((change.position, change.nonce), []).append(change)
        for (position, nonce), theirs in by_commit.items():
            self.add(head._replace(position=position, nonce=nonce), touched_by(theirs))
        if self.head != head:
            self.restart(head)

    def add(self, head: HeadState, gone: Gone) -> None:
        """Take the commit that follows its head."""
        self._steps.append(_Step(head.position, head.nonce, gone))
        self.head = head
        self._keys += len(gone.keys)
        while len(self._steps) > _MOST_STEPS or self._keys > _MOST_KEYS:
            step = self._steps.popleft()
            self._keys -= len(step.gone.keys)
            self._start = head._replace(position=step.position, nonce=step.nonce)

    def since(self, mark: Mark) -> Gone | None:
        """Return what may have changed between a watermark and its head; None where the watermark is not on it."""
        at = mark[:2]
        if at == self.head[:2]:
            return NOTHING_GONE
        keys: set[PlainKey] = set()
        everything = False
        for step in reversed(self._steps):
            if step[:2] == at:
                break
            everything |= step.gone.everything
            keys |= step.gone.keys
        else:
            if self._start[:2] != at:
                return None
        return EVERYTHING if everything else _bounded(keys)


class SharingTier(CacheTier):
    """A cache tier that remembers what led to its watermark, and says when a commit of this process moved it."""

    def __init__(self, shelf: Shelf, head: HeadState) -> None:
        super().__init__(shelf, head)
        self.trail = Trail(head)
        self.committed: Callable[[Gone], None] | None = None
        """Told what a commit of this process touched."""

    def apply(self, changes: Sequence[Logged], head: HeadState) -> None:
        """Take what others changed; see `CacheTier.apply`."""
        super().apply(changes, head)
        self.trail.follow(changes, head)

    def publish(self, commit: Commit) -> None:
        """Take a commit of this process; see `CacheTier.publish`."""
        super().publish(commit)
        gone = touched_by(commit.changes)
        if self.trail.head != commit.head:  # else a read saw it first
            self.trail.add(commit.head, gone)
        if self.committed is not None:
            self.committed(gone)

    def restart(self, head: HeadState) -> None:
        """Count everything as absent; see `CacheTier.restart`."""
        super().restart(head)
        self.trail.restart(head)
