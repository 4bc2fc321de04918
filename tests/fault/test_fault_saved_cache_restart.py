"""The saved cache over restarts and crashes: what has not changed is kept, what has is not served.

Each test reads every record after the restart and compares it with what the plain driver reads from the file.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memory_store import CacheStatus, Episode, MemoryStore, Step, StoreClosedError
from memory_store.durable.log import begin_epoch
from memory_store.records import RECORDS
from tests.fault.damage import CACHE_FILE
from tests.fault.support import Child, Parent, database, episode, fields, in_child, plain_rows

pytestmark = pytest.mark.usefixtures("no_thread_left")

ENTRIES = 2000
AT_ONCE = 1000  # more in one commit would not enter the cache
WITH_STEPS = 20


class Database(NamedTuple):
    """A database file and the folder of its saved cache."""

    path: Path

    @property
    def url(self) -> str:
        """Its URL."""
        return f"sqlite:///{self.path}"

    @property
    def cache(self) -> Path:
        """The saved cache."""
        return Path(f"{self.path}.cache") / CACHE_FILE


class Restart(NamedTuple):
    """What became of the saved cache on opening.

    Args:
        status: the cache's status once it was loaded.
        kept: episodes that were answered from the cache without a read of the database before.
        fills: entries that were read from the database for the rebuild.
    """

    status: CacheStatus
    kept: int
    fills: int


async def fill(url: str, count: int = ENTRIES) -> None:
    """Write episodes, some with steps, all of which enter the cache; closing saves it."""
    async with MemoryStore(url) as store:
        for start in range(0, count, AT_ONCE):
            await store.episodes.put_many([episode(f"m{i}") for i in range(start, min(start + AT_ONCE, count))])
        for i in range(min(WITH_STEPS, count)):
            await store.steps.append(f"m{i}", [Step(action="first"), Step(action="second")])


async def change_some(store: MemoryStore, mark: str = "changed") -> int:
    """Change 20 entries, in every way; return how many entries of the cache that touches."""
    await store.episodes.put_many([episode(f"m{i}", domain=mark) for i in range(100, 106)])
    for i in range(106, 110):
        await store.episodes.update(f"m{i}", domain=mark)
    for i in range(4):
        await store.steps.append(f"m{i}", Step(action=mark))
    await store.episodes.delete("m110")
    await store.episodes.delete("m5")  # with its steps: a range
    async with store.transaction() as tx:
        await tx.episodes.put(episode(f"new {mark}"))
        await tx.episodes.update("m111", domain=mark)
        await tx.steps.append("m6", Step(action=mark))
    return 20


async def _change_some(parent: Parent, url: str) -> int:
    async with MemoryStore(url, cache_path="") as store:
        return await change_some(store)


async def restart(database_: Database, **settings: Any) -> Restart:
    """Open the database again, and read every record there is or was, through the cache."""
    async with MemoryStore(database_.url, staleness_s=3600, timeout_s=5, **settings) as store:
        await store.cache.wait()
        status, before = await store.cache.status(), store.stats().cache["episode"]
        with database(database_.path) as connection:
            rows = {row["id"]: row for row in plain_rows(connection, RECORDS["episode"], "true")}
            for id_ in {*rows, *(f"m{i}" for i in range(ENTRIES))}:
                assert fields(await store.episodes.get(id_)) == rows.get(id_)
            for i in range(WITH_STEPS):
                steps = plain_rows(connection, RECORDS["step"], "episode_id = ?", f"m{i}")
                assert [fields(step) for step in await store.steps.of(f"m{i}")] == steps
        assert await store.episodes.count() == len(rows)
        kept = store.stats().cache["episode"].hits - before.hits
    return Restart(status, kept, before.fills)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Database:
    """A closed database with a saved cache; tests work on copies."""
    made = Database(tmp_path_factory.mktemp("template") / "agent.db")
    in_child(_fill, made.url)
    return made


async def _fill(parent: Parent, url: str) -> None:
    await fill(url)


def copied(source: Database, path: Path) -> Database:
    """Copy a closed database with its saved cache."""
    copy = Database(path)
    shutil.copy(source.path, copy.path)
    if source.cache.exists():
        copy.cache.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(source.cache, copy.cache)
    return copy


@pytest.fixture
def saved(template: Database, tmp_path: Path) -> Database:
    """A closed database with `ENTRIES` episodes and its saved cache."""
    return copied(template, tmp_path / "agent.db")


async def test_without_changes_everything_is_kept(saved: Database) -> None:
    assert await restart(saved) == await restart(saved)
    found = await restart(saved)
    assert (found.status.reason, found.status.error, found.kept, found.fills) == ("", "", ENTRIES, 0)


async def test_what_another_process_changed_meanwhile_is_dropped_and_nothing_else(saved: Database) -> None:
    changed = in_child(_change_some, saved.url)
    found = await restart(saved)
    assert (found.status.reason, found.fills) == ("", 0)
    assert ENTRIES - changed <= found.kept < ENTRIES


async def test_what_plain_sql_changed_meanwhile_is_dropped_and_nothing_else(saved: Database) -> None:
    with database(saved.path) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("UPDATE episodes SET domain = 'sql' WHERE id LIKE 'm10_'")
        connection.execute("DELETE FROM episodes WHERE id IN ('m3', 'm200')")
        connection.execute("UPDATE steps SET action = 'sql' WHERE episode_id = 'm4'")
    found = await restart(saved)
    assert (found.status.reason, found.fills) == ("", 0)
    assert found.kept == ENTRIES - 12


async def _use_and_wait(parent: Parent, url: str, save: bool) -> None:
    """Open over the saved cache, change some, perhaps save, change more; then wait to be killed."""
    async with MemoryStore(url, cache_save_interval_s=0) as store:
        await store.cache.wait()
        await change_some(store, "before")
        if save:
            await store.cache.save()
            assert not (await store.cache.status()).error
        await change_some(store, "after")
        parent.send((await store.cache.status()).entries)
        parent.wait_for("be killed")


@pytest.mark.parametrize("save", [True, False], ids=["saved since", "not saved since"])
async def test_a_kill_costs_no_more_than_what_changed(save: bool, saved: Database) -> None:
    with Child(_use_and_wait, saved.url, save) as child:
        assert child.receive() >= ENTRIES
        child.kill()
    found = await restart(saved)
    assert (found.status.reason, found.fills) == ("", 0)
    assert found.kept >= 0.98 * ENTRIES


async def _save_for_ever(parent: Parent, url: str) -> None:
    """Save again and again while everything changes, until killed."""
    async with MemoryStore(url, cache_save_interval_s=0) as store:
        parent.send("saving")
        number = 0
        while True:
            number += 1
            await store.episodes.put_many([episode(f"m{i}", domain=str(number)) for i in range(number % 50, 1500, 50)])
            await store.cache.save()


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.08, 0.2])
async def test_a_kill_in_the_middle_of_saving_leaves_one_that_can_be_used(delay_s: float, saved: Database) -> None:
    with Child(_save_for_ever, saved.url) as child:
        child.receive()
        child.arrived_within(delay_s)
        child.kill()
    found = await restart(saved)
    assert (found.status.reason, found.status.error, found.fills) == ("", "", 0)
    assert found.kept > 0
    found = await restart(saved)
    assert found.kept == ENTRIES


# --- what cannot be used


def go_on(database_: Database, commits: int, mark: str) -> None:
    """Make some commits in another process that keeps no cache."""
    in_child(_go_on, database_.url, commits, mark)


async def _go_on(parent: Parent, url: str, commits: int, mark: str) -> None:
    async with MemoryStore(url, cache_path="") as store:
        for number in range(commits):
            await store.episodes.update(f"m{500 + number}", domain=mark)


async def use(database_: Database, commits: int, mark: str) -> None:
    """Make some commits and save the cache with them."""
    async with MemoryStore(database_.url) as store:
        await store.cache.wait()
        for number in range(commits):
            await store.episodes.update(f"m{500 + number}", domain=mark)


async def refused(database_: Database, reason: str, **settings: Any) -> None:
    """Check that the saved cache is refused for this reason, rebuilt, and used the next time."""
    found = await restart(database_, **settings)
    assert reason in found.status.reason
    assert (found.status.state, found.status.error) == ("ready", "")
    assert found.fills > 0
    again = await restart(database_, **settings)
    assert (again.status.reason, again.fills) == ("", 0)


@pytest.mark.parametrize(
    ("lost", "since", "reason"),
    [
        (3, 0, "taken back to an earlier state"),
        (3, 2, "taken back to an earlier state"),
        (3, 3, "another past"),
        (3, 7, "another past"),
    ],
)
async def test_a_restored_backup(lost: int, since: int, reason: str, saved: Database, tmp_path: Path) -> None:
    """`cp` of a closed database, put back after `lost` commits; then it went on for `since` commits."""
    shutil.copy(saved.path, tmp_path / "backup.db")
    await use(saved, lost, "lost")
    shutil.copy(tmp_path / "backup.db", saved.path)
    if since:
        go_on(saved, since, "since")
    await refused(saved, reason)


async def test_a_restored_backup_of_the_same_state_loses_nothing(saved: Database, tmp_path: Path) -> None:
    shutil.copy(saved.path, tmp_path / "backup.db")
    shutil.copy(tmp_path / "backup.db", saved.path)
    go_on(saved, 3, "since")
    found = await restart(saved)
    assert (found.status.reason, found.kept) == ("", ENTRIES - 3)


async def test_a_copied_database_takes_its_cache_along(saved: Database, tmp_path: Path) -> None:
    copy = copied(saved, tmp_path / "copy.db")
    found = await restart(copy)
    assert (found.status.reason, found.kept) == ("", ENTRIES)


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [(4, 2, "taken back to an earlier state"), (3, 3, "another past"), (2, 5, "another past")],
)
async def test_the_cache_of_a_copy_that_went_its_own_way(
    ours: int, theirs: int, reason: str, saved: Database, tmp_path: Path
) -> None:
    copy = copied(saved, tmp_path / "copy.db")
    await use(saved, ours, "ours")
    go_on(copy, theirs, "theirs")
    await refused(copy, reason, cache_path=str(saved.cache.parent))


async def test_a_database_under_the_cache_of_another_one(saved: Database, tmp_path: Path) -> None:
    other = Database(tmp_path / "other.db")
    await fill(other.url, 50)
    shutil.copy(other.path, saved.path)
    await refused(saved, "another database")


@pytest.mark.parametrize("operation", ["upgrade", "restore", "repair"])
async def test_a_new_epoch(operation: str, saved: Database) -> None:
    with database(saved.path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        begin_epoch(connection.execute, operation)
        connection.execute("COMMIT")
    await refused(saved, "upgraded, restored or repaired")


@pytest.mark.parametrize(
    ("since", "kept", "reason"),
    [(5, 3, "trimmed"), (5, 0, "trimmed"), (5, 5, "trimmed"), (5, 6, ""), (0, 0, ""), (0, 1, "")],
)
async def test_a_trimmed_log(since: int, kept: int, reason: str, saved: Database) -> None:
    """It leads on from the saved cache as long as it holds the commit at which that was saved."""
    if since:
        go_on(saved, since, "since")
    with database(saved.path) as connection:
        connection.execute("DELETE FROM changes WHERE position <= (SELECT position FROM head) - ?", (kept,))
    if reason:
        await refused(saved, reason)
    else:
        found = await restart(saved)
        assert (found.status.reason, found.kept) == ("", ENTRIES - since)


async def test_another_version_of_what_is_cached(saved: Database) -> None:
    await refused(saved, "version key", cache_version="2")


async def _write_then_lose_it(parent: Parent, url: str) -> None:
    """Write, wait while the files are copied, write and save more; then wait to be killed."""
    async with MemoryStore(url, cache_save_interval_s=0) as store:
        await store.cache.wait()
        await change_some(store, "kept")
        parent.send("copy now")
        parent.wait_for("copied")
        await change_some(store, "lost")
        await store.cache.save()
        parent.send("saved")
        parent.wait_for("be killed")


@pytest.mark.parametrize("files", ["database and log", "database alone"])
@pytest.mark.parametrize("since", [0, 25])
async def test_a_power_loss_that_took_the_last_commits(since: int, files: str, saved: Database, tmp_path: Path) -> None:
    """The cache file had been written through, the last commits (or the whole log) had not."""
    wal = Path(f"{saved.path}-wal")
    with Child(_write_then_lose_it, saved.url) as child:
        child.receive()
        assert wal.stat().st_size > 0
        for path in (saved.path, wal):
            shutil.copy(path, tmp_path / f"{path.name}.copy")
        child.send("copied")
        child.receive()
        child.kill()
    for path in (saved.path, wal):
        shutil.copy(tmp_path / f"{path.name}.copy", path)
    if files == "database alone":
        wal.unlink()
    Path(f"{saved.path}-shm").unlink()
    if since:
        go_on(saved, since, "since")
    await refused(saved, "another past" if since else "taken back to an earlier state")


async def _refused_in_a_fork(store: MemoryStore) -> int:
    """Return how many uses were refused, none of which may reach the parent's connections or files."""
    told = 0
    uses: list[Callable[[], Any]] = [
        lambda: store.episodes.get("m1"),
        lambda: store.cache.save(),
        lambda: store.resolve("a.1.b.0"),
        lambda: anext(store.follow()),
    ]
    for use in uses:
        try:
            await use()
        except StoreClosedError as error:
            told += "fork" in str(error)
    await store.close()
    return told


