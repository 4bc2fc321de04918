"""URL -> engine: what a URL means, and how every connection of its engine is set up."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from memory_store.config import Settings
from memory_store.durable.dialects.sqlite import connection_pragmas
from memory_store.errors import ConfigurationError, DurableUnavailableError

__all__ = ["ServerTarget", "Target", "embedded", "make_engine", "parse_url"]


_SMALLEST_DATABASE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Target:
    """Where a store lives.

    Args:
        path: absolute path of the database file.
        memory: whether it is `:memory:`: a private file that is gone when the store is closed or the process ends.
        parameters: the URL's query parameters, which are settings of the store.
    """

    path: str
    memory: bool
    parameters: dict[str, str]

    def placed(self) -> Target:
        """Return a target with a real path: for `:memory:` a new private folder, made in memory where that can be.

        A real file, so that the same snapshots, locks and lanes work as on disk. SQLite's own `:memory:` belongs to one
        connection, and its shared forms make readers wait for writers.
        """
        if not self.memory:
            return self
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a private folder is made in it
        return replace(self, path=str(Path(tempfile.mkdtemp(prefix="memory_store-", dir=base)) / "memory.db"))

    @property
    def url(self) -> URL:
        """The SQLAlchemy URL of the file."""
        return URL.create("sqlite+aiosqlite", database=self.path)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.path

    def require_folder(self) -> None:
        """Check that the file can be there, and is no other small file.

        Raises:
            DurableUnavailableError: its folder is missing, it is a folder itself, or too small to be a database.
        """
        try:
            if not Path(self.path).parent.is_dir():
                raise DurableUnavailableError(f"the folder {Path(self.path).parent} does not exist")
            if Path(self.path).is_dir():
                raise DurableUnavailableError(f"{self.path} is a folder, not a database file")
            # SQLite takes a file of less than a page for an empty database and would write over it.
            if 0 < self.file_bytes() < _SMALLEST_DATABASE_BYTES:
                raise DurableUnavailableError(f"{self.path} is not a SQLite database; nothing was touched")
        except OSError as error:
            raise DurableUnavailableError(f"{self.path} cannot be reached: {error.strerror}") from error

    def file_bytes(self) -> int:
        """Return the size of the file, 0 where there is none."""
        return Path(self.path).stat().st_size if Path(self.path).exists() else 0

    def remove_folder(self) -> None:
        """Remove the folder of a `:memory:` store; open connections keep the file alive."""
        if self.memory:
            shutil.rmtree(Path(self.path).parent, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ServerTarget:
    """A database on a PostgreSQL server.

    Args:
        url: with everything the server and its driver are told, hosts and TLS included; no settings of the store.
        parameters: the URL's other query parameters, which are settings of the store.
    """

    url: URL
    parameters: dict[str, str]
    memory = False

    @property
    def name(self) -> str:
        """What it is called in messages, without its password."""
        return self.url.set(drivername="postgresql", query={}, password=None).render_as_string()

    @property
    def dsn(self) -> str:
        """The connection string, password included, as libpq and asyncpg read it."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)


def parse_url(url: str | URL) -> Target | ServerTarget:
    """Return the target of `sqlite:///path`, `sqlite:///:memory:` or `postgresql://host/database`, driver named or not.

    Raises:
        ConfigurationError: the URL is malformed, or names a database or driver that is not supported.
    """
    if not isinstance(url, str | URL):
        raise TypeError(f"url must be a str or sqlalchemy URL, got {type(url).__name__}")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        shown = re.sub("(:/*).*@", r"\1***@", str(url))[:80]  # without a password
        raise ConfigurationError(f"not a database URL: {shown!r}; try sqlite:///agent.db") from error
    backend, _, driver = parsed.drivername.partition("+")
    if backend in ("postgresql", "postgres"):
        return _parse_server(parsed, driver)
    if backend != "sqlite":
        raise ConfigurationError(
            f"database {backend!r} is not supported; use sqlite:///path or postgresql://user@host/database"
        )
    if driver not in ("", "aiosqlite"):
        raise ConfigurationError(f"driver {driver!r} is not supported; use sqlite:///path or sqlite+aiosqlite:///path")
    if parsed.host or parsed.username or parsed.password or parsed.port:
        raise ConfigurationError(
            f"a SQLite URL has no host or user: {parsed.render_as_string()!r:.120}; "
            "three slashes for a relative path (sqlite:///agent.db), four for an absolute one"
        )
    parameters = {name: value if isinstance(value, str) else value[-1] for name, value in parsed.query.items()}
    if isinstance(url, str):  # SQLAlchemy drops blank values, but `cache_path=` says something
        parameters |= dict(parse_qsl(url.partition("?")[2], keep_blank_values=True))
    if parsed.database in (None, "", ":memory:"):
        return Target(":memory:", True, parameters)
    if "\0" in parsed.database or parsed.database.startswith("file:"):
        raise ConfigurationError(f"not a plain path: {parsed.database!r:.120}")
    # Without links: two names of one file must share its lock file, as they share SQLite's own files.
    return Target(os.path.realpath(parsed.database), False, parameters)


def _parse_server(parsed: URL, driver: str) -> ServerTarget:
    if driver not in ("", "asyncpg"):
        raise ConfigurationError(f"driver {driver!r} is not supported; use postgresql:// or postgresql+asyncpg://")
    if find_spec("asyncpg") is None or find_spec("tenacity") is None:
        raise ConfigurationError("PostgreSQL needs its driver: pip install 'memory-store[postgres]'")
    if not parsed.database:
        raise ConfigurationError("a PostgreSQL URL names a database: postgresql://user@host/database")
    if not 0 < (parsed.port or 1) < 1 << 16:
        raise ConfigurationError(f"there is no port {parsed.port}: ports are 1 to 65535")
    known = {item.name for item in fields(Settings)}
    parameters = {name: value if isinstance(value, str) else value[-1] for name, value in parsed.query.items()}
    ours = {name: value for name, value in parameters.items() if name in known}
    # Of a repeated host or port the driver would take the last one only.
    several = {name: ",".join(value) for name, value in parsed.query.items() if isinstance(value, tuple)}
    return ServerTarget(parsed.difference_update_query(ours).update_query_dict(several), ours)


def embedded(target: Target | ServerTarget, what: str) -> Target:
    """Return a target that is a file.

    Raises:
        ConfigurationError: it is on a server; `what` says what cannot be done there, and what is done instead.
    """
    if isinstance(target, ServerTarget):
        raise ConfigurationError(f"{target.name} is on a server: {what}")
    return target


def make_engine(target: Target | ServerTarget, timeout_s: float) -> AsyncEngine:
    """Return the engine; each of its connections waits `timeout_s` for locks and has the store's pragmas."""
    if isinstance(target, ServerTarget):
        return _server_engine(target, timeout_s)
    # isolation_level None: the driver never begins a transaction by itself, so every BEGIN is ours and IMMEDIATE.
    engine = create_async_engine(
        target.url, poolclass=NullPool, connect_args={"isolation_level": None, "timeout": timeout_s}
    )
    pragmas = connection_pragmas(timeout_s, durable=not target.memory)

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.run_async(lambda driver: driver.executescript(pragmas))

    return engine


def _server_engine(target: ServerTarget, timeout_s: float) -> AsyncEngine:
    # Connected as the store does it: the driver itself reads hosts, TLS and server settings from the URL.
    from memory_store.durable.dialects.postgresql import connect

    return create_async_engine(
        "postgresql+asyncpg://", poolclass=NullPool, async_creator=lambda: connect(target.dsn, timeout_s, {})
    )
