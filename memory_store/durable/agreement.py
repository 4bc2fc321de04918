"""The change log against itself and against the rows.

What is compared row by row is compared inside SQLite, with temporary tables on the disk: a million records take little
memory, and the interpreter stays free for the event loop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from memory_store.durable.changes import SHARD
from memory_store.durable.findings import Findings, Problem
from memory_store.durable.log import STORE
from memory_store.records import RECORDS

__all__ = ["UNFOUNDED", "check_idempotency", "check_log", "check_rows", "disagreements", "sorted_log"]


def check_log(connection: sqlite3.Connection, findings: Findings) -> None:
    """Check that the log has no gaps, and that each commit in it is whole; see `_BROKEN`."""
    [(repaired,)] = connection.execute(_LAST_REPAIR).fetchall()
    for position, before, count, highest, nonces in connection.execute(_BROKEN, (repaired,)):
        if nonces:
            findings.add(Problem("log", f"position {position:,} has several random numbers"))
        elif count != highest + 1:
            findings.add(Problem("log", f"position {position:,} has {count:,} of {highest + 1:,} changes"))
        else:
            findings.add(Problem("log", f"nothing between the positions {before:,} and {position:,}"))
    known = ", ".join(f"'{kind}'" for kind in (*RECORDS, STORE))
    strange = f"SELECT kind, count(*) FROM changes WHERE kind NOT IN ({known}) GROUP BY kind"  # noqa: S608 - our names
    for kind, count in connection.execute(strange):
        findings.add(Problem("log", f"{count:,} changes are of a kind that does not exist: {kind!r:.80}"))


# What is lost of the log before a repair stays lost, and no follower can come from there: it was told then.
_LAST_REPAIR = f"""
SELECT coalesce(max(position), 0) FROM changes
WHERE shard = {SHARD} AND kind = '{STORE}' AND operation = 'repair'"""  # noqa: S608 - our own names

# Positions rise by one, except where a restore went on from the positions of the database it replaced.
_BROKEN = f"""
SELECT position, before, count, highest, nonces FROM (
  SELECT *, lag(position) OVER (ORDER BY position) AS before FROM (
    SELECT position, count(*) AS count, max(idx) AS highest, min(nonce) <> max(nonce) AS nonces,
           max(kind = '{STORE}' AND operation IN ('restore', 'repair')) AS may_jump
    FROM changes WHERE shard = {SHARD} AND position >= ? GROUP BY position))
