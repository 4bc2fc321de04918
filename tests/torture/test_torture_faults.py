"""The fault tests at length: more kills, more flipped bits, every bit of a saved cache."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from memory_store import MemoryStore
from tests.fault.damage import CACHE_FILE, everything, fill, flipped, flips, wrongly_believed
from tests.fault.killing import kill_again_and_again
from tests.fault.test_fault_damaged_database import run_flips

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_acknowledged_is_lost_over_500_kills(seed: int, tmp_path: Path) -> None:
    ledger, met = await kill_again_and_again(tmp_path / "agent.db", 100, seed=1000 + seed)
    assert ledger.acknowledged > 300
    assert {"opening", "open", "closing"} <= met


async def test_every_bit_of_a_saved_cache_and_some_of_them_together(tmp_path: Path) -> None:
    async with MemoryStore(f"sqlite:///{tmp_path}/agent.db") as store:
        await fill(store)
    folder = tmp_path / "agent.db.cache"
    sound = (folder / CACHE_FILE).read_bytes()
    masks = [*(1 << bit for bit in range(8)), 0x55, 0xAA, 0xFF, 0x0F, 0xF0, 0x03, 0x3C, 0xC0]
    places = list(itertools.product(range(len(sound)), masks))
    assert len(places) > 100_000
    assert wrongly_believed(folder, sound, places) == []


async def test_stores_over_flipped_bits_of_a_saved_cache(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/agent.db"
    async with MemoryStore(url) as store:
        await fill(store)
        values = await everything(store)
    file = tmp_path / "agent.db.cache" / CACHE_FILE
    sound = file.read_bytes()
    for place, bit in flips(len(sound), 5000, seed=11):
        file.write_bytes(flipped(sound, place, bit))
        async with MemoryStore(url) as store:
            assert await everything(store) == values
            await store.cache.wait()
            assert await everything(store) == values


@pytest.mark.parametrize("seed", range(5))
async def test_flipped_bits_of_the_database(seed: int, tmp_path: Path) -> None:
    await run_flips(tmp_path, 2000, seed=100 + seed)
