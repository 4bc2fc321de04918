"""The disk keeps what was synced, whatever the damage, and may lose anything else."""

from __future__ import annotations

import pytest

from tests.power.disk import DAMAGES, PAGE, SECTOR, Disk

SEEDS = range(60)


def synced_and_then_written() -> Disk:
    disk = Disk.holding({"a": b"s" * (4 * SECTOR)})
    disk.names["a"].write(SECTOR, b"n" * SECTOR)
    disk.names["a"].write(4 * SECTOR, b"m" * SECTOR)
    return disk


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_synced_survives_every_damage(seed: int) -> None:
    disk = synced_and_then_written()
    disk.names["a"].sync()
    disk.names["a"].write(SECTOR + 10, b"x")  # and bytes beside a write that was not
    left = disk.after_power_cut(seed).contents()["a"]
    expected = b"s" * SECTOR + b"n" * SECTOR + b"s" * (2 * SECTOR) + b"m" * SECTOR
    assert left[: SECTOR + 10] + left[SECTOR + 11 :] == expected[: SECTOR + 10] + expected[SECTOR + 11 :]


def test_what_is_not_synced_may_be_there_or_not() -> None:
    disk = synced_and_then_written()
    left = {seed: disk.after_power_cut(seed).contents()["a"] for seed in SEEDS}
    assert left[0] == b"s" * (4 * SECTOR)
    assert left[1] == bytes(disk.names["a"].visible)
    assert len(set(left.values())) > 5
    assert all(content[:SECTOR] == b"s" * SECTOR for content in left.values())


def test_ten_seeds_are_ten_damages() -> None:
    assert len({damage.__name__ for damage in DAMAGES}) == 10


def test_a_name_is_safe_once_the_folder_is() -> None:
    disk = Disk.holding({"old": b"1"})
    disk.delete("old")
    disk.create("new")
    found = {tuple(sorted(disk.after_power_cut(seed).names)) for seed in SEEDS}
    assert found == {(), ("new",), ("old",), ("new", "old")}
    disk.sync_folder()
    assert {tuple(disk.after_power_cut(seed).names) for seed in SEEDS} == {("new",)}


def test_a_file_cut_short_may_be_long_again_until_it_is_synced() -> None:
    disk = Disk.holding({"a": b"12345678"})
    disk.names["a"].truncate(4)
    assert {disk.after_power_cut(seed).contents()["a"] for seed in SEEDS} == {b"1234", b"12345678"}
    disk.names["a"].sync()
    assert {disk.after_power_cut(seed).contents()["a"] for seed in SEEDS} == {b"1234"}


def test_forgotten_pages_stay_unsafe_until_they_are_written_to_again() -> None:
    disk = Disk.holding({"a": bytes(2 * PAGE)})
    file = disk.names["a"]
    file.write(0, b"f" * (2 * PAGE))
    file.forget()
    file.sync()
    assert disk.after_power_cut(0).contents()["a"] == bytes(2 * PAGE)
    file.write(PAGE + 5, b"w")
    file.sync()
    assert disk.after_power_cut(0).contents()["a"] == bytes(PAGE) + b"fffffw" + b"f" * (PAGE - 6)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_safe_stays_so_beside_forgotten_bytes(seed: int) -> None:
    disk = Disk.holding({"a": b"s" * PAGE})
    disk.names["a"].write(100, b"f" * 50)
    disk.names["a"].forget()
    left = disk.after_power_cut(seed).contents()["a"]
    assert (left[:100], left[150:]) == (b"s" * 100, b"s" * (PAGE - 150))
