"""The database of the simulation: versions, one a commit, that never change.

A version holds what the tables held after a commit, by cache key, and what the commit logged. A read transaction is a
version that a connection keeps; the truth about any past moment stays there for the checker. A database that is taken
back to an older state begins a new `Lineage`: positions come again, with other nonces.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from memory_store.durable.changes import HeadState
from memory_store.durable.log import Logged

__all__ = ["CacheKey", "Database", "Lineage", "Row", "Tables", "Version"]

Row = tuple[Any, ...]
CacheKey = tuple[str, str, str]
"""Kind, namespace, and what it is cached by: its id, or its episode's."""
Tables = dict[CacheKey, tuple[Row, ...]]


class Version:
    """What one commit left."""

    __slots__ = ("author", "head", "log", "parent", "tables", "time", "trimmed")

    def __init__(
        self,
        head: HeadState,
        tables: Tables,
        log: tuple[Logged, ...],
        parent: Version | None,
        trimmed: int,
        time: float,
        author: object,
    ) -> None:
        self.head, self.tables, self.log, self.parent = head, tables, log, parent
        self.trimmed = trimmed
        """Log rows up to there are gone."""
        self.time, self.author = time, author

    def tail(self, after: int, limit: int) -> list[Logged]:
        """Return the log behind a position, in order."""
        after = max(after, self.trimmed)
        rows: list[Logged] = []
        version: Version | None = self
        while version is not None and version.head.position > after:
            rows += [row for row in version.log if row.position > after]
            version = version.parent
        rows.sort(key=lambda row: row.position)  # stable: rows of one commit stay in their order
        return rows[:limit]

    def nonce_at(self, position: int) -> int | None:
        """Return the nonce of the commit at a position, None where the log does not hold it."""
        if position <= self.trimmed:
            return None
        version: Version | None = self
        while version is not None and version.head.position >= position:
            for row in version.log:
                if row.position == position:
                    return row.nonce
            version = version.parent
        return None


class Lineage:
    """One past of the database: its versions, and the position it began with."""

    __slots__ = ("fork", "versions")

    def __init__(self, versions: list[Version], fork: int) -> None:
        self.versions, self.fork = versions, fork

    def position_at(self, time: float) -> int:
        """Return the newest position that was visible at a time; where it began later, the one it began with."""
        for version in reversed(self.versions):
            if version.time <= time:
                return version.head.position
        return self.fork


class Database:
    """All versions, the newest of them, and who has the write lock."""

    def __init__(self, rng: random.Random, clock: Callable[[], float], *, gaps: bool = False) -> None:
        self._rng, self._clock = rng, clock
        self._gaps = gaps
        """A mutant: positions come from a plain sequence, so that commits become visible out of their order."""
        self._held: tuple[Tables, tuple[Logged, ...]] | None = None
        self.current = Version(HeadState(0, 0, "abc", 1), {}, (), None, 0, clock(), None)
        self.lineages = [Lineage([self.current], 0)]
        self.by_nonce = {0: self.current}
        self.locked_by: object = None
        self.tick: Callable[[Any, str], None] = lambda connection, text: None
        """Called before a statement: something else may happen first."""
        self.commits = 0

    @property
    def versions(self) -> list[Version]:
        """The versions of the present past."""
        return self.lineages[-1].versions

    def next_position(self) -> int:
        """Return the position of the next commit."""
        held = self._held[1][-1].position if self._held else 0
        return max(self.current.head.position, held) + 1

    def new_nonce(self) -> int:
        """Return a nonce."""
        return self._rng.getrandbits(62) + 1

    def commit(self, head: HeadState, tables: Tables, log: tuple[Logged, ...], author: object) -> None:
        """Make a commit visible."""
        old = self.current
        self.current = Version(head, tables, log, old, old.trimmed, self._clock(), author)
        self.versions.append(self.current)
        self.by_nonce[head.nonce] = self.current
        self.commits += 1
        if self._held is not None and self._rng.random() < 0.6:
            self._release()

    def commit_foreign(self, change: Callable[[Tables], list[tuple[str, str, str | None, str | None]]]) -> None:
        """Commit what plain SQL changed, each logged change with a position of its own, as the triggers do."""
        old = self.current
        tables = dict(old.tables)
        changes = change(tables)
        if not changes:
            return
        first = self.next_position()
        log = tuple(Logged(first + i, self.new_nonce(), *logged) for i, logged in enumerate(changes))
        if self._gaps and self._held is None and self._rng.random() < 0.5:
            self._held = (tables, log)
            return
        self.commit(old.head._replace(position=log[-1].position, nonce=log[-1].nonce), tables, log, None)

    def _release(self) -> None:
        """Make the held commit visible: behind commits with higher positions."""
        assert self._held is not None
        (tables, log), self._held = self._held, None
        old = self.current
        touched = {(row.kind, row.namespace, row.parent or row.key or "") for row in log}
        merged = dict(old.tables)
        for key in touched:
            merged.pop(key, None)
            if key in tables:
                merged[key] = tables[key]
        self.current = Version(old.head, merged, log, old, old.trimmed, self._clock(), None)
        self.versions.append(self.current)
        self.by_nonce[old.head.nonce] = self.current

    def rewind(self, commits: int) -> None:
        """Take the database back by some commits, behind everybody's back."""
        versions = self.versions
        kept = versions[: max(1, len(versions) - commits)]
        self.current = kept[-1]
        self.lineages.append(Lineage(kept, self.current.head.position))

    def trim(self, position: int) -> None:
        """Cut the log off up to a position."""
        old = self.current
        trimmed = max(old.trimmed, min(position, old.head.position))
        self.current = Version(old.head, old.tables, old.log, old.parent, trimmed, old.time, old.author)
        self.versions[-1] = self.by_nonce[old.head.nonce] = self.current
