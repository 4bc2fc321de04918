"""Fixtures that give a test an empty PostgreSQL database, an empty Redis, or servers of its own to kill.

`MEMORY_STORE_TEST_POSTGRES_URL` and `MEMORY_STORE_TEST_REDIS_URL` name servers to use instead of those that the tests
start themselves; the user named there must be allowed to make databases. Each pytest-xdist worker starts its own.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import redis

from tests.servers.databases import PostgresDatabases
from tests.servers.postgres import PostgresServer, standby_of
from tests.servers.redis import RedisServer

POSTGRES_VARIABLE = "MEMORY_STORE_TEST_POSTGRES_URL"
REDIS_VARIABLE = "MEMORY_STORE_TEST_REDIS_URL"


class MakePostgres(Protocol):
    """Starts a PostgreSQL of the test's own."""

    def __call__(
        self, *, folder: Path | None = None, durable: bool = True, settings: dict[str, str] | None = None
    ) -> PostgresServer: ...


class MakeStandby(Protocol):
    """Starts a standby of a server that `make_postgres` made."""

    def __call__(
        self,
        primary: PostgresServer,
        *,
        synchronous: bool = True,
        through: int | None = None,
        settings: dict[str, str] | None = None,
    ) -> PostgresServer: ...


class MakeRedis(Protocol):
    """Starts a Redis of the test's own."""

    def __call__(self, *, settings: dict[str, str] | None = None) -> RedisServer: ...


@pytest.fixture(scope="session")
def _no_client_variables() -> None:
    """Keep the variables of libpq (a port, a user, TLS) from the clients of servers that the tests start."""
    if not os.environ.get(POSTGRES_VARIABLE):
        for name in [name for name in os.environ if name.startswith("PG")]:
            del os.environ[name]


@pytest.fixture(scope="session")
def postgres_server(_no_client_variables: None) -> Iterator[PostgresDatabases]:
    """A running PostgreSQL for databases of this session; no test stops it or changes its settings."""
    given = os.environ.get(POSTGRES_VARIABLE)
    if given:
        yield PostgresDatabases(given)
        return
    with PostgresServer(durable=False) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresDatabases) -> Iterator[str]:
    """The URL of an empty database, dropped after the test even if something is still connected to it."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def make_postgres(_no_client_variables: None) -> Iterator[MakePostgres]:
    """Start servers that a test may kill and reconfigure; they are ended and removed after it."""
    with contextlib.ExitStack() as stack:

        def make(
            *, folder: Path | None = None, durable: bool = True, settings: dict[str, str] | None = None
        ) -> PostgresServer:
            return stack.enter_context(PostgresServer(folder, durable=durable, settings=settings))

        yield make


@pytest.fixture
def make_standby() -> Iterator[MakeStandby]:
    """Start standbys of such servers."""
    with contextlib.ExitStack() as stack:

        def make(
            primary: PostgresServer,
            *,
            synchronous: bool = True,
            through: int | None = None,
            settings: dict[str, str] | None = None,
        ) -> PostgresServer:
            standby = standby_of(primary, synchronous=synchronous, through=through, settings=settings)
            stack.callback(standby.close)
            return standby

        yield make


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer | None]:
    """A running Redis for this session; None where one was given by its URL."""
    if os.environ.get(REDIS_VARIABLE):
        yield None
        return
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer | None) -> Iterator[str]:
    """The URL of an empty Redis database; of a given server, that of the URL plus the number of the xdist worker."""
    url = _of_worker(os.environ[REDIS_VARIABLE]) if redis_server is None else redis_server.url()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def make_redis() -> Iterator[MakeRedis]:
    """Start Redis servers that a test may kill."""
    with contextlib.ExitStack() as stack:

        def make(*, settings: dict[str, str] | None = None) -> RedisServer:
            return stack.enter_context(RedisServer(settings=settings))

        yield make


def _of_worker(url: str) -> str:
    """Return the URL of another database number for each xdist worker: they run at the same time."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    with redis.Redis.from_url(url) as client:
        number = int(client.connection_pool.connection_kwargs.get("db", 0)) + worker
    base, _, query = url.partition("?")
    if base.startswith("unix:"):
        kept = [part for part in query.split("&") if part and not part.startswith("db=")]
        return f"{base}?{'&'.join([*kept, f'db={number}'])}"
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{rest.split('/')[0]}/{number}" + (f"?{query}" if query else "")
