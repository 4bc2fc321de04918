"""The cache over restarts: used where it can be believed, rebuilt with a reason where not."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memory_store import CacheStatus, MemoryStore, Pattern
from memory_store.cache import keeper
from memory_store.cache.keeper import version_key
from memory_store.cache.snapshot import FILE_NAME
from tests.unit.conftest import Blocker
from tests.unit.samples import make_episode, make_pattern, make_step


async def opened(url: str, **settings: Any) -> tuple[MemoryStore, CacheStatus]:
    """A store whose cache has been loaded or rebuilt, and how that went."""
    store = await MemoryStore(url, namespace="n", **settings).open()
    await store.cache.wait()
    return store, await store.cache.status()


@pytest.fixture
async def filled(file_url: str) -> str:
    """The URL of a database with ten episodes of two steps each, closed with all of it cached."""
    async with MemoryStore(file_url, namespace="n") as store:
        for number in range(10):
            await store.episodes.put(make_episode(id=f"e{number}"))
            await store.steps.append(f"e{number}", [make_step(""), make_step("")])
        await store.patterns.put(make_pattern(id="p"))
    return file_url


async def test_a_saved_cache_is_used_after_a_restart(filled: str) -> None:
    store, status = await opened(filled)
    assert (status.state, status.reason, status.error, status.entries) == ("ready", "", "", 21)
    assert (status.done, status.total) == (21, 21)
    for number in range(10):
        assert await store.episodes.get(f"e{number}") is not None
        assert len(await store.steps.of(f"e{number}")) == 2
    assert store.stats().cache["episode"].misses == 0
    assert store.stats().cache["step"].misses == 0
    await store.close()


async def expect_rebuild(url: str, reason: str, **settings: Any) -> None:
    """Open, expect a rebuild for this reason that leaves everything cached and right."""
    store, status = await opened(url, **settings)
    assert status.reason == reason
    assert (status.state, status.error) == ("ready", "")
    assert status.done == status.total >= status.entries == 21
    assert [len(await store.steps.of(f"e{number}")) for number in range(10)] == [2] * 10
    assert store.stats().cache["step"].misses == 0
    await store.close()


async def test_another_version_of_the_users_own_rebuilds(filled: str) -> None:
    await expect_rebuild(filled, "the version key has changed", cache_version="2")
    store, status = await opened(filled, cache_version="2")
    assert status.reason == ""
    await store.close()


async def test_another_shape_of_the_records_rebuilds(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "fingerprint", lambda: "another shape")
    await expect_rebuild(filled, "the version key has changed")


async def test_another_schema_revision_rebuilds(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "HEAD_REVISION", "9999")
    await expect_rebuild(filled, "the version key has changed")


def test_the_version_key_depends_on_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = version_key("")
    assert version_key("") == plain
    assert version_key("1") != plain
    monkeypatch.setattr(keeper, "HEAD_REVISION", "9999")
    assert version_key("") != plain


async def test_only_what_somebody_else_changed_is_dropped(filled: str) -> None:
    """The other one keeps no cache of its own here, so the saved one is what it was before the changes."""
    async with MemoryStore(filled, namespace="n", cache_path="") as other:
        changed = await other.episodes.update("e0", domain="changed")
        await other.episodes.delete("e1")
        await other.steps.append("e2", make_step(""))
        await other.episodes.put(make_episode(id="new"))
        await other.namespace("another").episodes.put(make_episode(id="e3"))
    store, status = await opened(filled)
    # Of 21 entries gone: e0; e1, its steps; the steps of e2.
    assert (status.state, status.reason, status.error, status.entries) == ("ready", "", "", 17)
    assert (status.done, status.total) == (21, 21)
    assert await store.episodes.get("e0") == changed
    assert (await store.episodes.get("e1"), await store.steps.of("e1")) == (None, [])
    assert [len(await store.steps.of(f"e{number}")) for number in range(2, 10)] == [3] + [2] * 7
    assert [await store.episodes.get(f"e{number}") is not None for number in range(2, 10)] == [True] * 8
    counters = store.stats().cache
    assert (counters["episode"].misses, counters["step"].misses) == (2, 2)
    await store.close()


async def test_what_plain_sql_changed_is_dropped_too(filled: str, tmp_path: Path) -> None:
    execute(tmp_path, "UPDATE episodes SET domain = 'changed' WHERE id = 'e0'", "DELETE FROM episodes WHERE id = 'e1'")
    store, status = await opened(filled)
    assert (status.reason, status.entries) == ("", 18)
    found = await store.episodes.get("e0")
    assert found is not None
    assert (found.domain, found.revision) == ("changed", 2)
    assert (await store.episodes.get("e1"), await store.steps.of("e1")) == (None, [])
    await store.close()


async def test_a_range_drops_a_kind_of_one_namespace(filled: str, tmp_path: Path) -> None:
    execute(
        tmp_path,
        "DELETE FROM steps",
        "DELETE FROM changes WHERE kind = 'step' AND actor = 'sql'",
        "UPDATE head SET position = (SELECT max(position) FROM changes) + 1",
        "INSERT INTO changes SELECT 0, position, 0, 'step', 'n', NULL, NULL, 'delete', NULL, '', 0, nonce, NULL "
        "FROM head",
    )
    store, status = await opened(filled)
    assert (status.reason, status.entries) == ("", 11)
    assert [await store.steps.of(f"e{number}") for number in range(10)] == [[]] * 10
    await store.close()


def execute(folder: Path, *statements: str) -> None:
    """Run plain SQL on the database, as another program would."""
    with closing(sqlite3.connect(folder / "agent.db")) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE head SET nonce = nonce + 1", "the database has another past than the saved cache"),
        (
            "UPDATE head SET position = position - 1",
            "the database is older than the saved cache: it was taken back to an earlier state",
        ),
        (
            "UPDATE head SET epoch = epoch + 1",
            "the database was upgraded, restored or repaired since the cache was saved",
        ),
        ("UPDATE head SET store_id = 'x'", "the saved cache belongs to another database"),
    ],
)
async def test_another_history_rebuilds(change: str, reason: str, filled: str, tmp_path: Path) -> None:
    execute(tmp_path, change)
    await expect_rebuild(filled, reason)


async def test_a_copy_put_back_and_written_on_rebuilds(filled: str, tmp_path: Path) -> None:
    """Both pasts reach the position of the saved cache, and beyond: only the nonce there tells them apart."""
    with closing(sqlite3.connect(tmp_path / "agent.db")) as live, closing(sqlite3.connect(tmp_path / "copy")) as copy:
        live.backup(copy)
    async with MemoryStore(filled, namespace="n") as store:
        await store.cache.wait()  # or closing would keep the saved cache as it is
        await store.episodes.update("e0", domain="lost")
    for left_over in ("agent.db", "agent.db-wal", "agent.db-shm"):
        (tmp_path / left_over).unlink(missing_ok=True)
    (tmp_path / "copy").rename(tmp_path / "agent.db")
    async with MemoryStore(filled, namespace="n", cache_path="") as store:
        for domain in ("another", "past"):
            kept = await store.episodes.update("e0", domain=domain)
    store, status = await opened(filled)
    assert (status.state, status.reason) == ("ready", "the database has another past than the saved cache")
    assert await store.episodes.get("e0") == kept
    await store.close()


async def test_a_trimmed_log_rebuilds(filled: str, tmp_path: Path) -> None:
    async with MemoryStore(filled, namespace="n", cache_path="") as other:
        await other.episodes.update("e0", domain="changed")
    execute(tmp_path, "DELETE FROM changes WHERE position < (SELECT position FROM head)")
    await expect_rebuild(filled, "the change log has been trimmed behind the saved cache")


async def test_more_changes_than_are_worth_reading_rebuild(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_store.cache.reconcile._MOST_CHANGES", 9)
    execute(tmp_path, "UPDATE episodes SET domain = 'changed' WHERE id <> 'e0'")
    store, status = await opened(filled)
    assert (status.reason, status.entries) == ("", 12)
    await store.close()
    execute(tmp_path, "UPDATE episodes SET domain = 'changed'")
    await expect_rebuild(filled, "more than 9 changes were made since the cache was saved")


async def test_no_saved_cache_rebuilds(filled: str, tmp_path: Path) -> None:
    (tmp_path / "agent.db.cache" / FILE_NAME).unlink()
    await expect_rebuild(filled, "there is no saved cache")
    await expect_rebuild(filled, "no cache is saved", cache_path="")


async def test_the_folder_can_be_elsewhere(filled: str, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    await expect_rebuild(filled, "there is no saved cache", cache_path=elsewhere)
    store, status = await opened(filled, cache_path=elsewhere)
    assert (status.reason, status.path, status.entries) == ("", elsewhere, 21)
    await store.close()


async def test_no_budget_means_off(filled: str) -> None:
    store, status = await opened(filled, cache_max_bytes=0)
    assert (status.state, status.entries) == ("off", 0)
    await store.cache.rebuild()
    assert await store.episodes.get("e0") is not None
    assert (await store.cache.status()).entries == 0
    await store.close()


async def test_a_rebuild_serves_meanwhile_and_tells_how_far_it_is(filled: str) -> None:
    store, _ = await opened(filled)
    scan = store._access.durable.scan
    async with Blocker(scan).block():
        rebuilding = asyncio.create_task(store.cache.rebuild())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        status = await store.cache.status()
        assert (status.state, status.reason) == ("rebuilding", "asked for")
        changed = await store.episodes.update("e0", domain="changed meanwhile")
        assert await store.episodes.get("e1") is not None
    await rebuilding
    status = await store.cache.status()
    assert (status.state, status.error) == ("ready", "")
    assert status.done == status.total == 41  # 10 episodes, their three kinds of parts each, a pattern
    assert await store.episodes.get("e0") == changed
    await store.close()


async def test_a_rebuild_can_be_cancelled(filled: str) -> None:
    store, _ = await opened(filled)
    async with Blocker(store._access.durable.scan).block():
        rebuilding = asyncio.create_task(store.cache.rebuild())
        await asyncio.sleep(0)
        rebuilding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rebuilding
    await store.cache.wait()
    assert (await store.cache.status()).state == "ready"
    assert await store.episodes.get("e0") is not None
    await store.cache.rebuild()
    assert (await store.cache.status()).entries == 21
    await store.close()


async def test_the_most_used_and_newest_are_kept_when_not_all_fit(file_url: str) -> None:
    async with MemoryStore(file_url, namespace="n") as store:
        await store.patterns.put_many(
            make_pattern(id=f"p{number:03}", usage_count=number, pattern_data="x" * 500) for number in range(200)
        )
    store, status = await opened(file_url, cache_version="2", cache_max_bytes=40_000)
    assert 20 <= status.entries < 60
    assert status.used_bytes <= 40_000
    cached = [store._shelf.space_of(key)[1] for key in store._shelf.keys()]  # noqa: SIM118 - not a dict
    assert sorted(cached) == [f"p{number:03}" for number in range(200 - status.entries, 200)]
    assert cached[-1] == "p199", "the most used is the last to be pushed out"
    assert await store.patterns.count(Pattern.c.usage_count >= 0) == 200
    await store.close()


async def test_what_was_used_last_comes_first_in_a_rebuild(filled: str) -> None:
    store, _ = await opened(filled)
    await store.episodes.get("e3")
    await store.close()
    store, _ = await opened(filled, cache_version="2", cache_max_bytes=1500)
    ids = [store._shelf.space_of(key)[1] for key in store._shelf.keys()]  # noqa: SIM118 - not a dict
    assert "e3" in ids
    await store.close()


async def test_it_is_saved_now_and_then(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = asyncio.Event()
    loop = asyncio.get_running_loop()
    really_save = keeper.save

    def save_and_tell(*arguments: Any) -> int:
        count = really_save(*arguments)
        loop.call_soon_threadsafe(saved.set)
        return count

    monkeypatch.setattr(keeper, "save", save_and_tell)
    store, _ = await opened(filled, cache_save_interval_s=0.01)
    await store.episodes.put(make_episode(id="new"))
    async with asyncio.timeout(30):
        await saved.wait()
    size = (tmp_path / "agent.db.cache" / FILE_NAME).stat().st_size
    assert size > 0
    # As after a crash: another process finds what was saved while the first one still runs.
    copy, status = await opened(filled)
    assert status.reason == "", "whatever has been saved by now, the log leads on from there"
    assert await copy.episodes.get("new") is not None
    await copy.close()
    await store.close()


async def test_clearing_forgets_the_file_too(filled: str) -> None:
    store, _ = await opened(filled)
    await store.cache.clear()
    assert (await store.cache.status()).entries == 0
    other, status = await opened(filled)
    assert (status.entries, status.reason) == (0, "")
    await other.close()
    await store.close()


async def test_a_save_that_fails_is_noted_and_fails_nothing(filled: str, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    store, _ = await opened(filled, cache_path=str(blocked))
    await store.cache.save()
    assert "cannot save the cache in" in (await store.cache.status()).error
    assert await store.episodes.get("e0") is not None
    await store.close()
