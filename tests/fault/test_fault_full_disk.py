"""A full disk: writes fail with an error of ours, nothing is half-written, nothing acknowledged is lost; it passes."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memory_store import Episode, MemoryStore, MemoryStoreError, Step
from tests.fault.support import Parent, episode, in_child, integrity_problems, log_problems

ROOM_BYTES = 300_000
BATCH = 5


def _mount(folder: str) -> bool:
    """Mount a file system of 2 MiB; only root may, and not in every container."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def _limits() -> list[str]:
    """Return the ways a disk can be made full here."""
    folder = tempfile.mkdtemp()
    mounted = _mount(folder)
    if mounted:
        subprocess.run(["umount", folder], check=True)
    Path(folder).rmdir()
    return ["file size limit", "small disk"] if mounted else ["file size limit"]


@pytest.fixture(params=_limits())
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A way to make the disk full, and a folder where it works."""
    if request.param == "file size limit":
        yield request.param, tmp_path
        return
    assert _mount(str(tmp_path))
    try:
        yield request.param, tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def _squeeze(limit: str, folder: Path) -> Callable[[], None]:
    """Leave little room in the folder; return what gives it back."""
    if limit == "file size limit":
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        largest = max(path.stat().st_size for path in folder.iterdir() if path.is_file())
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + ROOM_BYTES, hard))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    filler = folder / "filler"
    room = os.statvfs(folder)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - ROOM_BYTES))
    return filler.unlink


class Outcome(NamedTuple):
    """What a child saw: the ids of the batches that were acknowledged and that were refused, and the errors."""

    acknowledged: list[list[str]]
    refused: list[list[str]]
    errors: list[str]


def batch(number: int) -> list[Episode]:
    """Return episodes of about 8 kB together."""
    context = {"number": number, "filler": "x" * 1500}
    return [episode(f"b{number}-{i}", context=context) for i in range(BATCH)]


async def _write_until_full(store: MemoryStore, outcome: Outcome) -> None:
    for number in range(1000):
        records = batch(number)
        try:
            await store.episodes.put_many(records)
        except MemoryStoreError as error:
            outcome.refused.append([record.id for record in records])
            outcome.errors.append(type(error).__name__)
            return
        outcome.acknowledged.append([record.id for record in records])
    raise AssertionError("the disk never became full")


async def _fill_and_go_on(parent: Parent, folder: str, limit: str) -> Outcome:
    outcome = Outcome([], [], [])
    async with MemoryStore(f"sqlite:///{folder}/agent.db") as store:
        first = await store.episodes.put(episode("first"))
        give_back = _squeeze(limit, Path(folder))
        await _write_until_full(store, outcome)
        # Full is not broken: every read works, from the cache and from the file, and small writes answer somehow.
        for ids in outcome.acknowledged:
            assert [record and record.id for record in await store.episodes.get_many(ids)] == ids
        found = await store.episodes.get_many(outcome.refused[0])
        assert found.count(None) in (0, BATCH)
        assert await store.episodes.count() == 1 + BATCH * len(outcome.acknowledged) + BATCH - found.count(None)
        with suppress(MemoryStoreError):
            async with store.transaction() as tx:
                await tx.steps.append("first", Step(action="a", result="r" * 900_000))
        with suppress(MemoryStoreError):
            await store.steps.append("first", Step(action="a", result="r" * 900_000))
        give_back()
        await store.episodes.put_many(batch(5000))
        outcome.acknowledged.append([record.id for record in batch(5000)])
        assert (await store.episodes.update(first.id, expected_revision=1, status="completed")).revision == 2
        await store.steps.append("first", Step(action="last"))
        assert (await store.steps.of("first"))[-1].action == "last"
    return outcome


async def _fill_and_close(parent: Parent, folder: str, limit: str) -> Outcome:
    outcome = Outcome([], [], [])
    async with MemoryStore(f"sqlite:///{folder}/agent.db") as store:
        await store.episodes.put(episode("first"))
        _squeeze(limit, Path(folder))
        await _write_until_full(store, outcome)
    return outcome


@pytest.mark.parametrize("child", [_fill_and_go_on, _fill_and_close])
async def test_a_full_disk_fails_writes_whole_and_loses_nothing(
    child: Callable[..., Any], limited: tuple[str, Path]
) -> None:
    limit, folder = limited
    outcome = in_child(child, str(folder), limit)
    assert outcome.acknowledged
    if limit == "small disk":
        assert outcome.errors == ["StorageFullError"]
    # Whatever the child was cut off in, no half of a file is left: a cache is there whole or not at all.
    assert not list(folder.glob("**/*.tmp"))
    for _ in ("from the saved cache, if there is one", "from the database"):
        async with MemoryStore(f"sqlite:///{folder}/agent.db", timeout_s=5) as store:
            await store.cache.wait()
            for ids in outcome.acknowledged:
                assert [record and record.id for record in await store.episodes.get_many(ids)] == ids
            for ids in outcome.refused:
                assert (await store.episodes.get_many(ids)).count(None) in (0, BATCH)
            await store.cache.clear()
    assert integrity_problems(folder / "agent.db") == []
    assert log_problems(folder / "agent.db") == []


async def _open_on_a_full_disk(parent: Parent, folder: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        await MemoryStore(f"sqlite:///{folder}/agent.db").open()
    except MemoryStoreError as error:
        return type(error).__name__
    return "opened"


async def test_creating_a_database_on_a_full_disk_fails_and_works_once_there_is_room(tmp_path: Path) -> None:
    assert in_child(_open_on_a_full_disk, str(tmp_path)) in ("StorageFullError", "DurableUnavailableError")
    async with MemoryStore(f"sqlite:///{tmp_path}/agent.db") as store:
        assert await store.episodes.count() == 0
    assert integrity_problems(tmp_path / "agent.db") == []
