"""Looking after a store: `stats` counts what it holds, `diagnose` checks it, `saved_cache` looks at its saved cache."""

from __future__ import annotations

import asyncio
import platform
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from memory_store.cache.keeper import version_key
from memory_store.cache.reconcile import reconcile
from memory_store.cache.snapshot import FILE_NAME, Snapshot
from memory_store.config import Settings, resolve_settings
from memory_store.durable.connection import Connection
from memory_store.durable.engine import ServerTarget, Target, parse_url
from memory_store.durable.examine import Examination, cache_folder, examine, has_wal_reset_race, read_contents
from memory_store.durable.findings import Finding, Findings, Watcher
from memory_store.durable.schema import HEAD_REVISION, lock_path, read_revision
from memory_store.durable.server_state import read_sizes
from memory_store.durable.verify import SERVER_CHECKS, check_database, opened_to_read
from memory_store.durable.visiting import visit
from memory_store.durable.vitals import examine_server, examine_store
from memory_store.errors import CacheError, MemoryStoreError, SchemaMismatchError
from memory_store.namespace import Namespace
from memory_store.records import RECORDS

__all__ = ["Finding", "SavedCache", "StoreContents", "diagnose", "saved_cache", "stats"]

_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class StoreContents:
    """What a store holds.

    Args:
        rows: number of records by namespace and kind.
        position: its newest commit; on a server, whose heads count for themselves, the sum of theirs.
        changes: length of the change log.
        database_bytes: size of the database file; on a server that of the store's tables and indexes.
        wal_bytes: size of its write-ahead log; 0 on a server, where it belongs to all databases.
        cache_bytes: size of the saved cache.
    """

    rows: dict[str, dict[str, int]]
    position: int
    changes: int
    database_bytes: int
    wal_bytes: int
    cache_bytes: int


async def stats(store: Namespace) -> StoreContents:
    """Count what an open store holds, in all its namespaces."""
    access = store._access
    access.require_usable()
    target, scan = access.durable.target, access.durable.scan
    contents = await scan.run(read_contents)
    folder = cache_folder(target, resolve_settings(target.parameters, {}))
    if isinstance(target, Target):
        sizes = _sizes(target.path, folder)
    else:
        database = sum((await scan.run(read_sizes)).values())
        sizes = database, 0, _size(Path(folder) / FILE_NAME) if folder else 0
    return StoreContents(contents.rows, contents.position, contents.changes, *sizes)


@dataclass(frozen=True, slots=True)
class SavedCache:
    """The saved cache of a database.

    Args:
        path: its folder, None where none is kept.
        bytes: its size.
        entries: entries in it.
        usable: whether the next opening will use it.
        reason: why not, or "".
    """

    path: str | None
    bytes: int = 0
    entries: int = 0
    usable: bool = False
    reason: str = ""


async def saved_cache(store: Namespace) -> SavedCache:
    """Read the saved cache of an open store from end to end, and say whether the next start would use it."""
    access = store._access
    access.require_usable()
    target = access.durable.target
    settings = resolve_settings(target.parameters, {})
    return await access.durable.scan.run(lambda connection: _saved_cache(connection, target, settings))


def _saved_cache(connection: Connection, target: Target | ServerTarget, settings: Settings) -> SavedCache:
    folder = cache_folder(target, settings)
    if not folder:
        return SavedCache(None, reason="none is kept")
    size = _size(Path(folder) / FILE_NAME)
    entries = 0
    try:
        with Snapshot(folder) as snapshot:
            for batch in snapshot.batches():
                entries += len(batch.keys)
            reason = reconcile(connection, snapshot.header, version_key(settings.cache_version)).reason
    except CacheError as error:
        return SavedCache(folder, size, entries, reason=str(error))
    return SavedCache(folder, size, entries, usable=not reason, reason=reason)


def diagnose(url: str) -> list[Finding]:
    """Check a database and all that belongs to it, without changing anything. Blocks.

    A file is read from end to end. Of a server its version, settings, limits and state are asked, and the head and
    schema of the store; its log and records are read by `upkeep.verify` only, since they may be large.

    Raises:
        ConfigurationError: the URL or a setting is wrong.
    """
    target = parse_url(url)
    settings = resolve_settings(target.parameters, {})
    findings = [
        Finding("memory-store", f"{version('memory-store')}, schema {HEAD_REVISION}"),
        Finding("python", platform.python_version()),
        Finding("sqlalchemy", version("sqlalchemy")),
    ]
    if isinstance(target, ServerTarget):
        return [*findings, *_of_server(target, settings)]
    return [*findings, *_of_file(target, settings)]


