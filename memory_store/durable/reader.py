"""Batched point reads: what is asked for while one read runs goes into the next, as one statement a kind.

Each batch is one hop to the reader's thread and one read transaction, so its rows and the head position it returns
belong to the same commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from memory_store.clock import boot_s
from memory_store.codec import Row
from memory_store.distribution import Distribution
from memory_store.durable.changes import HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.lane import Lane
from memory_store.durable.log import Listener, Run, is_rewind, leads_on, one_state, read_head, read_run
from memory_store.durable.statements import STATEMENTS, in_batches
from memory_store.records import PARTS, RECORDS, RecordSpec
from memory_store.telemetry import Span, Telemetry

__all__ = ["Key", "Reader", "Snapshot", "newest_keys", "read_by_id", "read_keys", "snapshot_of"]

# Keys of one batch: handing 512 results out in one turn of the event loop took 10 ms.
_BATCH_KEYS = 128


class Key(NamedTuple):
    """What is read as one: a record by its id, or all parts of one kind by their episode's id."""

    kind: str
    namespace: str
    id: str


PlainKey = tuple[str, str, str]
"""A `Key` as a plain tuple, for lists of many: the garbage collector skips those (it took 50 ms for 400,000 keys)."""


class Snapshot(NamedTuple):
    """Rows as one commit left them.

    Args:
        run: what leads to that commit from the watermark known when the read was asked for.
        rows: for each key asked for, in order, its rows; none where it holds nothing.
    """

    run: Run
    rows: list[list[Row]]


Answer = Callable[[HeadState | None, list[Row], BaseException | None], None]
"""Called on the event loop with the commit that was read and the rows, or with None and the error."""

_Request = tuple[Key, Answer, Any]
"""A key, who is told, and the caller's span if spans are recorded."""


class Reader:
    """The point reads of a process, at most one batch under way.

    Args:
        lane: the connection that reads.
        listener: told what each read saw of the log, before its rows are handed out.
        telemetry: records batches as spans; None records none.
        replica: asked first. Its answer counts where it has come at least as far as the watermark, which the callers'
            freshness rests on; it is no look at the head, since it may be behind.
    """

    def __init__(
        self, lane: Lane, listener: Listener, telemetry: Telemetry | None = None, replica: Lane | None = None
    ) -> None:
        self._lane, self._listener, self._telemetry, self._replica = lane, listener, telemetry, replica
        self.replica_reads = self.replica_refusals = 0
        """Batches that the replica answered, and that it could not: it was behind, or away."""
        self._waiting: list[_Request] = []
        self._busy = False
        self.read_keys = Distribution()
        """Keys of each batch."""

    def request(self, key: Key, answer: Answer, *, start: bool = True) -> None:
        """Read a key. The read starts after this call, so what it sees is never older.

        Args:
            key: what to read.
            answer: who is told.
            start: False to wait for more; then `start` must be called in the same turn of the event loop.
        """
        self._waiting.append((key, answer, None if self._telemetry is None else self._telemetry.caller()))
        if start:
            self.start()

    def start(self) -> None:
        """Read what waits, unless a read is under way, after which it is read anyway."""
        if self._busy or not self._waiting:
            return
        self._busy = True
        batch, self._waiting = self._waiting[:_BATCH_KEYS], self._waiting[_BATCH_KEYS:]
        keys, known, began = [key for key, _, _ in batch], self._listener.head, boot_s()
        self.read_keys.record(len(keys))
        span = None
        if self._telemetry is not None:
            self._telemetry.record("memory_store.read.keys", len(keys))
            callers = [caller for _, _, caller in batch]
            span = self._telemetry.begin("memory_store.read", callers, keys=len(keys))

        def read(connection: Connection) -> Snapshot:
            return snapshot_of(connection, keys, known)

        def finish(result: Snapshot | None, error: BaseException | None) -> None:
            self._finish(batch, began, span, result, error)

        def finish_replica(result: Snapshot | None, error: BaseException | None) -> None:
            if result is not None and leads_on(result.run):
                self.replica_reads += 1
                self._finish(batch, None, span, result, None)
            else:
                self.replica_refusals += 1
                self._lane.post(read, finish)

        if self._replica is None:
            self._lane.post(read, finish)
        else:
            self._replica.post(read, finish_replica)

    def _finish(
        self,
        batch: list[_Request],
        began: float | None,
        span: Span | None,
        snapshot: Snapshot | None,
        error: BaseException | None,
    ) -> None:
        self._busy = False
        self.start()
        if span is not None:
            span.end(error)
        if snapshot is None:
            for _, answer, _ in batch:
                answer(None, [], error)
        else:
            self._listener.deliver(snapshot.run, began)
            if is_rewind(snapshot.run):
                # The listener knows now; what was read is older than what the callers may have seen already.
                self._waiting[:0] = batch
                self.start()
                return
            head = snapshot.run.head
            for (_, answer, _), rows in zip(batch, snapshot.rows, strict=True):
                answer(head, rows, None)


