"""A backup takes the place of a database in one step, and every store that is open on it notices."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memory_store import (
    ConfigurationError,
    DurableTimeoutError,
    DurableUnavailableError,
    MemoryStore,
    MemoryStoreError,
    SchemaMismatchError,
    Step,
    upkeep,
)
from memory_store.durable.lock import FileLock
from memory_store.durable.schema import HEAD_REVISION
from tests.conftest import REPOSITORY
from tests.fault.support import Child, Parent, database, episode, in_child, integrity_problems
from tests.fault.test_fault_full_disk import _squeeze, limited  # noqa: F401 - a fixture
from tests.integration.upkeep_support import (
    head_of,
    held,
    names,
    read_for_ever,
    require_sound,
    restore_once,
    torn_pairs,
    url_of,
    write_pairs,
)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A closed database with episodes a and b and a step, and its backup.db beside it; after that, a was changed."""
    path = tmp_path / "agent.db"
    async with MemoryStore(url_of(path)) as store:
        await store.episodes.put_many([episode("a", context=1), episode("b", context=1)])
        await store.steps.append("a", Step(action="one"))
        await upkeep.backup(store, tmp_path / "backup.db")
        await store.episodes.update("a", context=2)
        await store.episodes.delete("b")
        await store.steps.append("a", Step(action="two"))
        await store.episodes.put(episode("c", context=2))
    return path


@pytest.fixture
def backup(path: Path) -> Path:
    """The backup."""
    return path.with_name("backup.db")


async def contexts(store: MemoryStore, **options: Any) -> list[Any]:
    return [found and found.context for found in await store.episodes.get_many(["a", "b", "c"], **options)]


async def test_a_store_that_is_open_reads_what_was_restored_and_goes_on_writing(path: Path, backup: Path) -> None:
    async with MemoryStore(url_of(path), staleness_s=0.01) as store, MemoryStore(url_of(path)) as strict:
        assert await contexts(store) == await contexts(strict) == [2, None, 2]
        assert [step.action for step in await store.steps.of("a")] == ["one", "two"]
        told: list[tuple[str, int, int]] = []

        done = await upkeep.restore(backup, url_of(path), on_progress=lambda *now: told.append(now))

        assert await contexts(strict, freshness="linearizable") == [1, 1, None]
        await asyncio.sleep(0.02)
        assert await contexts(store) == [1, 1, None], "within the staleness bound, from what was a warm cache"
        assert [step.action for step in await store.steps.of("a")] == ["one"]
        assert (done.replaced, done.revision, done.path) == (True, HEAD_REVISION, str(path))
        assert {what for what, _, _ in told} >= {"copying", "checking integrity", "writing"}
        stored = await store.episodes.put(episode("d"))
        assert stored.position == done.position + 1
        assert (await strict.episodes.get("d", at_least=stored.position or 0)) == stored
        updated = await strict.episodes.update("a", expected_revision=1, context=3)
        assert (await store.episodes.get("a", at_least=updated.position or 0)) == updated
    await require_sound(path)
    assert names(path.parent) == {"agent.db", "backup.db"}


async def test_positions_and_epochs_never_come_again(path: Path, backup: Path) -> None:
    seen = [head_of(path), head_of(backup)]
    assert seen[0][0] > seen[1][0]
    for _ in range(3):
        done = await upkeep.restore(backup, url_of(path))
        position, nonce, store_id, epoch = head_of(path)
        assert (done.position, done.epoch) == (position, epoch)
        assert position == max(head[0] for head in seen) + 1
        assert epoch > max(head[3] for head in seen)
        assert nonce not in {head[1] for head in seen}
        assert {store_id} == {head[2] for head in seen}
        seen.append((position, nonce, store_id, epoch))
    await upkeep.backup(url_of(path), newer := path.with_name("newer.db"))
    await upkeep.restore(newer, url_of(path.with_name("third.db")))
    assert head_of(path.with_name("third.db"))[0] == seen[-1][0] + 1, "a backup's own position counts as well"
    await require_sound(path.with_name("third.db"))