def _of_file(target: Target, settings: Settings) -> list[Finding]:
    findings = [Finding("aiosqlite", version("aiosqlite")), _sqlite()]
    if target.memory:
        return [*findings, Finding("database", ":memory:", hint="there is no file to check")]
    findings.append(_lock(target))
    try:
        found = examine(target, settings.timeout_s)
    except SchemaMismatchError as error:
        return [*findings, Finding("schema", error.found, ok=False, hint=str(error))]
    except MemoryStoreError as error:
        return [*findings, Finding("database", target.path, ok=False, hint=str(error))]
    database, wal, cache = _sizes(target.path, cache_folder(target, settings))
    findings += [
        Finding("database", target.path),
        *_checked(found),
        Finding("sizes", {"database_bytes": database, "wal_bytes": wal, "cache_bytes": cache}),
    ]
    if found.contents is not None:
        by_namespace = found.contents.rows.values()
        totals = {kind: sum(counts[kind] for counts in by_namespace) for kind in RECORDS}
        findings.append(Finding("rows", totals, hint=f"namespaces: {len(by_namespace)}"))
        with opened_to_read(target.path, settings.timeout_s) as reading:
            findings.append(_cache_finding(reading, target, settings))
    return findings


def _cache_finding(connection: Connection, target: Target | ServerTarget, settings: Settings) -> Finding:
    saved = _saved_cache(connection, target, settings)
    return Finding("saved cache", asdict(saved), hint=saved.reason and f"{saved.reason}; it is rebuilt")


def _of_server(target: ServerTarget, settings: Settings) -> list[Finding]:
    findings: list[Finding] = []

    def look(connection: Connection) -> None:
        findings.append(Finding("database", target.name))
        findings.extend(examine_server(connection, target, settings))
        revision = read_revision(connection)
        found = Examination(revision, "", Findings(_MOST_PROBLEMS))
        if revision == HEAD_REVISION:
            checks = {name: SERVER_CHECKS[name] for name in ("schema", "head")}
            check_database(connection, found.findings, Watcher(), checks)
        findings.extend(_checked(found, server=True))
        whole = not any(problem.text.startswith("table ") for problem in found.findings.problems)
        if revision == HEAD_REVISION and whole:
            findings.extend(examine_store(connection))
            folder = cache_folder(target, settings)
            cache = _size(Path(folder) / FILE_NAME) if folder else 0
            tables = read_sizes(connection)
            sizes = {"database_bytes": sum(tables.values()), "changes_bytes": tables["changes"], "cache_bytes": cache}
            findings.append(Finding("sizes", sizes))
            findings.append(_cache_finding(connection, target, settings))

    try:
        # In a thread of its own: the caller's may have an event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, visit(target, settings.timeout_s, look)).result()
    except SchemaMismatchError as error:
        findings.append(Finding("schema", error.found, ok=False, hint=str(error)))
    except MemoryStoreError as error:
        findings.append(Finding("database", target.name, ok=False, hint=str(error)))
    return findings


def _sqlite() -> Finding:
    text = sqlite3.sqlite_version
    if not has_wal_reset_race(sqlite3.sqlite_version_info):
        return Finding("sqlite", text)
    return Finding(
        "sqlite",
        text,
        hint="this version has the WAL-reset race (fixed in 3.51.3, 3.50.7 and 3.44.6); the lock file keeps the "
        "processes of this library clear of it, so let no other program write to the database",
    )


def _lock(target: Target) -> Finding:
    path = lock_path(target.path)
    return Finding("lock file", path, hint="" if Path(path).exists() else "not there yet; opening the store makes it")


def _checked(found: Examination, *, server: bool = False) -> list[Finding]:
    """Return a finding for each check that was made, and for the schema and a file's journal mode in any case."""
    wrong = found.findings
    findings = []
    for check in wrong.counts:
        if check not in ("schema", "journal mode"):
            texts = [str(problem).partition(": ")[2] for problem in wrong.problems if problem.check == check]
            count, hint = wrong.counts[check], _HINTS.get(check, "see `memory-store verify` and `doctor --repair`")
            findings.append(
                Finding(check, texts or f"{count:,} problems", ok=False, hint=hint) if count else Finding(check, "ok")
            )
    journal = [] if server else [_journal(found.journal_mode, found.revision)]
    return [_schema(found), *findings, *journal]


_HINTS = {
    "integrity": "the file is damaged: `memory-store doctor --repair` makes indexes anew, else restore a backup",
    "foreign keys": "parts without their episode; `memory-store doctor --repair` deletes them",
}


def _schema(found: Examination) -> Finding:
    revision = found.revision
    if revision != HEAD_REVISION:
        state = "empty" if revision is None else f"at revision {revision}"
        hint = f"the database is {state}, this library needs {HEAD_REVISION}; see `memory-store check`"
        return Finding("schema", revision, ok=False, hint=hint)
    if found.findings.counts["schema"]:
        texts = [problem.text for problem in found.findings.problems if problem.check == "schema"]
        return Finding("schema", texts, ok=False, hint="`memory-store doctor --repair` makes indexes and triggers anew")
    return Finding("schema", revision)


def _journal(mode: str, revision: str | None) -> Finding:
    ok = mode == "wal" or revision is None
    return Finding("journal mode", mode, ok, "" if ok else "must be wal: something else has changed it")


def _sizes(path: str, cache: str) -> tuple[int, int, int]:
    return _size(Path(path)), _size(Path(path + "-wal")), _size(Path(cache) / FILE_NAME)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
