"""Opening what cannot be opened: an error that says why, and nothing touched."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from memory_store import (
    ConfigurationError,
    DurableTimeoutError,
    DurableUnavailableError,
    MemoryStore,
    SchemaMismatchError,
)
from memory_store.durable.schema import HEAD_REVISION
from tests.fault.support import (
    Child,
    Parent,
    become_nobody,
    database,
    episode,
    in_child,
    integrity_problems,
    log_problems,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")

EPISODE = episode("known")


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "url",
    [
        "not a url",
        "",
        "agent.db",
        "mysql://localhost/agent",
        "postgresql://localhost",
        "postgresql+psycopg://localhost/agent",
        "sqlite+pysqlite:///agent.db",
        "sqlite+nonsense:///agent.db",
        "sqlite://agent.db",
        "sqlite://user:secret@host/agent.db",
        "sqlite:///file:agent.db?mode=ro",
        "sqlite:///agent\0.db",
        "sqlite:///agent.db?no_such_setting=1",
        "sqlite:///agent.db?timeout_s=soon",
        "sqlite:///agent.db?timeout_s=-1",
        "sqlite:///agent.db?timeout_s=nan",
    ],
)
def test_a_wrong_url_is_refused_before_anything_is_opened(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as raised:
        MemoryStore(url)
    assert "secret" not in str(raised.value)
    assert contents(tmp_path) == {}


async def test_a_missing_folder_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(DurableUnavailableError, match="missing"):
        await MemoryStore(f"sqlite:///{tmp_path}/missing/agent.db").open()
    assert contents(tmp_path) == {}


async def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(DurableUnavailableError, match="folder"):
        await MemoryStore(f"sqlite:///{tmp_path}").open()
    assert contents(tmp_path) == {}


async def _open_as_nobody(parent: Parent, path: str) -> list[str]:
    await become_nobody()
    try:
        async with MemoryStore(f"sqlite:///{path}", timeout_s=1) as store:
            await store.episodes.put(EPISODE)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["opened", ""]


def test_a_folder_without_write_permission_is_refused(open_folder: Path) -> None:
    name, text = in_child(_open_as_nobody, f"{open_folder}/agent.db")
    assert name == "DurableUnavailableError", text
    assert str(open_folder) in text
    assert contents(open_folder) == {}


async def test_an_existing_database_in_a_read_only_folder_is_refused_and_intact(open_folder: Path) -> None:
    path = open_folder / "agent.db"
    async with MemoryStore(f"sqlite:///{path}", cache_path="") as store:
        await store.episodes.put(EPISODE)
    before = contents(open_folder)
    name, text = in_child(_open_as_nobody, str(path))
    assert name == "DurableUnavailableError", text
    assert contents(open_folder) == before


def test_a_folder_that_may_not_be_entered_is_refused(open_folder: Path) -> None:
    open_folder.chmod(0o700)
    name, text = in_child(_open_as_nobody, f"{open_folder}/agent.db")
    assert name == "DurableUnavailableError", text


def test_a_writable_folder_works_for_the_same_user(open_folder: Path) -> None:
    open_folder.chmod(0o777)
    assert in_child(_open_as_nobody, f"{open_folder}/agent.db") == ["opened", ""]


@pytest.mark.parametrize(
    "garbage",
    [
        random.Random(1).randbytes(8192),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"x",
        b"SQLite format 3\0",
        b"SQLite format 3\0" + random.Random(2).randbytes(4096),
        b'{"id": "e1"}\n' * 500,
    ],
    ids=["random", "png", "one byte", "only the magic", "magic and noise", "json lines"],
)
async def test_a_file_that_is_no_database_is_refused_and_not_touched(garbage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    path.write_bytes(garbage)
    with pytest.raises((DurableUnavailableError, SchemaMismatchError)):
        await MemoryStore(f"sqlite:///{path}", timeout_s=1).open()
    assert path.read_bytes() == garbage


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
@pytest.mark.parametrize("table", ["users", "episodes", "head"])
@pytest.mark.parametrize("migrate", ["auto", "check"])
async def test_a_database_of_something_else_is_refused_and_byte_identical(
    migrate: str, table: str, journal: str, tmp_path: Path
) -> None:
    path = tmp_path / "agent.db"
    with database(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute(f"INSERT INTO {table} (name) VALUES ('theirs')")
    before = path.read_bytes()
    with pytest.raises(SchemaMismatchError) as raised:
        await MemoryStore(f"sqlite:///{path}", migrate=migrate).open()
    assert raised.value.found is None
    assert table in str(raised.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("migrate", ["auto", "check"])
async def test_a_newer_database_is_refused_and_byte_identical(migrate: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.episodes.put(EPISODE)
    with database(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_future'")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.read_bytes()
    with pytest.raises(SchemaMismatchError, match=f"9999_future.*{HEAD_REVISION}.*newer") as raised:
        await MemoryStore(f"sqlite:///{path}", migrate=migrate).open()
    assert raised.value.found == "9999_future"
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.bak"))


def _hold_locked(parent: Parent, path: str) -> None:
    with database(Path(path)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        parent.send("locked")
        parent.wait_for("let go")
        connection.execute("ROLLBACK")


async def test_a_lock_of_another_program_times_out_and_then_works(absent_url: str, tmp_path: Path) -> None:
    async with MemoryStore(absent_url, timeout_s=0.2) as store:
        await store.episodes.put(EPISODE)
        with Child(_hold_locked, str(tmp_path / "agent.db")) as locker:
            assert locker.receive() == "locked"
            with pytest.raises(DurableTimeoutError) as raised:
                await store.episodes.update("known", status="completed")
            assert raised.value.retryable
            with pytest.raises(DurableTimeoutError):
                async with store.transaction() as tx:
                    await tx.episodes.delete("known")
            found = await store.episodes.get("known")
            assert found is not None
            assert found.status == "active"
            locker.send("let go")
            locker.receive()
        assert (await store.episodes.update("known", expected_revision=1, status="completed")).revision == 2


async def test_opening_a_locked_empty_file_times_out_and_then_works(absent_url: str, tmp_path: Path) -> None:
    with Child(_hold_locked, str(tmp_path / "agent.db")) as locker:
        assert locker.receive() == "locked"
        with pytest.raises(DurableTimeoutError):
            await MemoryStore(absent_url, timeout_s=0.2).open()
        locker.send("let go")
        locker.receive()
    async with MemoryStore(absent_url, timeout_s=0.2) as store:
        assert await store.episodes.count() == 0


async def _open_and_write(parent: Parent, url: str, id_: str) -> int:
    parent.send("ready")
    parent.wait_for("go")
    async with MemoryStore(url) as store:
        return (await store.episodes.put(episode(id_))).revision


@pytest.mark.parametrize("processes", [2, 8])
async def test_processes_that_open_an_empty_file_at_once_all_succeed(
    processes: int, absent_url: str, tmp_path: Path
) -> None:
    children = [Child(_open_and_write, absent_url, f"e{i}") for i in range(processes)]
    try:
        assert [child.receive() for child in children] == ["ready"] * processes
        for child in children:
            child.send("go")
        assert [child.receive() for child in children] == [1] * processes
    finally:
        for child in children:
            child.__exit__(None, None, None)
    async with MemoryStore(absent_url) as store:
        assert await store.episodes.count() == processes
    assert integrity_problems(tmp_path / "agent.db") == []
    assert log_problems(tmp_path / "agent.db") == []


async def _open(parent: Parent, url: str) -> None:
    parent.send("opening")
    store = await MemoryStore(url).open()
    parent.send("open")
    await store.close()


async def test_a_process_killed_while_it_creates_the_schema_leaves_a_file_that_opens(tmp_path: Path) -> None:
    seeded = random.Random(5)
    killed_before_open = 0
    for number in range(12):
        path = tmp_path / f"{number}.db"
        with Child(_open, f"sqlite:///{path}") as child:
            assert child.receive() == "opening"
            killed_before_open += not child.arrived_within(seeded.uniform(0, 0.12))
            child.kill()
        async with MemoryStore(f"sqlite:///{path}", timeout_s=5) as store:
            assert (await store.episodes.put(EPISODE)).revision == 1
        assert integrity_problems(path) == []
        assert log_problems(path) == []
    assert killed_before_open, "every child was killed too late to test anything"


async def test_a_store_that_failed_to_open_can_be_closed_and_says_what_to_do(tmp_path: Path) -> None:
    store = MemoryStore(f"sqlite:///{tmp_path}/missing/agent.db")
    with pytest.raises(DurableUnavailableError):
        await store.open()
    await store.close()
    with pytest.raises(ConfigurationError):
        await store.episodes.get("known")
    assert contents(tmp_path) == {}
