"""How a write transaction begins and ends: the log is claimed, written and committed; an outcome may be unknown.

Claiming sets `head.writing`, which keeps the triggers (they log what plain SQL changes) from logging our changes as
well, and it says what others have committed meanwhile. It is taken back before the commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from memory_store.durable.changes import Change, HeadState, new_nonce
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import outcome_is_unknown
from memory_store.durable.documents import record_documents, write_behind
from memory_store.durable.log import Commit, CommitToken, Run, read_run
from memory_store.durable.operations import Context, IndexWork
from memory_store.durable.schema import require_current
from memory_store.durable.statements import head_claim, head_release, head_update, log_insert
from memory_store.durable.vectors import has_vectors
from memory_store.errors import CommitUnknownError, DurableUnavailableError

__all__ = ["LogWriter", "Opened", "Record", "rollback", "unknown_commit"]


class Record(Protocol):
    """Brings the index up to a commit's changes; returns whether nothing is left to be indexed."""

    def __call__(
        self, connection: Connection, changes: Sequence[Change], shard: int, position: int, *, with_vectors: bool
    ) -> bool:
        """Do it in the commit's transaction."""
        ...


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
        self.actor, self._epoch = actor, epoch
        self._with_vectors: bool | None = None

    def begin(self, connection: Connection, known: HeadState) -> Opened:
        """Begin a write transaction and claim the log; return what it leads on from.

        Raises:
            SchemaMismatchError: the database was upgraded meanwhile by a library this one is too old for.
        """
        connection.execute("BEGIN IMMEDIATE")
        try:
            # One row that RETURNING sends before the update is finished: all are fetched.
            [row] = connection.execute(head_claim(), (known.shard,)).fetchall()
            head = HeadState(*row)
            if head.epoch != self._epoch:
                require_current(connection)
                self._epoch, self._with_vectors = head.epoch, None
            return Opened(head, None if head == known else read_run(connection, known, head))
        except Exception:
            rollback(connection)
            require_current(connection)  # a schema of another revision may have no such column
            raise
        except BaseException:
            rollback(connection)
            raise

    def commit(
        self, connection: Connection, context: Context, opened: Opened, record: Record = record_documents
    ) -> Commit:
        """Advance the head, log and index the changes and commit; without changes, end the transaction.

        Args:
            connection: in the transaction.
            context: what is to be committed.
            opened: how the transaction began.
            record: brings them into the full-text index, or leaves that to be done.

        Raises:
            CommitUnknownError: nobody can say whether it happened.
        """
        changes, head = context.changes, opened.head
        if not changes:
            if context.text.is_due:
                self._commit_index(connection, context.text)
            rollback(connection)
            return Commit(before=opened.before, indexed=len(context.text.documents))
        nonce = new_nonce()
        try:
            [(position,)] = connection.execute(head_update(), (nonce, head.shard)).fetchall()
            rows = _log_rows(changes, head._replace(position=position, nonce=nonce), self.actor, context.now_us)
            connection.executemany(log_insert(), rows)
            with_vectors = self._keeps_vectors(connection)
            write_behind(connection, context.text, with_vectors=with_vectors)
            complete = record(connection, changes, head.shard, position, with_vectors=with_vectors)
            commit(connection, CommitToken(head.store_id, position, nonce, head.shard))
        except BaseException:
            rollback(connection)
            raise
        return Commit(position, nonce, changes, head, opened.before, len(context.text.documents), not complete)

    def _commit_index(self, connection: Connection, work: IndexWork) -> None:
        """Commit what the index was behind with: no change of a record, and nothing that anybody follows."""
        try:
            write_behind(connection, work, with_vectors=self._keeps_vectors(connection))
            connection.execute(head_release())
            connection.execute("COMMIT")
        except BaseException:
            rollback(connection)
            raise

    def _keeps_vectors(self, connection: Connection) -> bool:
        """Return whether the database keeps vectors: asked once in an epoch, for who changes it begins another one."""
        if self._with_vectors is None:
            self._with_vectors = has_vectors(connection)
        return self._with_vectors


def _log_rows(changes: list[Change], head: HeadState, actor: str, at: int) -> Iterator[tuple[Any, ...]]:
    position, nonce, _, _, shard = head
    for index, (kind, namespace, key, parent, operation, revision, _, _, image) in enumerate(changes):
        yield shard, position, index, kind, namespace, key, parent, operation, revision, actor, at, nonce, image


def commit(connection: Connection, token: CommitToken) -> None:
    """Commit.

    Raises:
        CommitUnknownError: the sync failed, or the reply was lost: it may or may not have happened.
    """
    try:
        connection.execute("COMMIT")
    except Exception as error:
        if outcome_is_unknown(error):
            raise unknown_commit(error, token) from error
        raise


def unknown_commit(error: Exception, token: CommitToken) -> CommitUnknownError:
    """Return the error that says that nobody knows whether a commit happened."""
    return CommitUnknownError(f"committing failed ({error}); `resolve` tells whether it happened", token=str(token))


def rollback(connection: Connection) -> None:
    """End the transaction if one is open (some errors have ended it already)."""
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except Exception as error:
            raise DurableUnavailableError(f"a failed transaction could not be rolled back: {error}") from error
