"""`memory-store search` and `reindex`: what is found, as a table and as JSON, and what wrong use is answered."""

from __future__ import annotations

import json

import pytest

from memory_store import MemoryStore, Step
from tests.integration.cli_support import Program, memory_store, one_line
from tests.unit.samples import make_episode


@pytest.fixture
async def filled(program: Program) -> Program:
    """The program with some episodes and a step; in another namespace one more."""
    async with MemoryStore(program.url) as store:
        await store.episodes.put(make_episode(id="e1", domain="web", context="The lantern at the harbour"))
        await store.episodes.put(make_episode(id="e2", domain="cli", context="A lantern \x1b[31m on GitHub"))
        await store.steps.append("e1", [Step(id="s1", action="buy oil for the lantern", success=False)])
        await store.namespace("other").episodes.put(make_episode(id="o", context="lantern"))
    return program


async def test_what_is_found_and_its_pages(filled: Program) -> None:
    found = filled("search", "lantern", "--json").json
    assert {(item["record"]["kind"], item["record"]["id"]) for item in found["items"]} == {
        ("episode", "e1"),
        ("episode", "e2"),
        ("step", "s1"),
    }
    assert (found["cursor"], found["complete"]) == (None, True)
    assert all(set(item["scores"]) == {"text"} for item in found["items"])
    first = filled("search", "lantern", "--limit", "2", "--json").json
    rest = filled("search", "lantern", "--limit", "2", "--cursor", first["cursor"], "--json").json
    assert first["items"] + rest["items"] == found["items"]
    assert rest["cursor"] is None
    other = filled("search", "lantern", "--namespace", "other", "--json").json
    assert [item["record"]["id"] for item in other["items"]] == ["o"]


async def test_filters_and_expert_queries(filled: Program) -> None:
    def ids(*arguments: str) -> list[str]:
        return [item["record"]["id"] for item in filled("search", *arguments, "--json").json["items"]]

    assert ids("lantern", "--kind", "step") == ["s1"]
    assert ids("lantern", "--kind", "episode", "--where", '{"domain": "web"}') == ["e1"]
    assert ids("lantern", "--kind", "step", "--where", '{"success": false}') == ["s1"]
    assert ids("lantern", "--kind", "episode", "--where", '{"domain": {"$in": []}}') == []
    huge = json.dumps({"success_rate": {"$ne": 10**30}})
    assert sorted(ids("lantern", "--kind", "episode", "--where", huge)) == ["e1", "e2"]
    assert ids("lantern NOT github", "--kind", "episode", "--expert") == ["e1"]


async def test_as_a_table(filled: Program) -> None:
    done = filled("search", "github", COLUMNS="120")
    assert done.code == 0
    assert "e2" in done.out
    assert "**GitHub**" in done.out
    assert "\x1b" not in done.out
    assert filled("search", "nothing").out == "nothing was found\n"


async def test_the_index_is_made_anew(filled: Program) -> None:
    assert filled("reindex", "--json").json["records"] == 4
    assert filled("reindex").out.startswith("4 records indexed, in ")
    assert len(filled("search", "lantern", "--json").json["items"]) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lantern AND", "--expert"], "at character"),
        (["lantern", "--where", "{}"], "name it by --kind"),
        (["lantern", "--kind", "thought"], "kinds must be of"),
        (["lantern", "--kind", "episode", "--where", '{"nope": 1}'], "no column"),
        (["lantern", "--limit", "0"], "limit must be 1 to 1,000"),
        (["lantern", "--cursor", "x"], "cursor"),
        (["lantern", "--namespace", "a b"], "namespace"),
        (["x" * 10_001], "10,001 characters"),
    ],
)
async def test_wrong_use_is_one_line_and_code_2(arguments: list[str], words: str, filled: Program) -> None:
    done = filled("search", *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in one_line(done)


@pytest.mark.parametrize("command", [["search", "lantern"], ["reindex"]])
async def test_without_a_database(command: list[str], filled: Program) -> None:
    done = memory_store(filled.folder, *command, "--url", "sqlite:///nowhere.db")
    assert done.code == 3
    one_line(done)
    assert not (filled.folder / "nowhere.db").exists()
