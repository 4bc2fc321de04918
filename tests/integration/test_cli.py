"""Every command as a real program: what it prints, as text and as JSON, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli_support import (
    PROGRAM,
    Program,
    as_lines,
    environment,
    fill_two_namespaces,
    memory_store,
    one_line,
    plain_sql,
    run_line,
)

COMMANDS = ["upgrade", "check", "history", "import", "export", "list", "show", "stats", "cache", "doctor", "demo"]
COMMANDS += ["backup", "restore", "verify", "similar"]
KINDS = ["episode", "step", "pattern", "embedding", "spatiotemporal"]


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A folder with a database that holds every kind in two namespaces."""
    await fill_two_namespaces(f"sqlite:///{tmp_path}/agent.db")
    return tmp_path


@pytest.fixture
async def filled(program: Program) -> Program:
    """The program with such a database."""
    url = program.url
    if program.on_server:
        url += f"{'&' if '?' in url else '?'}cache_path={program.folder}/agent.db.cache"
    await fill_two_namespaces(url)
    return program


def test_help_names_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    done = memory_store(tmp_path, "--help")

    assert done.code == 0
    for command in COMMANDS:
        assert re.search(rf"(?m)^  {command} ", done.out), command
    for code in ("0 done", "1 done, but", "2 wrong", "3 the database", "130", "141"):
        assert code in " ".join(done.out.split())
    assert memory_store(tmp_path).code == 2
    assert memory_store(tmp_path, "--version").out.startswith("memory-store 0")
    assert list(tmp_path.iterdir()) == []


def test_upgrade_check_history(program: Program) -> None:
    before = program("history", "--json").json
    made = program("upgrade", "--json")
    again = program("upgrade")
    checked = program("check", "--json")
    after = program("history", "--json").json

    assert [item["applied"] for item in before] == [False] * len(before)
    assert (made.code, made.json["before"], made.json["copy"]) == (0, None, None)
    assert (again.code, "already" in again.out) == (0, True)
    assert checked.json == {"ok": True, "found": made.json["after"], "expected": made.json["after"]}
    assert [item["applied"] for item in after] == [True] * len(before)
    assert after[-1]["revision"] == made.json["after"]
    assert made.json["after"] in program("check").out
    assert "yes" in program("history").out


def test_the_environment_names_the_database(tmp_path: Path) -> None:
    memory_store(tmp_path, "upgrade", MEMORY_STORE_URL="sqlite:///elsewhere.db")

    assert (tmp_path / "elsewhere.db").exists()
    assert not (tmp_path / "agent.db").exists()


