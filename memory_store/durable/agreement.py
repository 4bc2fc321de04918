"""The change log against itself and against the rows, of all heads.

What is compared row by row is compared inside the database: a million records take little memory, and the interpreter
stays free for the event loop. SQLite sorts the log into temporary tables on the disk. A server sorts it within each
query, by hashing or on its disk: so it can be asked through a pooler, as a role that may make no tables, and a standby.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from memory_store.durable.connection import Connection
from memory_store.durable.findings import Findings, Problem, is_server
from memory_store.durable.log import STORE
from memory_store.durable.text_index import text_index
from memory_store.records import RECORDS
from memory_store.text.documents import SEARCHED

__all__ = [
    "MISPLACED",
    "check_documents",
    "check_idempotency",
    "check_log",
    "check_rows",
    "disagreements",
    "shard_in_sql",
    "sorted_log",
    "unfounded",
]


class _Words(NamedTuple):
    """What the two databases say differently: which of two is greater, and that two differ or one is NULL."""

    greater: str
    differs: str


_ON_A_FILE, _ON_A_SERVER = _Words("max", "IS NOT"), _Words("greatest", "IS DISTINCT FROM")


def shard_in_sql(connection: Connection, namespace: str) -> str:
    """Return the SQL for the shard of a namespace, given as SQL itself."""
    return f"memory_store_shard({namespace})" if is_server(connection) else "0"


def check_log(connection: Connection, findings: Findings) -> None:
    """Check that the log has no gaps, and that each commit in it is whole; see `_BROKEN`."""
    server = is_server(connection)
    for shard, position, before, count, highest, nonces in connection.execute(_broken(connection)):
        where = f"shard {shard}, position {position:,}" if server else f"position {position:,}"
        if nonces:
            findings.add(Problem("log", f"{where} has several random numbers"))
        elif count != highest + 1:
            findings.add(Problem("log", f"{where} has {count:,} of {highest + 1:,} changes"))
        else:
            of_shard = f" of shard {shard}" if server else ""
            findings.add(Problem("log", f"nothing between the positions {before:,} and {position:,}{of_shard}"))
    known = ", ".join(f"'{kind}'" for kind in (*RECORDS, STORE))
    strange = f"SELECT kind, count(*) FROM changes WHERE kind NOT IN ({known}) GROUP BY kind"  # noqa: S608 - our names
    for kind, count in connection.execute(strange):
        findings.add(Problem("log", f"{count:,} changes are of a kind that does not exist: {kind!r:.80}"))
    if server:
        [(count,)] = connection.execute(_COUNT_MISPLACED).fetchall()
        if count:
            text = f"{count:,} changes are in another shard than their namespace's: its followers do not see them"
            findings.add(Problem("log", text))


MISPLACED = f"kind <> '{STORE}' AND shard <> memory_store_shard(namespace)"
"""Which changes stand in another shard of a server's log than that of their namespace."""
_COUNT_MISPLACED = f"SELECT count(*) FROM changes WHERE {MISPLACED}"  # noqa: S608 - our own words

# Positions rise by one, except where a restore or a copy went on from the positions of another database.
_BROKEN = f"""SELECT shard, position, before, count, highest, nonces FROM (
  SELECT commits.*, lag(position) OVER (PARTITION BY shard ORDER BY position) AS before FROM (
    SELECT shard, position, count(*) AS count, max(idx) AS highest, min(nonce) <> max(nonce) AS nonces,
           max(CASE WHEN kind = '{STORE}' AND operation IN ('restore', 'repair', 'copy') THEN 1 ELSE 0 END) AS may_jump
    FROM changes WHERE position >= {{}} GROUP BY shard, position) AS commits) AS ordered
WHERE nonces OR count <> highest + 1 OR (position <> before + 1 AND may_jump = 0)
ORDER BY shard, position"""  # noqa: S608 - our own names

# What is lost of the log before a repair stays lost, and no follower can come from there: it was told then.
_LAST_REPAIRS = f"""SELECT shard, max(position) FROM changes
WHERE kind = '{STORE}' AND operation = 'repair' GROUP BY shard"""  # noqa: S608 - our own names


def _broken(connection: Connection) -> str:
    repaired = connection.execute(_LAST_REPAIRS).fetchall()
    since = " ".join(f"WHEN {shard} THEN {position}" for shard, position in repaired)
    return _BROKEN.format(f"CASE shard {since} ELSE 0 END" if since else "0")


