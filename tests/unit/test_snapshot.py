"""The saved cache's file: whole or not at all, private, and every damage is noticed."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store import CacheError, Limits
from memory_store.cache.entries import Space
from memory_store.cache.snapshot import FILE_NAME, Header, SavedEntry, Snapshot, save
from memory_store.cache.tier import CacheTier
from memory_store.codec import CODECS, entry_as_of, entry_expiry, make_entry, pack_row, read_entry
from memory_store.records import RECORDS
from tests.unit.samples import MAKE

HEADER = Header("key", "store", 1, 42, (1 << 63) - 1)


def entries(count: int = 6, lives_s: float = 60.0) -> list[tuple[Space, str, bytes]]:
    """Entries of every kind."""
    tier = CacheTier(1 << 30, {})
    made = []
    for number in range(count):
        kind = list(RECORDS)[number % len(RECORDS)]
        row = pack_row(CODECS[kind].encode(MAKE[kind](id=f"id{number}"), Limits()))
        entry = make_entry(time.monotonic() + lives_s, 40 + number, [row] * (number % 3))
        made.append((tier.space(kind, f"n{number % 2}"), f"id{number}", entry))
    return made


def load(folder: Path) -> tuple[Header, list[SavedEntry]]:
    """Read a saved cache to its end."""
    with Snapshot(str(folder)) as snapshot:
        return snapshot.header, [entry for batch in snapshot.batches() for entry in batch]


@pytest.mark.parametrize("count", [0, 1, 6, 700])
def test_what_is_saved_is_loaded_in_order(count: int, tmp_path: Path) -> None:
    made = entries(count)
    assert save(str(tmp_path), HEADER, made) == count
    header, loaded = load(tmp_path)
    assert header == HEADER
    assert [(entry.kind, entry.namespace, entry.id) for entry in loaded] == [
        (space.kind, space.namespace, id_) for space, id_, _ in made
    ]
    for saved, (_, _, entry) in zip(loaded, made, strict=True):
        assert read_entry(saved.entry)[1:] == read_entry(entry)[1:]
        assert entry_as_of(saved.entry) == entry_as_of(entry)


def test_time_stands_still_while_nobody_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    save(str(tmp_path), HEADER, entries(1, lives_s=60))
    now[0] = 5.0  # another boot, whose clock starts anew
    [saved] = load(tmp_path)[1]
    assert entry_expiry(saved.entry) == pytest.approx(65.0)


def test_expired_entries_are_not_saved(tmp_path: Path) -> None:
    assert save(str(tmp_path), HEADER, entries(4, lives_s=-1) + entries(2)) == 2
    assert len(load(tmp_path)[1]) == 2


def test_the_file_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    save(str(folder), HEADER, entries())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE_NAME], "nothing temporary is left"


def test_links_are_not_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    save(str(real), HEADER, entries())
    link.symlink_to(real)
    with pytest.raises(CacheError, match="is a link"):
        save(str(link), HEADER, entries())
    target = tmp_path / "target"
    target.write_bytes((real / FILE_NAME).read_bytes())
    (real / FILE_NAME).unlink()
    (real / FILE_NAME).symlink_to(target)
    with pytest.raises(CacheError):
        load(real)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    save(str(tmp_path), HEADER, entries(2))

    def fail() -> Iterator[tuple[Space, str, bytes]]:
        yield from entries(3)
        raise OSError(28, "no space left")

    with pytest.raises(CacheError, match=r"cannot save the cache in .*: no space left"):
        save(str(tmp_path), HEADER, fail())
    assert len(load(tmp_path)[1]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="there is no saved cache"):
        load(tmp_path)


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A saved cache."""
    folder = tmp_path_factory.mktemp("saved")
    save(str(folder), HEADER, entries())
    return (folder / FILE_NAME).read_bytes()


def test_every_truncation_is_noticed(saved_bytes: bytes, tmp_path: Path) -> None:
    for length in range(len(saved_bytes)):
        (tmp_path / FILE_NAME).write_bytes(saved_bytes[:length])
        with pytest.raises(CacheError):
            load(tmp_path)


def test_anything_behind_the_end_is_noticed(saved_bytes: bytes, tmp_path: Path) -> None:
    for extra in (b"\0", saved_bytes):
        (tmp_path / FILE_NAME).write_bytes(saved_bytes + extra)
        with pytest.raises(CacheError):
            load(tmp_path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_noticed(saved_bytes: bytes, data: st.DataObject, tmp_path_factory: object) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"  # type: ignore[attr-defined]
    folder.mkdir(exist_ok=True)
    flipped = bytearray(saved_bytes)
    flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / FILE_NAME).write_bytes(flipped)
    with pytest.raises(CacheError):
        load(folder)
