"""`backup`, `restore`, `verify` and `doctor --repair`, run as a user runs them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from memory_store import MemoryStore
from memory_store.durable.schema import HEAD_REVISION
from tests.fault.support import database, episode
from tests.integration.cli_support import PROGRAM, environment, fill_two_namespaces, memory_store, one_line
from tests.integration.upkeep_support import held, names, require_sound, url_of


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A folder with an `agent.db` that holds records of every kind."""
    await fill_two_namespaces(url_of(tmp_path / "agent.db"))
    return tmp_path


async def test_backup_and_restore(folder: Path) -> None:
    done = memory_store(folder, "backup", "copy.db")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{folder}/copy.db: ")
    assert "verified" in done.out
    before = held(folder / "agent.db")

    again = memory_store(folder, "backup", "copy.db")
    assert (again.code, again.out) == (2, "")
    assert "exists already" in one_line(again)
    asked = memory_store(folder, "backup", "copy.db", "--overwrite", "--json")
    assert asked.json.keys() == {"path", "bytes", "position", "seconds"}
    assert asked.json["bytes"] == (folder / "copy.db").stat().st_size

    async with MemoryStore(url_of(folder / "agent.db")) as store:
        await store.episodes.put(episode("later"))
        restored = memory_store(folder, "restore", "copy.db", "--json")
        assert await store.episodes.get("later", freshness="linearizable") is None
    assert (restored.code, restored.json["replaced"], restored.json["revision"]) == (0, True, HEAD_REVISION)
    assert restored.json["position"] > asked.json["position"] + 1
    assert held(folder / "agent.db") == before

    made = memory_store(folder, "restore", "copy.db", "--url", "sqlite:///new.db")
    assert (made.code, f"{folder}/new.db was made: " in made.out) == (0, True)
    await require_sound(folder / "new.db")
    assert names(folder) == {"agent.db", "copy.db", "new.db"}


async def test_another_database_needs_force(folder: Path) -> None:
    assert memory_store(folder, "upgrade", "--url", "sqlite:///other.db").code == 0
    assert memory_store(folder, "backup", "copy.db").code == 0
    refused = memory_store(folder, "restore", "copy.db", "--url", "sqlite:///other.db")
    assert (refused.code, refused.out) == (2, "")
    assert "--force" in one_line(refused)
    assert memory_store(folder, "restore", "copy.db", "--url", "sqlite:///other.db", "--force").code == 0
    assert held(folder / "other.db") == held(folder / "agent.db")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["backup", "copy.db", "--url", "sqlite:///missing.db"], 3, "no database"),
        (["backup", "no/copy.db"], 2, "does not exist"),
        (["backup", "agent.db", "--overwrite"], 2, "belongs to the database itself"),
        (["backup", "."], 2, "not a plain file"),
        (["backup", "copy.db", "--url", "sqlite:///:memory:"], 2, "name a file"),
        (["backup"], 2, "Missing argument"),
        (["restore", "missing.db"], 2, "cannot be read"),
        (["restore", "."], 2, "not a plain file"),
        (["restore", "garbage"], 3, "not a SQLite database"),
        (["restore", "agent.db"], 2, "belongs to the database itself"),
        (["verify", "--url", "sqlite:///missing.db"], 3, "no database"),
        (["verify", "--url", "sqlite:///garbage"], 3, "not a SQLite database"),
        (["verify", "--url", "sqlite:///agent.db?speed=9"], 2, "unknown URL parameter"),
        (["doctor", "--repair", "--url", "sqlite:///missing.db"], 3, "no database"),
        (["doctor", "--repair", "--url", "sqlite:///garbage"], 3, "not a SQLite database"),
    ],
)
async def test_wrong_use_is_one_line_and_changes_nothing(
    folder: Path, arguments: list[str], code: int, words: str
) -> None:
    (folder / "garbage").write_bytes(b"\x89PNG\r\n" * 2000)
    before = held(folder / "agent.db")
    done = memory_store(folder, *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in one_line(done)
    assert held(folder / "agent.db") == before
    assert names(folder) == {"agent.db", "garbage"}


async def test_verify_and_repair(folder: Path) -> None:
    sound = memory_store(folder, "verify", "--json")
    assert (sound.code, sound.json["ok"], sound.json["total"], sound.json["problems"]) == (0, True, 0, [])
    assert set(sound.json["found"].values()) == {0}
    assert "integrity: ok" in memory_store(folder, "verify").out
    assert "nothing is wrong" in memory_store(folder, "doctor", "--repair").out

    with database(folder / "agent.db") as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("DELETE FROM episodes WHERE namespace = 'other/agent'")
        connection.execute("DROP TRIGGER log_steps_move")
    wrong = memory_store(folder, "verify")
    assert wrong.code == 1
    assert "problems" in one_line(wrong)
    assert "trigger log_steps_move is missing" in wrong.out
    assert "belongs to episode 'e-two', which does not exist" in wrong.out
    listed = memory_store(folder, "verify", "--json").json
    assert (listed["ok"], listed["total"]) == (False, len(listed["problems"]))
    assert {"check", "text", "kind", "namespace", "key"} == listed["problems"][0].keys()
    examined = memory_store(folder, "doctor", "--json").json["findings"]
    assert {item["name"] for item in examined if not item["ok"]} == {"foreign keys", "schema"}

    repaired = memory_store(folder, "doctor", "--repair")
    assert (repaired.code, repaired.err) == (0, "")
    assert "repaired: made trigger log_steps_move anew" in repaired.out
    assert f"the database as it was before is in {folder}/agent.db.before-repair.bak" in repaired.out
    assert memory_store(folder, "verify").code == 0
    assert memory_store(folder, "doctor", "--repair", "--json").json["done"] == []


async def test_what_a_repair_leaves_is_code_1(folder: Path) -> None:
    with database(folder / "agent.db") as connection:
        connection.execute("CREATE TRIGGER hooked AFTER INSERT ON steps BEGIN SELECT 1; END")
    done = memory_store(folder, "doctor", "--repair", "--json")
    assert (done.code, done.json["ok"], len(done.json["left"])) == (1, False, 1)
    assert "still wrong: schema: trigger hooked" in one_line(done)


async def test_progress_is_shown_on_a_terminal(folder: Path) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*PROGRAM, "verify"], cwd=folder, env=environment(TERM="xterm"), stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert b"checking" in seen
    assert b"integrity: ok" in out


async def test_ctrl_c_leaves_no_file(folder: Path) -> None:
    async with MemoryStore(url_of(folder / "agent.db"), cache_path="") as store:
        for start in range(0, 8000, 1000):
            await store.episodes.put_many(
                [episode(f"e{n}", context={"x": "y" * 8000}) for n in range(start, start + 1000)]
            )
    child = subprocess.Popen(
        [*PROGRAM, "backup", "copy.db"], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not list(folder.glob("copy.db.*.tmp")) and child.poll() is None:
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, b"memory-store: interrupted\n")
    assert names(folder) == {"agent.db"}
