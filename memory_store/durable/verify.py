"""Checking a database from end to end, as of one commit: the file, its schema, and (in `agreement`) its log and rows.

Nothing is changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from memory_store.durable import schema
from memory_store.durable.agreement import check_documents, check_idempotency, check_log, check_rows
from memory_store.durable.catalogue import compare_catalogue, head_count
from memory_store.durable.connection import Connection, ServerText
from memory_store.durable.engine import Target
from memory_store.durable.findings import Difference, Findings, Problem, Watcher, is_damage, is_server
from memory_store.errors import ConfigurationError, DurableError
from memory_store.records import PARTS, RECORDS

__all__ = [
    "CHECKS",
    "FILE_CHECKS",
    "SERVER_CHECKS",
    "Difference",
    "check_database",
    "compare_schema",
    "opened_to_read",
    "require_whole_view",
    "run_checks",
]

# What SQLite is asked to list of one damaged file; more says nothing more.
_MOST_LISTED = 10_000
_OURS = {spec.table.name: spec for spec in RECORDS.values()}


@contextmanager
def opened_to_read(path: str, timeout_s: float) -> Iterator[sqlite3.Connection]:
    """Open a database file that others may be using, without a right to change it."""
    uri = f"{Path(path).as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)) as connection:
        yield connection


def check_database(connection: Connection, findings: Findings, watcher: Watcher, checks: Mapping[str, Check]) -> None:
    """Make checks in one snapshot, while others may write."""
    for statement in _SNAPSHOT[is_server(connection)]:
        connection.execute(statement)
    try:
        with watcher.over(connection):
            run_checks(connection, findings, watcher, checks)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")  # a COMMIT looks at what is damaged


def require_whole_view(connection: Connection) -> None:
    """Check that row-level security hides nothing of a server's tables, which would look like damage.

    Raises:
        ConfigurationError: the role sees one namespace only.
    """
    tables = ", ".join(f"'{table.name}'" for table in schema.SERVER_TABLES)
    asked = "SELECT current_user::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    hidden = connection.execute(f"{asked} AND relname IN ({tables}) AND row_security_active(oid)").fetchall()
    if hidden:
        raise ConfigurationError(
            f"row-level security shows the role {hidden[0][0]!r:.80} one namespace only: check and repair the database "
            "as the owner of its tables"
        )


_SNAPSHOT = (
    # On disk, whatever this SQLite was built with: a log may be large.
    ("PRAGMA temp_store = FILE", "BEGIN"),
    # Without the lock that other readers take on the head, which may be what is missing. A role's own limit for
    # statements is meant for its daily work.
    (
        ServerText("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL work_mem = '64MB'",
        # A server does not notice that its client has gone before it answers, which may be in an hour. (One on Windows
        # cannot look.)
        "SELECT set_config('client_connection_check_interval', '1s', true) WHERE version() !~* 'visual|msvc|mingw'",
    ),
)


def run_checks(connection: Connection, findings: Findings, watcher: Watcher, checks: Mapping[str, Check]) -> None:
    """Make checks in the caller's transaction. What cannot be read any more is a problem, not an error."""
    server = is_server(connection)
    for index, (name, check) in enumerate(checks.items()):
        watcher.note(f"checking {name}", index, len(checks))
        findings.begin(name)
        if server:
            connection.execute("SAVEPOINT memory_store_check")  # a server's transaction ends with its first error
        try:
            check(connection, findings)
        except (sqlite3.DatabaseError, DurableError) as error:
            if not is_damage(error):
                raise
            if server:
                connection.execute("ROLLBACK TO SAVEPOINT memory_store_check")
            findings.add(Problem(name, f"cannot be checked: {error}"))


def check_integrity(connection: Connection, findings: Findings) -> None:
    """Let SQLite check every page, every index entry and every NOT NULL."""
    for (text,) in connection.execute(f"PRAGMA integrity_check({_MOST_LISTED})"):
        if text != "ok":
            findings.add(Problem("integrity", text))


def check_foreign_keys(connection: Connection, findings: Findings) -> None:
    """Find orphans: parts without their episode."""
    for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        spec = _OURS.get(table)
        if spec is None or spec.parent is None:
            findings.add(Problem("foreign keys", f"row {rowid} of {table} belongs to none of {parent}"))
            continue
        found = f'SELECT namespace, id, {spec.parent} FROM "{table}" WHERE rowid = ?'  # noqa: S608 - our own names
        namespace, key, episode = connection.execute(found, (rowid,)).fetchone() or (None, None, None)
        text = f"belongs to episode {episode!r:.120}, which does not exist"
        findings.add(Problem("foreign keys", text, spec.kind, namespace, key))


def check_orphans(connection: Connection, findings: Findings) -> None:
    """Find parts without their episode on a server, which cannot be asked to check its keys."""
    for spec in PARTS:
        found = (
            f"SELECT namespace, id, {spec.parent} FROM {spec.table.name} AS part WHERE NOT EXISTS (SELECT 1 "  # noqa: S608
            f"FROM episodes WHERE episodes.namespace = part.namespace AND episodes.id = part.{spec.parent})"
        )
        for namespace, key, episode in connection.execute(found):
            text = f"belongs to episode {episode!r:.120}, which does not exist"
            findings.add(Problem("foreign keys", text, spec.kind, namespace, key))


