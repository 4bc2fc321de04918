"""Processes on a PostgreSQL that is killed, restarted or failed over under them, and the verdict on their ledgers."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import psutil

from tests.fault.servers_support import dsn_of, truth_of
from tests.fault.support import Child
from tests.processes.server_load import State, load
from tests.servers.databases import PostgresDatabases
from tests.servers.postgres import PostgresServer

PROCESSES = 3


class LostError(AssertionError):
    """What a process knows is not what the database holds."""


async def held_by(url: str) -> dict[tuple[str, str], State]:
    """Return what the database holds, in the ledger's words, read with the plain driver."""
    async with truth_of(url) as truth:
        steps: dict[tuple[str, str], tuple[str, ...]] = {}
        for name, id_, action in await truth.connection.fetch(
            "SELECT namespace, episode_id, action FROM steps ORDER BY namespace, episode_id, step_number"
        ):
            steps[name, id_] = (*steps.get((name, id_), ()), action)
        problems = await truth.log_problems()
        if problems:
            raise LostError(str(problems))
        rows = await truth.connection.fetch("SELECT namespace, id, revision, reflection FROM episodes")
        return {(name, id_): (revision, int(mark), steps.get((name, id_), ())) for name, id_, revision, mark in rows}


def run_through(
    urls: list[str],
    disturb: Callable[[int], PostgresDatabases],
    *,
    database: str,
    times: int,
    check_every: int,
    seed: int,
    longest_pause_s: float = 0.3,
) -> Counter[str]:
    """Let processes work while the server is disturbed; raise what is wrong, return what they counted.

    Args:
        urls: of the database, one for each process in turn.
        disturb: disturbs it for the n-th time, and returns the server to look into afterwards.
        database: its name.
        times: how often it is disturbed.
        check_every: disturbances between two checks of everything.
        seed: of the processes' choices and of the pauses.
        longest_pause_s: of undisturbed work.
    """
    pauses = random.Random(seed)
    counted: Counter[str] = Counter()
    with ExitStack() as held:
        children = [
            held.enter_context(Child(load, urls[number % len(urls)], number, seed * 10 + number))
            for number in range(PROCESSES)
        ]
        for child in children:
            assert child.receive() == "ready"
        done = 0
        while done < times:
            for child in children:
                child.send("go")
            for _ in range(min(check_every, times - done)):
                time.sleep(pauses.uniform(0, longest_pause_s))
                server = disturb(done)
                done += 1
            time.sleep(pauses.uniform(0, longest_pause_s))
            counted = _check(children, server.url(database))
        for child in children:
            child.send("end")
        for child in children:
            assert child.receive() is None
    return counted


def disturbances(server: PostgresServer, seed: int) -> Callable[[int], PostgresServer]:
    """Return what kills a server in one of the ways in which one dies, and starts it again if nobody else does."""
    chosen = random.Random(seed)

    def backend_killed() -> None:
        """All the others are ended then, and the server recovers by itself."""
        with suppress(psutil.NoSuchProcess):
            backends = [
                child for child in psutil.Process(server.pid).children() if "postgres: postgres" in _line(child)
            ]
            for backend in backends[:1]:
                backend.kill()

    def killed() -> None:
        server.kill()
        time.sleep(chosen.choice([0, 0.1]))
        server.start()

    def shut_down() -> None:
        """Not while it recovers: PostgreSQL 18 then neither starts nor ends (its checkpointer and I/O workers stay)."""
        deadline = time.monotonic() + 60
        while not _answers(server):
            assert time.monotonic() < deadline, server.log_tail()
            time.sleep(0.02)
        server.restart("fast")

    def sessions_ended() -> None:
        with suppress(RuntimeError):  # it may still recover from the last time
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'memory_store'"
            )

    ways: list[Callable[[], None]] = [
        killed,
        killed,
        lambda: server.restart("immediate"),
        shut_down,
        backend_killed,
        sessions_ended,
    ]

    def disturb(_: int) -> PostgresServer:
        chosen.choice(ways)()
        return server

    return disturb


def _answers(server: PostgresServer) -> bool:
    try:
        return server.execute("SELECT 1") == [["1"]]
    except RuntimeError:
        return False


def _line(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def _check(children: list[Child], url: str) -> Counter[str]:
    """Let all come to an end of what they do, and compare what they know, what is stored and what they read."""
    counted: Counter[str] = Counter()
    known: dict[tuple[str, str], State] = {}
    for child in children:
        child.send("pause")
    for child in children:
        ledger, own = child.receive()
        known |= {key: state for key, state in ledger.items() if state is not None}
        counted += own
    held = asyncio.run(held_by(url))
    if held != known:
        wrong: dict[Any, Any] = {
            key: ("known", known.get(key), "held", held.get(key))
            for key in {*held, *known}
            if held.get(key) != known.get(key)
        }
        raise LostError(str(wrong))
    for child in children:
        child.send(dsn_of(url))
    for child in children:
        if wrong_reads := child.receive():
            raise LostError(f"read otherwise than stored: {wrong_reads[:5]}")
    return counted


def lines(what: str, times: int, counted: Counter[str], seconds: float) -> list[str]:
    """Return what to print."""
    return [
        f"{times} {what} under {PROCESSES} processes in {seconds:.1f} s: {counted['acknowledged']:,} acknowledged "
        "writes, 0 lost, 0 wrong",
        ", ".join(f"{name} {count:,}" for name, count in sorted(counted.items())),
    ]
