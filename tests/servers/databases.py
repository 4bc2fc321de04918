"""Databases of a PostgreSQL that runs already: one that the tests started, or one that was given by its URL."""

from __future__ import annotations

import csv
import io
import subprocess
from pathlib import Path
from typing import Literal

from sqlalchemy.engine import URL, make_url

from tests.servers.installation import postgres_programs

Strategy = Literal["WAL_LOG", "FILE_COPY"]


class PostgresDatabases:
    """Makes, drops and asks the databases of a server that runs already.

    Args:
        url: Its URL, as SQLAlchemy or libpq writes it.
        strategy: How a database is copied from its template. FILE_COPY is faster only where nothing is synced (it makes
            two checkpoints): 12 to 30 ms in memory against 23 to 80 ms; with syncs 70 ms against 40 ms.
    """

    def __init__(self, url: str, strategy: Strategy = "WAL_LOG") -> None:
        self._url = make_url(url)
        self._strategy = strategy

    def url(self, database: str = "postgres", **query: str) -> str:
        """Return a SQLAlchemy URL for asyncpg."""
        url = self._url.set(drivername="postgresql+asyncpg", database=database).update_query_dict(query)
        return url.render_as_string(hide_password=False)

    def dsn(self, database: str = "postgres") -> str:
        """Return the URL as `asyncpg.connect` and libpq take it."""
        query = {("sslmode" if key == "ssl" else key): value for key, value in self._url.query.items()}
        return URL.create(
            "postgresql",
            self._url.username,
            self._url.password,
            self._url.host,
            self._url.port,
            database,
            query,
        ).render_as_string(hide_password=False)

    def url_through(self, port: int, database: str = "postgres") -> str:
        """Return a URL through a proxy on 127.0.0.1."""
        query = {key: value for key, value in self._url.query.items() if key not in ("host", "port")}
        url = self._url.set(drivername="postgresql+asyncpg", database=database, query=query)
        return url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    @property
    def upstream(self) -> Path | tuple[str, int]:
        """Where a proxy finds the server: its Unix socket, or its host and port."""
        host = str(self._url.query.get("host", self._url.host))
        port = int(str(self._url.query.get("port", self._url.port or 5432)))
        return Path(host) / f".s.PGSQL.{port}" if host.startswith("/") else (host, port)

    def execute(self, sql: str, database: str = "postgres") -> list[list[str]]:
        """Run SQL by psql, and return the rows as text; for a setting up that must not need an event loop."""
        command = [str(postgres_programs() / "psql"), "-X", "-q", "-t", "--csv", "-v", "ON_ERROR_STOP=1"]
        done = subprocess.run(
            [*command, "-d", self.dsn(database), "-c", sql], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return list(csv.reader(io.StringIO(done.stdout)))

    def create_database(self, name: str, template: str = "template0") -> str:
        """Make a database like another one, an empty one by default, and return its URL."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY {self._strategy}')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
