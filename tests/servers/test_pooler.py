"""The pooler keeps transactions together, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from tests.servers.databases import PostgresDatabases
from tests.servers.pooler import Pooler

Connect = Callable[..., Awaitable[asyncpg.Connection]]


@pytest.fixture
async def pooler(postgres_server: PostgresDatabases) -> AsyncIterator[Pooler]:
    async with Pooler(postgres_server.upstream, size=2) as running:
        yield running


@pytest.fixture
def connect(pooler: Pooler, postgres_server: PostgresDatabases, postgres_url: str) -> Connect:
    name = str(make_url(postgres_url).database)
    url = postgres_server.url_through(pooler.port, name).replace("+asyncpg", "")

    async def to_pooler(**options: Any) -> asyncpg.Connection:
        return await asyncpg.connect(url, timeout=10, command_timeout=10, **{"statement_cache_size": 0, **options})

    return to_pooler


async def ask_often(client: asyncpg.Connection) -> None:
    for _ in range(4):
        await client.fetchval("SELECT 1 + $1::int", 1)


async def test_a_transaction_stays_on_one_connection_and_the_next_one_does_not(connect: Connect) -> None:
    client = await connect()
    processes = []
    for _ in range(4):
        async with client.transaction():
            first = await client.fetchval("SELECT pg_backend_pid()")
            assert await client.fetchval("SELECT pg_backend_pid()") == first
            processes.append(first)
    assert processes[0] != processes[1]
    assert processes[2:] == processes[:2]
    await client.close()


async def test_settings_of_a_session_go_astray_and_those_of_a_transaction_do_not(connect: Connect) -> None:
    client = await connect()
    await client.execute("SET work_mem = '7MB'")
    seen = [(await client.fetchval("SHOW work_mem")) == "7MB" for _ in range(4)]
    assert sorted(seen) == [False, False, True, True]
    async with client.transaction():
        await client.execute("SET LOCAL work_mem = '9MB'")
        assert await client.fetchval("SHOW work_mem") == "9MB"
    assert "9MB" not in [await client.fetchval("SHOW work_mem") for _ in range(4)]
    await client.close()


async def test_named_prepared_statements_do_not_survive_a_transaction(connect: Connect) -> None:
    client = await connect(statement_cache_size=100)
    with pytest.raises(asyncpg.PostgresError, match=r"prepared statement .* (does not exist|already exists)"):
        await ask_often(client)
    client.terminate()


async def test_unnamed_statements_copies_and_large_values_pass(connect: Connect) -> None:
    client = await connect()
    await client.execute("CREATE TABLE row (n int)")
    await client.copy_records_to_table("row", records=[(n,) for n in range(10_000)])
    assert await client.fetchval("SELECT sum(n) FROM row WHERE n < $1", 3) == 3
    big = "x" * 3_000_000
    assert await client.fetchval("SELECT $1::text", big) == big
    with pytest.raises(asyncpg.DivisionByZeroError):
        await client.fetchval("SELECT 1 / $1::int", 0)
    assert await client.fetchval("SELECT count(*) FROM row") == 10_000
    await client.close()


async def test_more_clients_than_connections_wait_for_their_turn(connect: Connect, pooler: Pooler) -> None:
    clients = [await connect() for _ in range(5)]
    async with clients[0].transaction(), clients[1].transaction():
        await clients[0].fetchval("SELECT 1")
        await clients[1].fetchval("SELECT 1")
        waiting = asyncio.create_task(clients[2].fetchval("SELECT 2"))
        assert await asyncio.wait({waiting}, timeout=0.1) == (set(), {waiting})
    assert await waiting == 2
    processes = await asyncio.gather(*(client.fetchval("SELECT pg_backend_pid()") for client in clients))
    assert len(set(processes)) == 2
    for client in clients:
        await client.close()


async def test_a_client_that_leaves_within_a_transaction_undoes_it(connect: Connect) -> None:
    client, other = await connect(), await connect()
    await client.execute("CREATE TABLE row (n int)")
    await client.execute("BEGIN")
    await client.execute("INSERT INTO row VALUES (1)")
    client.terminate()
    await other.execute("BEGIN; LOCK TABLE row; COMMIT")  # waits until the transaction is over
    assert [await other.fetchval("SELECT count(*) FROM row") for _ in range(3)] == [0, 0, 0]
    await other.close()


async def test_a_request_is_cancelled(connect: Connect) -> None:
    client = await connect()
    with pytest.raises(TimeoutError):
        await client.fetchval("SELECT pg_sleep(60)", timeout=0.1)
    assert await client.fetchval("SELECT 1") == 1
    await client.close()


async def test_start_parameters_that_cannot_be_kept_are_refused(connect: Connect) -> None:
    with pytest.raises(asyncpg.ProtocolViolationError, match="unsupported startup parameter: search_path"):
        await connect(server_settings={"search_path": "x"})
    client = await connect(server_settings={"application_name": "x"})
    await client.close()


async def test_a_lost_server_connection_ends_its_client_only(
    connect: Connect, postgres_server: PostgresDatabases
) -> None:
    client, waiting = await connect(), await connect()
    await client.execute("BEGIN")
    process = await client.fetchval("SELECT pg_backend_pid()")
    await waiting.fetchval("SELECT 1")
    postgres_server.execute(f"SELECT pg_terminate_backend({process}, 10000)")
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await client.fetchval("SELECT 1")
    client.terminate()
    assert process not in [await waiting.fetchval("SELECT pg_backend_pid()") for _ in range(3)]
    await waiting.close()
