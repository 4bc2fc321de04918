"""What a server is asked about its health: what can lose data, what runs out, what slows the store down.

Every answer is a `Finding`. Wrong is what loses acknowledged writes, refuses writes, or will soon; what only costs
time, or is somebody's choice, is said in the hint. Nothing is read but the catalogue and the statistics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from memory_store.config import Settings
from memory_store.durable.connection import Connection
from memory_store.durable.engine import ServerTarget
from memory_store.durable.findings import Finding
from memory_store.durable.partitions import RECORD_TABLES, partition_count
from memory_store.durable.server_state import table_names
from memory_store.durable.vectors import LEAST_VECTORS, has_vectors
from memory_store.errors import ConfigurationError

__all__ = ["examine_server", "examine_store"]

_OLDEST, _NEWEST = 15, 18
# Where autovacuum gives up all else for it, and where the server refuses writes.
_XID_ALARM, _XID_END = 1_600_000_000, 2_146_483_647
_LONG_TRANSACTION_S = 300
_DEAD_HEADS, _LARGE_HEAD_BYTES = 10_000, 8 * 1024 * 1024
_HOT_HEAD = (
    "every commit updates a row of it: ALTER TABLE head SET (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, "
    "autovacuum_vacuum_threshold = 1000), then VACUUM FULL head at a quiet moment"
)


def examine_server(connection: Connection, target: ServerTarget, settings: Settings) -> Iterator[Finding]:
    """Yield what concerns any database on this server."""

    def one(query: str) -> Any:
        return connection.execute(query).fetchall()[0]

    yield _version(*one("SELECT current_setting('server_version'), current_setting('server_version_num')::integer"))
    yield _driver()
    yield _transport(one("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), target)
    yield _clock(one)
    encoding, data_checksums = one("SELECT current_setting('server_encoding'), current_setting('data_checksums')")
    sound = encoding == "UTF8"
    hint = "" if sound else "must be UTF8: texts of other scripts are refused; copy the database into one made in UTF8"
    yield Finding("encoding", encoding, sound, hint)
    yield from _durability(one)
    hint = (
        ""
        if data_checksums == "on"
        else "off: the server does not notice what its disk damages (pg_checksums --enable)"
    )
    yield Finding("data checksums", data_checksums, hint=hint)
    yield _connections(one, settings)
    yield _idle_transactions(one)
    yield _transaction_age(one)
    yield from _replication(connection)
    yield _vector(connection)


def examine_store(connection: Connection) -> Iterator[Finding]:
    """Yield what concerns a store of this library's revision."""
    yield Finding("heads", connection.execute("SELECT count(*) FROM head").fetchone()[0])
    yield _partitions(connection)
    yield _role(connection)
    yield _hot_head(connection)
    yield _indexes(connection)
    yield _vectors(connection)
    yield _rows(connection)


def _version(text: str, number: int) -> Finding:
    major = number // 10_000
    if major < _OLDEST:
        return Finding("server", text, False, f"too old: PostgreSQL {_OLDEST} to {_NEWEST} are supported")
    newer = f"newer than what this version of the library was tested with ({_OLDEST} to {_NEWEST})"
    return Finding("server", text, hint=newer if major > _NEWEST else "")


def _driver() -> Finding:
    return Finding("asyncpg", version("asyncpg"))


def _transport(found: tuple[bool | None, str | None], target: ServerTarget) -> Finding:
    encrypted, protocol = found
    if encrypted:
        return Finding("transport", protocol)
    hosts = [str(target.url.host or ""), *_listed(target.url.query.get("host", ""))]
    near = all(host in ("", "localhost", "::1") or host.startswith(("127.", "/")) for host in hosts)
    hint = "" if near else "not encrypted: anybody on the way reads the records; add ?sslmode=verify-full to the URL"
    return Finding("transport", "plain", hint=hint)


def _listed(value: str | tuple[str, ...]) -> list[str]:
    return [part for text in ([value] if isinstance(value, str) else value) for part in text.split(",")]


def _clock(one: Callable[[str], Any]) -> Finding:
    before = time.time()
    [theirs] = one("SELECT extract(epoch FROM clock_timestamp())::float8")
    ahead = theirs - (before + time.time()) / 2
    off = abs(ahead) > 1
    hint = "times of records are those of the writing program, times of plain SQL the server's: synchronise the clocks"
    return Finding("server clock ahead", f"{ahead:.3f} s", hint=hint if off else "")


