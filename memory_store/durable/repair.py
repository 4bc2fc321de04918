"""Repairing what can be repaired without guessing: everything that follows from the rows.

The rows are the truth. Indexes, triggers, the head and what the log says last of each record are made again from them;
parts without their episode are deleted, as they would have been with it. What was lost of a page, a table or the log's
past stays lost: that takes a backup.
"""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from memory_store.clock import now_us
from memory_store.durable import schema
from memory_store.durable.agreement import disagreements, shard_in_sql, sorted_log, unfounded
from memory_store.durable.backup import copy_pages
from memory_store.durable.changes import SHARD
from memory_store.durable.commits import rollback
from memory_store.durable.documents import forget_documents
from memory_store.durable.drafts import Draft
from memory_store.durable.engine import Target
from memory_store.durable.findings import Difference, Findings, Watcher
from memory_store.durable.lock import FileLock
from memory_store.durable.log import begin_epoch
from memory_store.durable.text_index import text_index
from memory_store.durable.verify import CHECKS, check_database, compare_schema, opened_to_read, run_checks
from memory_store.errors import DurableUnavailableError
from memory_store.records import PARTS, RECORDS

__all__ = ["Repair", "Repaired", "repair_database"]

_ACTOR = "doctor"


class Repaired(NamedTuple):
    """What a repair did.

    Args:
        done: what was done; nothing where nothing was wrong.
        copy: the file that holds the database as it was before, None where nothing was changed.
        left: what is still wrong.
    """

    done: list[str]
    copy: str | None
    left: Findings


def repair_database(
    target: Target, timeout_s: float, watcher: Watcher, findings: Findings, *, even_if_sound: bool
) -> Repaired:
    """Repair a database in one transaction: a crash leaves it as it was before, or repaired.

    Args:
        target: the database.
        timeout_s: longest wait for other processes, in seconds.
        watcher: told how far it is.
        findings: takes what was wrong before.
        even_if_sound: begin a new epoch also where nothing is wrong.

    Raises:
        DurableUnavailableError: the file itself is damaged; it was not changed.
        SchemaMismatchError: the database is at another revision.
        DurableTimeoutError: other processes kept it locked.
    """
    lock = FileLock(schema.lock_path(target.path), timeout_s)
    try:
        with lock.exclusive():
            with opened_to_read(target.path, timeout_s) as connection:
                schema.check(schema.read_revision(connection), target)
                check_database(connection, findings, watcher, CHECKS)
            if not findings.total and not even_if_sound:
                return Repaired([], None, findings)
            with closing(sqlite3.connect(target.path, timeout=timeout_s, isolation_level=None)) as connection:
                copy = _copy_aside(connection, target.path, watcher)
                try:
                    done = _FileRepair(connection, target.path, findings).run(watcher)
                except BaseException:
                    rollback(connection)
                    copy.unlink()  # nothing was changed
                    raise
                connection.execute("COMMIT")
                left = Findings(len(findings.problems) + 1)
                check_database(connection, left, watcher, CHECKS)
                return Repaired(done, str(copy), left)
    finally:
        lock.close()


def _copy_aside(connection: sqlite3.Connection, path: str, watcher: Watcher) -> Path:
    """Copy the database as it is, damage included, to where no earlier copy is."""
    place, number = Path(f"{path}.before-repair.bak"), 1
    while place.exists():
        number += 1
        place = Path(f"{path}.before-repair.{number}.bak")
    with Draft(place) as draft:
        copy_pages(connection, draft.path, watcher)
        draft.publish(overwrite=False)
    return place


