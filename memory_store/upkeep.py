"""Looking after a database: `backup` it while it is used, `restore` a backup under running stores, `verify`, `repair`.

Work on a file runs in a thread, so the event loop goes on. A cancelled call waits until its thread has cleaned up, and
leaves everything as it was. A database on a server is verified and repaired over a connection of its own; its backups
are made and restored with the server's tools.
"""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from memory_store.cache.keeper import version_key
from memory_store.cache.snapshot import FILE_NAME
from memory_store.cache.verify import CHECK, check_saved_cache
from memory_store.config import Settings, resolve_settings
from memory_store.durable import schema
from memory_store.durable.backup import require_elsewhere, require_unused, write_backup
from memory_store.durable.connection import Connection
from memory_store.durable.engine import ServerTarget, Target, embedded, parse_url
from memory_store.durable.examine import cache_folder, require_file
from memory_store.durable.findings import Findings, Problem, Watcher, is_damage
from memory_store.durable.log import read_heads
from memory_store.durable.repair import Repaired, repair_database
from memory_store.durable.repair_server import repair_server
from memory_store.durable.replacement import restore_backup
from memory_store.durable.verify import CHECKS, SERVER_CHECKS, check_database, opened_to_read, require_whole_view
from memory_store.durable.working import Progress, in_thread, over, run_watched
from memory_store.errors import ConfigurationError, DurableError
from memory_store.namespace import Namespace

__all__ = [
    "BackupReport",
    "Problem",
    "RepairReport",
    "RestoreReport",
    "Verification",
    "backup",
    "repair",
    "restore",
    "verify",
]

_MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup that was made.

    Args:
        path: the file.
        bytes: its size.
        position: the newest commit in it.
        seconds: how long it took.
    """

    path: str
    bytes: int
    position: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A backup that was put back.

    Args:
        path: the database.
        revision: its schema revision now; an older one is upgraded when a store is opened.
        position: its newest commit now, above all that the database ever had.
        epoch: its life, above all that the database ever had.
        replaced: whether there was a database before.
        bytes: size of the database.
        seconds: how long it took.
    """

    path: str
    revision: str
    position: int
    epoch: int
    replaced: bool
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Args:
        path: the database; on a server its URL, without the password.
        position: the commit that was looked at; on a server, whose heads count for themselves, the sum of theirs.
        found: the number of problems by check; 0 where all is well.
        problems: the first ones.
        saved_cache: "sound", or why there was nothing to compare.
        seconds: how long it took.
    """

    path: str
    position: int
    found: dict[str, int]
    problems: list[Problem]
    saved_cache: str
    seconds: float

    @property
    def total(self) -> int:
        """How many problems there are."""
        return sum(self.found.values())

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.total


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did.

    Args:
        path: the database; on a server its URL, without the password.
        problems: the first of what was wrong.
        total: how much was wrong.
        done: what was done; empty where nothing was wrong.
        copy: the file that holds the database as it was before, None where nothing was changed, and on a server.
        left: the first of what is still wrong.
        seconds: how long it took.
    """

    path: str
    problems: list[Problem]
    total: int
    done: list[str]
    copy: str | None
    left: list[Problem]
    seconds: float


