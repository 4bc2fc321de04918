"""The checker: whether what a process was told can have been so, given all it was told before.

A value that was read is right if some commit of the database's past held it that is not older than what the freshness
asks for, nor than anything this process had observed or had acknowledged when the read began. Of several such commits
the oldest is taken to be the one observed, which is the most lenient reading of a history, and an exact one for reads
that follow each other.

A database taken back behind everybody's back begins a new past. A process may answer from the one before as long as
its freshness allows, counted from the moment when everything that was under way at the time has arrived (nothing tells
such an answer from a newer one), and once it has shown that it knows the new past, never again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memory_store.durable.log import CommitToken
from tests.simulation.database import CacheKey, Database, Row, Version
from tests.simulation.process import Process

__all__ = ["Checker", "Reading", "Violation"]


class Violation(AssertionError):  # noqa: N818 - the field's term
    """A promise was broken."""


class Reading(NamedTuple):
    """A read under way: what was known when it began."""

    process: Process
    linearizable: bool
    at_least: int
    began: float
    past: int
    head: int
    floors: tuple[int, ...]
    knows: int


class Checker:
    """Checks each answer of one history."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = self.writes = self.losses = 0

    def begin(self, process: Process, freshness: str | None, at_least: int, now: float) -> Reading:
        """Note what is known before a read."""
        database = self._database
        return Reading(
            process,
            (freshness or process.freshness) == "linearizable",
            at_least,
            now,
            len(database.lineages) - 1,
            database.current.head.position,
            tuple(process.floors),
            process.past,
        )

    def read(self, reading: Reading, key: CacheKey, rows: Any) -> None:
        """Check what a read of a key returned."""
        wanted = tuple(rows if not rows or type(rows[0]) is tuple else map(tuple, rows))
        self._explain(reading, f"{key} = {_short(wanted)}", lambda version: version.tables.get(key, ()) == wanted)

    def found(self, reading: Reading, kind: str, namespace: str, id_: str, row: Row | None) -> None:
        """Check what a read of a part by its own id returned."""
        wanted = None if row is None else tuple(row)

        def holds(version: Version) -> bool:
            rows = [
                one
                for key, stored in version.tables.items()
                if key[:2] == (kind, namespace)
                for one in stored
                if one[0] == id_
            ]
            return rows == ([] if wanted is None else [wanted])

        self._explain(reading, f"{kind} {namespace}/{id_} = {wanted}", holds)

    def counted(self, reading: Reading, namespace: str, total: int) -> None:
        """Check a number of episodes."""

        def holds(version: Version) -> bool:
            return sum(key[0] == "episode" and key[1] == namespace for key in version.tables) == total

        self._explain(reading, f"episodes of {namespace}: {total}", holds)

    def _explain(self, reading: Reading, what: str, holds: Any) -> None:
        """Find the commit that explains an answer, and note that it was observed."""
        self.reads += 1
        process, lineages = reading.process, self._database.lineages
        tried = []
        for past in range(max(reading.knows, 0), len(lineages)):
            floor = self._floor(reading, past)
            if floor is None:
                continue
            tried.append(f"past {past} from {floor}")
            for version in _from(lineages[past].versions, floor):
                if holds(version):
                    self._observe(process, past, version.head.position)
                    return
        raise Violation(
            f"process {process.number} was told {what}, which no commit explains ({', '.join(tried)}); "
            f"{'linearizable' if reading.linearizable else 'bounded'}, at_least={reading.at_least}, head "
            f"{reading.head} of past {reading.past} and floors {reading.floors} when it began at {reading.began}"
        )

    def _floor(self, reading: Reading, past: int) -> int | None:
        """Return the oldest position of a past that may explain a read, None where none of that past may."""
        lineages = self._database.lineages
        lineage = lineages[past]
        if past < len(reading.floors):
            floor = reading.floors[past]
        else:  # it began during the read
            floor = min([reading.floors[-1], *(one.fork for one in lineages[len(reading.floors) : past + 1])])
        over = reading.process.landed[past] if past < len(reading.process.landed) else float("inf")
        if reading.linearizable:
            if past < reading.past:
                return floor if over >= reading.began else None
            forks = [one.fork for one in lineages[reading.past + 1 : past + 1]]
            floor = max(floor, min([reading.head, *forks]))
        else:
            since = reading.began - reading.process.staleness_s
            if past < len(lineages) - 1:
                # How old its last look is says nothing: it may have seen the new past before an old answer came.
                return floor if over >= since else None
            floor = max(floor, lineage.position_at(since))
        # A position that this past had not reached is one of another past: it may be refused, or mean nothing.
        return max(floor, reading.at_least) if past == reading.past and reading.at_least <= reading.head else floor

    def _observe(self, process: Process, past: int, position: int) -> None:
        process.floors[past] = max(process.floors[past], position)
        # The oldest past that explains an answer was tried first, and what both pasts have in common proves nothing.
        if position > self._database.lineages[past].fork:
            process.past = max(process.past, past)

    def lost(self, reading: Reading) -> None:
        """Check a `PositionLostError`: a database that has the position must not be said to lack it."""
        self.losses += 1
        if len(self._database.lineages) - 1 == reading.past and reading.head >= reading.at_least:
            raise Violation(f"position {reading.at_least} was said to be lost, the head was {reading.head}")

    def acknowledged(self, process: Process, position: int) -> int | None:
        """Note an acknowledged write, and return the past it belongs to; None where that is over."""
        self.writes += 1
        past = len(self._database.lineages) - 1
        made = {
            version.head.nonce: version
            for lineage in self._database.lineages
            for version in lineage.versions
            if version.head.position == position and version.author is process
        }
        if len(made) > 1:
            return None  # made in one past and in another: nobody can say which is meant
        for version in made.values():
            if version in self._database.versions:
                self._observe(process, past, position)
                return past
        if past == 0:
            raise Violation(f"process {process.number} was told of a commit at {position}, there is none of it")
        return None

    def resolved(self, token: CommitToken, happened: bool) -> None:
        """Check what was said of a commit whose outcome was unknown."""
        if len(self._database.lineages) == 1 and happened is not (token.nonce in self._database.by_nonce):
            raise Violation(f"the commit {token} was said to have happened: {happened}")

    def rewound(self, processes: list[Process]) -> None:
        """Note that the database was taken back."""
        fork = self._database.lineages[-1].fork
        for process in processes:
            process.rewound()
            process.floors.append(min(process.floors[-1], fork))

    def invariant(self, process: Process) -> None:
        """Check that every live entry equals the database at the watermark."""
        if wrong := process.wrong_entries():
            raise Violation(
                f"process {process.number} at {process.cache.head} holds what the database did not: {', '.join(wrong)}"
            )
        if process.loop.errors:
            raise Violation(f"process {process.number}: {process.loop.errors[0]}")


def _from(versions: list[Version], position: int) -> list[Version]:
    start = len(versions)
    while start and versions[start - 1].head.position >= position:
        start -= 1
    return versions[start:]


def _short(rows: tuple[Row, ...]) -> str:
    return str([(row[0], row[-2], row[1]) for row in rows])
