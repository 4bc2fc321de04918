"""Every command against a server that refuses, is another one, or is not there: one line, and never a password."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from memory_store import DurableUnavailableError, MemoryStore, SchemaMismatchError, upkeep
from memory_store.durable.schema import HEAD_REVISION
from memory_store.inspection import diagnose
from tests.integration.cli_support import Done, as_lines, memory_store, one_line, run_line
from tests.servers.databases import PostgresDatabases
from tests.servers.postgres import PostgresServer

PASSWORD = "s3cr3t:word@#"
READING = [
    ["check"],
    ["history"],
    ["list", "episode"],
    ["show", "episode", "x"],
    ["stats"],
    ["stats", "--watch", "--count", "1"],
    ["export"],
    ["cache", "status"],
    ["cache", "rebuild"],
    ["cache", "clear"],
    ["verify"],
    ["doctor"],
]
WRITING = [["upgrade"], ["import", "-"]]
SOME = [["check"], ["stats"], ["cache", "status"], ["verify"], ["doctor"]]
"""One of each way to open a database."""


def name_of(command: list[str]) -> str:
    return "-".join(part.strip("-") for part in command)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that asks everybody for a password over TCP."""
    with PostgresServer(durable=False) as server:
        server.execute(f"CREATE ROLE agent LOGIN PASSWORD '{PASSWORD}'")
        server.execute("CREATE DATABASE agents OWNER agent")
        rules = "local all all trust\nhost all all all scram-sha-256\n"
        (server.data / "pg_hba.conf").write_text(rules)
        server.configure(log_min_messages="warning")
        server.wait_for("SELECT count(*) = 1 FROM pg_hba_file_rules WHERE auth_method = 'scram-sha-256'")
        yield server


def url_of(server: PostgresServer, database: str = "agents", password: str = PASSWORD, port: int | None = None) -> str:
    url = make_url(server.tcp_url(database, port)).set(username="agent", password=password)
    return url.render_as_string(hide_password=False)


def run(folder: Path, url: str, command: list[str]) -> Done:
    done = memory_store(folder, *command, stdin=as_lines(run_line()), MEMORY_STORE_URL=url)
    said = done.out + done.err
    for secret in (PASSWORD, "wr0ng", make_url(url).render_as_string(hide_password=False).split("@")[0]):
        assert secret not in said
    assert "s3cr3t" not in said
    assert "Traceback" not in said
    return done


def test_the_right_password_opens_it_and_is_shown_nowhere(guarded: PostgresServer, tmp_path: Path) -> None:
    url = url_of(guarded)
    for command in SOME:
        assert run(tmp_path, url, command).code == (1 if command == ["doctor"] else 3), "it is empty"
    for command in (*WRITING, *READING, ["backup", "x"], ["restore", "x"], ["doctor", "--repair"]):
        done = run(tmp_path, url, command)
        refused = command[0] in ("backup", "restore") or "--repair" in command
        if command[0] not in ("doctor", "show"):  # this server does not sync; there is no such record
            assert done.code == (2 if refused else 0), done
        if refused:
            assert "is on a server" in one_line(done)


@pytest.mark.parametrize("command", [*READING, *WRITING], ids=name_of)
def test_what_cannot_be_reached_is_one_line_and_code_3(
    guarded: PostgresServer, tmp_path: Path, command: list[str]
) -> None:
    with socket.socket() as nobody:  # bound, and not listening: nobody answers there
        nobody.bind(("127.0.0.1", 0))
        down = url_of(guarded, port=nobody.getsockname()[1])
        for url, words in {
            url_of(guarded, password="wr0ng"): "password authentication failed",
            url_of(guarded, "no_such_database"): "the database does not exist; create it first",
            down: "the connection to the server broke",
            down.replace("127.0.0.1", "no-such-host.invalid"): "the connection to the server broke",
        }.items():
            if command not in [*SOME, *WRITING] and words != "password authentication failed":
                continue  # each program takes a second, and these open the database as others do
            done = run(tmp_path, url, command)
            assert done.code == (1 if command == ["doctor"] else 3), done
            assert words in (one_line(done))
            if command != ["doctor"]:
                assert done.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [*SOME, *WRITING], ids=name_of)
def test_a_database_of_something_else_is_not_touched(
    postgres_url: str, postgres_server: PostgresDatabases, tmp_path: Path, command: list[str]
) -> None:
    name = str(make_url(postgres_url).database)
    postgres_server.execute("CREATE TABLE episodes_of_a_series (x integer)", name)

    done = run(tmp_path, postgres_url, command)

    assert done.code == (1 if command == ["doctor"] else 3)
    assert "not a memory store" in one_line(done)
    assert postgres_server.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [["1"]]


@pytest.mark.parametrize("command", [*SOME, ["history"]], ids=name_of)
def test_an_empty_database_is_told_and_stays_empty(
    postgres_url: str, postgres_server: PostgresDatabases, tmp_path: Path, command: list[str]
) -> None:
    done = run(tmp_path, postgres_url, command)

    if command == ["history"]:
        assert (done.code, done.out.count("no ")) == (0, int(HEAD_REVISION))
    else:
        assert done.code == (1 if command == ["doctor"] else 3)
        assert "empty" in one_line(done)
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert postgres_server.execute(tables, str(make_url(postgres_url).database)) == [["0"]]


@pytest.mark.parametrize("command", [*SOME, *WRITING], ids=name_of)
async def test_a_newer_database_is_refused_and_not_touched(
    postgres_url: str, postgres_server: PostgresDatabases, tmp_path: Path, command: list[str]
) -> None:
    name = str(make_url(postgres_url).database)
    async with MemoryStore(postgres_url):
        pass
    postgres_server.execute("UPDATE alembic_version SET version_num = '9999'", name)

    done = run(tmp_path, postgres_url, command)

    assert done.code == (1 if command == ["doctor"] else 3)
    assert ("is at revision 9999" if command == ["doctor"] else "written by a newer version") in one_line(done)
    assert postgres_server.execute("SELECT version_num FROM alembic_version", name) == [["9999"]]


async def test_the_functions_behind_the_commands_say_the_same(guarded: PostgresServer, postgres_url: str) -> None:
    wrong = url_of(guarded, password="wr0ng")
    for work in (upkeep.verify(wrong), upkeep.repair(wrong, without_copy=True)):
        with pytest.raises(DurableUnavailableError, match="password authentication failed") as caught:
            await work
        assert "wr0ng" not in f"{caught.value!r}{caught.value.__cause__!r}"
    for work in (upkeep.verify(postgres_url), upkeep.repair(postgres_url, without_copy=True)):
        with pytest.raises(SchemaMismatchError, match="the database is empty"):
            await work
    found = await asyncio.to_thread(diagnose, wrong)
    assert [item.ok for item in found if item.name == "database"] == [False]
    assert diagnose(wrong) == found, "it blocks, also where an event loop runs"
    assert "wr0ng" not in repr(found)
