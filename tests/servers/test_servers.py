"""The servers of the tests are real, keep what they acknowledged, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres, MakeRedis, MakeStandby
from tests.servers.installation import free_port, short_folder
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

REPOSITORY = Path(__file__).parents[2]


async def answer_of(url: str, sql: str) -> object:
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            return (await connection.execute(text(sql))).scalar()
    finally:
        await engine.dispose()


async def test_a_database_is_empty_has_vectors_and_is_in_utf8(postgres_url: str) -> None:
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert await answer_of(postgres_url, tables) == 0
    encoding = "SELECT getdatabaseencoding() || datcollate FROM pg_database WHERE datname = current_database()"
    if "MEMORY_STORE_TEST_POSTGRES_URL" not in os.environ:
        assert await answer_of(postgres_url, encoding) == "UTF8C"
    assert await answer_of(postgres_url, "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")


def test_a_database_is_dropped_under_a_client(postgres_server: PostgresDatabases) -> None:
    postgres_server.create_database("to_drop")

    async def drop_under() -> None:
        connection = await asyncpg.connect(postgres_server.dsn("to_drop"))
        postgres_server.drop_database("to_drop")
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval("SELECT 1")
        connection.terminate()

    asyncio.run(drop_under())
    assert postgres_server.execute("SELECT count(*) FROM pg_database WHERE datname = 'to_drop'") == [["0"]]


def test_failing_sql_is_an_error(postgres_server: PostgresDatabases) -> None:
    with pytest.raises(RuntimeError, match="does not exist"):
        postgres_server.execute("SELECT * FROM nothing")


async def test_a_server_is_reached_by_socket_and_by_tcp(make_postgres: MakePostgres) -> None:
    server = make_postgres(settings={"work_mem": "5MB"})
    for url in (server.url(), server.tcp_url()):
        assert await answer_of(url, "SHOW work_mem") == "5MB"
        assert await answer_of(url, "SHOW fsync") == "on"
    server.configure(work_mem="6MB", log_min_duration_statement="0")
    assert await answer_of(server.url(), "SHOW work_mem") == "6MB"
    assert "duration:" in server.log_tail()


@pytest.mark.parametrize("durable", [True, False])
def test_a_killed_server_keeps_what_it_acknowledged(make_postgres: MakePostgres, durable: bool) -> None:
    server = make_postgres(durable=durable)
    server.execute("CREATE TABLE kept (n int)")
    for number in range(3):
        server.execute(f"INSERT INTO kept VALUES ({number})")
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        server.kill()
        assert not server.running
        assert [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
        with pytest.raises(RuntimeError):
            server.execute("SELECT 1")
        port = server.port
        server.start()
        assert server.port == port
    assert server.execute("SELECT n FROM kept ORDER BY n") == [["0"], ["1"], ["2"]]
    server.restart("immediate")
    assert server.execute("SELECT count(*) FROM kept") == [["3"]]


async def test_a_synchronous_standby_has_every_commit_and_takes_over(
    make_postgres: MakePostgres, make_standby: MakeStandby
) -> None:
    primary = make_postgres()
    standby = make_standby(primary)
    connection = await asyncpg.connect(primary.dsn())
    await connection.execute("CREATE TABLE kept (n int)")
    acknowledged = 0
    for number in range(50):
        await connection.execute("INSERT INTO kept VALUES ($1)", number)
        acknowledged += 1
    standby.stop()
    with pytest.raises(TimeoutError):  # nobody has it, so nobody says that it is done
        await asyncio.wait_for(connection.execute("INSERT INTO kept VALUES (50)"), 0.3)
    primary.kill()
    connection.terminate()
    standby.start()
    with pytest.raises(RuntimeError, match="read-only"):
        standby.execute("INSERT INTO kept VALUES (51)")
    standby.promote()
    standby.execute("INSERT INTO kept VALUES (51)")
    assert standby.execute("SELECT count(*) FROM kept WHERE n < 50") == [[str(acknowledged)]]


def test_a_given_folder_is_used_again() -> None:
    above = short_folder("ms-given-")
    try:
        with PostgresServer(above / "one") as server:
            server.execute("CREATE TABLE kept AS SELECT 1 AS n")
            left = server.socket_folder
        assert not left.exists()
        with PostgresServer(above / "one") as server:
            assert server.execute("SELECT n FROM kept") == [["1"]]
    finally:
        shutil.rmtree(above)


def test_redis_keeps_values_until_it_ends(make_redis: MakeRedis) -> None:
    server = make_redis()
    for end in (server.stop, server.kill):
        for url in (server.url(3), server.tcp_url(3)):
            with redis.Redis.from_url(url) as client:
                client.set("key", url)
                assert client.get("key") == url.encode()
        end()
        assert not server.running
        with redis.Redis.from_url(server.url()) as client, pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        with redis.Redis.from_url(server.url(3)) as client:
            assert client.get("key") is None


@pytest.mark.parametrize("run", [1, 2])
def test_a_redis_url_is_empty(redis_url: str, run: int) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("key", run)


HOLDER = """
import multiprocessing, os, sys, time
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer
postgres, redis = PostgresServer(durable=False).start(), RedisServer().start()
fork = os.fork()
if fork == 0:  # it holds all that its parent held, for longer than that
    time.sleep(30)
    os._exit(0)
