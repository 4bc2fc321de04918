"""Bringing a backup back under the stores that are open on a database.

What is verified is a draft, a private copy beside the database; only that is put in its place: renamed where there is
no database, else written over it as one transaction, which every process sees as it sees any commit.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from memory_store.durable import schema
from memory_store.durable.backup import (
    COMPANIONS,
    PAGES,
    copy_pages,
    opened_alone,
    require_elsewhere,
    told_by,
    verified,
)
from memory_store.durable.changes import HeadState
from memory_store.durable.drafts import Draft
from memory_store.durable.engine import Target
from memory_store.durable.findings import Watcher, is_damage
from memory_store.durable.lock import FileLock
from memory_store.durable.log import begin_epoch, read_head
from memory_store.durable.verify import opened_to_read
from memory_store.errors import (
    ConfigurationError,
    DurableTimeoutError,
    DurableUnavailableError,
    SchemaMismatchError,
)

__all__ = ["Restored", "restore_backup"]

# What a head that cannot be read any more is taken to be behind at most: positions and epochs never come again.
_UNREADABLE = 1 << 32


class Restored(NamedTuple):
    """What a restore did.

    Args:
        head: the commit the database is at now.
        revision: its schema revision.
        replaced: whether there was a database before.
    """

    head: HeadState
    revision: str
    replaced: bool


def restore_backup(source: Path, target: Target, timeout_s: float, watcher: Watcher, *, force: bool) -> Restored:
    """Put the content of a backup in the place of a database, while stores may be open on it.

    Raises:
        ConfigurationError: the source is no plain file, or is the database itself; or (without `force`) the database is
            another one than the one that was backed up.
        SchemaMismatchError: the backup, or what is in its place, is of a newer library or of something else.
        DurableUnavailableError: the backup is damaged, or the place cannot be written.
        DurableTimeoutError: other processes kept the database locked.
    """
    place = Path(os.path.realpath(target.path))
    target.require_folder()
    require_elsewhere(source, target.path)
    with Draft(place) as draft:
        _copy_closed(source, draft.path, watcher)
        verified(draft.path, watcher, f"nothing was restored, {source} is damaged")
        with opened_alone(draft.path) as copy:
            revision = _known_revision(copy, source)
        lock = FileLock(schema.lock_path(target.path), timeout_s)
        try:
            with lock.exclusive():
                replaced = target.file_bytes() > 0
                restore = _write_over if replaced else _put_in_place
                head = restore(draft, place, timeout_s, watcher, force)
        finally:
            lock.close()
    return Restored(head, revision, replaced)


def _known_revision(connection: sqlite3.Connection, source: Path) -> str:
    found = schema.read_revision(connection)
    assert found is not None  # an empty one has been refused
    if found != schema.HEAD_REVISION and found not in {item.revision for item in schema.history(found)}:
        raise SchemaMismatchError(
            f"{source} is at revision {found}, which this library (at {schema.HEAD_REVISION}) does not know: it was "
            "written by a newer version; upgrade the library. Nothing was touched",
            found=found,
            expected=schema.HEAD_REVISION,
        )
    return found


def _copy_closed(source: Path, path: str, watcher: Watcher) -> None:
    """Copy a backup, whose WAL (if it is a file copied by hand) holds its last commits."""
    found = source.stat()
    if not stat.S_ISREG(found.st_mode):  # not opened before this is known: a pipe would wait for ever
        raise ConfigurationError(f"{source} is not a plain file")
    if found.st_size == 0:
        raise DurableUnavailableError(f"nothing was restored, {source} is empty")
    companions = [Path(f"{source}{suffix}") for suffix in COMPANIONS]
    alone = not any(companion.exists() for companion in companions)
    opened = opened_alone(str(source.absolute())) if alone else opened_to_read(str(source.absolute()), 30.0)
    with opened as connection:
        copy_pages(connection, path, watcher)
    now = source.stat()
    if alone and (now.st_mtime_ns, now.st_size, now.st_ino) != (found.st_mtime_ns, found.st_size, found.st_ino):
        raise DurableUnavailableError(f"{source} was written to meanwhile: use `memory-store backup`, which waits")


def _put_in_place(draft: Draft, place: Path, timeout_s: float, watcher: Watcher, force: bool) -> HeadState:
    """Make a database where there is none."""
    watcher.note("writing", 0, 1)
    left = [Path(f"{place}{suffix}") for suffix in COMPANIONS]
    if not force and any(path.exists() for path in left):
        raise DurableUnavailableError(
            f"{left[0]} is there without its database; SQLite would take it for a part of the new one. End every "
            "process that has the old one open, then delete it, or use `--force`"
        )
    with _opened_to_change(draft.path, timeout_s) as copy:
        head = _new_epoch(copy, None)
    for path in left:
        path.unlink(missing_ok=True)
    draft.publish(overwrite=place.exists())  # an empty file stands for none
    return head


@contextmanager
def _opened_to_change(path: str, timeout_s: float) -> Iterator[sqlite3.Connection]:
    """Open a draft such that nothing is left beside it in the end."""
    with closing(sqlite3.connect(path, timeout=timeout_s, isolation_level=None)) as copy:
        copy.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL")
        yield copy


def _new_epoch(copy: sqlite3.Connection, known: HeadState | None) -> HeadState:
    copy.execute("BEGIN IMMEDIATE")
    if known is None:
        head = begin_epoch(copy.execute, "restore")
    else:
        head = begin_epoch(copy.execute, "restore", known.position, known.epoch)
    copy.execute("COMMIT")
    return head


def _write_over(draft: Draft, place: Path, timeout_s: float, watcher: Watcher, force: bool) -> HeadState:
    """Write the draft over a database that stores may have open, as one transaction through its WAL.

    The new epoch is begun in the draft once the first step has locked the database, since from then on nobody, plain
    SQL included, can commit a position that would come again; SQLite carries a change of the source over into the copy.
    """
    head: HeadState | None = None
    deadline = time.monotonic() + timeout_s
    note = told_by(watcher, "writing")

    def follow(status: int, remaining: int, total: int) -> None:
        nonlocal head
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            if time.monotonic() > deadline:
                raise DurableTimeoutError(f"another program kept {place} locked for more than {timeout_s:g} s")
        else:
            if head is None:
                head = _new_epoch(copy, _head_before(str(place), copy, force))
            note(status, remaining, total)

    with (
        _opened_to_change(draft.path, timeout_s) as copy,
        closing(sqlite3.connect(place, timeout=timeout_s, isolation_level=None)) as live,
    ):
        _prepare(live, copy, place)
        [(pages,)] = copy.execute("PRAGMA page_count").fetchall()
        copy.backup(live, pages=min(PAGES, pages - 1), progress=follow)
        # Nobody waits for old pages any more, and none of our writers can meet it; where a reader still does, the WAL
        # is written over later.
        with suppress(sqlite3.Error):
            live.execute("PRAGMA busy_timeout = 1000")
            live.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert head is not None
    return head


def _prepare(live: sqlite3.Connection, copy: sqlite3.Connection, place: Path) -> None:
    """Set the database up to be written over.

    Raises:
        DurableUnavailableError: it cannot be.
    """
    try:
        sizes = [connection.execute("PRAGMA page_size").fetchone()[0] for connection in (live, copy)]
        live.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise DurableUnavailableError(
            f"{place} is damaged so badly that it cannot even be written over: end every process that has it open, "
            "move it and its -wal and -shm files away, and restore again"
        ) from error
    if sizes[0] != sizes[1]:
        raise DurableUnavailableError(
            f"{place} has pages of {sizes[0]} bytes, the backup of {sizes[1]}: it cannot be written over; restore to "
            "another place"
        )
    try:
        live.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0")
    except sqlite3.DatabaseError as error:  # these read the schema; without them it is as safe, and slower for others
        if not is_damage(error):
            raise


def _head_before(path: str, copy: sqlite3.Connection, force: bool) -> HeadState:
    """Return the head of the database that is written over; one that nobody can have reached where it is damaged.

    Raises:
        ConfigurationError: it is another database than the one that was backed up.
        SchemaMismatchError: it is no memory store.
    """
    own = read_head(copy)
    try:
        with opened_to_read(path, 5.0) as live:
            if schema.read_revision(live) is None:
                return own
            known = read_head(live)
    except (sqlite3.DatabaseError, TypeError) as error:  # TypeError: there is no head
        if isinstance(error, sqlite3.DatabaseError) and not is_damage(error):
            raise
        return own._replace(position=own.position + _UNREADABLE, epoch=own.epoch + _UNREADABLE)
    if known.store_id != own.store_id and not force:
        raise ConfigurationError(
            f"{path} is another database than the one that was backed up (its id is {known.store_id}, the backup's "
            f"{own.store_id}); `--force` replaces it all the same"
        )
    return known
