"""Several processes on one PostgreSQL for a while, plain SQL in between: `python -m tests.processes.server_mixed`.

The calls, the histories and the judge are those of `mixed`. One process is stopped now and then for longer than a
bounded read may be behind: what it answers when it goes on is judged as everything else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import asyncpg

from memory_store.durable.changes import shard_of
from memory_store.records import RECORDS
from tests.fault.servers_support import dsn_of
from tests.fault.support import Child
from tests.processes import mixed
from tests.processes.checker import Verdict, judge
from tests.processes.history import Operation
from tests.processes.truth import Log, Logged
from tests.processes.workload import NAMESPACE
from tests.servers.postgres import PostgresServer

_HEADS = 16  # the default
_SHARD = shard_of(NAMESPACE, _HEADS)
# Of the same head, so that every plain write moves the position that the others' caches stand at.
_PLAIN_NAMESPACE = next(name for name in map("plain{}".format, range(1000)) if shard_of(name, _HEADS) == _SHARD)
_STOPPED_S = 0.3


async def read_server_log(url: str) -> Log:
    """Read the log of the namespace's head, in one snapshot."""
    connection = await asyncpg.connect(dsn_of(url))
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            head = await connection.fetchval("SELECT position FROM head WHERE shard = $1", _SHARD)
            rows = await connection.fetch(
                "SELECT position, idx, kind, namespace, key, parent, operation, revision, actor FROM changes "
                "WHERE shard = $1 ORDER BY position, idx",
                _SHARD,
            )
            stored = {
                (kind, namespace, id_): revision
                for kind, spec in RECORDS.items()
                for namespace, id_, revision in await connection.fetch(
                    f"SELECT namespace, id, revision FROM {spec.table.name}"
                )
            }
    finally:
        await connection.close()
    return Log(head, [Logged(*row) for row in rows], stored)


async def _disturb(url: str, children: list[Child], seconds: float, seed: int) -> int:
    """Write by plain SQL, and stop one process and let it go on, again and again; return how many writes."""
    chosen, until, writes = random.Random(seed), time.monotonic() + seconds, 0
    connection = await asyncpg.connect(dsn_of(url))
    try:
        while time.monotonic() < until:
            pid = children[chosen.randrange(len(children))]._process.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(_STOPPED_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            for _ in range(20):
                await connection.execute(
                    "INSERT INTO patterns (namespace, id, revision, created_at, updated_at, pattern_type, "
                    "pattern_data, domain, success_rate, confidence, usage_count, metadata) "
                    "VALUES ($1, 'plain', 1, 0, 0, 't', '{}', 'd', 0, 0, 0, '{}') "
                    "ON CONFLICT (namespace, id) DO UPDATE SET usage_count = patterns.usage_count + 1",
                    _PLAIN_NAMESPACE,
                )
                writes += 1
                await asyncio.sleep(chosen.choice([0.001, 0.01]))
    finally:
        await connection.close()
    return writes


def run_on_server(
    url: str, folder: Path, seconds: float, seed: int, allowed_s: float = mixed.STALENESS_S
) -> tuple[list[Operation], Verdict]:
    """Run processes and judge their history; return both. As `mixed.run_processes`."""
    with mixed.running(url, folder, seconds, seed) as children:
        time.sleep(seconds / 4)  # they all open a database that is not there yet
        writes = asyncio.run(_disturb(url, children, seconds / 2, seed))
    operations = mixed.loaded(folder)
    verdict = judge(asyncio.run(read_server_log(url)), operations, mixed.actors(), NAMESPACE, allowed_s)
    verdict.checks["plain writes in between"] = writes
    return operations, verdict


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="memory_store-processes-") as folder,
        PostgresServer(durable=False) as server,
    ):
        url = server.create_database("mixed")
        operations, verdict = run_on_server(url, Path(folder), arguments.seconds, arguments.seed)
    print("\n".join(mixed.summary(operations, verdict, arguments.seconds)))
    print("\n".join(verdict.violations[:10]))
    return bool(verdict.violations)


if __name__ == "__main__":
    sys.exit(main())