async def _open_and_fork(parent: Parent, url: str) -> list[Any]:
    async with MemoryStore(url) as store:
        await store.cache.wait()
        fork = os.fork()
        if fork == 0:
            os._exit(asyncio.run(_refused_in_a_fork(store)))  # a fork has no running loop, whatever its parent has
        _, ended = os.waitpid(fork, 0)
        await store.episodes.update("m1", domain="parent")
        return [os.waitstatus_to_exitcode(ended), (await store.cache.status()).reason]


async def test_a_fork_leaves_the_saved_cache_to_the_parent(saved: Database) -> None:
    assert in_child(_open_and_fork, saved.url) == [4, ""]
    found = await restart(saved)
    assert (found.status.reason, found.kept) == ("", ENTRIES)


CHANGES: dict[str, Callable[[MemoryStore], Any]] = {
    "update": lambda s: s.episodes.update("m7", domain="now"),
    "delete": lambda s: s.episodes.delete("m7"),
    "append": lambda s: s.steps.append("m7", Step(action="now")),
    "bulk": lambda s: s.episodes.put_many([Episode(id=f"m{i}", task_type="t", domain="now") for i in range(1500)]),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("who", ["ours", "theirs"])
async def test_what_changes_while_the_saved_cache_loads_is_not_put_back(who: str, name: str, saved: Database) -> None:
    async with MemoryStore(saved.url, cache_path="") as theirs, MemoryStore(saved.url, staleness_s=3600) as ours:
        assert (await ours.cache.status()).state == "loading"
        await CHANGES[name](ours if who == "ours" else theirs)
        if who == "theirs":
            await ours.episodes.get("m8", freshness="linearizable")
        await ours.cache.wait()
        with database(saved.path) as connection:
            for i in range(40):
                rows = plain_rows(connection, RECORDS["episode"], "id = ?", f"m{i}")
                assert fields(await ours.episodes.get(f"m{i}")) == (rows[0] if rows else None)
                steps = plain_rows(connection, RECORDS["step"], "episode_id = ?", f"m{i}")
                assert [fields(step) for step in await ours.steps.of(f"m{i}")] == steps
    assert (await restart(saved)).status.reason == ""