async def test_a_store_of_another_process_drops_its_cache(path: Path, backup: Path) -> None:
    with Child(read_for_ever, str(path), ["a", "b", "c"]) as reader:
        assert reader.receive() == [2, None, 2]
        assert not reader.arrived_within(0.2)
        await upkeep.restore(backup, url_of(path))
        assert reader.receive(5) == [1, 1, None]
        async with MemoryStore(url_of(path)) as store:
            await store.episodes.update("b", context=7)
        assert reader.receive(5) == [1, 7, None]
        assert not reader.arrived_within(0.2)


async def test_a_saved_cache_is_refused_after_a_restore(path: Path, backup: Path) -> None:
    async with MemoryStore(url_of(path)) as store:
        assert await contexts(store) == [2, None, 2]
        await store.cache.save()
        saved = (Path(f"{path}.cache") / "cache.msgpack").read_bytes()
    await upkeep.restore(backup, url_of(path))
    (Path(f"{path}.cache") / "cache.msgpack").write_bytes(saved)
    assert "restored" in (await upkeep.verify(url_of(path))).saved_cache
    async with MemoryStore(url_of(path)) as store:
        await store.cache.wait()
        assert "restored" in (await store.cache.status()).reason
        assert await contexts(store) == [1, 1, None]


async def test_a_cache_saved_by_a_store_that_lived_through_it_is_used(path: Path, backup: Path) -> None:
    async with MemoryStore(url_of(path)) as store:
        await store.cache.wait()
        await upkeep.restore(backup, url_of(path))
        assert await contexts(store, freshness="linearizable") == [1, 1, None]
    found = await upkeep.verify(url_of(path))
    assert (found.ok, found.saved_cache) == (True, "sound")
    async with MemoryStore(url_of(path)) as store:
        await store.cache.wait()
        assert (await store.cache.status()).reason == ""
        assert await contexts(store) == [1, 1, None]


async def test_a_database_is_made_where_there_is_none(path: Path, backup: Path) -> None:
    new, empty = path.with_name("new.db"), path.with_name("empty.db")
    empty.touch()
    for place in (new, empty):
        done = await upkeep.restore(backup, url_of(place))
        assert (done.replaced, head_of(place)[0]) == (False, done.position)
        assert held(place).keys() == {"a", "b"}
        await require_sound(place)
    assert names(path.parent) == {"agent.db", "backup.db", "new.db", "empty.db"}


async def test_the_log_of_a_database_that_is_gone_is_not_taken_for_a_part_of_the_new_one(
    path: Path, backup: Path
) -> None:
    async with MemoryStore(url_of(path)) as store:
        await store.episodes.put(episode("d"))
        log = Path(f"{path}-wal").read_bytes()
    path.unlink()
    Path(f"{path}-wal").write_bytes(log)
    with pytest.raises(DurableUnavailableError, match="without its database"):
        await upkeep.restore(backup, url_of(path))
    assert not path.exists()
    await upkeep.restore(backup, url_of(path), force=True)
    assert held(path).keys() == {"a", "b"}
    await require_sound(path)


async def test_another_database_is_only_replaced_when_forced(path: Path, backup: Path) -> None:
    other = path.with_name("other.db")
    async with MemoryStore(url_of(other)) as store:
        await store.episodes.put(episode("theirs"))
        before = head_of(other)
        with pytest.raises(ConfigurationError, match=r"another database .*--force"):
            await upkeep.restore(backup, url_of(other))
        assert head_of(other) == before
        assert await store.episodes.get("theirs", freshness="linearizable")

        await upkeep.restore(backup, url_of(other), force=True)
        assert await contexts(store, freshness="linearizable") == [1, 1, None]
        assert await store.episodes.get("theirs") is None
        assert (await store.episodes.put(episode("new"))).revision == 1
    assert head_of(other)[2] == head_of(backup)[2]
    await require_sound(other)


