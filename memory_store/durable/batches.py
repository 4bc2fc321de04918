"""A batch of writes as one transaction, on one connection.

Only when the database refuses something halfway is a batch run again with a savepoint round each write, so that the
failing one fails alone (a savepoint a write measured +31 %, and nearly no batch fails).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

from memory_store.clock import now_us
from memory_store.durable.changes import HeadState, new_nonce
from memory_store.durable.commits import LogWriter, Record, rollback, unknown_commit
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import ConnectionLostError, is_index_damage, is_refusal, translate
from memory_store.durable.documents import INDEX_AT_ONCE, make_document, record_behind, record_documents
from memory_store.durable.log import Commit, CommitToken
from memory_store.durable.operations import Ask, Collision, Context, Operation, Put, PutTogether, Work
from memory_store.durable.text_index import Document
from memory_store.errors import CommitUnknownError, ConstraintError, RecordError

__all__ = ["Applied", "InDoubtError", "Refused", "drive", "run_batch", "run_in_savepoint"]


class Applied(NamedTuple):
    """How a batch went: its commit, and for each operation its result or its error."""

    commit: Commit
    outcomes: list[Any]


class InDoubtError(Exception):
    """A batch that may have been committed, on its way from the lane to `Writer`; callers are told `unknown`."""

    def __init__(self, unknown: CommitUnknownError, outcomes: list[Any]) -> None:
        super().__init__(str(unknown))
        self.unknown, self.outcomes = unknown, outcomes


class Refused:
    """Stands for an operation that cannot be made. Returns why."""

    size = 1

    def __init__(self, why: BaseException) -> None:
        self.why = why

    def run(self, context: Context) -> Work:
        """Ask nothing."""
        yield from ()
        return self.why


def run_batch(connection: Connection, operations: Sequence[Operation], log: LogWriter, known: HeadState) -> Applied:
    """Run operations in one transaction. The caller holds the guard.

    Simple puts are first tried as inserts made together, then one by one, then each in a savepoint: every step is
    slower and takes more. Nearly every batch ends with the first.
    """
    at_once = _insert_at_once(connection, operations, log, known)
    if at_once is not None:
        return at_once
    try:
        return _run_slower(connection, operations, log, known, record_documents)
    except sqlite3.DatabaseError as error:
        if not is_index_damage(error):
            raise
        return _run_unindexed(connection, operations, log, known, error)


def _run_unindexed(
    connection: Connection, operations: Sequence[Operation], log: LogWriter, known: HeadState, damage: Exception
) -> Applied:
    """Run operations again, their records left to be indexed: a write does not depend on the full-text index.

    Those that are for the index alone fail.
    """
    from memory_store.durable.indexing import IndexBehind, LeaveBehind  # which know the writer, and that this module

    refused = Refused(translate(damage))
    kept: list[Any] = [refused if isinstance(one, IndexBehind | LeaveBehind) else one for one in operations]
    return _run_slower(connection, kept, log, known, record_behind)


def _run_slower(
    connection: Connection, operations: Sequence[Operation], log: LogWriter, known: HeadState, record: Record
) -> Applied:
    for run_all in (_run_together, _run_bare, _run_in_savepoints):
        opened = log.begin(connection, known)
        context = Context.new(now_us(), opened.head.position + 1)
        try:
            outcomes = run_all(connection, operations, context)
        except Collision:
            rollback(connection)
        except BaseException as error:
            rollback(connection)
            if run_all is _run_in_savepoints or not is_refusal(error):
                raise
        else:
            try:
                return Applied(log.commit(connection, context, opened, record), outcomes)
            except CommitUnknownError as error:
                raise InDoubtError(error, outcomes) from error
    raise AssertionError("unreachable: the last run returns or raises")


def _insert_at_once(
    connection: Connection, operations: Sequence[Operation], log: LogWriter, known: HeadState
) -> Applied | None:
    """Commit simple puts of one kind in one statement, where the database can and nothing is in the way; else None."""
    insert = getattr(connection, "insert_and_commit", None)
    if insert is None or len({_simple_kind(operation) for operation in operations}) != 1:
        return None
    kind = _simple_kind(operations[0])
    if kind is None:
        return None
    context = Context.new(now_us(), known.position + 1)
    puts = cast("Sequence[Put]", operations)
    if len({(put.namespace, put.rows[0][0]) for put in puts}) != len(puts):
        return None  # one record written twice: the second is not an insert, and PostgreSQL refuses its document
    together = PutTogether(puts)
    rows = together.stamped(context)
    together.note(rows, context)
    nonce = new_nonce()
    at_once = len(rows) <= INDEX_AT_ONCE
    made = Applied(
        Commit(known.position + 1, nonce, context.changes, known, leaves_behind=not at_once), [[row] for row in rows]
    )
    values = [(put.namespace, *row) for put, row in zip(puts, rows, strict=True)]
    documents: list[Document] = []
    behind: set[str] = set()
    if at_once:
        documents = [make_document(kind, namespace, row) for namespace, *row in values]
    else:
        behind = {put.namespace for put in puts}
    try:
        done = insert(kind, values, known, nonce, log.actor, context.now_us, documents, sorted(behind))
        return made if done else None
    except ConstraintError:
        return None
    except ConnectionLostError as error:
        token = CommitToken(known.store_id, known.position + 1, nonce, known.shard)
        raise InDoubtError(unknown_commit(error, token), made.outcomes) from error


def _run_together(connection: Connection, operations: Sequence[Operation], context: Context) -> list[Any]:
    outcomes: list[Any] = []
    for simple, run in groupby(operations, key=_simple_kind):
        together = list(run)
        if simple is None or len(together) == 1:
            outcomes += [_run_one(connection, operation, context) for operation in together]
        else:
            outcomes += drive(connection, PutTogether(cast("list[Put]", together)).run(context))
    return outcomes


def _simple_kind(operation: Operation) -> str | None:
    return operation.spec.kind if isinstance(operation, Put) and operation.is_simple else None


def _run_bare(connection: Connection, operations: Sequence[Operation], context: Context) -> list[Any]:
    return [_run_one(connection, operation, context) for operation in operations]


def _run_in_savepoints(connection: Connection, operations: Sequence[Operation], context: Context) -> list[Any]:
    return [run_in_savepoint(connection, operation, context) for operation in operations]


def _run_one(connection: Connection, operation: Operation, context: Context) -> Any:
    """Run one operation; what it refuses is its outcome, what the database refuses is raised."""
    try:
        return drive(connection, operation.run(context))
    except RecordError as error:
        return error


def run_in_savepoint(connection: Connection, operation: Operation, context: Context) -> Any:
    """Run one operation; whatever is wrong with it is its outcome, and nothing of it stays."""
    noted = len(context.changes)
    connection.execute("SAVEPOINT one")
    try:
        outcome = drive(connection, operation.run(context))
    except RecordError as error:
        outcome = error
    except Exception as error:
        if not is_refusal(error):
            raise
        del context.changes[noted:]
        connection.execute("ROLLBACK TO one")
        outcome = translate(error)
    connection.execute("RELEASE one")
    return outcome


def drive(connection: Connection, work: Work) -> Any:
    """Run an operation's statements on the connection and return the operation's result."""
    rows: Any = None  # a generator is started with None
    try:
        while True:
            ask: Ask = work.send(rows)
            run = connection.executemany if ask.many else connection.execute
            cursor = run(ask.sql, ask.parameters)
            rows = cursor.fetchall() if cursor.description else [()] * cursor.rowcount
    except StopIteration as stop:
        return stop.value