def check_head(connection: Connection, findings: Findings) -> None:
    """Compare each head with the newest commit in its shard's log."""
    server = is_server(connection)
    heads = connection.execute("SELECT shard, position, nonce, store_id, epoch FROM head ORDER BY shard").fetchall()
    count = (head_count(connection) or max(len(heads), 1)) if server else 1
    if missing := sorted({*range(count)} - {head[0] for head in heads}):
        text = "there is no head: which commit is the newest is not known"
        if server:
            text = f"there is no head of shard {', '.join(map(str, missing))}: nothing can be written there"
        findings.add(Problem("head", text))
    for shard, head_position, head_nonce, *_ in heads if server else [head for head in heads if head[0] == 0]:
        where = f"of shard {shard} " if server else ""
        newest = "SELECT position, nonce FROM changes WHERE shard = ? ORDER BY position DESC, idx DESC LIMIT 1"
        [(position, nonce)] = connection.execute(newest, (shard,)).fetchall() or [(0, head_nonce)]
        if position != head_position:
            findings.add(Problem("head", f"{where}is at position {head_position:,}, the log ends at {position:,}"))
        elif nonce != head_nonce:
            findings.add(Problem("head", f"{where}has another random number at position {position:,} than the log"))
    if server:
        if heads and heads[-1][0] >= count:
            findings.add(Problem("head", f"there are heads beyond the {count} that the database was made with"))
        if len({tuple(head[3:]) for head in heads}) > 1:
            findings.add(Problem("head", "not all heads are of the same store and epoch"))
    elif not missing and _is_being_written(connection):
        findings.add(Problem("head", "is marked as being written: what plain SQL changes is not logged"))


def _is_being_written(connection: Connection) -> bool:
    columns = [row[1] for row in connection.execute("PRAGMA table_info(head)")]
    return "writing" in columns and connection.execute("SELECT max(writing) FROM head").fetchone() != (0,)


def check_journal(connection: Connection, findings: Findings) -> None:
    """Check that the database is in WAL mode, which every process relies on."""
    [(mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
    if mode != "wal":
        findings.add(Problem("journal mode", f"is {mode}, must be wal: something else has changed it"))


def check_schema(connection: Connection, findings: Findings) -> None:
    """Compare tables, indexes, keys and triggers with those of a database that has just been made."""
    for item in compare_schema(connection):
        findings.add(Problem("schema", f"{item.type} {item.name} {item.text}"))


def compare_schema(connection: Connection) -> list[Difference]:
    """Return what is missing, changed, or hooked into our tables by somebody else. Tables of others are left alone."""
    if is_server(connection):
        return compare_catalogue(connection)
    expected = _expected(schema.HEAD_REVISION, schema.migrations_folder())
    found = _objects(connection)
    return list(_differences(found, expected))


class _Object(NamedTuple):
    """A table, index or trigger: the table it belongs to, its statement, and what counts of that."""

    table: str
    sql: str
    shape: object


_Objects = dict[tuple[str, str], _Object]


@cache
def _expected(revision: str, migrations: Path) -> _Objects:
    """Return what a new database of this revision has; making one takes 50 ms."""
    target = Target(":memory:", True, {}).placed()
    try:
        # In a thread of its own: migrations run an event loop, and this thread may have one.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(schema.upgrade, target, 30.0).result()
        with opened_to_read(target.path, 30.0) as fresh:
            return _objects(fresh)
    finally:
        target.remove_folder()


def _differences(found: _Objects, expected: _Objects) -> Iterator[Difference]:
    tables = {name for kind, name in expected if kind == "table"}
    for (kind, name), item in expected.items():
        ours = found.get((kind, name))
        make = None if kind == "table" else (f'DROP {kind} IF EXISTS "{name}"', item.sql)
        if ours is None:
            yield Difference(kind, name, "is missing", make)
        elif ours.shape != item.shape:
            yield Difference(kind, name, "has other columns or keys" if kind == "table" else "is another one", make)
    for (kind, name), item in found.items():
        # An index only makes reads faster, unless it refuses rows; a trigger changes what a write does.
        refuses = kind == "index" and "UNIQUE" in item.sql.upper().split("(")[0]
        if (kind, name) not in expected and item.table in tables and (kind == "trigger" or refuses):
            yield Difference(kind, name, f"on {item.table} is not of this library", None)


def _objects(connection: Connection) -> _Objects:
    listed = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
    return {
        (kind, name): _Object(table, sql, _shape(connection, name) if kind == "table" else " ".join(sql.split()))
        for kind, name, table, sql in connection.execute(listed).fetchall()
    }


def _shape(connection: Connection, table: str) -> list[object]:
    """Return the columns and keys of a table; their text differs where a migration back and forth rebuilt it."""
    columns = sorted(row[1:] for row in connection.execute(f'PRAGMA table_xinfo("{table}")'))
    references = sorted(row[1:] for row in connection.execute(f'PRAGMA foreign_key_list("{table}")'))
    keys = []
    for row in connection.execute(f'PRAGMA index_list("{table}")').fetchall():
        if row[3] != "c":  # belongs to the table's own text
            parts = connection.execute(f'PRAGMA index_xinfo("{row[1]}")').fetchall()
            keys.append((row[2], [part[2:] for part in parts if part[5]]))
    return [columns, references, sorted(keys)]


Check = Callable[[Connection, Findings], None]

FILE_CHECKS: Mapping[str, Check] = {
    "integrity": check_integrity,
    "foreign keys": check_foreign_keys,
    "head": check_head,
}
"""What holds for a file of any revision, also for one that was just copied."""

CHECKS: Mapping[str, Check] = {
    **FILE_CHECKS,
    "journal mode": check_journal,
    "schema": check_schema,
    "log": check_log,
    "records": check_rows,
    "idempotency": check_idempotency,
    "full text": check_documents,
}
"""What holds for a database of this library's revision."""

SERVER_CHECKS: Mapping[str, Check] = {
    "schema": check_schema,
    "head": check_head,
    "foreign keys": check_orphans,
    "log": check_log,
    "records": check_rows,
    "idempotency": check_idempotency,
    "full text": check_documents,
}
"""The same for a database on a server. Its pages and indexes are for the server's own tool, pg_amcheck."""