WHERE nonces OR count <> highest + 1 OR (position <> before + 1 AND NOT may_jump)
ORDER BY position"""  # noqa: S608 - our own names


@contextmanager
def sorted_log(connection: sqlite3.Connection) -> Iterator[None]:
    """Put what the log says last of every record into temporary tables, for `disagreements`.

    `log_last` has the last change of each record; `log_gone` the last time all records of a parent (of the whole kind:
    parent "") were deleted; `log_moved` the last time plain SQL gave a record another id or another parent.
    """
    for statement in _SORT:
        connection.execute(statement)
    try:
        yield
    finally:
        for table in ("log_last", "log_gone", "log_moved"):
            connection.execute(f"DROP TABLE temp.{table}")


# One number for a place in the log: a commit has fewer than 2^24 changes.
_PLACE = "max(position * 16777216 + idx)"
_SORT = (
    "CREATE TEMP TABLE log_last (kind, namespace, key, parent, operation, revision, at, "
    "PRIMARY KEY (kind, namespace, key)) WITHOUT ROWID",
    # SQLite takes the other columns from the row that has the maximum.
    f"INSERT INTO temp.log_last SELECT kind, namespace, key, parent, operation, revision, {_PLACE} FROM changes "  # noqa: S608
    f"WHERE shard = {SHARD} AND key IS NOT NULL AND operation <> 'move' GROUP BY kind, namespace, key",
    "CREATE TEMP TABLE log_gone (kind, namespace, parent, at, PRIMARY KEY (kind, namespace, parent)) WITHOUT ROWID",
    f"INSERT INTO temp.log_gone SELECT kind, namespace, coalesce(parent, ''), {_PLACE} FROM changes "  # noqa: S608
    f"WHERE shard = {SHARD} AND key IS NULL AND operation = 'delete' GROUP BY 1, 2, 3",
    "CREATE TEMP TABLE log_moved (kind, namespace, key, at, PRIMARY KEY (kind, namespace, key)) WITHOUT ROWID",
    f"INSERT INTO temp.log_moved SELECT kind, namespace, key, {_PLACE} FROM changes "  # noqa: S608 - our own names
    f"WHERE shard = {SHARD} AND operation = 'move' GROUP BY 1, 2, 3",
)


def disagreements(connection: sqlite3.Connection, kind: str) -> str:
    """Return the query for the records of a kind of which the log and the rows say different things.

    It gives what is wrong ("unlogged", "deleted", "missing", or "different"), namespace, id, the row's parent and
    revision (the log's, where the row is missing), the log's parent and revision. A record without any change in the
    log is only wrong where the log reaches back to its beginning. Needs `sorted_log`.
    """
    spec = RECORDS[kind]
    [(whole,)] = connection.execute(f"SELECT coalesce(min(position), 1) = 1 FROM changes WHERE shard = {SHARD}")  # noqa: S608
    parent = "NULL" if spec.parent is None else f"r.{spec.parent}"
    gone = "max(coalesce(one.at, 0), coalesce(every.at, 0))"

    def deletions(of: str, owner: str) -> str:
        return (
            f"LEFT JOIN temp.log_gone AS one ON one.kind = '{kind}' AND one.namespace = {of}.namespace "
            f"AND one.parent = {owner} LEFT JOIN temp.log_gone AS every ON every.kind = '{kind}' "
            f"AND every.namespace = {of}.namespace AND every.parent = ''"
        )

    unlogged = "l.key IS NULL" if whole else f"l.key IS NULL AND {gone} > 0"
    return f"""
        SELECT CASE WHEN l.key IS NULL THEN 'unlogged'
                    WHEN l.operation = 'delete' OR l.at < {gone} THEN 'deleted' ELSE 'different' END AS what,
               r.namespace AS namespace, r.id AS id, {parent} AS parent, r.revision AS revision,
               l.parent AS logged_parent, l.revision AS logged_revision
        FROM {spec.table.name} AS r
        LEFT JOIN temp.log_last AS l ON l.kind = '{kind}' AND l.namespace = r.namespace AND l.key = r.id
        {deletions("r", parent)}
        WHERE ({unlogged}) OR (l.key IS NOT NULL AND (l.operation = 'delete' OR l.at < {gone}
               OR l.revision IS NOT r.revision OR l.parent IS NOT {parent}))
        UNION ALL
        SELECT 'missing', l.namespace, l.key, l.parent, l.revision, l.parent, l.revision
        FROM temp.log_last AS l
        LEFT JOIN {spec.table.name} AS r ON r.namespace = l.namespace AND r.id = l.key
        LEFT JOIN temp.log_moved AS m ON m.kind = l.kind AND m.namespace = l.namespace AND m.key = l.key
        {deletions("l", "l.parent")}
        WHERE l.kind = '{kind}' AND l.operation <> 'delete' AND r.id IS NULL
              AND l.at > {gone} AND l.at > coalesce(m.at, 0)"""  # noqa: S608 - our own names


def check_rows(connection: sqlite3.Connection, findings: Findings) -> None:
    """Compare each record with what the log says last of it."""
    words = {
        "unlogged": "is stored, the log does not know it",
        "deleted": "is stored, the log says that it was deleted",
        "missing": "is not stored, the log says that it is",
    }
    with sorted_log(connection):
        for kind in RECORDS:
            for what, namespace, key, parent, revision, *logged in connection.execute(disagreements(connection, kind)):
                text = words.get(what) or f"is at revision {revision}, the log says {logged[1]}"
                if what == "different" and revision == logged[1]:
                    text = f"belongs to episode {parent!r:.120}, the log says {logged[0]!r:.120}"
                findings.add(Problem("records", text, kind, namespace, key))


def check_idempotency(connection: sqlite3.Connection, findings: Findings) -> None:
    """Check that each noted write is one that the log knows, as far as it reaches back."""
    for namespace, key, kind, id_, position in connection.execute(UNFOUNDED):
        text = f"was put at position {position} says idempotency key {key!r:.120}, the log does not"
        findings.add(Problem("idempotency", text, kind, namespace, id_))


UNFOUNDED = f"""
SELECT namespace, key, kind, id, position FROM idempotency AS noted
WHERE length(digest) <> 16 OR kind NOT IN ({", ".join(f"'{kind}'" for kind in RECORDS)})
      OR position > (SELECT position FROM head WHERE shard = {SHARD})
      OR (position >= (SELECT min(position) FROM changes WHERE shard = {SHARD}) AND NOT EXISTS (
            SELECT 1 FROM changes AS logged
            WHERE logged.shard = {SHARD} AND logged.position = noted.position AND logged.kind = noted.kind
                  AND logged.namespace = noted.namespace AND logged.key = noted.id))"""  # noqa: S608 - our own names
