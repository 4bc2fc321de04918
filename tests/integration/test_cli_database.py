"""Databases that cannot be used: every command says so in one line, ends with 3, and touches nothing."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from memory_store.durable.examine import has_wal_reset_race
from tests.integration.cli_support import as_lines, memory_store, one_line, run_line

READING = [
    ["check"],
    ["history"],
    ["list", "episode"],
    ["show", "episode", "x"],
    ["stats"],
    ["export"],
    ["cache", "status"],
    ["cache", "rebuild"],
    ["cache", "clear"],
]
WRITING = [["upgrade"], ["import", "-"]]


def name_of(command: list[str]) -> str:
    return " ".join(command)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://agent:s3cret@x/y", "not supported"),
        ("postgresql+psycopg2://agent:s3cret@x/y", "driver"),
        ("postgresql://agent:s3cret@x", "names a database"),
        ("postgresql://agent:s3cret@x:port/y", "not a database URL"),
        ("postgresql://agent:s3cret@x:99999/y", "port"),
        ("postgresql//agent:s3cret@x/y", "not a database URL"),
        ("postgresql:/agent:s3cret@x/y", "not a database URL"),
        ("postgresql://agent:s3cret@x/y?pool_size=many", "wrong form"),
        ("sqlite+pysqlite:///x.db", "driver"),
        ("agent.db", "not a database URL"),
        ("sqlite://host/x.db", "no host"),
        ("sqlite:///x.db?timeout_s=soon", "wrong form"),
    ],
)
def test_a_wrong_url_is_code_2(tmp_path: Path, url: str, words: str) -> None:
    done = memory_store(tmp_path, "stats", "--url", url)

    assert (done.code, done.out) == (2, "")
    assert words in one_line(done)
    assert "s3cret" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [*READING, *WRITING, ["doctor"]], ids=name_of)
def test_every_command_refuses_an_unknown_setting_in_the_url(tmp_path: Path, command: list[str]) -> None:
    done = memory_store(tmp_path, *command, "--url", "sqlite:///x.db?speed=9")

    assert (done.code, done.out) == (2, "")
    assert "unknown URL parameter 'speed'" in one_line(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [*READING, *WRITING], ids=name_of)
def test_a_missing_folder(tmp_path: Path, command: list[str]) -> None:
    done = memory_store(tmp_path, *command, "--url", "sqlite:///no/where.db")

    assert (done.code, done.out) == (3, "")
    assert "does not exist" in one_line(done)


@pytest.mark.parametrize("command", [item for item in READING if item != ["history"]], ids=name_of)
def test_reading_makes_no_database(tmp_path: Path, command: list[str]) -> None:
    done = memory_store(tmp_path, *command)

    assert (done.code, done.out) == (3, "")
    assert "there is no database at" in one_line(done)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of a revision this library does not know."""
    folder = tmp_path_factory.mktemp("newer")
    memory_store(folder, "import", "-", stdin=as_lines(run_line()))
    with closing(sqlite3.connect(folder / "agent.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    return folder / "agent.db"


@pytest.mark.parametrize("command", [*READING, *WRITING], ids=name_of)
def test_a_newer_database_is_refused_and_not_touched(tmp_path: Path, command: list[str], newer: Path) -> None:
    path = tmp_path / "agent.db"
    shutil.copy(newer, path)

    done = memory_store(tmp_path, *command)

    assert (done.code, done.out) == (3, "")
    assert "written by a newer version" in one_line(done)
    assert path.read_bytes() == newer.read_bytes()


@pytest.mark.parametrize("command", [["check"], ["stats"], *WRITING], ids=name_of)
@pytest.mark.parametrize(
    ("sql", "words"), [("", "not a SQLite database"), ("CREATE TABLE x (y)", "not a memory store")]
)
def test_a_file_of_something_else_is_not_touched(tmp_path: Path, command: list[str], sql: str, words: str) -> None:
    path = tmp_path / "agent.db"
    path.write_bytes(b"" if sql else b"\x89PNG\r\n" * 2000)
    if sql:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(sql)
    before = path.read_bytes()

    done = memory_store(tmp_path, *command)

    assert (done.code, done.out) == (3, "")
    assert words in one_line(done)
    assert path.read_bytes() == before


def test_check_and_doctor_tell_programs_about_another_revision(tmp_path: Path, newer: Path) -> None:
    shutil.copy(newer, tmp_path / "agent.db")

    checked = memory_store(tmp_path, "check", "--json")
    examined = memory_store(tmp_path, "doctor", "--json")

    assert (checked.code, checked.json["ok"], checked.json["found"]) == (3, False, "9999")
    found = {item["name"]: item for item in examined.json["findings"]}
    assert (examined.code, found["schema"]["ok"], found["integrity"]["ok"]) == (1, False, True)


def test_doctor_finds_orphans_a_changed_journal_and_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    memory_store(tmp_path, "import", "-", stdin=as_lines(*(run_line(f"r{n}", context="x" * 3000) for n in range(60))))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("DELETE FROM episodes WHERE id = 'r1'")
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")
    orphans = memory_store(tmp_path, "doctor", "--json")
    found = {item["name"]: item for item in orphans.json["findings"]}

    assert orphans.code == 1
    assert [found[name]["ok"] for name in ("foreign keys", "journal mode", "integrity")] == [False, False, True]

    damaged = bytearray(path.read_bytes())
    for page in range(8, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(damaged)
    broken = memory_store(tmp_path, "doctor", "--json")
    assert (broken.code, broken.json["ok"]) == (1, False)
    assert "Traceback" not in broken.err


def test_a_locked_database_is_told_after_the_timeout(tmp_path: Path) -> None:
    memory_store(tmp_path, "upgrade")
    with closing(sqlite3.connect(tmp_path / "agent.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        done = memory_store(
            tmp_path, "import", "-", "--url", "sqlite:///agent.db?timeout_s=0.2", stdin=as_lines(run_line())
        )

    assert (done.code, done.out) == (3, "")
    assert "locked" in one_line(done)


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
)
def test_which_sqlite_versions_have_the_race(version: tuple[int, int, int], affected: bool) -> None:
    assert has_wal_reset_race(version) is affected