async def test_list_pages_filters_and_orders(filled: Program) -> None:
    other = ["--namespace", "other/agent", "--json"]
    first = filled("list", "episode", *other, "--limit", "1", "--order-by", "created_at", "--desc").json
    second = filled(
        *["list", "episode", *other, "--limit", "1", "--order-by", "created_at", "--desc", "--cursor", first["cursor"]],
    ).json

    assert [item["id"] for item in first["items"] + second["items"]] == ["e-two", "e-one"]
    assert second["cursor"] is None
    created_at = first["items"][0]["created_at"]
    for where, ids in [
        ({"status": "failed"}, ["e-one", "e-two"]),
        ({"id": {"$eq": "e-one"}, "status": {"$ne": "active"}}, ["e-one"]),
        ({"id": {"$in": ["e-two", "nope"]}}, ["e-two"]),
        ({"id": {"$in": []}}, []),
        ({"created_at": {"$gte": created_at}}, ["e-two"]),
        ({"created_at": {"$lt": created_at}}, ["e-one"]),
        ({"success_rate": {"$gt": 0.2, "$lte": 0.25}}, ["e-one", "e-two"]),
        ({"reward_score": None}, ["e-one", "e-two"]),
        ({"reward_score": {"$ne": None}}, []),
        ({"reward_score": {"$ne": 1}}, ["e-one", "e-two"]),
        ({}, ["e-one", "e-two"]),
    ]:
        done = filled("list", "episode", *other, "--where", json.dumps(where))
        assert [item["id"] for item in done.json["items"]] == ids, where
    steps = filled("list", "step", *other, "--where", '{"success": null, "step_number": {"$gte": 2}}').json
    assert len(steps["items"]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["thought"], "unknown kind"),
        (["episode", "--where", "{"], "not JSON"),
        (["episode", "--where", "[]"], "a filter is an object"),
        (["episode", "--where", '{"context": "x"}'], "no column 'context'"),
        (["episode", "--where", '{"namespace": "default"}'], "no column 'namespace'"),
        (["episode", "--where", '{"1=1; DROP TABLE episodes": 1}'], "no column"),
        (["episode", "--where", '{"domain": {"$like": "x"}}'], "unknown operator"),
        (["episode", "--where", '{"domain": {}}'], "has no operator"),
        (["episode", "--where", '{"domain": 5}'], "compared with text"),
        (["episode", "--where", '{"domain": {"$gt": null}}'], "compared with text"),
        (["episode", "--where", '{"domain": "\\ud800"}'], "compared with text"),
        (["episode", "--where", '{"reward_score": NaN}'], "finite number"),
        (["episode", "--where", '{"created_at": "soon"}'], "ISO 8601"),
        (["step", "--where", '{"success": {"$gt": true}}'], "no meaning"),
        (["step", "--where", '{"success": 1}'], "true or false"),
        (["step", "--where", '{"step_number": 1e3}'], "integer"),
        (["episode", "--where", '{"id": {"$in": "x"}}'], "takes a list"),
        (["episode", "--order-by", "context"], "no column"),
        (["episode", "--limit", "0"], "limit must be"),
        (["episode", "--limit", "many"], "--limit"),
        (["episode", "--cursor", "x"], "cursor"),
        (["episode", "--namespace", "../x y"], "namespace"),
        (["episode", "--colour"], "--colour"),
        ([], "KIND"),
    ],
)
async def test_wrong_use_is_one_line_and_code_2(folder: Path, arguments: list[str], words: str) -> None:
    done = memory_store(folder, "list", *arguments)

    assert (done.code, done.out) == (2, "")
    assert words in one_line(done)


async def test_tables_show_every_kind_and_obey_no_control_sequence(filled: Program) -> None:
    for kind in KINDS:
        found = filled("list", kind, "--json").json["items"]
        done = filled("list", kind, COLUMNS="40")
        assert done.code == 0
        for item in found:
            assert item["kind"] == kind
            assert item["id"] in done.out
        assert not set(done.out) & {"\x1b", "\0"}
    narrow = filled("show", "episode", "e-one", PYTHONIOENCODING="ascii")
    assert (narrow.code, "\\x1b[31m" in narrow.out) == (0, True)


async def test_show(filled: Program) -> None:
    shown = filled("show", "episode", "e-one", "--json").json
    step = filled("show", "step", shown["step"][1]["id"], "--json").json

    assert (shown["record"]["id"], shown["record"]["revision"]) == ("e-one", 2)
    assert [item["step_number"] for item in shown["step"]] == [1, 2, 3]
    assert (len(shown["embedding"]), len(shown["spatiotemporal"])) == (1, 1)
    assert step == {"record": shown["step"][1]}
    text = filled("show", "episode", "e-one").out
    assert "step: 3" in text
    missing = filled("show", "episode", "nope")
    assert (missing.code, "no episode 'nope'" in one_line(missing)) == (1, True)


async def test_stats(filled: Program) -> None:
    found = filled("stats", "--json").json

    assert found["rows"] == {
        "default": dict(zip(KINDS, [1, 3, 1, 1, 1], strict=True)),
        "other/agent": dict(zip(KINDS, [2, 6, 2, 2, 2], strict=True)),
    }
    if filled.on_server:
        assert (found["database_bytes"] > 100_000, found["wal_bytes"]) == (True, 0)
    else:
        assert found["database_bytes"] + found["wal_bytes"] >= (filled.folder / "agent.db").stat().st_size > 0
    assert found["changes"] >= found["position"] > 0
    assert "other/agent" in filled("stats").out


