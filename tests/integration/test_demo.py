"""The demo, run as a user runs it, and its own checks, which must be able to fail."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memory_store import Episode, MemoryStore, Step
from memory_store.cli.demo import run, stages
from memory_store.cli.demo.agent import MODEL_NAME
from memory_store.cli.demo.crash import Acknowledged, digest
from memory_store.cli.demo.goals import Survey, make_goals
from memory_store.cli.demo.summary import Summary
from memory_store.cli.demo.tools import Toolbox

PROGRAM = Path(sys.executable).parent / "memory-store"


def run_demo(cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), "demo", *options],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with a package, a test, and a file no parser takes."""
    files = {
        "garden/__init__.py": "",
        "garden/soil.py": "import json\n\n\nclass Soil:\n    def water(self):\n        return json.dumps(1)\n",
        "garden/plant.py": "from garden.soil import Soil\n\n\ndef grow():\n    return Soil().water()\n",
        "garden/broken.py": "def (:\n",
        "tests/test_plant.py": "from garden.plant import grow\n\n\ndef test_grow():\n    assert grow()\n",
    }
    for name, text in files.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path / "checkout"


def contents(folder: Path) -> dict[str, bytes]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(".demo")}


async def test_json_run_in_a_checkout(checkout: Path) -> None:
    before = contents(checkout)
    old = checkout / ".demo" / "agent.db"
    old.parent.mkdir()
    old.write_text("not a database")
    (old.parent / "mine.txt").write_text("keep")

    done = run_demo(checkout, "--json")

    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)  # one object and nothing else
    assert summary["passed"] is True
    assert all(check["passed"] for check in summary["checks"])
    assert summary["inspected"] == str(checkout)
    assert summary["crash"]["signal"] == signal.SIGKILL
    assert summary["crash"]["lost"] == 0
    assert {tool["tool"] for tool in summary["tools"]} == {"list_files", "read_file", "search", "run_python"}
    assert sum(tool["failures"] for tool in summary["tools"]) > 0
    assert contents(checkout) == before
    assert (old.parent / "mine.txt").read_text() == "keep"
    await check_what_was_recorded(f"sqlite:///{old}", summary)


async def check_what_was_recorded(url: str, summary: dict[str, Any]) -> None:
    """The memory holds what the summary says, and each finished episode is whole."""
    async with MemoryStore(url, namespace="demo-agent") as store:
        finished = [item async for item in store.episodes.stream(Episode.c.status != "active")]
        assert len(finished) >= stages.EPISODES
        assert await store.episodes.count(Episode.c.status == "active") == summary["crash"]["episodes_cut_short"]
        for episode in finished:
            steps = await store.steps.of(episode.id)
            assert [step.step_number for step in steps] == list(range(1, len(steps) + 1)) != []
            failed = sum(step.success is False for step in steps)
            assert episode.success_rate == pytest.approx(1 - failed / len(steps))
            assert episode.revision == 2
            assert episode.reflection
            [embedding] = await store.embeddings.of(episode.id)
            assert (embedding.model_name, embedding.content) == (MODEL_NAME, episode.context["goal"])
            assert len(await store.spatiotemporal.of(episode.id)) == 1
        patterns = [item async for item in store.patterns.stream()]
    uses = [item.usage_count for item in patterns if item.pattern_type == "tool_sequence"]
    assert sum(uses) == len(finished)


def test_text_run_where_there_is_no_checkout(tmp_path: Path) -> None:
    done = run_demo(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "12 of 12 checks held" in done.stdout
    assert "✗" not in done.stdout
    for heading in ("1  Record", "2  Read", "3  Crash", "4  Rebuild", "5  Learned"):
        assert heading in done.stdout


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path / "gone"), False) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'gone'} is not a folder\n"


def test_goals_are_the_same_each_time_and_right(checkout: Path) -> None:
    survey = Survey.of(checkout)
    goals = [goal for goal, _ in zip(make_goals(survey), range(60), strict=False)]

    assert goals == [goal for goal, _ in zip(make_goals(Survey.of(checkout)), range(60), strict=False)]
    truths = {(goal.kind, goal.subject): goal.truth for goal in goals}
    assert truths["definition", "Soil"] == {"garden/soil.py"}
    assert truths["mentions", "grow"] == {"tests/test_plant.py"}
    assert truths["mentions", "Soil"] == set()
    assert truths["lines", "garden/soil.py"] == 6
    assert truths["import", "json"] is True
    assert ("import", "garden") not in truths  # nothing of the checkout is ever executed
    assert "garden/broken.py" not in survey.sources


async def test_tools_fail_for_real(checkout: Path, tmp_path: Path) -> None:
    tools = Toolbox(checkout, tmp_path / "scratch")

    missing = await tools.read_file("gone.py")
    nothing = await tools.search("no such word")
    no_folder = await tools.list_files("gone")
    no_module = await tools.run_python("-c", "import no_such_module_at_all")
    syntax = await tools.run_python("-m", "py_compile", "garden/broken.py")
    found = await tools.search(r"class \w+")

    assert [o.success for o in (missing, nothing, no_folder, no_module, syntax, found)] == [False] * 5 + [True]
    assert "FileNotFoundError" in missing.result
    assert "ModuleNotFoundError" in no_module.result
    assert "SyntaxError" in syntax.result
    assert found.result == "garden/soil.py:4: class Soil:"
    assert no_module.duration_ms > 0


async def test_a_lost_write_is_noticed(file_store: MemoryStore) -> None:
    episode = await file_store.episodes.put(Episode(task_type="testing", domain="web"))
    [step] = await file_store.steps.append(episode.id, Step(action="look"))
    newer = await file_store.episodes.update(episode.id, status="completed")

    def told(record: Any, **changed: Any) -> Acknowledged:
        return Acknowledged(record.kind, record.id, record.revision, digest(record))._replace(**changed)

    assert await stages._missing(file_store, [told(episode), told(newer), told(step)]) == 0
    assert await stages._missing(file_store, [told(episode)]) == 0  # replaced by a later revision
    assert await stages._missing(file_store, [told(step, id="gone")]) == 1
    assert await stages._missing(file_store, [told(newer, revision=3)]) == 1
    assert await stages._missing(file_store, [told(newer, digest="other")]) == 1


async def test_a_gap_in_the_revisions_is_noticed(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        episode = await store.episodes.put(Episode(task_type="testing", domain="web"))
        await store.episodes.update(episode.id, status="completed")
    database = tmp_path / "agent.db"
    assert stages._inspect(database) == ""

    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM changes WHERE revision = 1")

    assert stages._inspect(database) == "1 records with a gap in their revisions"


def test_one_failed_check_fails_the_demo() -> None:
    summary = Summary("here", "there")
    summary.check("one", True, "")
    assert summary.passed
    summary.check("two", False, "")
    assert not summary.passed