class Repair:
    """A repair in one transaction: what is the same in a file and on a server.

    Args:
        connection: to the database.
        name: what it is called in messages.
        findings: what is wrong with it.
    """

    def __init__(self, connection: Any, name: str, findings: Findings) -> None:
        self._connection, self._name, self._findings = connection, name, findings
        self._execute = connection.execute
        self._done: list[str] = []

    def make_schema(self, *, references: bool = True) -> None:
        """Make what is missing of the schema, or is another one; without `references`, all but foreign keys.

        Raises:
            DurableUnavailableError: a table is missing, or has lost columns.
        """
        for item in self.require_tables():
            if item.make is None or (not references and any("FOREIGN KEY" in part for part in item.make)):
                continue  # what somebody put there on purpose is told as still wrong
            for statement in item.make:
                self._execute(statement)
            self._done.append(f"made {item.type} {item.name} anew")

    def require_tables(self) -> list[Difference]:
        """Return what is missing of the schema, or is another one.

        Raises:
            DurableUnavailableError: a table is.
        """
        differences = compare_schema(self._connection)
        for item in differences:
            if item.type == "table":
                raise self.damaged(f"table {item.name} {item.text}")
        return differences

    def log(self, changes: str) -> int:
        """Log the changes that a query gives, each in its namespace's shard, behind its epoch; return how many."""
        columns = "kind, namespace, key, parent, operation, revision"
        logged = "SELECT max(idx) FROM changes AS l WHERE l.shard = h.shard AND l.position = h.position"
        done = self._execute(
            f"INSERT INTO changes (shard, position, idx, {columns}, actor, at, nonce) SELECT h.shard, h.position, "  # noqa: S608
            f"({logged}) + row_number() OVER (PARTITION BY h.shard), found.kind, found.namespace, found.key, "
            f"found.parent, found.operation, found.revision, '{_ACTOR}', {now_us()}, h.nonce FROM ({changes}) AS found "
            f"JOIN head AS h ON h.shard = {shard_in_sql(self._connection, 'found.namespace')}"
        )
        return int(done.rowcount)

    def delete_orphans(self) -> None:
        """Delete the parts that belong to no episode."""
        for spec in PARTS:
            orphans = (
                f"FROM {spec.table.name} AS part WHERE NOT EXISTS (SELECT 1 FROM episodes WHERE "  # noqa: S608
                f"episodes.namespace = part.namespace AND episodes.id = part.{spec.parent})"
            )
            assert not spec.history, "the deleted version of a kind with history belongs into the log"
            columns = f"namespace, id AS key, {spec.parent} AS parent, 'delete' AS operation, revision"
            count = self.log(f"SELECT '{spec.kind}' AS kind, {columns} {orphans}")
            if count:
                self._execute(f"DELETE {orphans}")
                self._done.append(f"deleted {count:,} of {spec.kind} that belonged to no episode")

    def bring_log_up(self) -> None:
        """Log, of each record of which the log says another thing than its row, what the row says."""
        count = 0
        operation = "CASE what WHEN 'missing' THEN 'delete' WHEN 'different' THEN 'update' ELSE 'insert' END"
        with sorted_log(self._connection):
            for kind in RECORDS:
                columns = f"'{kind}' AS kind, namespace, id AS key, parent, {operation} AS operation, revision"
                count += self.log(f"SELECT {columns} FROM ({disagreements(self._connection, kind)}) AS wrong")  # noqa: S608
        self._done.append(f"logged {count:,} changes that the log did not know")

    def forget_unfounded(self) -> None:
        """Delete the idempotency keys that no commit bears out."""
        keys = f"SELECT namespace, key FROM ({unfounded(self._connection)}) AS wrong"  # noqa: S608 - our own names
        count = self._execute(f"DELETE FROM idempotency WHERE (namespace, key) IN ({keys})").rowcount  # noqa: S608
        self._done.append(f"forgot {count:,} idempotency keys of writes that are not there")

    def forget_documents(self, shards: int) -> None:
        """Let the full-text index be made again: of the records, whatever was wrong with them or with it."""
        forget_documents(self._connection, shards)
        self._done.append("left all records to be indexed anew, for searches by text")

    def last_position(self, shard: int) -> int:
        """Return the last position in a shard's log."""
        asked = "SELECT coalesce(max(position), 0) FROM changes WHERE shard = ?"
        return int(self._execute(asked, (shard,)).fetchone()[0])

    def damaged(self, what: object) -> DurableUnavailableError:
        """Return the error that says that nothing can be done here."""
        return DurableUnavailableError(
            f"{self._name} is damaged beyond repair and was not changed: restore a backup ({what})"
        )


class _FileRepair(Repair):
    """A repair of a file that nobody else uses now."""

    def run(self, watcher: Watcher) -> list[str]:
        """Begin a transaction, repair, and return what was done; the caller commits.

        Raises:
            DurableUnavailableError: the file itself is damaged.
        """
        execute, wrong = self._execute, self._findings.counts
        self._connection.executescript(
            "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = FILE"
        )
        if wrong["journal mode"]:
            execute("PRAGMA journal_mode = WAL")
            self._done.append("set the database to WAL mode")
        execute("BEGIN IMMEDIATE")
        with watcher.over(self._connection):
            watcher.note("repairing", 0, 1)
            if wrong["integrity"]:
                self._make_indexes()
            if wrong["full text"]:
                self._open_index()
            if wrong["schema"]:
                self.make_schema()
            self._begin_epoch()
            if wrong["foreign keys"]:
                self.delete_orphans()
            if wrong["records"]:
                self.bring_log_up()
            if wrong["idempotency"]:
                self.forget_unfounded()
            self.forget_documents(1)
            execute("UPDATE head SET writing = 0")
            self._require_sound()
            watcher.note("repairing", 1, 1)
        return self._done

    def _make_indexes(self) -> None:
        try:
            self._execute("REINDEX")
        except sqlite3.IntegrityError as error:
            raise self.damaged(error) from error
        self._done.append("made all indexes anew")

    def _open_index(self) -> None:
        """Empty the full-text index: one that FTS5 does not open cannot be compared with that of a new database."""
        with suppress(sqlite3.DatabaseError):  # where a table is missing, the comparison tells
            text_index(self._connection).clear()

    def _begin_epoch(self) -> None:
        """Every follower, running or saved, must start again; this also makes head and log agree."""
        last = self.last_position(SHARD)
        # Claims the log, as every write of ours does: the triggers stay out.
        if not self._execute(f"UPDATE head SET writing = 1 WHERE shard = {SHARD} RETURNING 1").fetchall():  # noqa: S608
            # Which database it was is not known any more: it is another one from here on.
            head = (SHARD, last, 0, uuid.uuid4().hex, 0, 1)
            self._execute(
                "INSERT INTO head (shard, position, nonce, store_id, epoch, writing) VALUES (?, ?, ?, ?, ?, ?)", head
            )
            self._done.append("made a head, with a new identity")
        begun = begin_epoch(self._execute, "repair", last)
        self._done.append(f"began epoch {begun.epoch} at position {begun.position:,}")

    def _require_sound(self) -> None:
        findings = Findings(1)
        run_checks(self._connection, findings, Watcher(), {"integrity": CHECKS["integrity"]})
        if findings.total:
            raise self.damaged(findings.problems[0].text)
