"""Child processes that can be killed at any instant, and checks of a database file with nothing of ours in between."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import JSON, Boolean, Column

from memory_store import Episode, MemoryStore
from memory_store.clock import from_us
from memory_store.durable.changes import CHANGES
from memory_store.durable.log import STORE
from memory_store.records import RECORDS, RecordSpec
from memory_store.records.columns import UtcDateTime
from tests.children import CHILDREN

NOBODY = 65534
_ABOUT_THE_STORE = ("upgrade", "restore", "repair", "barrier")
PATIENCE_S = 60.0


class ChildFailedError(AssertionError):
    """A child ended with an exception, which is in the text."""


class Child:
    """A function in a process of its own: `function(connection, *arguments)`, plain or async, found by its import path.

    What it sends arrives in `receive`, in order, also after it was killed: a sent message is in the pipe before the
    child goes on.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._connection, theirs = CHILDREN.Pipe()
        self._process = CHILDREN.Process(target=_run, args=(theirs, function, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._connection.close()

    def send(self, message: Any) -> None:
        """Send the child a message."""
        self._connection.send(message)

    def receive(self, timeout_s: float = PATIENCE_S) -> Any:
        """Return the child's next message; fail if it raised, hangs, or is gone (EOFError after a kill)."""
        assert self._connection.poll(timeout_s), "the child process hangs"
        word, value = self._connection.recv()
        if word == "raised":
            raise ChildFailedError(value)
        return value

    def arrived_within(self, seconds: float) -> bool:
        """Return whether a message, or the end of the child, is there within this time."""
        return self._connection.poll(seconds)

    def kill(self) -> None:
        """SIGKILL it, as `kill -9` does, and wait for its end."""
        self._process.kill()
        self._process.join()

    def messages_left(self) -> Iterator[Any]:
        """Yield what a killed child sent before its end."""
        with_end = iter(self.receive, None)
        try:
            yield from with_end
        except EOFError:
            return


class Parent:
    """The other end of the pipe, in the child."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Any) -> None:
        """Send a message; on return it is in the pipe, whatever happens to this process."""
        self._connection.send(("sent", message))

    def was_told(self, message: Any) -> bool:
        """Return whether the parent has sent this message."""
        if not self._connection.poll(0):
            return False
        assert self._connection.recv() == message
        return True

    def wait_for(self, message: Any) -> None:
        """Wait until the parent sends this message."""
        assert self._connection.recv() == message


def _run(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    parent = Parent(connection)
    try:
        result = function(parent, *arguments)
        parent.send(asyncio.run(result) if inspect.iscoroutine(result) else result)
    except BaseException:
        connection.send(("raised", traceback.format_exc()))


def in_child(function: Callable[..., Any], *arguments: Any, timeout_s: float = PATIENCE_S) -> Any:
    """Return what the function returns in a process of its own."""
    with Child(function, *arguments) as child:
        return child.receive(timeout_s)


async def become_nobody() -> None:
    """Give up root's rights, for which no folder is read-only. Imports what is imported late, before it cannot."""
    async with MemoryStore("sqlite:///:memory:") as store:
        await store.episodes.count()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file with the plain driver."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        yield connection


def episode(id_: str, **values: Any) -> Episode:
    """Return an episode with this id."""
    return Episode(id=id_, **({"task_type": "testing", "domain": "web"} | values))


def fields(record: Any) -> dict[str, Any] | None:
    """Return a record's fields, each looked at."""
    return None if record is None else {name: getattr(record, name) for name in RECORDS[record.kind].columns}


def plain_rows(connection: sqlite3.Connection, spec: RecordSpec[Any], where: str, *values: Any) -> list[dict[str, Any]]:
    """Return a kind's records as the plain driver reads them, field by field as `fields` does."""
    columns, order = ", ".join(spec.columns), ", ".join(spec.order or ("id",))
    sql = f"SELECT {columns} FROM {spec.table.name} WHERE {where} ORDER BY {order}"
    return [
        {name: _decoded(spec.table.c[name], value) for name, value in zip(spec.columns, row, strict=True)}
        for row in connection.execute(sql, values)
    ]


def _decoded(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, JSON):
        return json.loads(value)
    if isinstance(column.type, UtcDateTime):
        return from_us(value)
    return value == 1 if isinstance(column.type, Boolean) else value


def integrity_problems(path: Path) -> list[Any]:
    """Return what SQLite itself finds wrong with a file."""
    with database(path) as connection:
        checks = [row for row in connection.execute("PRAGMA integrity_check") if row != ("ok",)]
        return checks + connection.execute("PRAGMA foreign_key_check").fetchall()


def log_problems(path: Path) -> list[str]:
    """Replay the change log from its start; return every gap, and everything in which it and the tables disagree."""
    with database(path) as connection:
        [(head, nonce, writing)] = connection.execute("SELECT position, nonce, writing FROM head")
        columns = "position, idx, kind, namespace, key, parent, operation, revision"
        log = connection.execute(f"SELECT {columns} FROM {CHANGES.name} ORDER BY position, idx").fetchall()
        nonces = connection.execute(f"SELECT DISTINCT position, nonce FROM {CHANGES.name} ORDER BY position").fetchall()
        stored = {
            (kind, *row[:2]): row[2]
            for kind, spec in RECORDS.items()
            for row in connection.execute(f"SELECT namespace, id, revision FROM {spec.table.name}")
        }
    problems = []
    positions = list(dict.fromkeys(row[0] for row in log))
    if positions != list(range(1, head + 1)):
        problems.append(f"positions are not 1 to {head}: {positions[-5:]}")
    if writing:
        problems.append("the log is claimed, so the triggers would be silent")
    if [position for position, _ in nonces] != positions or nonces[-1:] != [(head, nonce)]:
        problems.append(f"nonces are not one a position, the last of them the head's: {nonces[-5:]}")
    for position, group in itertools.groupby(log, key=lambda row: row[0]):
        numbers = [row[1] for row in group]
        if numbers != list(range(len(numbers))):
            problems.append(f"position {position} has numbers {numbers}")
    replayed, replay_problems = _replay(log)
    problems += replay_problems
    if replayed != stored:
        problems.append(f"log and tables differ in {sorted(set(replayed.items()) ^ set(stored.items()))[:3]}")
    return problems


def _replay(log: list[Any]) -> tuple[dict[Any, int], list[str]]:
    revisions: dict[Any, int] = {}
    parents: dict[Any, str | None] = {}
    problems = []
    for position, _, kind, namespace, key, parent, operation, revision in log:
        if kind == STORE:  # about the database as a whole: no record
            if (namespace, key, parent, revision) != ("", None, None, None) or operation not in _ABOUT_THE_STORE:
                problems.append(f"position {position}: {operation} of a store that names {(namespace, key, parent)}")
            continue
        record = (kind, namespace, key)
        known = revisions.get(record)
        if operation == "move":
            continue  # tells the old episode; the update that follows it carries the revision
        if operation != "delete":
            expected = 1 if operation == "insert" else None if known is None else known + 1
            if (known is None) != (operation == "insert") or revision != expected:
                problems.append(f"position {position}: {operation} of {record} to {revision}, it was at {known}")
            revisions[record], parents[record] = revision, parent
            continue
        if key is None:
            gone = [r for r in revisions if r[:2] == record[:2] and parents[r] == parent]
        else:
            gone = [record]
            if known != revision:
                problems.append(f"position {position}: delete of {record} at {revision}, it was at {known}")
        for record in gone:
            revisions.pop(record, None)
    return revisions, problems
