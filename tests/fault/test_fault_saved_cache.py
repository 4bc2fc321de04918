"""The saved cache, damaged, forged, swapped or outdated: never a wrong value, a hang or an error to the caller."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memory_store import CacheStatus, MemoryStore, Step
from tests.fault.damage import CACHE_FILE, EPISODES, everything, fill, flipped, flips, saved_entries, wrongly_believed
from tests.fault.support import Parent, become_nobody, episode, in_child

pytestmark = pytest.mark.usefixtures("no_thread_left")


class Saved(NamedTuple):
    """A closed store with a saved cache: its files, what is in the cache file, and every value of the store."""

    url: str
    path: Path
    folder: Path
    sound: bytes
    values: dict[str, Any]

    @property
    def file(self) -> Path:
        """The saved cache."""
        return self.folder / CACHE_FILE


async def make_saved(path: Path, mark: str = "ours") -> Saved:
    """Write a store and close it."""
    async with MemoryStore(f"sqlite:///{path}") as store:
        await fill(store, mark)
        values = await everything(store)
    folder = Path(f"{path}.cache")
    return Saved(f"sqlite:///{path}", path, folder, (folder / CACHE_FILE).read_bytes(), values)


@pytest.fixture
async def saved(tmp_path: Path) -> Saved:
    """A closed store with a saved cache."""
    return await make_saved(tmp_path / "agent.db")


async def reopened(saved: Saved) -> CacheStatus:
    """Open the store over whatever its cache file is now, read everything at once and again later."""
    async with MemoryStore(saved.url, timeout_s=5) as store:
        assert await everything(store) == saved.values
        await store.cache.wait()
        status = await store.cache.status()
        assert await everything(store) == saved.values
        assert status.state == "ready"
    return status


async def test_a_sound_file_is_used(saved: Saved) -> None:
    """Without this, the tests below could pass because no saved cache is ever used."""
    async with MemoryStore(saved.url) as store:
        await store.cache.wait()
        assert (await store.cache.status()).reason == ""
        assert await everything(store) == saved.values
        counters = store.stats().cache
        assert sum(kind.misses for kind in counters.values()) == 0
        assert sum(kind.fills for kind in counters.values()) == 0


def test_flipped_bits_are_never_believed(tmp_path: Path, saved: Saved) -> None:
    assert wrongly_believed(saved.folder, saved.sound, flips(len(saved.sound), 3000, seed=1)) == []


async def test_flipped_bits_reach_nobody(saved: Saved) -> None:
    for place, bit in flips(len(saved.sound), 150, seed=2):
        saved.file.write_bytes(flipped(saved.sound, place, bit))
        assert (await reopened(saved)).reason, f"byte {place} bit {bit} went unnoticed"


async def test_a_cut_off_file_is_never_believed_beyond_its_end(saved: Saved) -> None:
    right = saved_entries(saved.folder)
    for length in range(0, len(saved.sound), 7):
        saved.file.write_bytes(saved.sound[:length])
        assert saved_entries(saved.folder) <= right
    for length in random.Random(3).sample(range(len(saved.sound)), 50):
        saved.file.write_bytes(saved.sound[:length])
        assert (await reopened(saved)).reason, f"a file cut at {length} went unnoticed"


@pytest.mark.parametrize(
    "change",
    [
        lambda sound: b"",
        lambda sound: random.Random(1).randbytes(len(sound)),
        lambda sound: bytes(len(sound)),
        lambda sound: b"\xff" * len(sound),
        lambda sound: sound + b"x",
        lambda sound: sound + sound,
        lambda sound: sound[:300] + sound[400:],
        lambda sound: sound[:300] + bytes(200) + sound[300:],
        lambda sound: sound[:21] + b"\xff\xff\xff\xff" + sound[25:],
    ],
    ids=["empty", "noise", "zeros", "ones", "longer", "doubled", "piece gone", "hole", "huge length"],
)
async def test_garbage_leads_to_a_rebuild(change: Callable[[bytes], bytes], saved: Saved) -> None:
    saved.file.write_bytes(change(saved.sound))
    assert (await reopened(saved)).reason
    assert (await reopened(saved)).reason == "", "the rebuilt cache was not saved in its place"


async def test_the_cache_of_another_store_is_not_used(saved: Saved, tmp_path: Path) -> None:
    other = await make_saved(tmp_path / "other.db", mark="theirs")
    saved.file.write_bytes(other.sound)
    assert "another database" in (await reopened(saved)).reason


async def test_a_link_in_place_of_the_file_is_not_followed(saved: Saved, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(saved.sound)
    saved.file.unlink()
    saved.file.symlink_to(elsewhere)
    assert (await reopened(saved)).reason
    assert elsewhere.read_bytes() == saved.sound
    assert not saved.file.is_symlink()


async def test_a_link_in_place_of_the_folder_is_not_written_through(saved: Saved, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(saved.folder)
    saved.folder.symlink_to(elsewhere)
    await reopened(saved)
    assert list(elsewhere.iterdir()) == []


async def test_a_file_in_place_of_the_folder_and_a_folder_in_place_of_the_file(saved: Saved) -> None:
    saved.file.unlink()
    saved.file.mkdir()
    await reopened(saved)
    shutil.rmtree(saved.folder)
    saved.folder.write_text("not a folder")
    await reopened(saved)
    assert saved.folder.read_text() == "not a folder"


async def _open_and_count(parent: Parent, url: str) -> int:
    async with MemoryStore(url) as store:
        await store.cache.wait()
        return await store.episodes.count()


async def test_a_pipe_in_place_of_the_file_does_not_hang(saved: Saved) -> None:
    saved.file.unlink()
    os.mkfifo(saved.file)
    assert in_child(_open_and_count, saved.url, timeout_s=15) == len(EPISODES)


async def test_a_deleted_file_and_a_deleted_folder_are_made_again(saved: Saved) -> None:
    saved.file.unlink()
    assert (await reopened(saved)).reason
    assert (await reopened(saved)).reason == ""
    shutil.rmtree(saved.folder)
    assert (await reopened(saved)).reason
    assert (await reopened(saved)).reason == ""


async def test_a_folder_deleted_while_the_store_is_open_is_made_again(saved: Saved) -> None:
    async with MemoryStore(saved.url) as store:
        await store.cache.wait()
        shutil.rmtree(saved.folder)
        await store.cache.save()
    assert (await reopened(saved)).reason == ""


async def _use_as_nobody(parent: Parent, url: str, folder: str, mode: int) -> list[str]:
    """Save a cache, forbid its folder or file, and use the store again."""
    await become_nobody()
    async with MemoryStore(url) as store:
        await store.episodes.put(episode("known"))
    Path(folder).chmod(mode)
    async with MemoryStore(url) as store:
        await store.cache.wait()
        known = await store.episodes.get("known")
        assert known is not None
        await store.episodes.update("known", status="completed")
        await store.cache.save()
        error = (await store.cache.status()).error
        found = await store.episodes.get("known")
        assert found is not None
    return [found.status, error]


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_that_cannot_be_written_is_told_in_the_status_only(mode: int, open_folder: Path) -> None:
    open_folder.chmod(0o777)
    folder = f"{open_folder}/agent.db.cache"
    status, error = in_child(_use_as_nobody, f"sqlite:///{open_folder}/agent.db", folder, mode)
    assert status == "completed"
    assert folder in error


async def test_file_and_folder_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        saved = await make_saved(tmp_path / "agent.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE(saved.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(saved.folder.stat().st_mode) == 0o700
    assert [path.name for path in saved.folder.iterdir()] == [CACHE_FILE]


async def test_a_restored_older_copy_is_not_served_from_the_newer_cache(saved: Saved, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    shutil.copy(saved.path, backup)
    async with MemoryStore(saved.url) as store:
        await store.cache.wait()  # or closing would keep the saved cache as it is
        await store.episodes.update("e1", status="completed")
    shutil.copy(backup, saved.path)
    assert "taken back to an earlier state" in (await reopened(saved)).reason


async def test_another_history_of_the_same_length_is_not_served_from_the_cache(saved: Saved, tmp_path: Path) -> None:
    """A copy goes on by itself and comes back: same database, same position, other contents."""
    copy = tmp_path / "copy.db"
    shutil.copy(saved.path, copy)
    async with MemoryStore(saved.url) as store:
        await store.cache.wait()  # or closing would keep the saved cache as it is
        await store.episodes.update("e1", status="completed", domain="first history")
    async with MemoryStore(f"sqlite:///{copy}") as store:
        await store.episodes.update("e1", status="failed", domain="second history")
        values = await everything(store)
    shutil.copy(copy, saved.path)
    assert "has another past" in (await reopened(saved._replace(values=values))).reason


async def test_a_history_that_went_on_past_the_saved_one_is_not_served_from_the_cache(
    saved: Saved, tmp_path: Path
) -> None:
    """The backup goes on further than the cache: its position is no reason to refuse it, only the past below it."""
    copy = tmp_path / "copy.db"
    shutil.copy(saved.path, copy)
    async with MemoryStore(saved.url) as store:
        await store.cache.wait()  # or closing would keep the saved cache as it is
        await store.episodes.update("e1", status="completed", domain="first history")
    async with MemoryStore(f"sqlite:///{copy}") as store:
        for round_ in range(5):
            await store.episodes.update("e1", status="failed", domain=f"second history {round_}")
        values = await everything(store)
    shutil.copy(copy, saved.path)
    assert "has another past" in (await reopened(saved._replace(values=values))).reason


async def test_a_change_by_a_store_with_another_cache_is_seen(saved: Saved) -> None:
    async with MemoryStore(saved.url, cache_path="") as store:
        await store.episodes.update("e1", status="failed")
        await store.steps.append("e2", Step(action="more"))
        await store.episodes.delete("e3")
        values = await everything(store)
    async with MemoryStore(saved.url) as store:
        await store.cache.wait()
        # Gone are e1, the steps of e2, and e3 with its three kinds of parts; nothing else is.
        assert store.stats().entries == 5 * len(EPISODES) - 6
    saved.file.write_bytes(saved.sound)
    assert (await reopened(saved._replace(values=values))).reason == "", "only what changed is dropped"


async def test_a_new_database_under_the_old_cache_serves_nothing_of_the_old_one(saved: Saved) -> None:
    saved.path.unlink()
    async with MemoryStore(saved.url) as store:
        assert await store.episodes.get("e1") is None
        await store.cache.wait()
        assert await store.episodes.get("e1") is None
        assert await store.steps.of("e1") == []


async def test_closing_while_the_saved_cache_loads_does_not_lose_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/agent.db"
    async with MemoryStore(url) as store:
        for start in range(0, 3000, 500):
            some = range(start, start + 500)
            await store.episodes.put_many([episode(f"m{i}") for i in some])
        entries = store.stats().entries
    async with MemoryStore(url):
        pass
    async with MemoryStore(url) as store:
        await store.cache.wait()
        assert (await store.cache.status()).reason == ""
        assert store.stats().entries == entries