def _durability(one: Callable[[str], Any]) -> Iterator[Finding]:
    fsync, pages, commit, standbys = one(
        "SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'), "
        "current_setting('synchronous_standby_names')"
    )
    lost = "off: a crash of the machine loses acknowledged writes and can ruin the whole server; switch it on"
    yield Finding("fsync", fsync, fsync == "on", "" if fsync == "on" else lost)
    torn = "off: a crash of the machine can leave half-written pages, and lose what was acknowledged; switch it on"
    yield Finding("full_page_writes", pages, pages == "on", "" if pages == "on" else torn)
    hint = ""
    if commit == "off":
        hint = "off: acknowledged writes of other programs can be lost; the library's own commits wait for the disk"
    elif commit == "local" and standbys:
        hint = "local: commits do not wait for the synchronous standby; a failover can lose acknowledged writes"
    yield Finding("synchronous_commit", commit, not (commit == "local" and standbys), hint)


def _connections(one: Callable[[str], Any], settings: Settings) -> Finding:
    limit, used = one(
        "SELECT least(current_setting('max_connections')::integer - "
        "current_setting('superuser_reserved_connections')::integer - "
        "coalesce(current_setting('reserved_connections', true)::integer, 0), "
        "(SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()), "
        "(SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user)), "
        "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
    )
    value = {"for_programs": limit, "in_use": used, "pool_size": settings.pool_size}
    if settings.pool_size > limit:
        return Finding("connections", value, False, "one process may open more than there are: lower pool_size")
    hint = f"enough for {limit // settings.pool_size:,} processes with full pools at once"
    return Finding("connections", value, hint=hint)


def _idle_transactions(one: Callable[[str], Any]) -> Finding:
    limit, oldest = one(
        "SELECT current_setting('idle_in_transaction_session_timeout'), (SELECT coalesce(extract(epoch FROM "
        "max(clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend')"
    )
    hint = []
    if oldest > _LONG_TRANSACTION_S:
        hint.append(
            f"one has been open for {oldest:,.0f} s: it may keep a head locked, and dead rows from being removed"
        )
    if limit == "0":
        hint.append("other programs' transactions may stay open for ever; the library limits its own")
    return Finding("idle_in_transaction_session_timeout", limit, hint="; ".join(hint))


def _transaction_age(one: Callable[[str], Any]) -> Finding:
    [age] = one("SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database()")
    if age < _XID_ALARM:
        return Finding("transaction id age", age)
    hint = f"the server refuses writes at {_XID_END:,}: find what keeps autovacuum from freezing, VACUUM FREEZE"
    return Finding("transaction id age", age, False, hint)


def _replication(connection: Connection) -> Iterator[Finding]:
    [(standby, names)] = connection.execute(
        "SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names')"
    ).fetchall()
    if standby:
        hint = "a standby: it only reads; let the URL name the primary, or all hosts with target_session_attrs=primary"
        yield Finding("replication", "standby", False, hint)
        return
    found = connection.execute(
        "SELECT application_name, state, sync_state, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint "
        "FROM pg_stat_replication ORDER BY 1"
    ).fetchall()
    standbys = [
        {"name": name, "state": state, "sync": sync, "behind_bytes": behind} for name, state, sync, behind in found
    ]
    waited = bool(names) and not any(item["sync"] in ("sync", "quorum") for item in standbys)
    hint = f"commits wait for ever: none of the synchronous standbys ({names}) is connected" if waited else ""
    yield Finding("replication", standbys or "none", not waited, hint)
    kept = connection.execute(
        "SELECT slot_name::text, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots "
        "WHERE NOT active AND restart_lsn IS NOT NULL ORDER BY 1"
    ).fetchall()
    if kept:
        hint = (
            "nobody reads them, and the server keeps its log for them until the disk is full: drop what is not needed"
        )
        yield Finding("replication slots", dict(kept), hint=hint)


def _vector(connection: Connection) -> Finding:
    asked = "SELECT default_version, installed_version FROM pg_available_extensions WHERE name = 'vector'"
    found = connection.execute(asked).fetchall()
    if not found:
        return Finding("pgvector", "not available")
    available, installed = found[0]
    return Finding("pgvector", f"{installed} installed" if installed else f"{available} available, not installed")


def _partitions(connection: Connection) -> Finding:
    try:
        count = partition_count(connection.execute)
    except ConfigurationError as error:
        return Finding("partitions", "uneven", False, str(error))
    return Finding("partitions", count or "none")