def _sources(folder: Path) -> dict[str, tuple[Path, type[MemoryStoreError], str]]:
    whole = (folder / "backup.db").read_bytes()
    (folder / "garbage").write_bytes(b"\x89PNG\r\n" * 2000)
    (folder / "empty").touch()
    (folder / "short").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    for page in range(3, len(whole) // 4096):
        damaged[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    (folder / "damaged").write_bytes(damaged)
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "circle").symlink_to(folder / "circle")
    os.mkfifo(folder / "pipe")
    with database(folder / "foreign") as connection:
        connection.execute("CREATE TABLE x (y)")
    for name, sql in {
        "newer": "UPDATE alembic_version SET version_num = '9999'",
        "headless": "UPDATE head SET position = position - 1",
        "orphans": "DELETE FROM episodes WHERE id = 'a'",
    }.items():
        shutil.copy(folder / "backup.db", folder / name)
        with database(folder / name) as connection:
            connection.execute(sql)
    unusable: tuple[type[MemoryStoreError], str] = (DurableUnavailableError, "")
    wrong: dict[str, tuple[type[MemoryStoreError], str]] = {
        "garbage": unusable,
        "empty": (DurableUnavailableError, "is empty"),
        "short": unusable,
        "damaged": (DurableUnavailableError, "nothing was restored"),
        "folder": (ConfigurationError, "not a plain file"),
        "dangling": (ConfigurationError, "cannot be read"),
        "circle": (ConfigurationError, "cannot be read"),
        "pipe": (ConfigurationError, "not a plain file"),
        "missing": (ConfigurationError, "cannot be read"),
        "foreign": (SchemaMismatchError, "not a memory store"),
        "newer": (SchemaMismatchError, "written by a newer version"),
        "headless": (DurableUnavailableError, "the log ends at"),
        "orphans": (DurableUnavailableError, "foreign keys"),
        "agent.db": (ConfigurationError, "belongs to the database itself"),
        "agent.db-lock": (ConfigurationError, "belongs to the database itself"),
    }
    return {name: (folder / name, *what) for name, what in wrong.items()}


async def test_a_wrong_source_touches_nothing(path: Path) -> None:
    async with MemoryStore(url_of(path)) as store:
        sources = _sources(path.parent)
        before = (head_of(path), held(path), names(path.parent))
        for name, (source, error, words) in sources.items():
            with pytest.raises(error) as caught:
                await asyncio.wait_for(upkeep.restore(source, url_of(path), force=True), 20)
            assert words in str(caught.value), name
        assert (head_of(path), held(path), names(path.parent)) == before
        assert await contexts(store, freshness="linearizable") == [2, None, 2]
    await require_sound(path)


async def test_a_link_to_a_backup_is_followed_and_so_is_one_to_the_database(path: Path, backup: Path) -> None:
    (path.parent / "there").mkdir()
    path.with_name("link").symlink_to(backup)
    (path.parent / "there" / "agent.db").symlink_to(path)
    await upkeep.restore(path.with_name("link"), url_of(path.parent / "there" / "agent.db"))
    assert held(path).keys() == {"a", "b"}
    (path.parent / "there" / "new.db").symlink_to(path.parent / "new.db")
    await upkeep.restore(backup, url_of(path.parent / "there" / "new.db"))
    assert held(path.parent / "new.db").keys() == {"a", "b"}
    assert (path.parent / "there" / "new.db").is_symlink()


async def test_a_hand_made_copy_with_its_log_is_restored_with_what_is_in_the_log(path: Path) -> None:
    copy = path.with_name("copy.db")
    async with MemoryStore(url_of(path), cache_path="") as store:
        await store.episodes.put(episode("only in the log"))
        shutil.copy(path, copy)
        shutil.copy(f"{path}-wal", f"{copy}-wal")
        await store.episodes.delete("only in the log")
        await upkeep.restore(copy, url_of(path))
        assert await store.episodes.get("only in the log", freshness="linearizable")
    await require_sound(path)


async def test_what_is_no_store_is_not_replaced(path: Path, backup: Path) -> None:
    foreign, garbage = path.with_name("foreign.db"), path.with_name("garbage.db")
    with database(foreign) as connection:
        connection.execute("CREATE TABLE x (y)")
    garbage.write_bytes(b"\x89PNG\r\n" * 2000)
    before = {place: place.read_bytes() for place in (garbage,)}
    with pytest.raises(SchemaMismatchError, match="not a memory store"):
        await upkeep.restore(backup, url_of(foreign), force=True)
    with pytest.raises(DurableUnavailableError, match="cannot even be written over"):
        await upkeep.restore(backup, url_of(garbage), force=True)
    with pytest.raises(DurableUnavailableError):
        await upkeep.restore(backup, url_of(path.parent / "no" / "folder.db"))
    with pytest.raises(ConfigurationError):
        await upkeep.restore(backup, "sqlite:///:memory:")
    assert {place: place.read_bytes() for place in before} == before
    with database(foreign) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("x",)]


