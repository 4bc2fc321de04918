"""Durable writes: alone, with many writers, in bulk, and as an import of JSON lines."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import Any

from memory_store import Episode, MemoryStore, Step
from memory_store.clock import new_id, to_us

from .baselines import aioconnect, connect, empty_database, insert_sql, open_quiet
from .harness import Measured, Sizes, Workspace, as_rate, compare, on_one_core
from .ours import put_at_once, put_each
from .rows import NAMESPACE, episodes, steps, stored_row

_INSERT = insert_sql("episode")
_INSERT_STEP = insert_sql("step")
_BLOCK = 5000


def _rows(records: list[Episode]) -> list[tuple[Any, ...]]:
    return [(NAMESPACE, *stored_row(record)) for record in records]


@on_one_core
async def put_alone(workspace: Workspace, sizes: Sizes) -> Measured:
    count = min(sizes.slice, 40)
    path = await empty_database(workspace.new("put-alone-baseline"))
    async with open_quiet(workspace.new("put-alone")) as store, aioconnect(path) as connection:

        async def ours(number: int) -> float:
            return await put_each(store, count, number)

        async def baseline(number: int) -> float:
            rows = _rows(list(episodes(count, number * count)))
            start = perf_counter()
            for row in rows:
                await connection.execute("BEGIN IMMEDIATE")
                await connection.execute(_INSERT, row)
                await connection.commit()
            return (perf_counter() - start) / count

        return await compare(ours, baseline, sizes.rounds * 2, unit="µs")


def put_with(writers: int) -> Callable[[Workspace, Sizes], Awaitable[Measured]]:
    """Return the benchmark of so many concurrent writers."""
    return partial(_put_with, writers)


async def _put_with(writers: int, workspace: Workspace, sizes: Sizes) -> Measured:
    each = max(1, min(sizes.slice * 2, 2048) // writers) if writers > 1 else min(sizes.slice, 60)
    count = writers * each
    connection = connect(await empty_database(workspace.new("put-many-writers-baseline")))
    try:
        async with open_quiet(workspace.new("put-many-writers")) as store:

            async def ours(number: int) -> float:
                return await put_at_once(store, count, number, writers)

            async def baseline(number: int) -> float:
                rows = _rows(list(episodes(count, number * count)))
                start = perf_counter()
                for place in range(0, count, writers):
                    await asyncio.to_thread(_insert_batch, connection, rows[place : place + writers])
                return (perf_counter() - start) / count

            times = await compare(ours, baseline, sizes.fewer(20), unit="", scale=1)
            return as_rate(times, unit="writes/s")
    finally:
        connection.close()


def _insert_batch(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_INSERT, rows)
    connection.execute("COMMIT")


async def put_many(workspace: Workspace, sizes: Sizes) -> Measured:
    """Both sides write block by block in turns; the baseline keeps its one transaction open to the end."""
    connection = connect(await empty_database(workspace.new("bulk-baseline")))
    ours_s = baseline_s = 0.0
    try:
        async with open_quiet(workspace.new("bulk")) as store:
            connection.execute("BEGIN IMMEDIATE")
            for first in range(0, sizes.rows, _BLOCK):
                owners = list(episodes(min(_BLOCK, sizes.rows - first), first))
                parts = [step for place, owner in enumerate(owners) for step in steps(owner, 5, first + place)]
                rows = _rows(owners)
                part_rows = [(NAMESPACE, *stored_row(step)) for step in parts]
                start = perf_counter()
                connection.executemany(_INSERT, rows)
                connection.executemany(_INSERT_STEP, part_rows)
                baseline_s += perf_counter() - start
                start = perf_counter()
                await _put_block(store, owners, parts)
                ours_s += perf_counter() - start
            start = perf_counter()
            connection.execute("COMMIT")
            baseline_s += perf_counter() - start
    finally:
        connection.close()
    written = sizes.rows * 6
    return Measured(baseline_s / ours_s, written / ours_s, written / baseline_s, "rows/s", {"rows": written})


async def _put_block(store: MemoryStore, owners: list[Episode], parts: list[Step]) -> None:
    await store.episodes.put_many(owners)
    await store.steps.put_many(parts)


async def import_lines(workspace: Workspace, sizes: Sizes) -> Measured:
    from memory_store import transfer  # here: it is part of the package that nothing else needs

    count = min(sizes.slice, 500)
    connection = connect(await empty_database(workspace.new("import-baseline")))
    try:
        async with open_quiet(workspace.new("import")) as store:

            async def ours(number: int) -> float:
                lines = recorded_lines(count, number * count)
                start = perf_counter()
                report = await transfer.import_lines(store, lines)
                took = perf_counter() - start
                assert report.inserted["step"] == count * 5, report
                return took / count

            async def baseline(number: int) -> float:
                lines = recorded_lines(count, number * count)
                start = perf_counter()
                await asyncio.to_thread(_load_lines, connection, lines)
                return (perf_counter() - start) / count

            times = await compare(ours, baseline, sizes.fewer(15), unit="", scale=1)
            return as_rate(times, unit="lines/s")
    finally:
        connection.close()


def recorded_lines(count: int, first: int) -> list[bytes]:
    """Return recorded runs as JSON lines, each with five steps and a new id."""
    lines = []
    for number, record in enumerate(episodes(count, first), first):
        line = {
            "id": record.id,
            "task_type": record.task_type,
            "domain": record.domain,
            "context": record.context,
            "status": "success" if number % 3 else "failure",
            "reward_score": record.reward_score,
            "created_at": record.created_at.isoformat(),
            "completed_at": None,
            "steps": [
                {
                    "step_number": step.step_number,
                    "action": step.action,
                    "result": step.result,
                    "tool_name": step.tool_name,
                    "duration_ms": step.duration_ms,
                    "success": step.success,
                    "timestamp": None,
                }
                for step in steps(record, 5, number)
            ],
        }
        lines.append(json.dumps(line, ensure_ascii=False).encode())
    return lines


def _load_lines(connection: sqlite3.Connection, lines: list[bytes]) -> None:
    """Do what a short script would do: no checks, no log, one transaction."""
    rows, parts = [], []
    for line in lines:
        run = json.loads(line)
        at = to_us(datetime.fromisoformat(run["created_at"]))
        context = json.dumps(run["context"], ensure_ascii=False)
        fixed = (run["task_type"], run["domain"], context, run["status"], None, run["reward_score"], None, None, "{}")
        rows.append((NAMESPACE, run["id"], 1, at, at, *fixed))
        for step in run["steps"]:
            told = (step["action"], step["result"], step["duration_ms"], step["success"], None, step["tool_name"])
            parts.append((NAMESPACE, new_id(), 1, at, at, run["id"], step["step_number"], *told))
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_INSERT, rows)
    connection.executemany(_INSERT_STEP, parts)
    connection.execute("COMMIT")