async def test_cache_status_rebuild_clear(filled: Program) -> None:
    shutil.rmtree(filled.folder / "agent.db.cache")
    none = filled("cache", "status", "--json").json
    rebuilt = filled("cache", "rebuild", "--json")
    full = filled("cache", "status", "--json").json
    size = (filled.folder / "agent.db.cache" / "cache.msgpack").stat().st_size
    version = filled("cache", "status", "--json", MEMORY_STORE_CACHE_VERSION="2").json
    filled("import", "-", stdin=as_lines(run_line()))
    behind = filled("cache", "status", "--json").json
    await plain_sql(filled.url, "UPDATE head SET epoch = epoch + 1")
    stale = filled("cache", "status", "--json").json
    cleared = filled("cache", "clear", "--json")
    empty = filled("cache", "status", "--json").json

    assert (none["entries"], none["usable"]) == (0, False)
    assert (rebuilt.code, rebuilt.json["error"]) == (0, "")
    assert rebuilt.json["entries"] == full["entries"] > 10
    assert (full["usable"], full["bytes"]) == (True, size)
    assert (version["usable"], "version key" in version["reason"]) == (False, True)
    # Other processes' changes are no reason to drop a saved cache: only what they touched is.
    assert (behind["usable"], behind["reason"]) == (True, "")
    assert (stale["usable"], "upgraded, restored or repaired since" in stale["reason"]) == (False, True)
    assert (cleared.code, cleared.json["entries"], empty["entries"]) == (0, 0, 0)
    assert "0 entries" in filled("cache", "status").out
    assert "entries" in filled("cache", "rebuild").out
    assert "is empty" in filled("cache", "clear").out
    assert filled("cache", "rebuild", "--url", "sqlite:///:memory:").code == 2


async def test_doctor_on_a_sound_database(folder: Path) -> None:
    done = memory_store(folder, "doctor", "--json")

    found = {item["name"]: item for item in done.json["findings"]}
    assert (done.code, done.json["ok"], done.err) == (0, True, "")
    assert found["integrity"]["value"] == found["foreign keys"]["value"] == "ok"
    assert found["journal mode"]["value"] == "wal"
    assert found["rows"]["value"] == dict(zip(KINDS, [3, 9, 3, 3, 3], strict=True))
    assert found["saved cache"]["value"]["usable"] is True
    assert {"python", "sqlalchemy", "aiosqlite", "sqlite", "lock file", "schema", "sizes"} <= found.keys()
    assert "WRONG" not in memory_store(folder, "doctor").out


def test_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    missing = memory_store(tmp_path, "doctor", "--json")
    (tmp_path / "agent.db").write_bytes(b"not a database" * 1000)
    garbage = memory_store(tmp_path, "doctor", "--json")

    for done, words in ((missing, "no database"), (garbage, "not a SQLite database")):
        assert (done.code, done.json["ok"]) == (1, False)
        assert words in done.json["findings"][-1]["hint"]
        assert words in one_line(done)


def test_import_tells_each_rejected_line_and_ends_with_1(tmp_path: Path, program: Program) -> None:
    (tmp_path / "runs.jsonl").write_bytes(as_lines(run_line(), b"{nope}\n", run_line("r2", domain=5), run_line("r3")))

    done = program("import", "runs.jsonl")
    as_json = program("import", "runs.jsonl", "--json")

    assert done.code == as_json.code == 1
    assert "4 read, 2 rejected" in done.out
    first, second = done.err.splitlines()
    assert first.startswith("runs.jsonl:2: is not JSON")
    assert second.startswith("runs.jsonl:3: episode.domain must be text")
    assert as_json.json["unchanged"] == {"episode": 2, "step": 4}
    assert [(item["line"], item["id"]) for item in as_json.json["rejections"]] == [(2, None), (3, "r2")]


