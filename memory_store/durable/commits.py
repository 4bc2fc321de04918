"""How a write transaction begins and ends: the log is claimed, written and committed; an outcome may be unknown.

Claiming sets `head.writing`, which keeps the triggers (they log what plain SQL changes) from logging our changes as
well, and it says what others have committed meanwhile. It is taken back before the commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

from memory_store.durable.changes import SHARD, Change, HeadState, new_nonce
from memory_store.durable.dialects.sqlite import error_code
from memory_store.durable.log import Commit, CommitToken, Run, read_run
from memory_store.durable.operations import Context
from memory_store.durable.schema import require_current
from memory_store.durable.statements import head_claim, head_update, log_insert
from memory_store.errors import CommitUnknownError, DurableUnavailableError

__all__ = ["LogWriter", "Opened", "rollback"]


class Opened(NamedTuple):
    """A write transaction: the head it began at, and what others committed since the watermark known then."""

    head: HeadState
    before: Run | None


class LogWriter:
    """The log as the writer's connection writes it: claimed at a transaction's start, written at its end.

    Args:
        actor: author of the changes.
        epoch: the epoch in which the schema was last seen to be this library's.
    """

    def __init__(self, actor: str, epoch: int) -> None:
        self._actor, self._epoch = actor, epoch

    def begin(self, connection: sqlite3.Connection, known: HeadState) -> Opened:
        """Begin a write transaction and claim the log; return what it leads on from.

        Raises:
            SchemaMismatchError: the database was upgraded meanwhile by a library this one is too old for.
        """
        connection.execute("BEGIN IMMEDIATE")
        try:
            # One row that RETURNING sends before the update is finished: all are fetched.
            [row] = connection.execute(head_claim()).fetchall()
            head = HeadState(*row)
            if head.epoch != self._epoch:
                require_current(connection)
                self._epoch = head.epoch
            return Opened(head, None if head == known else read_run(connection, known, head))
        except sqlite3.OperationalError:
            rollback(connection)
            require_current(connection)  # a schema of another revision may have no such column
            raise
        except BaseException:
            rollback(connection)
            raise

    def commit(self, connection: sqlite3.Connection, context: Context, opened: Opened) -> Commit:
        """Advance the head, log the changes and commit; without changes, end the transaction.

        Raises:
            CommitUnknownError: syncing failed, so nobody can say what is on the disk.
        """
        changes, head = context.changes, opened.head
        if not changes:
            rollback(connection)
            return Commit(before=opened.before)
        nonce = new_nonce()
        try:
            [(position,)] = connection.execute(head_update(), (nonce,)).fetchall()
            rows = _log_rows(changes, position, nonce, self._actor, context.now_us)
            connection.executemany(log_insert(), rows)
            commit(connection, CommitToken(head.store_id, position, nonce))
        except BaseException:
            rollback(connection)
            raise
        return Commit(position, nonce, changes, head, opened.before)


def _log_rows(changes: list[Change], position: int, nonce: int, actor: str, at: int) -> Iterator[tuple[Any, ...]]:
    for index, (kind, namespace, key, parent, operation, revision, _, _, image) in enumerate(changes):
        yield SHARD, position, index, kind, namespace, key, parent, operation, revision, actor, at, nonce, image


def commit(connection: sqlite3.Connection, token: CommitToken) -> None:
    """Commit.

    Raises:
        CommitUnknownError: the sync failed; the frames may or may not be on the disk.
    """
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if error_code(error) == sqlite3.SQLITE_IOERR:
            raise CommitUnknownError(
                f"syncing the commit failed ({error}); `resolve` tells whether it happened", token=str(token)
            ) from error
        raise


def rollback(connection: sqlite3.Connection) -> None:
    """End the transaction if one is open (some errors have ended it already)."""
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise DurableUnavailableError(f"a failed transaction could not be rolled back: {error}") from error
