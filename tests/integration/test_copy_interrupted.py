"""A copy that is killed, cancelled or fails at any instant goes on when started again; until then nobody opens it."""

from __future__ import annotations

import asyncio
import random
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import (
    ConfigurationError,
    DurableError,
    Episode,
    MemoryStore,
    MemoryStoreError,
    SchemaMismatchError,
    upkeep,
)
from memory_store.durable import schema
from memory_store.durable.engine import parse_url
from memory_store.transfer import CopyProgress, copy_store
from memory_store.transfer.copy_state import UNFINISHED
from tests.fault.support import Child, Parent, in_child
from tests.integration.cli_support import memory_store, one_line
from tests.integration.copy_support import (
    NAMESPACES,
    MakePlace,
    change_source,
    copy_and_tell,
    exported,
    fill_source,
    require_copied,
)
from tests.integration.test_copy import place  # noqa: F401 - a fixture
from tests.servers.fixtures import MakePostgres

WAYS = [
    ("sqlite", "sqlite"),
    ("sqlite", "postgresql-16"),
    ("postgresql-16", "sqlite"),
    ("postgresql-4", "postgresql-4"),
]
# What takes ten seconds a way goes one way to a server and one way from it; `make torture` goes them all.
LONG_WAYS = [
    *(pytest.param(*way, marks=pytest.mark.slow) for way in WAYS[::2]),
    *WAYS[1::2],
]


class EnoughError(Exception):
    """Ends a copy from its own progress."""


def stop_after(steps: int) -> Callable[[CopyProgress], None]:
    """Return what ends a copy after so many steps."""
    left = iter(range(steps))

    def tell(_: CopyProgress) -> None:
        if next(left, None) is None:
            raise EnoughError

    return tell


async def stop(source: str, target: str, steps: int) -> None:
    with pytest.raises(EnoughError):
        await copy_store(source, target, on_progress=stop_after(steps))


async def number_of_steps(source: str, target: str) -> int:
    told: list[Any] = []
    await copy_store(source, target, on_progress=told.append)
    return len(told)


async def revision(url: str) -> str | None:
    return await asyncio.to_thread(schema.current_revision, parse_url(url))


@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_stopped_after_each_step_it_goes_on(source: str, target: str, place: MakePlace) -> None:  # noqa: F811
    here, there = place(source), place(target)
    await fill_source(here, episodes=20)
    for step in range(6):  # six tables of a page each at least, and the log
        await stop(here, there, 1 if step % 2 else 0)
        assert await revision(there) == UNFINISHED
    report = await copy_store(here, there)
    assert report.resumed
    await require_copied(here, there, report)