def test_import_options(tmp_path: Path, program: Program) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(run_line()))
    changed = as_lines(run_line(domain="other"))
    program("import", "a.jsonl", "-", "--timezone", "Asia/Tokyo", stdin=as_lines(run_line("r2")))

    def ended(*options: str) -> int:
        return program("import", "-", "--timezone", "Asia/Tokyo", *options, stdin=changed).code

    shown = program("show", "episode", "r1", "--json").json["record"]
    assert shown["created_at"] == "2026-01-01T18:04:05.000000Z"
    assert [ended(), ended("--on-conflict", "skip"), ended("--on-conflict", "replace"), ended()] == [1, 0, 0, 0]
    for arguments in (["nope.jsonl"], ["."], ["a.jsonl", "--on-conflict", "x"], ["a.jsonl", "--timezone", "Mars"], []):
        done = program("import", *arguments)
        assert (done.code, done.out) == (2, ""), arguments
        one_line(done)


async def test_export_to_a_file_and_to_standard_output(filled: Program) -> None:
    out = filled("export", "--all-namespaces", "--json")
    file = filled("export", "--all-namespaces", "--output", "all.jsonl", "--json")
    some = filled("export", "--kind", "pattern", "--kind", "step")

    assert out.out == (filled.folder / "all.jsonl").read_text()
    assert json.loads(out.err)["records"] == file.json["records"] == dict(zip(KINDS, [3, 9, 3, 3, 3], strict=True))
    assert [json.loads(line)["kind"] for line in some.out.split("\n") if line] == ["step"] * 3 + ["pattern"]
    assert "records" in filled("export", "--output", "again.jsonl").out
    back = filled("import", "all.jsonl", "--url", "sqlite:///copy.db", "--json")
    assert (back.code, back.json["rejected"]) == (0, 0)
    assert filled("export", "--all-namespaces", "--url", "sqlite:///copy.db").out == out.out
    for arguments in (["--kind", "thought"], ["--output", "no/where"]):
        assert filled("export", *arguments).code == 2


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    runs = as_lines(*(run_line(f"r{n}", context="x" * 8000) for n in range(500)))
    memory_store(tmp_path, "import", "-", stdin=runs)
    export = subprocess.Popen(
        [*PROGRAM, "export"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert export.stdout is not None
    assert export.stderr is not None
    first = export.stdout.readline()
    export.stdout.close()
    error = export.stderr.read()
    export.stderr.close()

    assert json.loads(first)["id"] == "r0"
    assert (export.wait(60), error) == (141, b"")


@pytest.mark.parametrize("command", [["list", "step"], ["list", "step", "--json"], ["stats"], ["doctor"], ["--help"]])
def test_nobody_reads_from_the_start(tmp_path: Path, command: list[str]) -> None:
    memory_store(tmp_path, "upgrade")
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*PROGRAM, *command], cwd=tmp_path, env=environment(), stdout=theirs, stderr=subprocess.PIPE, timeout=60
    )
    os.close(theirs)

    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_ends_it_with_130_and_one_line_and_keeps_what_was_committed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*PROGRAM, "import", "-"], cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stderr is not None
    # More than a pipe holds: once this is written, it runs and reads, and waits for more.
    child.stdin.write(as_lines(*(run_line(f"r{n}", context="x" * 8000) for n in range(500))))
    child.stdin.flush()
    child.send_signal(signal.SIGINT)
    error = child.stderr.read()
    child.stderr.close()

    assert (child.wait(60), error) == (130, b"memory-store: interrupted\n")
    child.stdin.close()
    assert memory_store(tmp_path, "doctor").code == 0


def test_a_full_output_is_one_line(tmp_path: Path) -> None:
    memory_store(tmp_path, "import", "-", stdin=as_lines(run_line()))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PROGRAM, "export"], cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE
        )

    assert done.returncode == 2
    assert done.stderr == b"memory-store: standard output: No space left on device\n"


def test_progress_bars_are_for_terminals(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_bytes(as_lines(*(run_line(f"r{n}") for n in range(50))))
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*PROGRAM, "import", "runs.jsonl"],
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=theirs,
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
    assert b"runs.jsonl" in seen
    assert b"50 episode" in out
    assert memory_store(tmp_path, "import", "runs.jsonl").err == ""


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['typer'] = None; from memory_store.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", hide], cwd=tmp_path, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'memory-store[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1
