"""One flipped bit in the database file: an error of ours or what the file says; no crash, hang or raw error."""

from __future__ import annotations

import random
from pathlib import Path

from memory_store import MemoryStore, MemoryStoreError
from tests.fault.damage import everything, fill, flips, read_damaged_databases
from tests.fault.support import Child


async def run_flips(tmp_path: Path, count: int, seed: int) -> None:
    """Flip bits of a small database in a child process and check what it reports."""
    path = tmp_path / "sound.db"
    async with MemoryStore(f"sqlite:///{path}", cache_path="") as store:
        await fill(store)
        expected = await everything(store)
    assert not path.with_name("sound.db-wal").exists()
    folder = tmp_path / "damaged"
    folder.mkdir()
    places = list(flips(path.stat().st_size, count, seed))
    with Child(read_damaged_databases, str(path), str(folder), places, expected) as child:
        for place in places:
            assert child.receive() == place
        outcomes, problems = child.receive()
    assert problems == []
    # Most of a file is unused pages and free space, so most flips do no harm; some must have met something.
    assert outcomes["right"] > count / 3
    assert sum(outcomes.values()) > outcomes["right"]


async def test_flipped_bits_of_the_database(tmp_path: Path) -> None:
    await run_flips(tmp_path, 100, seed=21)


async def test_a_database_that_was_cut_off_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "sound.db"
    async with MemoryStore(f"sqlite:///{path}", cache_path="") as store:
        await fill(store)
        expected = await everything(store)
    sound = path.read_bytes()
    seeded = random.Random(4)
    for number in range(40):
        cut = tmp_path / f"cut{number}.db"
        cut.write_bytes(sound[: seeded.randrange(1, len(sound))])
        try:
            async with MemoryStore(f"sqlite:///{cut}", timeout_s=2, cache_path="") as store:
                assert await everything(store) == expected
        except MemoryStoreError:
            continue