print(fork, postgres.pid, redis.pid, postgres.socket_folder, redis.folder, flush=True)
time.sleep(60)
"""


def test_nothing_outlives_a_killed_process() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert holder.stdout is not None
    fork, *pids, postgres_folder, redis_folder = holder.stdout.readline().split()
    servers = [psutil.Process(int(pid)) for pid in pids]
    processes = [one for server in servers for one in (server, *server.children())]
    segment = (Path(postgres_folder) / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    gone, alive = psutil.wait_procs(processes, timeout=12)
    deadline = time.monotonic() + 10
    while (Path(postgres_folder).exists() or Path(redis_folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int(fork), signal.SIGKILL)  # it is there: the servers did not end because the last holder of the pipe did
    assert (len(gone), alive) == (len(processes), [])
    assert not Path(postgres_folder).exists()
    assert not Path(redis_folder).exists()
    segments = Path("/proc/sysvipc/shm")
    if segments.exists():
        assert segment not in [line.split()[1] for line in segments.read_text().splitlines()[1:]]


def test_a_closed_server_leaves_nothing(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    guard = psutil.Process(psutil.Process(server.pid).ppid())
    server.kill()
    server.close()
    assert not server.socket_folder.exists()
    assert not guard.is_running()
    server.close()


@pytest.mark.parametrize("server", ["postgres", "redis"])
@pytest.mark.parametrize("end", ["input", "interrupt"])
def test_the_entry_point_serves_until_told_to_stop(server: str, end: str) -> None:
    command = [sys.executable, "-m", "tests.servers", server, "--not-durable"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdin is not None
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if server == "postgres":
        assert asyncio.run(answer_of(url, "SELECT 1")) == 1
        folder = Path(url.partition("?host=")[2].replace("%2F", "/"))
    else:
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        folder = Path(url.removeprefix("unix://").partition("?")[0]).parent
    assert folder.exists()
    if end == "input":
        process.stdin.close()
    else:
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdin.close()
    process.stdout.close()
    assert not folder.exists()


def test_a_server_starts_although_its_port_was_taken(monkeypatch: pytest.MonkeyPatch, make_redis: MakeRedis) -> None:
    first = make_redis()
    ports = [first.port, free_port()]
    monkeypatch.setattr("tests.servers.redis.free_port", lambda: ports.pop(0))
    with RedisServer() as second:
        assert (second.port == first.port, second.running, ports) == (False, True, [])
