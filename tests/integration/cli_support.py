"""The program as a child process, and lines to feed it."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

from memory_store import Embedding, Episode, MemoryStore, Namespace, Pattern, SpatiotemporalEntry, Step
from memory_store.transfer import ImportReport, Rejection, import_lines
from tests.children import Done, run_program

PATTERN: dict[str, Any] = {"kind": "pattern", "id": "p", "pattern_type": "t", "pattern_data": 1}
PROGRAM = [sys.executable, "-W", "error", "-c", "from memory_store.cli import main; main()"]
"""Starts the program from nothing, for what has a terminal, a pipe or signals; most of its half second is imports."""


def environment(**variables: str) -> dict[str, str]:
    """An environment without the caller's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEMORY_STORE_")}
    return {**kept, "COLUMNS": "80", **variables}


def memory_store(folder: Path, *arguments: str, stdin: bytes = b"", **variables: str) -> Done:
    """Run the program in a folder, to its end."""
    return run_program(arguments, folder, environment(**variables), stdin)


class Program:
    """The program with a database of its own.

    Args:
        folder: where it is run.
        url: the database, unless `--url` names another one.
        variables: of its environment.
    """

    def __init__(self, folder: Path, url: str, variables: dict[str, str]) -> None:
        self.folder, self.url = folder, url
        self.on_server = url.startswith("postgresql")
        self.variables = {"MEMORY_STORE_URL": url, **(variables if self.on_server else {})}

    def __call__(self, *arguments: str, stdin: bytes = b"", **variables: str) -> Done:
        """Run it to its end."""
        return memory_store(self.folder, *arguments, stdin=stdin, **{**self.variables, **variables})


async def plain_sql(url: str, *statements: str) -> None:
    """Run statements of another program, in one transaction."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        return
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        async with connection.transaction():
            for statement in statements:
                await connection.execute(statement)
    finally:
        await connection.close()


def one_line(done: Done) -> str:
    """What a failed run said: one line and nothing else."""
    assert done.err.startswith("memory-store: "), done.err
    assert done.err.count("\n") == 1, done.err
    return done.err


def run_line(id_: str = "r1", **changes: Any) -> dict[str, Any]:
    """A recorded run with two steps."""
    step = {"action": "ls", "result": "a\0b \U0001f600", "tool_name": "shell", "duration_ms": 5, "success": True}
    steps = [
        {"step_number": 1, "timestamp": "2026-01-02T03:04:05", **step},
        {"step_number": 2, "timestamp": None, **step},
    ]
    run = {"id": id_, "task_type": "debugging", "domain": "web", "context": {"goal": "x"}, "status": "success"}
    return {**run, "reward_score": 1, "created_at": None, "completed_at": None, "steps": steps} | changes


def as_lines(*values: Any) -> bytes:
    """JSON Lines; bytes are taken as they are."""
    return b"".join(value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n" for value in values)


async def bring(store: MemoryStore, *values: Any, **options: Any) -> tuple[ImportReport, list[Rejection]]:
    """Import values, one a line."""
    rejections: list[Rejection] = []
    lines = as_lines(*values).splitlines(keepends=True)
    return await import_lines(store, lines, on_rejection=rejections.append, **options), rejections


async def fill(store: Namespace, tag: str) -> None:
    """Put a hostile record of every kind."""
    text = f"{tag} \0 \x1b[31m \u2028 \U0001f9e0 \u00e9"
    episode = await store.episodes.put(
        Episode(id=f"e-{tag}", task_type="t", domain="d", context={"x": [1, 1e22, -0.5, None, text]}, reflection=text)
    )
    await store.episodes.update(episode.id, status="failed", success_rate=0.25, metadata=[text])
    await store.steps.append(episode.id, [Step(action=text, result="", success=None, timestamp=None) for _ in "abc"])
    await store.patterns.put(Pattern(pattern_type="tool_sequence", pattern_data={"tools": [text]}, confidence=0.1))
    vector = [0.1, -2.5, 3e-45, 65504.0]
    await store.embeddings.put(
        Embedding(episode_id=episode.id, content=text, embedding=vector, model_name="m", vector_dim=4)
    )
    await store.spatiotemporal.put(
        SpatiotemporalEntry(episode_id=episode.id, spatial_key=f"web/{tag}", temporal_key="2026-W47")
    )


async def fill_two_namespaces(url: str) -> None:
    """Put records of every kind into two namespaces of a database, under the same ids."""
    async with MemoryStore(url) as store:
        await fill(store, "one")
        await fill(store.namespace("other/agent"), "one")
        await fill(store.namespace("other/agent"), "two")