def _role(connection: Connection) -> Finding:
    [(role, rights, secured, limited)] = connection.execute(
        "SELECT current_user::text, CASE WHEN rolsuper THEN 'superuser' WHEN rolbypassrls THEN 'bypasses row security' "  # noqa: S608
        "ELSE '' END, (SELECT bool_or(relrowsecurity) FROM pg_class c WHERE c.oid = ANY(o.oids)), "
        "(SELECT bool_or(row_security_active(c.oid)) FROM pg_class c WHERE c.oid = ANY(o.oids)) "
        "FROM pg_roles, LATERAL (SELECT array_agg(oid) AS oids FROM pg_class WHERE relname IN "
        f"({table_names()}) AND relnamespace = current_schema()::regnamespace) o WHERE rolname = current_user"
    ).fetchall()
    hints = []
    if rights == "superuser":
        hints.append("a superuser: agents need no such rights")
    if limited:
        namespace = connection.execute("SELECT current_setting('memory_store.namespace', true)").fetchone()[0]
        hints.append(f"sees the namespace {namespace!r:.210} only" if namespace else "sees no namespace")
    elif secured:
        hints.append("row-level security does not apply to it")
    value = {"name": role, "row_security": "on" if secured else "off"}
    return Finding("role", value, hint="; ".join(hints))


def _hot_head(connection: Connection) -> Finding:
    found = connection.execute(
        "SELECT n_dead_tup, n_tup_upd, n_tup_hot_upd, pg_relation_size(relid) FROM pg_stat_user_tables "
        "WHERE schemaname = current_schema() AND relname = 'head'"
    ).fetchall()
    dead, updates, hot, size = found[0] if found else (0, 0, 0, 0)
    value = {"dead_rows": dead, "updates": updates, "in_place": hot, "bytes": size}
    slow = dead > _DEAD_HEADS or size > _LARGE_HEAD_BYTES
    return Finding("head rows", value, hint=_HOT_HEAD if slow else "")


def _indexes(connection: Connection) -> Finding:
    found = connection.execute(
        "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE NOT (indisvalid AND "  # noqa: S608
        "indisready) AND c.relnamespace = current_schema()::regnamespace AND (c.relname IN "
        f"({table_names()}) OR c.relispartition) AND indexrelid NOT IN "
        "(SELECT index_relid FROM pg_stat_progress_create_index) ORDER BY 1"
    ).fetchall()
    names = [name for (name,) in found]
    hint = "not used by any query, nor checked by any write: REINDEX INDEX CONCURRENTLY makes them anew"
    return Finding("invalid indexes", names or "none", not names, hint if names else "")


def _vectors(connection: Connection) -> Finding:
    if not has_vectors(connection):
        hint = "with pgvector 0.8 or newer (CREATE EXTENSION vector, by who may), `memory-store upgrade` changes it"
        return Finding("vectors", "found in the processes", hint=hint)
    [(rows, graphs)] = connection.execute(
        "SELECT reltuples::bigint, (SELECT count(*) FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_am a "
        "ON a.oid = i.relam WHERE indrelid = c.oid AND amname = 'hnsw' AND indisvalid) FROM pg_class c "
        "WHERE c.oid = 'vectors'::regclass"
    ).fetchall()
    few = rows <= LEAST_VECTORS or graphs
    hint = "" if few else "all are compared by each search: `memory-store reindex` builds graphs of large models"
    return Finding("vectors", {"found_by": "server", "rows": rows if rows >= 0 else None, "graphs": graphs}, hint=hint)


def _rows(connection: Connection) -> Finding:
    """Say how many rows the server thinks there are: counting a large table takes minutes."""
    found = connection.execute(
        "SELECT c.relname::text, sum(p.reltuples)::bigint, min(p.reltuples) < 0 FROM pg_class c JOIN pg_class p ON "  # noqa: S608
        "p.oid = c.oid AND c.relkind = 'r' OR p.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = c.oid) "
        f"WHERE c.relnamespace = current_schema()::regnamespace AND c.relname IN ({table_names()}) GROUP BY 1"
    ).fetchall()
    known = {name: None if unknown else rows for name, rows, unknown in found}
    value = {name: known.get(name) for name in (*RECORD_TABLES, "changes")}
    return Finding("rows", value, hint="as ANALYZE last estimated them, None before; `memory-store stats` counts")