def snapshot_of(connection: Connection, keys: Sequence[PlainKey], known: HeadState) -> Snapshot:
    """Read keys of one shard as one commit left them, and what was committed between `known` and that."""
    kind, namespace, _ = keys[0]
    if all(key[0] == kind and key[1] == namespace for key in keys):
        return _snapshot_at_once(connection, RECORDS[kind], namespace, [key[2] for key in keys], known)
    with one_state(connection):
        run = read_run(connection, known, read_head(connection, known.shard))
        return Snapshot(run, read_keys(connection, keys))


def _snapshot_at_once(
    connection: Connection, spec: RecordSpec[Any], namespace: str, ids: list[str], known: HeadState
) -> Snapshot:
    """Read keys of one kind in one statement, which is a snapshot by itself.

    What led to its head is read after it, if anything did: the log of the past does not change.
    """
    [batch] = in_batches(ids)
    asked = (namespace, *batch, known.shard)
    found = connection.execute(STATEMENTS[spec.kind].get_with_head(len(batch)), asked).fetchall()
    head = HeadState(*found[0][-_HEAD_WIDTH:])
    by_id: dict[str, list[Row]] = {id_: [] for id_ in ids}
    if found[0][0] is not None:
        place = spec.index(spec.parent or "id")
        for row in found:
            by_id[row[place]].append(row[:-_HEAD_WIDTH])
    return Snapshot(read_run(connection, known, head), [by_id[id_] for id_ in ids])


_HEAD_WIDTH = len(HeadState._fields)


def read_keys(connection: Connection, keys: Sequence[PlainKey]) -> list[list[Row]]:
    """Return the rows of each key, in their order; one statement a kind and namespace."""
    if len(keys) == 1:
        kind, namespace, id_ = keys[0]
        return [connection.execute(STATEMENTS[kind].get_many(1), (namespace, id_)).fetchall()]
    groups: defaultdict[tuple[str, str], dict[str, list[Any]]] = defaultdict(dict)
    rows = [groups[kind, namespace].setdefault(id_, []) for kind, namespace, id_ in keys]
    for (kind, namespace), by_id in groups.items():
        spec = RECORDS[kind]
        place = spec.index(spec.parent or "id")
        ids = list(by_id)
        for batch in in_batches(ids):
            for row in connection.execute(STATEMENTS[kind].get_many(len(batch)), (namespace, *batch)):
                by_id[row[place]].append(row)
    return rows


def read_by_id(connection: Connection, kind: str, namespace: str, ids: list[str]) -> dict[str, Row]:
    """Return rows by id, whatever the kind is cached by."""
    found: dict[str, Any] = {}
    for batch in in_batches(ids):
        for row in connection.execute(STATEMENTS[kind].get_by_id(len(batch)), (namespace, *batch)):
            found[row[0]] = row
    return found


def newest_keys(connection: Connection, limit: int) -> list[PlainKey]:
    """Return the keys worth caching first, of all namespaces: by each kind's `warm_by`, episodes with their parts."""
    keys: list[PlainKey] = []
    for kind, spec in RECORDS.items():
        if spec.parent is None:
            for namespace, id_ in connection.execute(STATEMENTS[kind].newest, (limit,)):
                keys.append((kind, namespace, id_))
                if kind == "episode":
                    keys.extend((part.kind, namespace, id_) for part in PARTS)
    return keys[:limit]