async def backup(
    source: Namespace | str,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> BackupReport:
    """Copy a database into a file while everybody goes on using it.

    The copy is the state of one commit, verified (integrity, foreign keys, head against log) and synced, readable by
    its owner only, and is there whole or not at all: a failure or a cancellation leaves no file.

    Args:
        source: an open store, or the URL of a database.
        path: the new file.
        overwrite: replace a file of that name, once the new one is complete.
        on_progress: told how far it is.

    Raises:
        ConfigurationError: the file exists, is no plain file, or belongs to a database.
        DurableUnavailableError: there is no database, it is damaged, or the file cannot be written.
        StorageFullError: there is no room for the copy.
    """
    began = time.monotonic()
    if isinstance(source, Namespace):
        source._access.require_usable()
        target = _embedded(source._access.durable.target)
    else:
        target = _file(source)
    name = os.fspath(path)

    def copy(connection: sqlite3.Connection, watcher: Watcher) -> BackupReport:
        place = Path(os.path.realpath(name))
        require_unused(place, overwrite=overwrite)
        if not target.memory:
            require_elsewhere(place, target.path)
        head = write_backup(connection, place, watcher, overwrite=overwrite)
        return BackupReport(str(place), place.stat().st_size, head.position, time.monotonic() - began)

    def copy_file(watcher: Watcher) -> BackupReport:
        require_file(target)
        with opened_to_read(target.path, _settings(target).timeout_s) as connection:
            return copy(connection, watcher)

    if isinstance(source, Namespace) and target.memory:  # only the store's own connections reach it
        lane = source._access.durable.scan
        return await run_watched(lambda watcher: lane.run(lambda connection: copy(connection, watcher)), on_progress)
    return await in_thread(copy_file, on_progress)


async def restore(
    source: str | os.PathLike[str], url: str, *, force: bool = False, on_progress: Progress | None = None
) -> RestoreReport:
    """Put a backup in the place of a database, also while stores are open on it, in this or other processes.

    The backup is verified before anything is touched. It takes the database's place in one step: a crash leaves the
    old content or the new. It begins a new epoch, above every position that the database had: open stores drop
    their caches at their next look at the head, saved caches are refused. Commits that came after the backup are lost.

    Args:
        source: the file `backup` made.
        url: the database; made where there is none.
        force: replace also a database that is not the one the backup was made of.
        on_progress: told how far it is.

    Raises:
        ConfigurationError: there is no such file, it is the database itself, or (without `force`) the database is
            another one.
        DurableUnavailableError: the backup is damaged, or the place cannot be written.
        SchemaMismatchError: the backup was made by a newer version, or something else is in its place.
        DurableTimeoutError: other programs kept the database locked. Nothing was changed.
    """
    began = time.monotonic()
    target = _file(url)
    settings = _settings(target)

    def run(watcher: Watcher) -> RestoreReport:
        try:
            file = Path(source).resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise ConfigurationError(f"{source} cannot be read: {getattr(error, 'strerror', error)}") from error
        done = restore_backup(file, target, settings.timeout_s, watcher, force=force)
        seconds, head = time.monotonic() - began, done.head
        size = Path(target.path).stat().st_size
        return RestoreReport(target.path, done.revision, head.position, head.epoch, done.replaced, size, seconds)

    return await in_thread(run, on_progress)


async def verify(url: str, *, most: int = _MOST_PROBLEMS, on_progress: Progress | None = None) -> Verification:
    """Check a database and its saved cache from end to end, as of one commit, changing nothing; others may go on.

    Checked are: every page and index (SQLite's integrity check), foreign keys, the head, the journal mode, tables,
    indexes and triggers against those of a new database, the change log (no gaps, whole commits), every record against
    what the log says last of it, idempotency keys, and every entry of the saved cache that the next opening would use.
    On a server all heads in one snapshot, keys and functions as well; its pages and indexes are for its own pg_amcheck.

    Args:
        url: the database.
        most: how many problems to return; all are counted.
        on_progress: told how far it is.

    Raises:
        ConfigurationError: row-level security hides a part of the server's tables from the role.
        DurableUnavailableError: there is none, or it cannot be read at all.
        SchemaMismatchError: it is at another revision than this library.
    """
    began = time.monotonic()
    target = _kept(url)
    settings = _settings(target)

    def run(connection: Connection, watcher: Watcher) -> Verification:
        findings = Findings(most)
        schema.check(schema.read_revision(connection), target)
        if isinstance(target, ServerTarget):
            require_whole_view(connection)
        position, saved = 0, "there is none"
        check_database(connection, findings, watcher, SERVER_CHECKS if isinstance(target, ServerTarget) else CHECKS)
        if not findings.counts["head"]:
            position = sum(head.position for head in read_heads(connection))
        if isinstance(target, Target) or not findings.counts["head"]:  # a server's transactions need the table
            key = version_key(settings.cache_version)
            saved = check_saved_cache(connection, cache_folder(target, settings), key, findings, watcher)
        seconds = time.monotonic() - began
        return Verification(target.name, position, dict(findings.counts), findings.problems, saved, seconds)

    return await over(target, settings, run, on_progress)


async def repair(url: str, *, without_copy: bool = False, on_progress: Progress | None = None) -> RepairReport:
    """Repair what follows from the rows, if anything is wrong; a copy of a file as it is is made first.

    Indexes and triggers are made anew, parts without their episode are deleted, the log is brought to say what the rows
    say, the head what the log says; a damaged saved cache is removed. A new epoch begins (on a server in all heads), so
    that nothing stale survives in any process. What is left after that (a missing table, a damaged page) takes a
    backup. On a server writers wait meanwhile.

    Args:
        url: the database.
        without_copy: repair a database on a server, of which no copy is made here: have a backup of your own.
        on_progress: told how far it is.

    Raises:
        ConfigurationError: the database is on a server, and `without_copy` is not set.
        DurableUnavailableError: there is none, or the file itself is damaged: restore a backup. It was not changed.
        SchemaMismatchError: it is at another revision than this library.
        DurableTimeoutError: other programs kept the database locked. Nothing was changed.
    """
    began = time.monotonic()
    target = _kept(url)
    settings = _settings(target)
    if isinstance(target, ServerTarget) and not without_copy:
        raise ConfigurationError(
            f"{target.name} is on a server, where no copy is made before a repair: make one (pg_dump -Fc), then repair "
            "it with without_copy=True, or `memory-store doctor --repair --without-copy`"
        )
    folder = cache_folder(target, settings)
    findings = Findings(_MOST_PROBLEMS)

    def check_cache(connection: Connection, watcher: Watcher) -> bool:
        schema.check(schema.read_revision(connection), target)
        try:
            check_saved_cache(connection, folder, version_key(settings.cache_version), findings, watcher)
        except DurableError as error:
            if not (isinstance(target, ServerTarget) and is_damage(error)):
                raise  # no head: the repair says so
        return bool(findings.counts[CHECK])

    def report(repaired: Repaired, *, stale: bool) -> RepairReport:
        if stale:
            (Path(folder) / FILE_NAME).unlink(missing_ok=True)
            repaired.done.append("removed the saved cache")
        left = repaired.left.problems if repaired.done else []
        seconds = time.monotonic() - began
        return RepairReport(target.name, findings.problems, findings.total, repaired.done, repaired.copy, left, seconds)

    def in_file(watcher: Watcher) -> RepairReport:
        assert isinstance(target, Target)
        require_file(target)
        with opened_to_read(target.path, settings.timeout_s) as connection:
            stale = check_cache(connection, watcher)
        return report(repair_database(target, settings.timeout_s, watcher, findings, even_if_sound=stale), stale=stale)

    def on_server(connection: Connection, watcher: Watcher) -> RepairReport:
        assert isinstance(target, ServerTarget)
        stale = check_cache(connection, watcher)
        done = repair_server(connection, target, settings.timeout_s, watcher, findings, even_if_sound=stale)
        return report(done, stale=stale)

    if isinstance(target, ServerTarget):
        return await over(target, settings, on_server, on_progress)
    return await in_thread(in_file, on_progress)


def _kept(url: str) -> Target | ServerTarget:
    target = parse_url(url)
    if target.memory:
        raise ConfigurationError("a :memory: database ends with its store: name a file, e.g. sqlite:///agent.db")
    return target


def _file(url: str) -> Target:
    target = _embedded(_kept(url))
    return target


def _embedded(target: Target | ServerTarget) -> Target:
    return embedded(
        target,
        "back it up with pg_dump (one database) or pg_basebackup (the server), and restore that with pg_restore; no "
        "store or saved cache takes a restored database for the one it knew",
    )


def _settings(target: Target | ServerTarget) -> Settings:
    return resolve_settings(target.parameters, {})
