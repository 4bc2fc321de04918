"""Lines that are wrong in every way there is: each is told by number and reason, and takes no other with it."""

from __future__ import annotations

import base64
import sqlite3
import struct
from contextlib import closing
from typing import Any

from memory_store import MemoryStore
from tests.integration.cli_support import PATTERN, bring, run_line

STEP = {"kind": "step", "id": "s", "episode_id": "r1", "step_number": 9, "action": "a"}
EMBEDDING = {"kind": "embedding", "id": "m", "episode_id": "r1", "content": "c", "model_name": "own", "vector_dim": 2}


def vector(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def raw(rest: str) -> bytes:
    """A run without steps, with text that `json.dumps` would not write."""
    return f'{{"id": "n", "task_type": "t", "domain": "d", "steps": [], {rest}}}\n'.encode()


def with_steps(*steps: Any) -> dict[str, Any]:
    return run_line("bad", steps=list(steps))


ONE = {"step_number": 1, "action": "a"}
HOSTILE: list[tuple[str, Any, str | None, str]] = [
    ("not JSON", b"{nope}\n", None, "not JSON"),
    ("cut off", b'{"id": "x"\n', None, "not JSON"),
    ("not UTF-8", b'{"id": "\xff"}\n', None, "not UTF-8 (byte 9)"),
    ("a list", [1], None, "no JSON object"),
    ("neither shape", {"id": "x"}, None, 'neither "steps"'),
    ("NaN", raw('"reward_score": NaN'), None, "NaN"),
    ("infinite", raw('"reward_score": 1e999'), "episode.reward_score", "finite"),
    ("NaN inside", raw('"context": {"a": 1e999}'), "episode.context", "finite"),
    ("huge integer", raw('"reward_score": ' + "9" * 5000), None, "not JSON"),
    ("endless nesting", raw('"context": ' + "[" * 100_000 + "]" * 100_000), None, "nested too deep"),
    ("deep nesting", raw('"context": ' + "[" * 65 + "]" * 65), "episode.context", "65 levels"),
    ("surrogate in a text", raw('"domain": "\\ud800"'), "episode.domain", "surrogate"),
    ("surrogate in JSON", raw('"context": "\\udfff"'), "episode.context", "surrogate"),
    ("surrogate in an unknown key", raw('"x": "\\ud800"'), "episode.metadata", "surrogate"),
    ("no id", run_line(None), "episode.id", "must be text"),
    ("empty id", run_line(""), "episode.id", "must be text"),
    ("NUL in the id", run_line("a\0b"), "episode.id", "NUL"),
    ("long id", run_line("x" * 300), "episode.id", "300 bytes, the limit is 256"),
    ("no room for the step's id", run_line("x" * 255), "step.id", "257 bytes, the limit is 256"),
    ("no domain", {k: v for k, v in run_line("bad").items() if k != "domain"}, "episode.domain", "is missing"),
    ("unknown status", run_line("bad", status="won"), "episode.status", "must be one of"),
    ("status of another type", run_line("bad", status=["success"]), "episode.status", "must be text"),
    ("score of another type", run_line("bad", reward_score="1"), "episode.reward_score", "must be a number"),
    ("time of another type", run_line("bad", created_at=5), "episode.created_at", "ISO 8601"),
    ("no time", run_line("bad", created_at="yesterday"), "episode.created_at", "ISO 8601"),
    ("time out of range", run_line("bad", created_at="0001-01-01T00:00:00+14:00"), "episode.created_at", "ISO 8601"),
    ("no room for notes", run_line("bad", metadata=[1]), "episode.metadata", "has no room"),
    ("steps no list", run_line("bad", steps={}), "episode.steps", "must be a list"),
    ("step no object", with_steps(1), "episode.steps", "must hold objects"),
    ("step without number", with_steps({"action": "a"}), "step.step_number", "must be an integer"),
    ("number no integer", with_steps({**ONE, "step_number": True}), "step.step_number", "must be an integer"),
    ("negative number", with_steps({**ONE, "step_number": -1}), "step.step_number", "negative"),
    ("number twice", with_steps(ONE, ONE), "step.step_number", "1 appears twice"),
    ("step without action", with_steps({"step_number": 1}), "step.action", "missing in step 1"),
    ("result of another type", with_steps({**ONE, "result": 5}), "step.result", "must be text"),
    ("duration no integer", with_steps({**ONE, "duration_ms": 1.5}), "step.duration_ms", "must be an integer"),
    ("result too large", with_steps({**ONE, "result": "x" * (1 << 20) + "y"}), "step.result", "1,048,577 bytes"),
    ("too long a line", run_line("bad", context="x" * (5 << 20)), None, "longer than"),
    ("unknown kind", {"kind": "thought", "id": "x"}, "kind", "unknown"),
    ("kind of another type", {"kind": ["step"], "id": "x"}, "kind", "unknown"),
    ("namespace no name", {**PATTERN, "namespace": "a b"}, "namespace", "not 1 to 200"),
    ("namespace of another type", {**PATTERN, "namespace": 5}, "namespace", "must be a str"),
    ("unknown field", {**PATTERN, "colour": "red"}, "pattern.colour", "no field"),
    ("missing field", {"kind": "pattern", "id": "p", "pattern_type": "t"}, "pattern.pattern_data", "is missing"),
    ("missing id", {k: v for k, v in PATTERN.items() if k != "id"}, "pattern.id", "is missing"),
    ("revision 0", {**PATTERN, "revision": 0}, "pattern.revision", "1 or more"),
    ("null time", {**PATTERN, "created_at": None}, "pattern.created_at", "must be a datetime"),
    ("usage below 0", {**PATTERN, "usage_count": -1}, "pattern.usage_count", "negative"),
    ("step of nothing", {**STEP, "episode_id": "nope"}, "episode_id", "does not exist"),
    ("step without number", {k: v for k, v in STEP.items() if k != "step_number"}, "step.step_number", "is missing"),
    ("number taken", {**STEP, "step_number": 1}, "step_number", "1 is taken"),
    ("no base64", {**EMBEDDING, "embedding": "?"}, "embedding.embedding", "no base64"),
    ("wrong dimensions", {**EMBEDDING, "embedding": vector(1, 2, 3)}, "embedding.embedding", "has 3 numbers"),
    ("NaN in the vector", {**EMBEDDING, "embedding": vector(1, float("nan"))}, "embedding.embedding", "finite"),
    ("wrong model", {**EMBEDDING, "model_name": "wordllama", "embedding": vector(1, 2)}, "embedding.vector_dim", "256"),
]  # fmt: skip


async def test_hostile_lines_are_told_by_number_and_the_rest_goes_in(store: MemoryStore) -> None:
    values: list[Any] = [run_line()]
    for number, (_, line, _, _) in enumerate(HOSTILE):
        values += [line, b"  \r\n", run_line(f"good-{number}")]

    report, rejections = await bring(store, *values, max_line_bytes=4 << 20)

    assert report.lines == len(values)
    assert report.inserted == {"episode": len(HOSTILE) + 1, "step": 2 * len(HOSTILE) + 2}
    assert await store.episodes.count() == len(HOSTILE) + 1
    found = {rejection.line: rejection for rejection in rejections}
    for index, (name, _, field, words) in enumerate(HOSTILE):
        rejection = found.pop(2 + 3 * index)
        assert rejection.field == field, (name, rejection)
        assert words in rejection.reason, (name, rejection)
        assert len(rejection.reason) < 400, name
    assert found == {}


async def test_what_the_database_itself_refuses_takes_no_other_line_with_it(
    file_url: str, file_store: MemoryStore
) -> None:
    with closing(sqlite3.connect(file_url.removeprefix("sqlite:///"))) as connection:
        connection.execute(
            "CREATE TRIGGER no_two BEFORE INSERT ON steps WHEN NEW.id = 'r2/2' BEGIN SELECT RAISE(ABORT, 'no two'); END"
        )

    report, [rejection] = await bring(file_store, run_line(), run_line("r2"), run_line("r3"))

    assert report.inserted == {"episode": 2, "step": 4}
    assert (rejection.line, rejection.id) == (2, "r2")
    assert "no two" in rejection.reason
    assert await file_store.episodes.get("r2") is None


async def test_numbers_that_two_lines_exchange_are_refused(file_store: MemoryStore) -> None:
    a, b = {**STEP, "id": "a", "step_number": 11}, {**STEP, "id": "b", "step_number": 12}
    await bring(file_store, run_line(), a, b)

    report, rejections = await bring(
        file_store, {**a, "step_number": 12}, {**b, "step_number": 11}, run_line("r2"), on_conflict="replace"
    )

    assert report.inserted == {"episode": 1, "step": 2}
    assert [(rejection.line, rejection.reason) for rejection in rejections] == [
        (1, "12 is taken in episode 'r1'"),
        (2, "11 is taken in episode 'r1'"),
    ]
