"""The schema: which revision a database is at, which one this library needs, and how to get there."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.exc import DBAPIError

from memory_store.config import DEFAULT_HEADS
from memory_store.durable.changes import CHANGES, HEAD, IDEMPOTENCY
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import translate
from memory_store.durable.dialects.sqlite import copy_database
from memory_store.durable.documents import BACKLOG, DOCUMENTS
from memory_store.durable.engine import ServerTarget, Target
from memory_store.durable.lock import FileLock
from memory_store.durable.vectors import VECTORS, make_vectors
from memory_store.errors import DurableUnavailableError, SchemaMismatchError
from memory_store.records import METADATA, RECORDS

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = [
    "HEAD_REVISION",
    "METADATA",
    "SERVER_TABLES",
    "UNFINISHED_COPY",
    "Revision",
    "check",
    "current_revision",
    "history",
    "lock_path",
    "require_current",
    "upgrade",
]

HEAD_REVISION = "0004"
"""Revision this library reads and writes. A constant, because asking Alembic costs 100 ms on every start; a test holds
it to the newest file under `migrations/versions`."""

# All tables are known to Alembic once this is imported.
assert {HEAD, CHANGES, IDEMPOTENCY, DOCUMENTS, BACKLOG} <= set(METADATA.tables.values())

SERVER_TABLES = (*METADATA.sorted_tables, VECTORS)
"""The tables of a database on a server; that of vectors may be missing."""

UNFINISHED_COPY = "unfinished-copy"
"""Stands for the revision of a database that `memory-store copy` has not filled yet: nothing opens it."""


class Revision(NamedTuple):
    """One migration: its revision, the one before it, its first line, and whether the database has it."""

    revision: str
    down_revision: str | None
    message: str
    applied: bool


def lock_path(path: str) -> str:
    """Return the lock file of a database file."""
    return path + "-lock"


def migrations_folder() -> Path:
    """Return the migrations: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def current_revision(target: Target | ServerTarget) -> str | None:
    """Return the revision of a database, None where there is none or nothing in it. Blocks.

    Raises:
        SchemaMismatchError: it holds tables of something else.
        DurableUnavailableError: it is not a database, or cannot be read.
    """
    if isinstance(target, ServerTarget):
        from memory_store.durable.visiting import visit

        return asyncio.run(visit(target, 30.0, read_revision))
    path = target.path
    if not Path(path).exists() or Path(path).stat().st_size == 0:
        return None
    try:
        with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            return read_revision(connection)
    except sqlite3.Error as error:
        raise translate(error) from error


