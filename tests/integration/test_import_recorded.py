"""Every recorded run of real agents, through the program's own import and back out of every way of reading."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memory_store import Episode, MemoryStore, Step
from tests.integration.cli_support import PROGRAM, environment, memory_store

WORDS = {"success": "completed", "failure": "failed", "incomplete": "archived"}
SOURCES = [
    "agent_as_a_judge",
    "aider",
    "autogpt_bench",
    "intercode",
    "mini_swe_agent",
    "openhands",
    "reflexion",
    "swe_agent_demos",
    "tau_bench",
]


@pytest.fixture(scope="module")
def runs(recorded_lines: Callable[[str], list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Every recorded run by its id."""
    found = {run["id"]: run for source in SOURCES for run in recorded_lines(source)}
    assert len(found) == 1572
    return found


@pytest.fixture(scope="module")
def files(shared_data: Path) -> list[str]:
    """The files of recorded runs."""
    return [str(path) for path in sorted((shared_data / "episodes").glob("*.jsonl"))]


@pytest.fixture(scope="module")
def imported(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that holds them all."""
    folder = tmp_path_factory.mktemp("imported")
    done = memory_store(folder, "import", *files, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["inserted"] == {"episode": 1572, "step": 11123}
    return folder


def moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def expect_episode(episode: Episode | None, run: dict[str, Any]) -> None:
    assert episode is not None
    word = run["status"]
    assert (episode.task_type, episode.domain, episode.context) == (run["task_type"], run["domain"], run["context"])
    assert episode.status == WORDS.get(word, word)
    assert episode.metadata == ({"source_status": word} if word in WORDS else {})
    assert (episode.reward_score, episode.completed_at) == (run["reward_score"], moment(run["completed_at"]))
    if run["created_at"] is not None:
        assert episode.created_at == moment(run["created_at"])
    assert episode.revision == 1


def expect_steps(steps: list[Step], run: dict[str, Any]) -> None:
    given = sorted(run["steps"], key=lambda step: step["step_number"])
    assert len(steps) == len(given)
    for step, source in zip(steps, given, strict=True):
        names = ("step_number", "action", "result", "tool_name", "duration_ms", "success")
        assert [getattr(step, name) for name in names] == [source[name] for name in names]
        assert step.timestamp == moment(source["timestamp"])


async def expect_all(store: MemoryStore, runs: dict[str, dict[str, Any]]) -> None:
    for id_, run in runs.items():
        expect_episode(await store.episodes.get(id_), run)
        expect_steps(await store.steps.of(id_), run)


async def test_get_from_disk_from_the_cache_after_a_restart_and_after_a_rebuild(
    imported: Path, runs: dict[str, dict[str, Any]]
) -> None:
    url = f"sqlite:///{imported}/agent.db"
    async with MemoryStore(url, cache_max_bytes=0) as store:
        await expect_all(store, runs)
    async with MemoryStore(url, cache_max_bytes=1 << 28) as store:
        await store.cache.rebuild()
        misses = store.stats().cache["episode"].misses
        await expect_all(store, runs)
        assert store.stats().cache["episode"].misses == misses
        assert store.stats().cache["step"].hits >= len(runs)
    async with MemoryStore(url, cache_max_bytes=1 << 28) as store:
        await store.cache.wait()
        assert (await store.cache.status()).reason == ""
        await expect_all(store, runs)
        assert store.stats().cache["episode"].misses == 0
    async with MemoryStore(url, cache_max_bytes=1 << 28, cache_version="other") as store:
        await store.cache.wait()
        assert "version key" in (await store.cache.status()).reason
        await expect_all(store, runs)


async def test_list_and_stream(imported: Path, runs: dict[str, dict[str, Any]]) -> None:
    async with MemoryStore(f"sqlite:///{imported}/agent.db") as store:
        listed, cursor = [], None
        while True:
            page = await store.episodes.list(limit=500, order_by=Episode.c.created_at.desc(), cursor=cursor)
            listed += page.items
            cursor = page.cursor
            if cursor is None:
                break
        streamed = {item.id: item async for item in store.episodes.stream()}
        steps = [item async for item in store.steps.stream(order_by=Step.c.step_number)]

    assert {item.id: item for item in listed} == streamed
    assert (len(listed), streamed.keys()) == (1572, runs.keys())
    for id_, episode in streamed.items():
        expect_episode(episode, runs[id_])
    for id_, run in runs.items():
        expect_steps([step for step in steps if step.episode_id == id_], run)


def test_export_and_import_give_the_same_bytes(imported: Path, runs: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    url = f"sqlite:///{imported}/agent.db"
    first = memory_store(tmp_path, "export", "--url", url, "--output", "first.jsonl")
    back = memory_store(tmp_path, "import", "first.jsonl", "--json")
    second = memory_store(tmp_path, "export", "--output", "second.jsonl")

    assert (first.code, back.code, second.code) == (0, 0, 0)
    assert back.json["inserted"] == {"episode": 1572, "step": 11123}
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "first.jsonl").read_bytes().split(b"\n") if line]
    contexts = {line["id"]: line["context"] for line in lines if line["kind"] == "episode"}
    assert contexts == {id_: run["context"] for id_, run in runs.items()}


def test_importing_again_changes_nothing(imported: Path, files: list[str]) -> None:
    before = memory_store(imported, "stats", "--json").json

    done = memory_store(imported, "import", *files, "--json")

    assert (done.code, done.json["inserted"], done.json["rejected"]) == (0, {}, 0)
    assert done.json["unchanged"] == {"episode": 1572, "step": 11123}
    after = memory_store(imported, "stats", "--json").json
    assert (after["position"], after["rows"]) == (before["position"], before["rows"])


def wait_for_rows(path: Path) -> None:
    url, deadline = f"file:{path}?mode=ro", time.monotonic() + 60
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(sqlite3.OperationalError),
            closing(sqlite3.connect(url, uri=True)) as connection,
        ):
            if connection.execute("SELECT count(*) FROM episodes").fetchone()[0]:
                return
        time.sleep(0.01)
    raise AssertionError("nothing was imported")


def test_an_import_that_was_killed_is_completed_by_running_it_again(files: list[str], tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*PROGRAM, "import", "-"], cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdin is not None
    everything = b"".join(Path(name).read_bytes() for name in files)
    # It commits what it has while it waits for the rest, which never comes: it is in the middle.
    child.stdin.write(everything[: len(everything) * 2 // 3])
    child.stdin.flush()
    wait_for_rows(tmp_path / "agent.db")
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdin.close()
    stored = memory_store(tmp_path, "stats", "--json").json["rows"]["default"]
    assert 0 < stored["episode"] < 1572

    done = memory_store(tmp_path, "import", *files, "--json")

    assert (done.code, done.json["rejected"]) == (0, 0)
    assert done.json["unchanged"] == {kind: count for kind, count in stored.items() if count}
    assert done.json["inserted"]["episode"] == 1572 - stored["episode"]
    assert memory_store(tmp_path, "stats", "--json").json["rows"]["default"]["step"] == 11123
    assert memory_store(tmp_path, "doctor").code == 0