@contextmanager
def sorted_log(connection: Connection) -> Iterator[None]:
    """Make ready what the log says last of every record, for `disagreements`.

    `log_last` has the last change of each record; `log_gone` the last time all records of a parent (of the whole kind:
    parent "") were deleted; `log_moved` the last time plain SQL gave a record another id or another parent.
    """
    if is_server(connection):
        yield
        return
    for statement in _SORT:
        connection.execute(statement)
    try:
        yield
    finally:
        for table in ("log_last", "log_gone", "log_moved"):
            connection.execute(f"DROP TABLE temp.{table}")


# One number for a place in the log of a namespace: a commit has fewer than 2^24 changes.
_PLACE = "position * 16777216 + idx"
_GONE = (
    f"SELECT kind, namespace, coalesce(parent, '') AS parent, max({_PLACE}) AS at FROM changes "  # noqa: S608
    "WHERE key IS NULL AND operation = 'delete'{} GROUP BY 1, 2, 3"
)
_MOVED = (
    f"SELECT kind, namespace, key, max({_PLACE}) AS at FROM changes "  # noqa: S608 - our own names
    "WHERE operation = 'move'{} GROUP BY 1, 2, 3"
)
_SORT = (
    "CREATE TEMP TABLE log_last (kind, namespace, key, parent, operation, revision, at, "
    "PRIMARY KEY (kind, namespace, key)) WITHOUT ROWID",
    # SQLite takes the other columns from the row that has the maximum.
    f"INSERT INTO temp.log_last SELECT kind, namespace, key, parent, operation, revision, max({_PLACE}) FROM changes "  # noqa: S608
    "WHERE key IS NOT NULL AND operation <> 'move' GROUP BY kind, namespace, key",
    "CREATE TEMP TABLE log_gone (kind, namespace, parent, at, PRIMARY KEY (kind, namespace, parent)) WITHOUT ROWID",
    f"INSERT INTO temp.log_gone {_GONE.format('')}",
    "CREATE TEMP TABLE log_moved (kind, namespace, key, at, PRIMARY KEY (kind, namespace, key)) WITHOUT ROWID",
    f"INSERT INTO temp.log_moved {_MOVED.format('')}",
)


def _sorted_within(kind: str) -> str:
    """Return what a server puts before a query instead of these tables.

    There is one more: `log_emptied` has the last time plain SQL truncated a table, in each shard, whose log does not
    say which one. What was stored before that may be gone.
    """
    only = f" AND kind = '{kind}'"
    return (
        "WITH log_last AS (SELECT DISTINCT ON (kind, namespace, key) kind, namespace, key, parent, operation, "  # noqa: S608
        f"revision, shard, {_PLACE} AS at FROM changes WHERE key IS NOT NULL AND operation <> 'move'{only} "
        f"ORDER BY kind, namespace, key, position DESC, idx DESC), log_gone AS ({_GONE.format(only)}), "
        f"log_moved AS ({_MOVED.format(only)}), log_emptied AS (SELECT shard, max({_PLACE}) AS at FROM changes "
        f"WHERE kind = '{STORE}' AND operation = 'truncate' GROUP BY shard)"
    )


def disagreements(connection: Connection, kind: str) -> str:
    """Return the query for the records of a kind of which the log and the rows say different things.

    It gives what is wrong ("unlogged", "deleted", "missing", or "different"), namespace, id, the row's parent and
    revision (the log's, where the row is missing), the log's parent and revision. A record without any change in the
    log is only wrong where the log reaches back to its beginning. Needs `sorted_log`.
    """
    spec, server = RECORDS[kind], is_server(connection)
    words = _ON_A_SERVER if server else _ON_A_FILE
    parent = "CAST(NULL AS TEXT)" if spec.parent is None else f"r.{spec.parent}"
    gone = f"{words.greater}(coalesce(one.at, 0), coalesce(every.at, 0))"

    def deletions(of: str, owner: str) -> str:
        return (
            f"LEFT JOIN log_gone AS one ON one.kind = '{kind}' AND one.namespace = {of}.namespace "
            f"AND one.parent = {owner} LEFT JOIN log_gone AS every ON every.kind = '{kind}' "
            f"AND every.namespace = {of}.namespace AND every.parent = ''"
        )

    emptied = "LEFT JOIN log_emptied AS t ON t.shard = l.shard" if server else ""
    kept = "AND l.at > coalesce(t.at, 0)" if server else ""
    unlogged = "l.key IS NULL"
    if trimmed := [str(shard) for (shard,) in connection.execute(_TRIMMED)]:
        within = f"{shard_in_sql(connection, 'r.namespace')} NOT IN ({', '.join(trimmed)})"
        unlogged += f" AND ({gone} > 0 OR {within})"
    return f"""{_sorted_within(kind) if server else ""}
        SELECT CASE WHEN l.key IS NULL THEN 'unlogged'
                    WHEN l.operation = 'delete' OR l.at < {gone} THEN 'deleted' ELSE 'different' END AS what,
               r.namespace AS namespace, r.id AS id, {parent} AS parent, r.revision AS revision,
               l.parent AS logged_parent, l.revision AS logged_revision
        FROM {spec.table.name} AS r
        LEFT JOIN log_last AS l ON l.kind = '{kind}' AND l.namespace = r.namespace AND l.key = r.id
        {deletions("r", parent)}
        WHERE ({unlogged}) OR (l.key IS NOT NULL AND (l.operation = 'delete' OR l.at < {gone}
               OR l.revision {words.differs} r.revision OR l.parent {words.differs} {parent}))
        UNION ALL
        SELECT 'missing', l.namespace, l.key, l.parent, l.revision, l.parent, l.revision
        FROM log_last AS l
        LEFT JOIN {spec.table.name} AS r ON r.namespace = l.namespace AND r.id = l.key
        LEFT JOIN log_moved AS m ON m.kind = l.kind AND m.namespace = l.namespace AND m.key = l.key
        {deletions("l", "l.parent")} {emptied}
        WHERE l.kind = '{kind}' AND l.operation <> 'delete' AND r.id IS NULL
              AND l.at > {gone} AND l.at > coalesce(m.at, 0) {kept}""".lstrip()  # noqa: S608 - our own names


