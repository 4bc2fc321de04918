"""The crash: a child process writes and prints what was acknowledged, until it is killed with SIGKILL.

Run as a program it is the child; `write_and_kill` starts it, kills it, and returns what it had been promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from memory_store import MemoryStore
from memory_store.cli.demo.agent import Agent
from memory_store.cli.demo.goals import Survey, make_goals
from memory_store.cli.demo.tools import Toolbox

__all__ = ["Acknowledged", "Killed", "digest", "write_and_kill"]

_WORKERS = 6
# More than the child can do before it is killed; it bounds the child if its parent dies first.
_MOST_EPISODES = 20_000
_PATIENCE_S = 40.0


class Acknowledged(NamedTuple):
    """A write the child was told is durable."""

    kind: str
    id: str
    revision: int
    digest: str


class Killed(NamedTuple):
    """How the child ended, and what it had been told until then."""

    signal: int
    acknowledged: list[Acknowledged]


def digest(record: Any) -> str:
    """Return a short hash of everything a record holds."""
    return hashlib.blake2b(repr(asdict(record)).encode(), digest_size=12).hexdigest()


async def write_and_kill(url: str, namespace: str, folder: Path, scratch: Path, enough: int) -> Killed:
    """Start the child, and kill it as soon as `enough` writes have been acknowledged to it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "memory_store.cli.demo.crash",
        url,
        namespace,
        str(folder),
        str(scratch),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    lines: list[bytes] = []
    try:
        # On a slow machine fewer writes have to do: each that was acknowledged is looked for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while len(lines) < enough and (line := await child.stdout.readline()):
                    lines.append(line)
    finally:
        if child.returncode is None:
            child.kill()
        rest = await child.stdout.read()  # what it had been told, but we had not read yet, counts as well
        await child.wait()
    lines += rest.splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    return Killed(-(child.returncode or 0), [Acknowledged(*json.loads(line)) for line in whole])


def _tell(record: Any) -> None:
    line = json.dumps([record.kind, record.id, record.revision, digest(record)])
    os.write(1, line.encode() + b"\n")  # one system call: nothing is kept in a buffer that dies with the process


async def _write_until_killed(url: str, namespace: str, folder: Path, scratch: Path) -> None:
    goals = islice(make_goals(await asyncio.to_thread(Survey.of, folder), quick=True), _MOST_EPISODES)
    async with MemoryStore(url, namespace=namespace, actor="demo child") as store:
        await Agent(store, Toolbox(folder, scratch), _tell).work(goals, _WORKERS)


if __name__ == "__main__":
    # The parent's Ctrl-C reaches the whole group; the parent ends the child itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_write_until_killed(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
