"""The saved cache's file: whole or not at all, private, and every damage is noticed."""

from __future__ import annotations

import fcntl
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store import CacheError, Limits
from memory_store.cache.snapshot import FILE_NAME, Header, Snapshot, save
from memory_store.codec import CODECS, entry_expiry, make_entry, pack_row
from memory_store.durable.changes import HeadState
from memory_store.records import RECORDS, QueryResult
from tests.unit.samples import MAKE

SPACES = [(kind, f"n{number}") for number in range(2) for kind in RECORDS]
Entries = tuple[list[str], list[bytes]]


def header(age_s: float = 1_000.0) -> Header:
    """A header of a cache whose clock says this."""
    return Header("key", [HeadState(42, (1 << 63) - 1, "store", 1), HeadState(7, 5, "store", 1, 1)], age_s, SPACES)


HEADER = header()


def entries(count: int = 6, expires_at: float = 1_060.0) -> Entries:
    """Entries of every kind, with a deadline on the cache's clock."""
    keys, made = [], []
    for number in range(count):
        place = number % len(SPACES)
        kind = SPACES[place][0]
        row = pack_row(CODECS[kind].encode(MAKE[kind](id=f"id{number}"), Limits()))
        keys.append(f"{place:x}/id{number}")
        made.append(make_entry(expires_at, 40 + number, [row] * (number % 3)))
    return keys, made


def load(folder: Path) -> tuple[Header, Entries]:
    """Read a saved cache to its end."""
    keys: list[str] = []
    found: list[bytes] = []
    with Snapshot(str(folder)) as snapshot:
        for batch in snapshot.batches():
            keys += batch.keys
            found += batch.entries
        return snapshot.header, (keys, found)


@pytest.mark.parametrize("count", [0, 1, 6, 700])
def test_what_is_saved_is_loaded_in_order(count: int, tmp_path: Path) -> None:
    made = entries(count)
    assert save(str(tmp_path), HEADER, *made) == count
    assert load(tmp_path) == (HEADER, made)


def test_entries_larger_than_a_frame_get_frames_of_their_own(tmp_path: Path) -> None:
    row = CODECS["episode"].encode(MAKE["episode"](id="id", reflection="x" * 3_000_000), Limits())
    entry = make_entry(1_060.0, 1, [pack_row(row)])
    keys = [f"0/id{number}" for number in range(5)]
    assert save(str(tmp_path), HEADER, keys, [entry] * 5) == 5
    assert load(tmp_path) == (HEADER, (keys, [entry] * 5))


def test_an_entry_too_large_for_any_frame_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_store.cache.snapshot._FRAME_BYTES", 300)
    monkeypatch.setattr("memory_store.cache.snapshot._LARGEST_ENTRY_BYTES", 1000)
    row = CODECS["episode"].encode(MAKE["episode"](id="id", reflection="x" * 2000), Limits())
    keys, made = entries(6)
    assert save(str(tmp_path), HEADER, [*keys, "0/large"], [*made, make_entry(1_060.0, 1, [pack_row(row)])]) == 6
    assert load(tmp_path) == (HEADER, (keys, made))


def test_time_stands_still_while_nobody_runs(tmp_path: Path) -> None:
    """Deadlines are on the clock of the cache, which the header tells: whoever loads it goes on from there."""
    save(str(tmp_path), header(age_s=1_059.0), *entries(1, expires_at=1_060.0))
    found, (_, [entry]) = load(tmp_path)
    assert entry_expiry(entry) - found.age_s == 1.0


def test_expired_entries_are_not_loaded(tmp_path: Path) -> None:
    (keys, made), (dead_keys, dead) = entries(2), entries(6, expires_at=HEADER.age_s)
    assert save(str(tmp_path), HEADER, dead_keys[2:] + keys, dead[2:] + made) == 6
    assert load(tmp_path)[1] == (keys, made)


def test_query_results_are_not_loaded(tmp_path: Path) -> None:
    """They are cheap to find again, and only hold while their kind is watched."""
    space = (QueryResult.kind, "n0")
    keys, made = entries(1)
    result = make_entry(1_060.0, 1, [pack_row(QueryResult(id="q", total=1).to_row())])
    save(str(tmp_path), HEADER._replace(spaces=[*SPACES, space]), [f"{len(SPACES):x}/q", *keys], [result, *made])
    assert load(tmp_path)[1] == (keys, made)


@pytest.mark.parametrize(
    ("keys", "made"),
    [
        (["ff/x"], [make_entry(1_060.0, 1, [])]),
        (["x"], [make_entry(1_060.0, 1, [])]),
        ([""], [make_entry(1_060.0, 1, [])]),
        (["0/x"], [make_entry(1e10, 1, [])]),
        (["0/x"], [make_entry(float("nan"), 1, [])]),
        (["0/x"], [b""]),
        (["0/x"], ["text"]),
        ([b"0/x"], [make_entry(1_060.0, 1, [])]),
        ([5], [make_entry(1_060.0, 1, [])]),
        (["0/x"], [make_entry(1_060.0, 1, [pack_row(["too", "short"])])]),
    ],
)
def test_a_forged_entry_is_refused(keys: list[Any], made: list[Any], tmp_path: Path) -> None:
    """Checksums prove that the bytes are as written, not who wrote them."""
    save(str(tmp_path), HEADER, keys, made)
    with pytest.raises(CacheError, match="the saved cache is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"version_key": 5},
        {"heads": [("1", 2, "store", 1, 0)]},
        {"heads": [(1, 2, "store", None, 0)]},
        {"heads": [(1, 2, "store", 1)]},
        {"heads": [(1, 2, "store", 1, 1)]},
        {"heads": [(1, 2, "store", 1, 0), (1, 2, "store", 1, 0)]},
        {"heads": "none"},
        {"age_s": float("inf")},
        {"age_s": float("nan")},
        {"age_s": "now"},
        {"spaces": "none"},
        {"spaces": [("episode",)]},
        {"spaces": [("episode", 5)]},
        {"spaces": ["ab"]},
    ],
)
def test_a_forged_header_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    save(str(tmp_path), HEADER._replace(**change), [], [])
    with pytest.raises(CacheError, match="the saved cache is damaged"):
        load(tmp_path)


def test_the_file_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    save(str(folder), HEADER, *entries())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE_NAME], "nothing temporary is left"


def test_links_are_not_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    save(str(real), HEADER, *entries())
    link.symlink_to(real)
    with pytest.raises(CacheError, match="is a link"):
        save(str(link), HEADER, *entries())
    target = tmp_path / "target"
    target.write_bytes((real / FILE_NAME).read_bytes())
    (real / FILE_NAME).unlink()
    (real / FILE_NAME).symlink_to(target)
    with pytest.raises(CacheError):
        load(real)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(str(tmp_path), HEADER, *entries(2))

    def fail(_descriptor: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CacheError, match=r"cannot save the cache in .*: no space left"):
        save(str(tmp_path), HEADER, *entries(3))
    assert len(load(tmp_path)[1][0]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_what_a_killed_process_left_is_removed_and_what_another_one_writes_is_not(tmp_path: Path) -> None:
    for name in ("000000000001.tmp", "000000000002.tmp"):
        (tmp_path / f"{FILE_NAME}.{name}").write_text("half")
    with (tmp_path / f"{FILE_NAME}.000000000002.tmp").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        save(str(tmp_path), HEADER, *entries(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME, f"{FILE_NAME}.000000000002.tmp"]


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="there is no saved cache"):
        load(tmp_path)


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A saved cache."""
    folder = tmp_path_factory.mktemp("saved")
    save(str(folder), HEADER, *entries())
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
