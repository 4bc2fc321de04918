"""Batched point reads: what is asked for while one read runs goes into the next, as one statement a kind.

Each batch is one hop to the reader's thread and one read transaction, so its rows and the head position it returns
belong to the same commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from memory_store.codec import Row
from memory_store.durable.changes import HeadState
from memory_store.durable.dialects.sqlite import translate
from memory_store.durable.lane import Lane
from memory_store.durable.statements import STATEMENTS, batch_size, head_select, pad
from memory_store.records import PARTS, RECORDS

__all__ = ["Key", "Reader", "Snapshot", "newest_keys", "read_by_id", "read_head", "read_keys", "snapshot_of"]

_BATCH_KEYS = 512


class Key(NamedTuple):
    """What is read as one: a record by its id, or all parts of one kind by their episode's id."""

    kind: str
    namespace: str
    id: str


class Snapshot(NamedTuple):
    """Rows as one commit left them.

    Args:
        position: that commit.
        rows: rows by key; a key that holds nothing has an empty list.
    """

    position: int
    rows: dict[Key, list[Row]]


class Reader:
    """The point reads of a process, at most one batch under way."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._waiting: dict[Key, list[Callable[[Snapshot | BaseException], None]]] = {}
        self._busy = False

    def request(self, key: Key, answer: Callable[[Snapshot | BaseException], None]) -> None:
        """Read a key; `answer` is called on the event loop with the snapshot that holds it, or with the error.

        The read starts after this call, so the snapshot is never older than it.
        """
        self._waiting.setdefault(key, []).append(answer)
        if not self._busy:
            self._busy = True
            # After this tick, so that reads asked for together are read together.
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        if not self._waiting:
            self._busy = False
            return
        if len(self._waiting) <= _BATCH_KEYS:
            batch, self._waiting = self._waiting, {}
        else:
            batch = {key: self._waiting.pop(key) for key in list(self._waiting)[:_BATCH_KEYS]}
        keys = list(batch)
        running = self._lane.submit(lambda connection: snapshot_of(connection, keys))
        running.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(
        self, batch: dict[Key, list[Callable[[Snapshot | BaseException], None]]], done: asyncio.Future[Snapshot]
    ) -> None:
        error = done.exception()
        outcome = done.result() if error is None else translate(error)
        for answers in batch.values():
            for answer in answers:
                answer(outcome)
        self._start()


def read_head(connection: sqlite3.Connection) -> HeadState:
    """Return the newest commit the connection's snapshot can see."""
    return HeadState(*connection.execute(head_select).fetchone())


def snapshot_of(connection: sqlite3.Connection, keys: Iterable[Key]) -> Snapshot:
    """Read keys in one read transaction, on the connection's thread."""
    connection.execute("BEGIN")
    try:
        position = read_head(connection).position
        return Snapshot(position, read_keys(connection, keys))
    finally:
        connection.execute("COMMIT")


def read_keys(connection: sqlite3.Connection, keys: Iterable[Key]) -> dict[Key, list[Row]]:
    """Return the rows of each key, in their order; one statement a kind and namespace."""
    rows: dict[Key, list[Any]] = {key: [] for key in keys}
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for kind, namespace, id_ in rows:
        groups[kind, namespace].append(id_)
    for (kind, namespace), ids in groups.items():
        spec = RECORDS[kind]
        place = spec.index(spec.parent or "id")
        for start in range(0, len(ids), _BATCH_KEYS):
            chunk = ids[start : start + _BATCH_KEYS]
            places = batch_size(len(chunk))
            for row in connection.execute(STATEMENTS[kind].get_many(places), (namespace, *pad(chunk, places))):
                rows[Key(kind, namespace, row[place])].append(row)
    return rows


def read_by_id(connection: sqlite3.Connection, kind: str, namespace: str, ids: list[str]) -> dict[str, Row]:
    """Return rows by id, whatever the kind is cached by."""
    found: dict[str, Any] = {}
    for start in range(0, len(ids), _BATCH_KEYS):
        chunk = ids[start : start + _BATCH_KEYS]
        places = batch_size(len(chunk))
        for row in connection.execute(STATEMENTS[kind].get_by_id(places), (namespace, *pad(chunk, places))):
            found[row[0]] = row
    return found


def newest_keys(connection: sqlite3.Connection, limit: int) -> list[Key]:
    """Return the keys worth caching first, of all namespaces: by each kind's `warm_by`, episodes with their parts."""
    keys: list[Key] = []
    for kind, spec in RECORDS.items():
        if spec.parent is None:
            for namespace, id_ in connection.execute(STATEMENTS[kind].newest, (limit,)):
                keys.append(Key(kind, namespace, id_))
                if kind == "episode":
                    keys.extend(Key(part.kind, namespace, id_) for part in PARTS)
    return keys[:limit]
