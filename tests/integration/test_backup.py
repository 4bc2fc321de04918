"""Backups of a database in use are one commit's state, and are there whole or not at all."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import (
    ConfigurationError,
    DurableUnavailableError,
    MemoryStore,
    MemoryStoreError,
    SchemaMismatchError,
    StoreClosedError,
    upkeep,
)
from tests.fault.support import Child, Parent, database, episode, in_child, integrity_problems, log_problems
from tests.fault.test_fault_full_disk import _squeeze, limited  # noqa: F401 - a fixture
from tests.integration.cli_support import fill, fill_two_namespaces
from tests.integration.upkeep_support import (
    back_up_for_ever,
    head_of,
    held,
    names,
    require_sound,
    torn_pairs,
    url_of,
    write_pairs,
)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A closed database with records of every kind, in a folder of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    await fill_two_namespaces(url_of(folder / "agent.db"))
    return folder / "agent.db"


def everything(path: Path) -> list[str]:
    with database(path) as connection:
        return list(connection.iterdump())


async def test_a_backup_holds_every_bit_and_nothing_else_is_left(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    told: list[tuple[str, int, int]] = []

    done = await upkeep.backup(url_of(path), file, on_progress=lambda *now: told.append(now))

    assert (done.path, done.bytes, done.position) == (str(file), file.stat().st_size, head_of(path)[0])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert names(tmp_path) == {"data", "copy.db"}
    assert not list(tmp_path.glob("copy.db-*")), "verifying it opens it such that nothing is made beside it"
    assert everything(file) == everything(path)
    assert {what for what, _, _ in told} == {
        "copying",
        "checking integrity",
        "checking foreign keys",
        "checking head",
    }
    assert all(0 <= done <= total for _, done, total in told)
    async with MemoryStore(url_of(file), migrate="check") as store:
        assert await store.episodes.count() == 1
    await require_sound(file)


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_an_open_store_is_backed_up_with_what_is_only_in_its_log(kind: str, tmp_path: Path) -> None:
    url = url_of(tmp_path / "agent.db") if kind == "file" else "sqlite:///:memory:"
    async with MemoryStore(url) as store:
        await fill(store, "one")
        stored = await store.episodes.put(episode("last"))
        done = await upkeep.backup(store.namespace("another"), tmp_path / "copy.db")
        await store.episodes.put(episode("later"))
        assert done.position == stored.position
        assert await store.episodes.count() == 3
    assert held(tmp_path / "copy.db").keys() == {"e-one", "last"}
    assert log_problems(tmp_path / "copy.db") == []
    with pytest.raises(StoreClosedError):
        await upkeep.backup(store, tmp_path / "late.db")


async def test_a_file_is_only_replaced_when_asked(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    file.write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match="exists already"):
        await upkeep.backup(url_of(path), file)
    assert file.read_bytes() == b"precious"

    await upkeep.backup(url_of(path), file, overwrite=True)
    assert everything(file) == everything(path)
    link = tmp_path / "link.db"
    link.symlink_to(file)
    await upkeep.backup(url_of(path), link, overwrite=True)
    assert link.is_symlink(), "what the link leads to is replaced"
    assert everything(file) == everything(path)


def _places(path: Path) -> dict[str, Path]:
    """Names under which a backup would destroy something."""
    (path.parent / "hard.db").hardlink_to(path)
    (path.parent / "link.db").symlink_to(path)
    (path.parent / "folder").mkdir()
    os.mkfifo(path.parent / "pipe")
    (path.parent / "orphaned.db-wal").write_bytes(b"x" * 100)
    companions = {suffix: Path(f"{path}-{suffix}") for suffix in ("wal", "shm", "lock", "journal")}
    own = {name: path.parent / f"{name}.db" for name in ("hard", "link", "orphaned")}
    return {**own, **companions, "itself": path, "folder": path.parent / "folder", "pipe": path.parent / "pipe"}


async def test_nothing_is_written_over_that_is_in_use(path: Path) -> None:
    async with MemoryStore(url_of(path)) as store:
        await store.episodes.put(episode("new"))
        before = (names(path.parent), held(path))
        for name, place in _places(path).items():
            with pytest.raises(ConfigurationError) as caught:
                await upkeep.backup(store, place, overwrite=True)
            assert str(place.resolve()) in str(caught.value), name
        assert (names(path.parent) - {"hard.db", "link.db", "folder", "pipe"}, held(path)) == before
        assert (await store.episodes.put(episode("more"))).revision == 1
    await require_sound(path)


async def test_another_open_database_is_not_replaced_and_a_closed_one_is(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    async with MemoryStore(url_of(other)) as store:
        await store.episodes.put(episode("other"))
        with pytest.raises(ConfigurationError, match="in use"):
            await upkeep.backup(url_of(path), other, overwrite=True)
    await upkeep.verify(url_of(other))
    assert Path(f"{other}-shm").exists(), "reading alone leaves them behind: no reason to refuse"
    await upkeep.backup(url_of(path), other, overwrite=True)
    assert everything(other) == everything(path)
    await require_sound(other)


async def test_what_is_no_store_is_not_backed_up(tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    (tmp_path / "empty.db").touch()
    (tmp_path / "garbage.db").write_bytes(b"\x89PNG\r\n" * 2000)
    with database(tmp_path / "foreign.db") as connection:
        connection.execute("CREATE TABLE x (y)")
    await fill_two_namespaces(url_of(tmp_path / "agent.db"))
    before = names(tmp_path)
    wrong: list[tuple[str, type[MemoryStoreError]]] = [
        (url_of(tmp_path / "missing.db"), DurableUnavailableError),
        (url_of(tmp_path / "no" / "folder.db"), DurableUnavailableError),
        (url_of(tmp_path / "empty.db"), DurableUnavailableError),
        (url_of(tmp_path / "garbage.db"), DurableUnavailableError),
        (url_of(tmp_path / "foreign.db"), SchemaMismatchError),
        ("sqlite:///:memory:", ConfigurationError),
        ("postgresql://x/y", ConfigurationError),
    ]
    for url, error in wrong:
        with pytest.raises(error):
            await upkeep.backup(url, file)
    with pytest.raises(ConfigurationError, match="does not exist"):
        await upkeep.backup(url_of(tmp_path / "agent.db"), tmp_path / "no" / "folder.db")
    assert names(tmp_path) == before


async def test_a_damaged_database_gives_no_backup(path: Path, tmp_path: Path) -> None:
    content = bytearray(path.read_bytes())
    for page in range(8, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(DurableUnavailableError, match="no backup was made"):
        await upkeep.backup(url_of(path), tmp_path / "copy.db")
    assert names(tmp_path) == {"data"}


async def test_a_copy_is_one_commit_while_two_processes_write(path: Path, tmp_path: Path) -> None:
    writers = [Child(write_pairs, str(path), name) for name in "xy"]
    try:
        newest = [writer.receive() for writer in writers]
        for number in range(8):
            began = max(position for position, *_ in newest)
            done = await upkeep.backup(url_of(path), file := tmp_path / f"{number}.db")
            assert done.position >= began
            assert head_of(file)[0] == done.position
            assert torn_pairs(file) == set()
            assert integrity_problems(file) == []
            assert log_problems(file) == []
            newest = [writer.receive() for writer in writers for _ in range(3)]
            assert max(position for position, *_ in newest) > began, "the writers go on"
    finally:
        for writer in writers:
            writer.kill()


async def _cancelled_at(number: int, url: str, file: Path) -> None:
    """Make a backup and cancel it when it has told of its progress more than so many times."""
    told = itertools.count()
    running = asyncio.create_task(
        upkeep.backup(url, file, on_progress=lambda *_: running.cancel() if next(told) >= number else None)
    )
    await running


async def test_a_cancelled_backup_leaves_nothing(path: Path, tmp_path: Path) -> None:
    async with MemoryStore(url_of(path)) as store:
        await store.episodes.put_many([episode(f"e{n}", context={"filler": "x" * 20_000}) for n in range(500)])
    steps = 0

    def note(*_: Any) -> None:
        nonlocal steps
        steps += 1

    await upkeep.backup(url_of(path), tmp_path / "whole.db", on_progress=note)
    assert steps > 10, "it is copied in steps"
    left_nothing = 0
    for number in range(steps):
        try:
            await _cancelled_at(number, url_of(path), tmp_path / "copy.db")
        except asyncio.CancelledError:
            left_nothing += not (tmp_path / "copy.db").exists()
        # Cancelled in the last moment, it is there whole: the file it may have replaced is gone already.
        assert names(tmp_path) - {"copy.db"} == {"data", "whole.db"}
        if (tmp_path / "copy.db").exists():
            assert everything(tmp_path / "copy.db") == everything(path)
            (tmp_path / "copy.db").unlink()
    assert left_nothing > steps / 2
    await require_sound(path)


async def test_a_killed_backup_leaves_the_old_file_or_the_new_one(path: Path, tmp_path: Path) -> None:
    async with MemoryStore(url_of(path)) as store:
        await store.episodes.put_many([episode(f"e{n}", context={"filler": "x" * 5000}) for n in range(1000)])
    file = tmp_path / "copy.db"
    await upkeep.backup(url_of(path), file)
    seeded = random.Random(5)
    whole, left_over = everything(path), 0
    for _ in range(12):
        with Child(back_up_for_ever, str(path), str(file)) as child:
            while child.receive() != "copying":
                pass
            time.sleep(seeded.random() * 0.08)
        left_over += len(list(tmp_path.glob("copy.db.*.tmp")))
        assert len(list(tmp_path.glob("copy.db.*.tmp"))) <= 1, "each backup removes what a killed one left"
        assert integrity_problems(file) == []
        for companion in tmp_path.glob("copy.db-*"):
            companion.unlink()
    assert everything(file) == whole
    assert left_over, "no kill met a backup that was being written"
    await upkeep.backup(url_of(path), file, overwrite=True)
    assert not list(tmp_path.glob("*.tmp"))


async def test_backups_to_one_place_at_once_do_not_disturb_each_other(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    done = await asyncio.gather(*(upkeep.backup(url_of(path), file) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(item, upkeep.BackupReport) for item in done) == 1
    assert all("exists already" in str(item) for item in done if isinstance(item, BaseException))
    await asyncio.gather(*(upkeep.backup(url_of(path), file, overwrite=True) for _ in range(4)))
    assert everything(file) == everything(path)
    assert names(tmp_path) == {"data", "copy.db"}


async def _back_up_on_a_full_disk(parent: Parent, folder: str, limit: str) -> tuple[list[str], list[str]]:
    path = Path(folder) / "agent.db"
    async with MemoryStore(url_of(path), cache_path="") as store:
        await store.episodes.put_many([episode(f"e{n}", context={"filler": "x" * 4000}) for n in range(150)])
    errors = []
    give_back: Callable[[], None] = _squeeze(limit, Path(folder))
    if limit == "file size limit":  # it leaves room for a file as large as the largest
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, hard))
    try:
        await upkeep.backup(url_of(path), Path(folder) / "copy.db")
    except MemoryStoreError as error:
        errors.append(type(error).__name__)
    left = sorted(names(Path(folder)) - {"filler"})
    give_back()
    await upkeep.backup(url_of(path), Path(folder) / "copy.db")
    return errors, left


async def test_a_full_disk_gives_no_backup_and_one_when_there_is_room(limited: tuple[str, Path]) -> None:  # noqa: F811
    limit, folder = limited
    errors, left = in_child(_back_up_on_a_full_disk, str(folder), limit)
    assert errors in (["StorageFullError"], ["DurableUnavailableError"])
    assert limit != "small disk" or errors == ["StorageFullError"]
    assert left == ["agent.db"]
    assert everything(folder / "copy.db") == everything(folder / "agent.db")