@pytest.mark.parametrize("spared", [1, 12])
async def test_a_damaged_database_is_restored_in_its_place(spared: int, path: Path, backup: Path) -> None:
    content = bytearray(path.read_bytes())
    for page in range(spared, len(content) // 4096):
        content[page * 4096 : (page + 1) * 4096] = os.urandom(4096)
    path.write_bytes(content)
    before = head_of(backup)
    done = await upkeep.restore(backup, url_of(path))
    assert done.position > before[0] + (1 << 31), "nobody knows what its position was: none can come again"
    assert done.epoch > before[3]
    await require_sound(path)
    async with MemoryStore(url_of(path)) as store:
        assert await contexts(store) == [1, 1, None]
        assert (await store.episodes.put(episode("d"))).position == done.position + 1
    await require_sound(path)


async def test_a_backup_of_an_older_revision_stops_running_writers_until_they_are_opened_again(
    path: Path, backup: Path
) -> None:
    command = [sys.executable, "-m", "alembic", "-x", f"url={url_of(backup)}", "downgrade", "0001"]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    async with MemoryStore(url_of(path), cache_path="") as store:
        assert (await upkeep.restore(backup, url_of(path))).revision == "0001"
        assert await contexts(store, freshness="linearizable") == [1, 1, None]
        with pytest.raises(SchemaMismatchError):
            await store.episodes.put(episode("d"))
        with pytest.raises(SchemaMismatchError):
            await upkeep.verify(url_of(path))
    async with MemoryStore(url_of(path), cache_path="") as store:
        assert (await store.episodes.put(episode("d"))).revision == 1
    await require_sound(path)


async def test_writers_of_two_processes_go_on_over_a_restore(path: Path, backup: Path) -> None:
    writers = [Child(write_pairs, str(path), name) for name in "xy"]
    ledger: list[tuple[int, int, str]] = []
    restored: list[int] = []
    try:
        for _ in range(3):
            for writer in writers:
                ledger += [writer.receive() for _ in range(5)]
            restored.append((await upkeep.restore(backup, url_of(path))).position)
        for writer in writers:
            position = 0
            while position <= restored[-1]:  # what it told before is still in the pipe
                position = (message := writer.receive())[0]
                ledger.append(message)
            ledger += [writer.receive() for _ in range(5)]
    finally:
        for writer in writers:
            writer.kill()
            ledger += writer.messages_left()
    await require_sound(path)
    assert torn_pairs(path) == set()
    stored = held(path)
    assert len({position for *both, _ in ledger for position in both}) == 2 * len(ledger), "no position came twice"
    after = {id_ for _, position, id_ in ledger if position > restored[-1]}
    assert len(after) >= 10
    assert after <= stored.keys(), "what was acknowledged after the restore is there"
    gone = {id_ for _, position, id_ in ledger if position < restored[-1]}
    assert not gone & stored.keys(), "what was written before it is not"


async def test_a_killed_restore_leaves_the_old_content_or_the_new(path: Path, backup: Path) -> None:
    filler = [episode(f"e{n}", context={"filler": "x" * 3000}) for n in range(1500)]
    async with MemoryStore(url_of(path), cache_path="") as store:
        await store.episodes.put_many(filler)
    old = held(path)
    new = {"a", "b"}
    seeded = random.Random(11)
    outcomes = set()
    # Which of the two a kill leaves is up to the machine: on a busy one both take more of them.
    for number in range(100):
        if number >= 16 and len(outcomes) == 2:
            break
        big = path.with_name("big.db")
        await upkeep.backup(url_of(path), big, overwrite=True) if number == 0 else None
        with Child(restore_once, str(backup if held(path) == old else big), str(path)) as child:
            while (word := child.receive()) not in ("writing", "restored"):
                pass
            time.sleep(seeded.choice([0, seeded.random() * 0.04]) if word == "writing" else 0)
        was_old = held(path) == old
        assert was_old or held(path).keys() == new
        outcomes.add(was_old)
        assert integrity_problems(path) == []
        if number % 5 == 0:
            await require_sound(path)
    assert outcomes == {True, False}
    await upkeep.restore(backup, url_of(path))
    assert held(path).keys() == new
    await require_sound(path)
    assert not list(path.parent.glob("*.tmp*")), "the next one removes what a killed one left"


async def _cancelled_at(number: int, backup: Path, url: str) -> None:
    """Restore, and cancel it when it has told of its progress more than so many times."""
    told = itertools.count()
    running = asyncio.create_task(
        upkeep.restore(backup, url, on_progress=lambda *_: running.cancel() if next(told) >= number else None)
    )
    await running


async def test_a_cancelled_restore_leaves_the_old_content_or_the_new(path: Path, backup: Path) -> None:
    old, outcomes = held(path), []
    for number in itertools.count():
        try:
            await _cancelled_at(number, backup, url_of(path))
            break
        except asyncio.CancelledError:
            outcomes.append(held(path) == old)
            assert outcomes[-1] or held(path).keys() == {"a", "b"}
            assert names(path.parent) == {"agent.db", "backup.db"}
    assert outcomes[0]
    await require_sound(path)


async def test_a_lock_that_is_held_too_long_changes_nothing(path: Path, backup: Path) -> None:
    before = (head_of(path), held(path))
    lock = FileLock(f"{path}-lock", 1)
    with lock.shared(), pytest.raises(DurableTimeoutError):
        await upkeep.restore(backup, url_of(path) + "?timeout_s=0.2")
    lock.close()
    with database(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DurableTimeoutError):
            await upkeep.restore(backup, url_of(path) + "?timeout_s=0.2")
        other.execute("ROLLBACK")
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM episodes").fetchone() == (2,)
        assert (head_of(path), held(path)) == before
        await upkeep.restore(backup, url_of(path) + "?timeout_s=0.2")
        seen = {id_ for (id_,) in other.execute("SELECT id FROM episodes")}
        assert seen == {"a", "c"}, "a reader keeps its snapshot, and keeps nobody waiting"
        other.execute("COMMIT")
    assert held(path).keys() == {"a", "b"}
    await require_sound(path)


async def _restore_on_a_full_disk(parent: Parent, folder: str, limit: str) -> list[str]:
    path, errors = Path(folder) / "agent.db", []
    async with MemoryStore(url_of(path), cache_path="") as store:
        await store.episodes.put_many([episode(f"e{n}", context={"filler": "x" * 3000}) for n in range(60)])
        await upkeep.backup(store, Path(folder) / "backup.db")
        await store.episodes.put(episode("later"))
        give_back = _squeeze(limit, Path(folder))
        if limit == "file size limit":
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, hard))
        try:
            await upkeep.restore(Path(folder) / "backup.db", url_of(path))
        except MemoryStoreError as error:
            errors.append(type(error).__name__)
        assert await store.episodes.get("later", freshness="linearizable")
        assert names(Path(folder)) <= {"agent.db", "backup.db", "filler"}
        give_back()
        await store.episodes.put(episode("and more"))
        await upkeep.restore(Path(folder) / "backup.db", url_of(path))
        assert await store.episodes.get("later", freshness="linearizable") is None
    return errors


async def test_a_full_disk_keeps_the_old_content(limited: tuple[str, Path]) -> None:  # noqa: F811
    limit, folder = limited
    assert len(in_child(_restore_on_a_full_disk, str(folder), limit)) == 1
    await require_sound(folder / "agent.db")