@pytest.mark.parametrize(("source", "target"), LONG_WAYS)
async def test_a_source_that_changes_between_runs(source: str, target: str, place: MakePlace) -> None:  # noqa: F811
    """What was copied before is brought to what the source holds now, from whatever step on."""
    here = place(source)
    await fill_source(here, episodes=40)
    steps = await number_of_steps(here, place(target))
    chosen = [*range(1, steps - 2, max(1, steps // 3)), steps - 2]
    for round_, step in enumerate(chosen):
        there = place(target)
        await stop(here, there, step)
        await change_source(here, round_)
        await stop(here, there, step % 4)
        await change_source(here, round_ + 20)
        report = await copy_store(here, there)
        await require_copied(here, there, report)


async def test_a_source_that_was_restored_between_runs(place: MakePlace, tmp_path: Path) -> None:  # noqa: F811
    here, there = place("sqlite"), place("postgresql-16")
    await fill_source(here, episodes=20)
    await upkeep.backup(here, tmp_path / "backup")
    await change_source(here, 1)
    steps = await number_of_steps(here, place("postgresql-16"))
    await stop(here, there, steps - 2)
    await upkeep.restore(tmp_path / "backup", here)
    await change_source(here, 2)
    await require_copied(here, there, await copy_store(here, there))


@pytest.mark.parametrize(("source", "target"), LONG_WAYS)
async def test_killed_at_random_instants(source: str, target: str, place: MakePlace) -> None:  # noqa: F811
    here = place(source)
    await fill_source(here, episodes=150)
    seeded = random.Random(f"{source} {target}")
    met: set[str] = set()
    for round_ in range(4):
        there = place(target)
        for _ in range(3):
            with Child(copy_and_tell, here, there) as child:
                for _ in range(seeded.randrange(14)):
                    met.add(child.receive())
                child.arrived_within(seeded.choice([0, seeded.uniform(0, 0.004), seeded.uniform(0, 0.03)]))
                child.kill()
        if round_ % 2:
            await change_source(here, round_)
        if await revision(there) == schema.HEAD_REVISION and await exported(there):  # it had ended before the kill
            with pytest.raises(ConfigurationError, match="is not empty"):
                await copy_store(here, there)
        else:
            await require_copied(here, there, await copy_store(here, there))
    assert {"copying episode", "copying step"} <= met


@pytest.mark.parametrize("target", ["sqlite", "postgresql-16"])
async def test_cancelled_at_any_await(target: str, place: MakePlace) -> None:  # noqa: F811
    here, there = place("postgresql-16" if target == "sqlite" else "sqlite"), place(target)
    await fill_source(here, episodes=10)
    turns, cancelled, report = 0, 0, None
    while report is None:
        copying = asyncio.create_task(copy_store(here, there))
        for _ in range(turns):
            await asyncio.sleep(0)
        copying.cancel()
        try:
            report = await copying
        except asyncio.CancelledError:
            cancelled += 1
        except ConfigurationError as error:  # cancelled after its last transaction
            assert "is not empty" in str(error)  # noqa: PT017
            break
        turns += 1 + turns // 3
    assert cancelled > 5
    assert await exported(here) == await exported(there)


@pytest.mark.parametrize("target", ["sqlite", "postgresql-16"])
async def test_nobody_opens_an_unfinished_copy(target: str, place: MakePlace, tmp_path: Path) -> None:  # noqa: F811
    here, there, other = place("sqlite"), place(target), place("sqlite")
    await fill_source(here, episodes=5)
    await stop(here, there, 3)
    for settings in ({}, {"migrate": "check"}):
        with pytest.raises(SchemaMismatchError):
            async with MemoryStore(there, **settings):  # type: ignore[arg-type]
                pass
    with pytest.raises(SchemaMismatchError, match="unfinished copy"):
        await copy_store(there, other)
    for command in ("upgrade", "export"):
        done = await asyncio.to_thread(memory_store, tmp_path, command, "--url", there)
        assert done.code == 3, done
        assert "copy" in one_line(done)
    await fill_source(other, episodes=1)
    with pytest.raises(ConfigurationError, match="unfinished copy of another database"):
        await copy_store(other, there)
    await require_copied(here, there, await copy_store(here, there))


@pytest.mark.parametrize("target", ["sqlite", "postgresql-16"])
async def test_a_store_that_is_open_on_the_empty_target_writes_nothing_into_it(
    target: str,
    place: MakePlace,  # noqa: F811
) -> None:
    here, there = place("sqlite"), place(target)
    await fill_source(here, episodes=5)
    async with MemoryStore(there, cache_path="") as store:
        await stop(here, there, 3)
        with pytest.raises(SchemaMismatchError):
            await store.episodes.put(Episode(task_type="t", domain="d"))
        report = await copy_store(here, there)
        await require_copied(here, there, report)
        assert await store.episodes.get("e1", freshness="linearizable") is not None
        await store.episodes.put(Episode(id="now", task_type="t", domain="d"))


@pytest.mark.parametrize("target", ["sqlite", "postgresql-16"])
async def test_two_copies_into_one_target(target: str, place: MakePlace) -> None:  # noqa: F811
    here, there = place("sqlite"), place(target)
    await fill_source(here)
    results = await asyncio.gather(*(copy_store(here, there) for _ in range(3)), return_exceptions=True)
    reports = [result for result in results if not isinstance(result, BaseException)]
    assert len(reports) == 1
    for result in results:
        if isinstance(result, BaseException):
            assert isinstance(result, ConfigurationError), result
    await require_copied(here, there, reports[0])


async def _copy_slowly(parent: Parent, source: str, target: str) -> None:
    def wait(now: CopyProgress) -> None:
        parent.send(now.what)
        parent.wait_for("go on")

    await copy_store(source, target, on_progress=wait)


@pytest.mark.parametrize("target", ["sqlite", "postgresql-16"])
async def test_a_copy_of_another_process_is_not_disturbed(target: str, place: MakePlace) -> None:  # noqa: F811
    here, there = place("sqlite"), place(target)
    await fill_source(here, episodes=5)
    with Child(_copy_slowly, here, there) as child:
        child.receive()
        with pytest.raises(ConfigurationError, match=r"another copy into .* is running"):
            await copy_store(here, there)
        child.kill()
    await require_copied(here, there, await copy_store(here, there))


async def _copy_with_little_room(parent: Parent, source: str, target: str, room: int) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        await copy_store(source, target)
    except MemoryStoreError as error:
        return type(error).__name__
    return "copied"


@pytest.mark.parametrize("room", [1000, 200_000, 400_000])
async def test_a_full_disk(room: int, place: MakePlace) -> None:  # noqa: F811
    here, there = place("postgresql-16"), place("sqlite")
    await fill_source(here, episodes=150)
    outcome = await asyncio.to_thread(in_child, _copy_with_little_room, here, there, room)
    assert outcome in ("StorageFullError", "DurableUnavailableError")
    await require_copied(here, there, await copy_store(here, there))


@pytest.mark.parametrize("end", ["source", "target"])
async def test_a_server_that_is_killed(end: str, make_postgres: MakePostgres, place: MakePlace) -> None:  # noqa: F811
    server = make_postgres()
    mine, file = f"{server.create_database('mine')}&heads=4", place("sqlite")
    here, there = (mine, file) if end == "source" else (file, mine)
    await fill_source(here)
    told = iter(range(6))

    def kill(_: CopyProgress) -> None:
        if next(told, None) is None and server.running:
            server.kill()

    with pytest.raises(DurableError):
        await copy_store(here, there, on_progress=kill)
    server.start()
    report = await copy_store(here, there)
    assert report.resumed
    await require_copied(here, there, report)


@pytest.mark.parametrize(("table", "kind"), [("episodes", "episode"), ("steps", "step"), ("changes", "changes")])
async def test_a_copy_that_differs_is_found_and_mended(table: str, kind: str, place: MakePlace) -> None:  # noqa: F811
    here, there = place("sqlite"), place("sqlite")
    await fill_source(here, episodes=20)
    name = NAMESPACES[2]
    tampered = False

    def tamper(now: CopyProgress) -> None:
        nonlocal tampered
        if now.what == "verifying episode" and not tampered:
            tampered = True
        if now.what == "copying the log":
            with sqlite3.connect(there.removeprefix("sqlite:///")) as connection:
                connection.execute("UPDATE head SET writing = 1")
                column = "actor" if table == "changes" else "updated_at"
                connection.execute(f"UPDATE {table} SET {column} = 7 WHERE namespace = ?", (name,))
                connection.execute("UPDATE head SET writing = 0")
            connection.close()

    with pytest.raises(DurableError, match=f"{kind} of namespace '{name}'") as caught:
        await copy_store(here, there, on_progress=tamper)
    assert (caught.value.kind, caught.value.namespace) == (kind, name)
    report = await copy_store(here, there)
    assert report.resumed
    await require_copied(here, there, report)