def read_revision(connection: Connection) -> str | None:
    """Return the revision an open database is at, None when it is empty."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" in tables:
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        if rows:
            return str(rows[0][0])
        tables -= {"alembic_version"}
    if tables - {"sqlite_sequence", "sqlite_stat1"}:
        raise SchemaMismatchError(
            f"the database holds tables that are not a memory store's ({', '.join(sorted(tables)[:3])}); "
            "nothing was touched",
            found=None,
            expected=HEAD_REVISION,
        )
    return None


def check(found: str | None, target: Target | ServerTarget) -> None:
    """Check that a database is at this library's revision.

    Raises:
        SchemaMismatchError: it is older, newer or empty; the message names both revisions and the command.
    """
    if found == HEAD_REVISION:
        return
    if found == UNFINISHED_COPY:
        raise SchemaMismatchError(
            f"{target.name} is an unfinished copy: run the same `memory-store copy` again to go on with it, or discard "
            "it (delete the file, or drop the database). Nothing was touched",
            found=found,
            expected=HEAD_REVISION,
        )
    if found is not None and found not in {item.revision for item in history(found)}:
        raise SchemaMismatchError(
            f"the database is at revision {found}, which this library (at {HEAD_REVISION}) does not know: it was "
            "written by a newer version; upgrade the library. Nothing was touched",
            found=found,
            expected=HEAD_REVISION,
        )
    state = "is empty" if found is None else f"is at revision {found}"
    raise SchemaMismatchError(
        f"the database {state}, this library needs {HEAD_REVISION}: "
        f"run `memory-store upgrade --url {target.url.set(drivername=target.url.get_backend_name())}` "
        'or open it with migrate="auto"',
        found=found,
        expected=HEAD_REVISION,
    )


def require_current(connection: Connection) -> None:
    """Check that an open database is still at this library's revision.

    Raises:
        SchemaMismatchError: another process has upgraded (or taken back) the schema meanwhile.
    """
    found = read_revision(connection)
    if found != HEAD_REVISION:
        raise SchemaMismatchError(
            f"the schema was changed to revision {found} while this process was running, which works with "
            f"{HEAD_REVISION}: it can no longer write; restart it with the new version of the library",
            found=found,
            expected=HEAD_REVISION,
        )


def upgrade(
    target: Target | ServerTarget,
    timeout_s: float,
    *,
    heads: int = DEFAULT_HEADS,
    on_copy: Callable[[str], None] | None = None,
) -> tuple[str | None, str]:
    """Bring a database to this library's revision and return (revision before, revision now).

    Several processes may call it at once: one upgrades, the others wait and find it done. When the database holds rows,
    a copy is written beside it first (`<file>.<revision>.bak`). All steps are one transaction. Blocks; call it in a
    thread.

    Args:
        target: the database.
        timeout_s: longest wait for other processes, in seconds.
        heads: how many heads a new database on a server gets; see `Settings`.
        on_copy: called with the copy's path once it has been written.

    Raises:
        SchemaMismatchError: the database is newer than this library, or not a memory store; nothing was touched.
    """
    if isinstance(target, ServerTarget):
        return _upgrade_server(target, timeout_s, heads)
    target.require_folder()
    lock = FileLock(lock_path(target.path), timeout_s)
    try:
        with lock.exclusive():
            found = current_revision(target)
            if found == HEAD_REVISION:
                return found, found
            if found is not None and found not in {item.revision for item in history(found)}:
                check(found, target)
            if found is not None and _has_rows(target.path):
                copy = f"{target.path}.{found}.bak"
                copy_database(target.path, copy)
                if on_copy is not None:
                    on_copy(copy)
            _use_wal(target.path, timeout_s)
            _run_alembic(target)
            return found, HEAD_REVISION
    except (sqlite3.Error, DBAPIError) as error:
        raise translate(error) from error
    finally:
        lock.close()


def _upgrade_server(target: ServerTarget, timeout_s: float, heads: int) -> tuple[str | None, str]:
    """Upgrade a database on a server: it keeps other upgrades waiting, and its backups are the server's."""
    found = current_revision(target)
    if found == HEAD_REVISION:
        from memory_store.durable.visiting import visit

        asyncio.run(visit(target, timeout_s, make_vectors))  # pgvector may have come since
        return found, found
    if found is not None and found not in {item.revision for item in history(found)}:
        check(found, target)
    _run_alembic(target, heads)
    return found, HEAD_REVISION


def history(found: str | None) -> list[Revision]:
    """Return every migration, oldest first, and which of them a database at revision `found` has."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config())
    listed = list(scripts.walk_revisions())[::-1]
    names = [script.revision for script in listed]
    reached = names.index(found) if found in names else -1
    return [
        Revision(script.revision, _one(script.down_revision), (script.doc or "").split("\n")[0], index <= reached)
        for index, script in enumerate(listed)
    ]


def _one(revision: Any) -> str | None:
    return revision if revision is None or isinstance(revision, str) else ",".join(revision)


def _config(target: Target | ServerTarget | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    if target is not None:
        config.attributes["url"] = target.url.render_as_string(hide_password=False)
    return config


# What Alembic works on is global to the process, and stores are opened in threads.
_ALEMBIC = threading.Lock()


def _run_alembic(target: Target | ServerTarget, heads: int = DEFAULT_HEADS) -> None:
    from alembic import command

    config = _config(target)
    config.attributes["heads"] = heads
    with _ALEMBIC:
        command.upgrade(config, HEAD_REVISION)


def _has_rows(path: str) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return any(
            connection.execute(f'SELECT 1 FROM "{spec.table.name}" LIMIT 1').fetchone()  # noqa: S608 - our own names
            for spec in RECORDS.values()
            if spec.table.name in tables
        )


def _use_wal(path: str, timeout_s: float) -> None:
    # Under the exclusive lock: changing the journal mode fails at once, whatever the timeout, when two do it together.
    try:
        with closing(sqlite3.connect(path, timeout=timeout_s)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.Error as error:
        if not os.access(Path(path).parent, os.W_OK):
            raise DurableUnavailableError(f"the folder {Path(path).parent} cannot be written") from error
        raise translate(error) from error