# Also where there is no head any more.
_TRIMMED = (
    "SELECT shard FROM (SELECT shard FROM head UNION SELECT 0 AS shard) AS shards "
    "WHERE (SELECT min(position) FROM changes WHERE changes.shard = shards.shard) > 1"
)


def check_rows(connection: Connection, findings: Findings) -> None:
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


def check_documents(connection: Connection, findings: Findings) -> None:
    """Compare the full-text index with the records, where nothing is left to be indexed, and with itself.

    Whether the terms of a document are those of its record is not looked at: that it is of the same revision is.
    """
    done = "NOT EXISTS (SELECT 1 FROM backlog AS b WHERE b.namespace = {}.namespace)"
    for kind in SEARCHED:
        table = RECORDS[kind].table.name
        same = f"d.namespace = r.namespace AND d.kind = '{kind}' AND d.id = r.id"
        missing = (
            f"SELECT r.namespace, r.id, d.revision FROM {table} AS r LEFT JOIN documents AS d ON {same} "  # noqa: S608
            f"WHERE (d.id IS NULL OR d.revision <> r.revision) AND {done.format('r')}"
        )
        for namespace, key, revision in connection.execute(missing):
            if findings.has_named(kind, namespace, key):
                continue  # the record itself is wrong
            text = "cannot be searched" if revision is None else f"is searched as it was at revision {revision}"
            findings.add(Problem("full text", text, kind, namespace, key))
        left = (
            f"SELECT d.namespace, d.id FROM documents AS d LEFT JOIN {table} AS r ON {same} "  # noqa: S608
            f"WHERE d.kind = '{kind}' AND r.id IS NULL AND {done.format('d')}"
        )
        for namespace, key in connection.execute(left):
            if not findings.has_named(kind, namespace, key):
                findings.add(Problem("full text", "is searched, but not stored", kind, namespace, key))
    damage = text_index(connection).damage()
    if damage is not None:
        findings.add(Problem("full text", f"the index is not that of the documents: {damage}"))


def check_idempotency(connection: Connection, findings: Findings) -> None:
    """Check that each noted write is one that the log knows, as far as it reaches back."""
    for namespace, key, kind, id_, position in connection.execute(unfounded(connection)):
        text = f"was put at position {position} says idempotency key {key!r:.120}, the log does not"
        findings.add(Problem("idempotency", text, kind, namespace, id_))


def unfounded(connection: Connection) -> str:
    """Return the query for the idempotency keys that no commit in the log bears out."""
    shard = shard_in_sql(connection, "noted.namespace")
    kinds = ", ".join(f"'{kind}'" for kind in RECORDS)
    return f"""SELECT namespace, key, kind, id, position FROM idempotency AS noted
        WHERE length(digest) <> 16 OR kind NOT IN ({kinds})
              OR position > (SELECT position FROM head WHERE head.shard = {shard})
              OR (position >= (SELECT min(position) FROM changes WHERE changes.shard = {shard}) AND NOT EXISTS (
                    SELECT 1 FROM changes AS logged
                    WHERE logged.shard = {shard} AND logged.position = noted.position AND logged.kind = noted.kind
                          AND logged.namespace = noted.namespace AND logged.key = noted.id))"""  # noqa: S608
