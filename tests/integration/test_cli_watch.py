"""`stats --watch` as a real program, beside a process that writes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from memory_store import Episode, MemoryStore, Step
from memory_store.activity import Watch
from tests.integration.cli_support import PROGRAM, Program, environment, memory_store, one_line, plain_sql

WATCH = ["stats", "--watch", "--interval", "0.05"]


@contextmanager
def watching(program: Program, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program, watching; it is ended with the block."""
    child = subprocess.Popen(
        [*PROGRAM, *WATCH, *arguments],
        cwd=program.folder,
        env=environment(**program.variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def next_document(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next line, as it comes: nothing waits for a buffer to fill."""
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line, child.communicate()
    found: dict[str, Any] = json.loads(line)
    return found


def episode() -> Episode:
    return Episode(task_type="testing", domain="web")


@pytest.fixture
async def made(program: Program) -> Program:
    """The program with an empty database."""
    async with MemoryStore(program.url, cache_path=""):
        return program


@pytest.fixture
async def store(program: Program, tmp_path: Path) -> Any:
    """A store that another process watches."""
    async with MemoryStore(program.url, namespace="watched/agent", cache_path=f"{tmp_path}/agent.db.cache") as opened:
        yield opened


async def test_what_another_process_writes_is_seen(store: MemoryStore, program: Program, tmp_path: Path) -> None:
    with watching(program, "--json") as child:
        first = next_document(child)
        stored = [await store.episodes.put(episode()) for _ in range(5)]
        await store.steps.append(stored[0].id, [Step(action="ls") for _ in range(3)])
        commits, changes = 0.0, {"episode": 0.0, "step": 0.0}
        while commits < 5.5:
            seen = next_document(child)
            commits += seen["commits_per_s"] * seen["elapsed_s"]
            for kind, rate in seen["changes_per_s"].items():
                changes[kind] += rate * seen["elapsed_s"]

    assert (first["elapsed_s"], first["commits_per_s"], first["changes_per_s"]) == (None, None, None)
    assert (round(commits, 6), {kind: round(count, 6) for kind, count in changes.items()}) == (
        6,
        {"episode": 5, "step": 3},
    )
    if program.on_server:
        assert (seen["wal_bytes"], seen["database_bytes"] > 100_000) == (0, True)
        assert seen["connections"] >= 2
        assert 0 <= seen["busy_connections"] < seen["connections"]
    else:
        assert seen["wal_bytes"] == (tmp_path / "agent.db-wal").stat().st_size > 0
        assert seen["database_bytes"] == (tmp_path / "agent.db").stat().st_size
        assert (seen["connections"], seen["busy_connections"]) == (None, None)
    assert (seen["cache_bytes"], seen["cache_s_ago"]) == (0, None)
    assert datetime.fromisoformat(seen["at"]).tzinfo is not None


async def test_the_saved_cache_and_its_age(store: MemoryStore, program: Program, tmp_path: Path) -> None:
    await store.episodes.put(episode())
    await store.cache.save()
    [file] = [each for each in (tmp_path / "agent.db.cache").iterdir() if each.is_file()]
    os.utime(file, (file.stat().st_mtime - 1000, file.stat().st_mtime - 1000))
    done = program(*WATCH, "--count", "1", "--json")

    assert done.json["cache_bytes"] == file.stat().st_size
    assert 1000 <= done.json["cache_s_ago"] < 1300


def test_count_ends_it_and_text_is_a_line_a_look(made: Program) -> None:
    done = made(*WATCH, "--count", "3")
    note, *lines = done.out.splitlines()

    assert (done.code, done.err) == (0, "")
    assert "store.stats()" in note, "it says what it cannot see"
    assert len(lines) == 3
    for line in lines:
        assert f"  position {16 if made.on_server else 1}  " in line  # the upgrade, in each head
        assert ("connections" if made.on_server else "WAL") in line
        assert line.endswith("saved cache none")
    assert ["- commits/s  changes: -  " in line for line in lines] == [True, False, False]
    assert "  0.0 commits/s  changes: none  " in lines[2]


def test_json_is_one_document_a_line(made: Program) -> None:
    done = made(*WATCH, "--count", "2", "--json")

    first, second = map(json.loads, done.out.splitlines())
    assert first.keys() == second.keys()
    assert (second["commits_per_s"], second["changes_per_s"]) == (0, {})
    assert second["elapsed_s"] >= 0.05


@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_ctrl_c_ends_it_with_130_and_one_line(json_: list[str], made: Program) -> None:
    with watching(made, *json_) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)

    assert (child.returncode, error) == (130, b"memory-store: interrupted\n")


def test_it_ends_when_nobody_reads_any_more(made: Program) -> None:
    with watching(made, "--json") as child:
        next_document(child)
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(60) == 141
        assert child.stderr is not None
        assert child.stderr.read() == b""


def on_a_terminal(program: Program, *arguments: str, interrupt_at: bytes = b"") -> tuple[int, bytes]:
    """Run it on a terminal to its end, or interrupt it at some text; return its code and what it sent the terminal."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*PROGRAM, *WATCH, *arguments],
        cwd=program.folder,
        env=environment(TERM="xterm", **program.variables),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, interrupted = b"", False
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if interrupt_at and not interrupted and interrupt_at in shown:
                interrupted = True
                child.send_signal(signal.SIGINT)
        return child.wait(60), shown
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def test_on_a_terminal_it_is_shown_in_place(made: Program) -> None:
    code, shown = on_a_terminal(made, "--count", "3")

    assert code == 0
    assert shown.count(b"\x1b[1A") > 10, "the cursor goes back up to write over what was there"
    assert shown.count(b"position 16, " if made.on_server else b"position 1, ") >= 3
    for text in (b"changes/s", b"spatiotemporal", b"saved cache none", b"store.stats()"):
        assert text in shown


def test_ctrl_c_on_a_terminal_gives_the_cursor_back(made: Program) -> None:
    code, shown = on_a_terminal(made, interrupt_at=b"0.0 commits/s")

    assert code == 130
    assert shown.rstrip().endswith(b"memory-store: interrupted")
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--watch", "--interval", "0"], "--interval must be more than 0 seconds, got 0"),
        (["--watch", "--interval", "nan"], "--interval must be more than 0 seconds, got nan"),
        (["--watch", "--interval", "inf"], "--interval must be more than 0 seconds, got inf"),
        (["--watch", "--count", "0"], "--count must be at least 1, got 0"),
        (["--interval", "1"], "--interval and --count go with --watch"),
        (["--count", "1"], "--interval and --count go with --watch"),
        (["--watch", "--interval", "soon"], "--interval"),
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = memory_store(tmp_path, "stats", *arguments)

    assert (done.code, done.out) == (2, "")
    assert words in one_line(done)
    assert list(tmp_path.iterdir()) == []


def test_no_database_is_code_3_and_none_is_made(tmp_path: Path) -> None:
    done = memory_store(tmp_path, *WATCH, "--count", "1")

    assert (done.code, done.out) == (3, "")
    assert "there is no database at" in one_line(done)
    assert list(tmp_path.iterdir()) == []


async def test_a_database_taken_back_has_no_rates_for_one_look(shared_url: str) -> None:
    async with MemoryStore(shared_url, cache_max_bytes=0) as store:
        watch = Watch(store)
        for _ in range(3):
            await store.episodes.put(episode())
        await watch.look()
        await plain_sql(
            shared_url,
            "DELETE FROM changes WHERE (shard, position) IN (SELECT shard, position FROM head) AND kind = 'episode'",
            "UPDATE head SET position = position - 1, nonce = 7 WHERE position = (SELECT max(position) FROM head)",
        )
        back, after = await watch.look(), await watch.look()

    assert (back.commits_per_s, back.changes_per_s) == (None, None)
    assert (after.commits_per_s, after.changes_per_s) == (0, {})


async def test_another_past_that_is_longer_has_no_rates_for_one_look(shared_url: str) -> None:
    async with MemoryStore(shared_url, cache_max_bytes=0) as store:
        watch = Watch(store)
        await store.episodes.put(episode())
        await watch.look()
        await plain_sql(shared_url, "UPDATE changes SET nonce = 7")
        await store.episodes.put(episode())
        seen, after = await watch.look(), await watch.look()

    assert (seen.commits_per_s, seen.changes_per_s) == (None, None)
    assert (after.commits_per_s, after.changes_per_s) == (0, {})


async def test_an_upgrade_has_no_rates_either(shared_url: str) -> None:
    async with MemoryStore(shared_url, cache_max_bytes=0) as store:
        watch = Watch(store)
        await watch.look()
        await plain_sql(shared_url, "UPDATE head SET position = position + 1, nonce = 7, epoch = epoch + 1")
        seen = await watch.look()

    assert (seen.commits_per_s, seen.changes_per_s) == (None, None)


async def test_plain_sql_is_seen_as_well(shared_url: str) -> None:
    async with MemoryStore(shared_url) as store:
        stored = await store.episodes.put(episode())
        watch = Watch(store)
        await watch.look()
        await plain_sql(shared_url, f"UPDATE episodes SET domain = 'cli' WHERE id = '{stored.id}'")
        seen = await watch.look()

    assert seen.changes_per_s is not None
    assert seen.elapsed_s is not None
    assert {kind: round(rate * seen.elapsed_s, 6) for kind, rate in seen.changes_per_s.items()} == {"episode": 1}


async def test_a_store_in_memory_can_be_watched_from_inside() -> None:
    async with MemoryStore("sqlite:///:memory:") as store:
        seen = await Watch(store).look()

    assert (seen.cache_bytes, seen.cache_s_ago) == (0, None)


async def test_commits_of_all_namespaces_are_counted_whatever_head_they_are_of(shared_url: str) -> None:
    async with MemoryStore(shared_url) as store:
        watch = Watch(store)
        before = await watch.look()
        for number in range(20):
            await store.namespace(f"agent-{number}").episodes.put_many([episode(), episode()])
        seen, after = await watch.look(), await watch.look()

    assert seen.changes_per_s is not None
    assert seen.commits_per_s is not None
    assert seen.elapsed_s is not None
    assert seen.position - before.position == round(seen.commits_per_s * seen.elapsed_s, 6) == 20
    assert {kind: round(rate * seen.elapsed_s, 6) for kind, rate in seen.changes_per_s.items()} == {"episode": 40}
    assert (after.commits_per_s, after.changes_per_s) == (0, {})
