"""The proxy makes each fault exactly: what the server has done and what the client got are both known."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres, MakeRedis
from tests.servers.proxy import Cut, Proxy, runs
from tests.servers.tls import CERTIFICATE, TlsFront

Connect = Callable[[], Awaitable[asyncpg.Connection]]
LOST = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)


@pytest.fixture
def name(postgres_url: str, postgres_server: PostgresDatabases) -> str:
    name = str(make_url(postgres_url).database)
    postgres_server.execute("CREATE TABLE row (n int)", name)
    return name


@pytest.fixture
async def proxy(postgres_server: PostgresDatabases) -> AsyncIterator[Proxy]:
    async with Proxy(postgres_server.upstream) as running:
        yield running


@pytest.fixture
def connect(proxy: Proxy, postgres_server: PostgresDatabases, name: str) -> Connect:
    url = postgres_server.url_through(proxy.port, name).replace("+asyncpg", "")
    return lambda: asyncpg.connect(url, timeout=10, command_timeout=10)


async def to_the_end(reader: asyncio.StreamReader) -> None:
    while await reader.read(100):
        pass


def rows(server: PostgresDatabases, name: str) -> list[int]:
    return [int(row[0]) for row in server.execute("SELECT n FROM row ORDER BY n", name)]


async def test_it_forwards(connect: Connect, proxy: Proxy, name: str) -> None:
    connection = await connect()
    big = "x" * 5_000_000
    assert await connection.fetchval("SELECT $1::text", big) == big
    await connection.copy_records_to_table("row", records=[(n,) for n in range(10_000)])
    assert await connection.fetchval("SELECT count(*) FROM row") == 10_000
    await connection.close()


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("way", ["simple", "prepared"])
async def test_a_commit_is_cut_at_each_instant(
    connect: Connect, proxy: Proxy, name: str, postgres_server: PostgresDatabases, cut: Cut, way: str
) -> None:
    connection = await connect()
    await connection.execute("INSERT INTO row VALUES (1)")
    rule = proxy.on_message(runs("COMMIT"), cut)
    await connection.execute("BEGIN")
    await connection.execute("INSERT INTO row VALUES (2)")
    with pytest.raises(LOST):
        await (connection.execute("COMMIT") if way == "simple" else connection.fetch("COMMIT"))
    assert (rule.hits, rule.happened.is_set()) == (1, True)
    assert rows(postgres_server, name) == ([1] if cut is Cut.BEFORE_REQUEST else [1, 2])
    again = await connect()
    async with again.transaction():
        await again.execute("INSERT INTO row VALUES (3)")
    await again.close()


@pytest.mark.parametrize(("cut", "expected"), [(Cut.BEFORE_REPLY, 0), (Cut.IN_REPLY, 9)])
async def test_the_client_gets_just_that_much_of_the_reply(proxy: Proxy, name: str, cut: Cut, expected: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    startup = b"\0\3\0\0user\0postgres\0database\0" + name.encode() + b"\0\0"
    writer.write((len(startup) + 4).to_bytes(4) + startup)
    await reader.readuntil(b"Z\0\0\0\5I")
    proxy.on_message(runs("BEGIN"), cut)
    writer.write(b"Q\0\0\0\x0aBEGIN\0")  # answered by CommandComplete of 11 bytes and ReadyForQuery of 6
    got = b""
    try:
        while data := await reader.read(100):
            got += data
    except ConnectionResetError:
        assert cut is Cut.BEFORE_REPLY
    assert got == b"C\0\0\0\x0aBEGIN\0Z\0\0\0\5T"[: expected - 1 if expected else 0]
    writer.close()


async def test_something_happens_before_a_message(
    connect: Connect, proxy: Proxy, name: str, postgres_server: PostgresDatabases
) -> None:
    connection = await connect()
    seen: list[list[int]] = []

    async def look() -> None:
        seen.append(rows(postgres_server, name))

    rule = proxy.on_message(runs("INSERT"), look, times=None)
    for number in range(3):
        await connection.execute("INSERT INTO row VALUES ($1)", number)
    assert (seen, rule.hits) == ([[], [0], [0, 1]], 3)
    await connection.close()


async def test_connections_are_reset_and_refused_and_taken_again(connect: Connect, proxy: Proxy, name: str) -> None:
    connection = await connect()
    proxy.drop_all()
    with pytest.raises(LOST):
        await connection.fetchval("SELECT 1")
    survivor = await connect()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect()
    assert await survivor.fetchval("SELECT 1") == 1
    await survivor.close()
    await proxy.accept()
    back = await connect()
    assert (await back.fetchval("SELECT 1"), proxy.accepted) == (1, 3)
    await back.close()


async def test_a_half_closed_connection_still_carries_what_the_client_writes(make_redis: MakeRedis) -> None:
    server = make_redis()
    async with Proxy(server.port, postgres=False) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"SET a 1\r\n")
        assert await reader.readline() == b"+OK\r\n"
        proxy.half_close()
        assert await reader.read() == b""
        writer.write(b"SET a 2\r\n")
        other_reader, other = await asyncio.open_unix_connection(str(server.socket))
        async with asyncio.timeout(10):
            while True:
                other.write(b"GET a\r\n")
                await other_reader.readline()
                if await other_reader.readline() == b"2\r\n":
                    break
        other.close()
        writer.close()


async def test_a_delay_a_pause_and_a_black_hole(connect: Connect, proxy: Proxy, name: str) -> None:
    connection = await connect()
    loop = asyncio.get_running_loop()
    proxy.delay_s, before = 0.05, loop.time()
    assert await connection.fetchval("SELECT 1") == 1
    assert loop.time() - before >= 0.1  # at least there and back
    proxy.delay_s = 0.0
    proxy.pause()
    waiting = asyncio.create_task(connection.fetchval("SELECT 2"))
    assert await asyncio.wait({waiting}, timeout=0.1) == (set(), {waiting})
    proxy.resume()
    assert await waiting == 2
    proxy.blackhole()
    with pytest.raises(TimeoutError):
        await connection.fetchval("SELECT 3", timeout=0.1)
    proxy.blackhole(False)
    connection.terminate()
    healthy = await connect()
    assert await healthy.fetchval("SELECT 4") == 4
    await healthy.close()


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_a_stream_is_cut_after_so_many_bytes(make_redis: MakeRedis, direction: str) -> None:
    server = make_redis()
    async with Proxy(server.socket, postgres=False) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"SET a 1\r\n")
        assert await reader.readline() == b"+OK\r\n"
        proxy.cut_after(9 if direction == "to_server" else 5, "to_server" if direction == "to_server" else "to_client")
        writer.write(b"SET a 2\r\nSET a 3\r\n")
        with pytest.raises(ConnectionResetError):
            await to_the_end(reader)
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET a\r\n")
        assert await reader.readline() == b"$1\r\n"
        assert await reader.readline() in ({b"1\r\n", b"2\r\n"} if direction == "to_server" else {b"2\r\n", b"3\r\n"})
        writer.close()


async def test_new_connections_go_to_a_new_upstream(make_redis: MakeRedis) -> None:
    first, second = make_redis(), make_redis()
    async with Proxy(first.port, postgres=False) as proxy:
        ports = []
        for proxy.upstream in (first.port, second.socket):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"CONFIG GET port\r\n")
            ports.append(int((await reader.readuntil(b"\r\n" * 1 + b"$5\r\n") + await reader.readline())[-7:]))
            writer.close()
        assert ports == [first.port, second.port]


async def test_a_server_that_is_away_resets_its_clients(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    async with Proxy(server.port) as proxy:
        url = server.url_through(proxy.port).replace("+asyncpg", "")
        connection = await asyncpg.connect(url, timeout=10)
        server.kill()
        with pytest.raises(LOST):
            await connection.fetchval("SELECT 1")
        with pytest.raises(LOST):
            await asyncpg.connect(url, timeout=10)
        server.start()
        back = await asyncpg.connect(url, timeout=10)
        assert await back.fetchval("SELECT 1") == 1
        await back.close()


async def test_tls_is_real(make_postgres: MakePostgres) -> None:
    server = make_postgres(durable=False)
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with TlsFront(server.socket) as front, Proxy(front.port) as proxy:
        for port in (front.port, proxy.port):
            connection = await asyncpg.connect(host="localhost", port=port, user="postgres", ssl=trusting)
            big = "x" * 1_000_000
            assert await connection.fetchval("SELECT $1::text", big) == big
            await connection.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncpg.connect(host="localhost", port=front.port, user="postgres", ssl=ssl.create_default_context())
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="TLS only"):
            await asyncpg.connect(host="localhost", port=front.port, user="postgres", ssl=False)
        assert front.versions == ["TLSv1.3", "TLSv1.3"]
    assert Path(CERTIFICATE).exists()
