"""What a long check or copy in a thread tells: how far it is, and what it found."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from memory_store.durable.connection import Connection
from memory_store.durable.dialects.sqlite import error_code
from memory_store.durable.statements import dialect_of
from memory_store.errors import DurableError

__all__ = ["AbandonedError", "Difference", "Finding", "Findings", "Problem", "Watcher", "is_damage", "is_server"]

# Virtual machine steps between two looks at whether somebody wants the work to end: about every 5 ms.
_STEPS = 100_000
# Records that were named, as many as are remembered: 3 MB.
_MOST_NAMED = 10_000


class AbandonedError(Exception):
    """The caller of a long work was cancelled."""


class Watcher:
    """Follows a long work in a thread: is told how far it is, and ends it when asked.

    Args:
        on_progress: called in the work's thread with what is being done, how much of it is done, and how much there is.
    """

    def __init__(self, on_progress: Callable[[str, int, int], None] | None = None) -> None:
        self._on_progress, self._stop = on_progress, threading.Event()

    def stop(self) -> None:
        """End the work soon, from any thread."""
        self._stop.set()

    def note(self, what: str, done: int, total: int) -> None:
        """Tell how far the work is.

        Raises:
            AbandonedError: it is to end.
        """
        if self._stop.is_set():
            raise AbandonedError
        self.tell(what, done, total)

    def tell(self, what: str, done: int, total: int) -> None:
        """As `note`, where it is too late to end."""
        if self._on_progress is not None:
            self._on_progress(what, done, total)

    @contextmanager
    def over(self, connection: Any) -> Iterator[None]:
        """Let `stop` interrupt a connection's statements as well; on a server cancelling the work's task does."""
        if is_server(connection):
            yield
            return
        connection.set_progress_handler(self._stop.is_set, _STEPS)
        try:
            yield
        finally:
            connection.set_progress_handler(None, 0)


def is_server(connection: Connection) -> bool:
    """Return whether a connection is one to a server."""
    return dialect_of(connection).name != "sqlite"


# Of a server's error: no such table, column, function; a damaged page or index; a file that is missing or unreadable.
_DAMAGE = ("42P01", "42703", "42883", "XX001", "XX002", "58")


def is_damage(error: BaseException) -> bool:
    """Return whether an error says something of what was read, and not of a lock, a full disk or an interruption.

    Damaged pages, a table that is not there, text that is no text (which has no code: the driver itself says so).
    """
    if isinstance(error, DurableError):
        return (getattr(error.__cause__, "sqlstate", None) or "").startswith(_DAMAGE)
    return error_code(error) in (None, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing `diagnose` looked at.

    Args:
        name: what.
        value: what it is, as text, number or object.
        ok: False where something is wrong.
        hint: what is wrong, or what it means.
    """

    name: str
    value: Any
    ok: bool = True
    hint: str = ""


class Difference(NamedTuple):
    """A table, index, key, function or trigger that is not as in a new database.

    Args:
        type: which of these.
        name: its name.
        text: what is wrong with it.
        make: the statements that make it as it is in a new database; None where that has none of this name.
    """

    type: str
    name: str
    text: str
    make: tuple[str, ...] | None


class Problem(NamedTuple):
    """One thing that is wrong.

    Args:
        check: which check found it.
        text: what is wrong.
        kind: kind of the record concerned, None where it is no record.
        namespace: its namespace.
        key: its id.
    """

    check: str
    text: str
    kind: str | None = None
    namespace: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        record = "" if self.kind is None else f"{self.kind} {self.key!r} in namespace {self.namespace!r} "
        return f"{self.check}: {record}{self.text}"


class Findings:
    """What was found wrong: all counted by check, the first ones kept.

    Args:
        most: how many to keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.problems: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self._named: set[tuple[str, str | None, str | None]] = set()

    @property
    def total(self) -> int:
        """How many there are."""
        return self.counts.total()

    def begin(self, check: str) -> None:
        """Note that a check has been made, also where it finds nothing."""
        self.counts[check] += 0

    def add(self, problem: Problem) -> None:
        """Take one."""
        self.counts[problem.check] += 1
        if len(self.problems) < self._most:
            self.problems.append(problem)
        if problem.kind is not None and len(self._named) < _MOST_NAMED:
            self._named.add((problem.kind, problem.namespace, problem.key))

    def has_named(self, kind: str, namespace: str, key: str) -> bool:
        """Return whether a record was named before: what follows from what is wrong with it needs not be told too."""
        return (kind, namespace, key) in self._named
