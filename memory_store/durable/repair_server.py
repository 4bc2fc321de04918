"""Repairing a database on a server, in one transaction that keeps writers waiting; readers go on.

There is no file to copy aside: a backup is the server's own matter. What is deleted are orphans and idempotency keys
that nothing bears out; all else is added to the log, or made anew as a new database has it.
"""

from __future__ import annotations

import uuid

from memory_store.durable import schema
from memory_store.durable.agreement import MISPLACED
from memory_store.durable.catalogue import head_count
from memory_store.durable.changes import HEADS_LOCK
from memory_store.durable.commits import rollback
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import ConnectionLostError
from memory_store.durable.engine import ServerTarget
from memory_store.durable.findings import Findings, Watcher
from memory_store.durable.log import begin_epoch, read_heads
from memory_store.durable.repair import Repair, Repaired
from memory_store.durable.verify import SERVER_CHECKS, check_database, require_whole_view
from memory_store.errors import ConstraintError, DurableUnavailableError

__all__ = ["repair_server"]


def repair_server(
    connection: Connection,
    target: ServerTarget,
    timeout_s: float,
    watcher: Watcher,
    findings: Findings,
    *,
    even_if_sound: bool,
) -> Repaired:
    """Repair a database in one transaction; see `repair_database`.

    Raises:
        ConfigurationError: the role sees one namespace only.
        DurableUnavailableError: a table or the server itself is damaged; nothing was changed.
        SchemaMismatchError: the database is at another revision.
        DurableTimeoutError: others kept it locked. Nothing was changed.
    """
    schema.check(schema.read_revision(connection), target)
    require_whole_view(connection)
    check_database(connection, findings, watcher, SERVER_CHECKS)
    if not findings.total and not even_if_sound:
        return Repaired([], None, findings)
    try:
        done = _ServerRepair(connection, target.name, findings).run(watcher, timeout_s)
    except BaseException:
        rollback(connection)
        raise
    try:
        connection.execute("COMMIT")
    except ConnectionLostError as error:
        raise DurableUnavailableError(
            f"the connection broke while the repair was committed: `memory-store verify` tells whether it was ({error})"
        ) from error
    left = Findings(len(findings.problems) + 1)
    check_database(connection, left, watcher, SERVER_CHECKS)
    return Repaired(done, None, left)


class _ServerRepair(Repair):
    """A repair while others wait."""

    def run(self, watcher: Watcher, timeout_s: float) -> list[str]:
        """Begin a transaction, repair, and return what was done; the caller commits."""
        wrong = self._findings.counts
        watcher.note("repairing", 0, 1)
        counted = head_count(self._connection)
        self.require_tables()
        self._execute("BEGIN IMMEDIATE")
        for statement in (
            f"SET LOCAL lock_timeout = {int(timeout_s * 1000)}",
            "SET LOCAL statement_timeout = 0",
            "SET LOCAL work_mem = '64MB'",
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'",
            # The order of everybody who locks several heads. From here on no write of anyone that is logged commits.
            f"SELECT pg_advisory_xact_lock({HEADS_LOCK})",
            "SELECT shard FROM head ORDER BY shard FOR UPDATE",
            "SELECT set_config('memory_store.writing', 'on', true)",
        ):
            self._execute(statement)
        try:
            if wrong["schema"]:
                self.make_schema(references=False)
                if counted is None and self._is_misplaced():  # it was made for the heads that are there: too few
                    raise self.damaged("how many heads it was made with is not known")
            self._begin_epoch()
            if wrong["foreign keys"]:
                self.delete_orphans()
            if wrong["schema"]:
                self.make_schema()
            if wrong["log"]:
                self._delete_misplaced()
            if wrong["records"] or wrong["log"]:
                self.bring_log_up()
            if wrong["idempotency"]:
                self.forget_unfounded()
            self.forget_documents(head_count(self._connection) or 1)
        except ConstraintError as error:
            raise self.damaged(error) from error
        watcher.note("repairing", 1, 1)
        return self._done

    def _begin_epoch(self) -> None:
        """Every follower, running or saved, must start again; this also makes heads and log agree."""
        heads = read_heads(self._connection)
        there = {head.shard for head in heads}
        count = head_count(self._connection)
        if count is None or there - {*range(count)}:
            raise self.damaged("how many heads it was made with is not known")
        identity, *others = {head.store_id for head in heads} or ("", "")
        if others:
            # Which database it was is not known any more: it is another one from here on.
            identity = uuid.uuid4().hex
            self._execute("UPDATE head SET store_id = ?", (identity,))
            self._done.append("gave the database a new identity")
        for shard in range(count):
            if shard not in there:
                self._execute(
                    "INSERT INTO head (shard, position, nonce, store_id, epoch) VALUES (?, 0, 0, ?, 0)",
                    (shard, identity),
                )
                self._done.append(f"made a head of shard {shard}")
        epoch = max((head.epoch for head in heads), default=0)
        for shard in range(count):
            begin_epoch(self._execute, "repair", self.last_position(shard), epoch, shard)
        self._done.append(f"began epoch {epoch + 1} in all {count} heads")

    def _is_misplaced(self) -> bool:
        return bool(self._execute(f"SELECT 1 FROM changes WHERE {MISPLACED} LIMIT 1").fetchall())  # noqa: S608

    def _delete_misplaced(self) -> None:
        """Delete what the log says in a shard where no follower of its namespace looks; it is said again after this."""
        count = self._execute(f"DELETE FROM changes WHERE {MISPLACED}").rowcount  # noqa: S608 - our own words
        if count:
            self._done.append(f"deleted {count:,} changes from the log of another shard than their namespace's")
