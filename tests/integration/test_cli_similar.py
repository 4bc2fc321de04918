"""`memory-store similar`: near-duplicates of a text or of a stored pattern."""

from __future__ import annotations

import pytest

from memory_store import MemoryStore, Pattern
from tests.integration.cli_support import Program, memory_store, one_line


@pytest.fixture
async def filled(program: Program) -> Program:
    """The program with some patterns."""
    async with MemoryStore(program.url) as store:
        for id_, tools in [("short", "read edit"), ("long", "read edit test"), ("else", "chat \x1b[31m undo")]:
            await store.patterns.put(
                Pattern(id=id_, pattern_type="tool_sequence", pattern_data={"tools": tools.split()})
            )
        await store.namespace("other").patterns.put(Pattern(id="o", pattern_type="t", pattern_data="read edit test"))
    return program


async def test_similar_to_a_text_and_to_a_pattern(filled: Program) -> None:
    by_text = filled("similar", "Tools: read edit test", "--threshold", "0.3", "--json").json["items"]
    by_pattern = filled("similar", "--pattern", "long", "--threshold", "0.3", "--json").json["items"]
    one = filled("similar", "--pattern", "long", "--threshold", "0.3", "--limit", "1", "--json").json["items"]
    other = filled("similar", "read edit test", "--namespace", "other", "--json").json["items"]

    assert [(item["pattern"]["id"], item["similarity"]) for item in by_pattern] == [("short", 2 / 5)]
    assert by_pattern[0]["pattern"]["pattern_data"] == {"tools": ["read", "edit"]}
    assert [(item["pattern"]["id"], item["similarity"]) for item in by_text] == [("long", 2 / 6)]
    assert one == by_pattern
    assert [(item["pattern"]["id"], item["similarity"]) for item in other] == [("o", 1.0)]


async def test_similar_as_a_table(filled: Program) -> None:
    done = filled("similar", "--pattern", "long", "--threshold", "0.3")
    nothing = filled("similar", "nothing like it")
    hostile = filled("similar", "chat \x1b[31m undo")

    assert done.code == nothing.code == hostile.code == 0
    assert "0.40" in done.out
    assert "short" in done.out
    assert nothing.out == "nothing is similar\n"
    assert "else" in hostile.out
    assert "\x1b" not in hostile.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "takes a text or --pattern"),
        (["text", "--pattern", "p"], "takes a text or --pattern"),
        (["text", "--threshold", "0"], "threshold must be 0.1 to 1"),
        (["text", "--threshold", "high"], "--threshold"),
        (["text", "--limit", "0"], "limit must be 1 to 1,000"),
        (["text", "--namespace", "a b"], "namespace"),
    ],
)
async def test_wrong_use_is_one_line_and_code_2(arguments: list[str], words: str, filled: Program) -> None:
    done = filled("similar", *arguments)

    assert (done.code, done.out) == (2, "")
    assert words in one_line(done)


async def test_no_such_pattern_and_no_database(filled: Program) -> None:
    missing = filled("similar", "--pattern", "nope")
    nowhere = memory_store(filled.folder, "similar", "x", "--url", "sqlite:///nowhere.db")

    assert (missing.code, "no pattern 'nope'" in one_line(missing)) == (1, True)
    assert nowhere.code == 3
    one_line(nowhere)
