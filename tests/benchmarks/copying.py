"""`copy` from a SQLite file to PostgreSQL, against the driver's own COPY of the same rows into the same tables."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import asyncpg

from memory_store.durable import schema
from memory_store.durable.engine import parse_url
from memory_store.records import RECORDS
from memory_store.transfer import CopyReport, copy_store
from tests.servers.postgres import PostgresServer

from .baselines import connect, filled, select_sql, url_of
from .harness import Measured, Sizes, Workspace
from .rows import NAMESPACE

_MOST_ROUNDS = 3


async def copy(workspace: Workspace, sizes: Sizes) -> Measured:
    """Rows alone, in turns; the log, which the baseline does not write, and the verification are reported beside it.

    The baseline has its rows in memory, and sends them in one statement and one transaction, without the triggers.
    """
    path = await filled(workspace, sizes.rows)
    rows = await asyncio.to_thread(_rows, path)
    pairs: list[tuple[float, float]] = []
    report: CopyReport | None = None
    with PostgresServer() as server:

        async def ours(number: int) -> float:
            nonlocal report
            report = await copy_store(url_of(path), await _empty(server, f"ours_{number}"))
            assert report.records["episode"] == len(rows), report
            server.drop_database(f"ours_{number}")
            return report.seconds["records"]

        async def baseline(number: int) -> float:
            await _empty(server, f"bare_{number}")
            took = await _copy(server.dsn(f"bare_{number}"), rows)
            server.drop_database(f"bare_{number}")
            return took

        for number in range(sizes.fewer(_MOST_ROUNDS)):
            if number % 2:
                mine, theirs = await ours(number), await baseline(number)
            else:
                theirs, mine = await baseline(number), await ours(number)
            pairs.append((mine, theirs))
    assert report is not None
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    detail = {f"{name}_s": seconds for name, seconds in report.seconds.items()}
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    return Measured(ratio, len(rows) / mine, len(rows) / theirs, "rows/s", {"rows": len(rows), **detail})


async def _empty(server: PostgresServer, name: str) -> str:
    """Make a database with the store's tables, indexes and triggers."""
    url = server.create_database(name)
    await asyncio.to_thread(schema.upgrade, parse_url(url), 30.0)
    return url


def _rows(path: Path) -> list[tuple[Any, ...]]:
    connection = connect(path)
    try:
        return [(NAMESPACE, *row) for row in connection.execute(select_sql("episode", ""))]
    finally:
        connection.close()


async def _copy(dsn: str, rows: list[tuple[Any, ...]]) -> float:
    connection = await asyncpg.connect(dsn)
    try:
        start = perf_counter()
        async with connection.transaction():
            await connection.execute("SELECT set_config('memory_store.writing', 'on', true)")
            await connection.copy_records_to_table(
                "episodes", records=rows, columns=["namespace", *RECORDS["episode"].columns]
            )
        return perf_counter() - start
    finally:
        await connection.close()
