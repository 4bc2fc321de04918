"""Cache entries: the fixed header in front of packed rows, and the check of bytes that come from a file."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store import CodecError, Limits
from memory_store.codec import (
    CODECS,
    ENTRY_PREFIX_BYTES,
    append_rows,
    check_entry,
    entry_as_of,
    entry_expiry,
    make_entry,
    pack_row,
    read_entry,
)
from memory_store.records import RECORDS
from tests.unit.samples import MAKE

expiries = st.floats(0, 1e12)
positions = st.integers(0, (1 << 63) - 1)
KINDS = list(RECORDS)


def rows_of(kind: str, count: int) -> list[bytes]:
    """Packed rows of a kind."""
    made = [MAKE[kind](id=f"id{number}") for number in range(count)]
    return [pack_row(CODECS[kind].encode(record, Limits())) for record in made]


@given(expiries, positions, st.integers(0, 20))
def test_an_entry_holds_its_header_and_its_rows(expires_at: float, as_of: int, count: int) -> None:
    rows = rows_of("step", count)
    entry = make_entry(expires_at, as_of, rows)
    assert len(entry) == ENTRY_PREFIX_BYTES + sum(map(len, rows))
    assert (entry_expiry(entry), entry_as_of(entry)) == (expires_at, as_of)
    decoded = read_entry(entry)
    assert decoded[:2] == [expires_at, as_of]
    assert [pack_row(row) for row in decoded[2:]] == rows
    assert check_entry("step", entry) == expires_at


@given(st.integers(0, 6), st.integers(0, 6), expiries, positions)
def test_appending_is_the_same_as_making_it_whole(before: int, after: int, expires_at: float, as_of: int) -> None:
    rows = rows_of("step", before + after)
    appended = append_rows(make_entry(1.0, 1, rows[:before]), expires_at, as_of, rows[before:])
    assert appended == make_entry(expires_at, as_of, rows)


def test_an_entry_can_grow_past_every_short_form_of_msgpack() -> None:
    [row] = rows_of("spatiotemporal", 1)
    entry = make_entry(1.0, 1, [])
    for _ in range(300):  # 15 elements is the limit of msgpack's shortest list
        entry = append_rows(entry, 2.0, 2, [row])
    entry = append_rows(entry, 3.0, 3, [row] * 70_000)  # 65,535 of the next one
    assert len(read_entry(entry)) == 2 + 300 + 70_000


@pytest.mark.parametrize("kind", KINDS)
def test_entries_of_every_kind_pass_the_check(kind: str) -> None:
    for count in (0, 1, 3):
        for expires_at in (1.0, 2.5, 1e12):
            assert check_entry(kind, make_entry(expires_at, 1, rows_of(kind, count))) == expires_at


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_of_another_kind_is_refused(kind: str) -> None:
    entry = make_entry(1.0, 1, rows_of(kind, 2))
    for other in KINDS:
        if other != kind and len(RECORDS[other].columns) != len(RECORDS[kind].columns):
            with pytest.raises(CodecError, match=f"row that is no {other}"):
                check_entry(other, entry)


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_a_codec_error(kind: str, junk: bytes) -> None:
    for entry in (junk, make_entry(1.0, 1, [])[:ENTRY_PREFIX_BYTES] + junk):
        _check(kind, entry)


@settings(max_examples=600)
@given(st.sampled_from(KINDS), st.data())
def test_damaged_entries_raise_nothing_but_a_codec_error(kind: str, data: st.DataObject) -> None:
    entry = bytearray(make_entry(1.0, 1, rows_of(kind, 2)))
    for _ in range(data.draw(st.integers(1, 3))):
        entry[data.draw(st.integers(0, len(entry) - 1))] = data.draw(st.integers(0, 255))
    _check(kind, bytes(entry[: data.draw(st.integers(0, len(entry)))]))
    _check(kind, bytes(entry))


def _check(kind: str, entry: bytes) -> None:
    with contextlib.suppress(CodecError):
        check_entry(kind, entry)
        # What passes must be safe to decode.
        for row in read_entry(entry)[2:]:
            CODECS[kind].decode(row)


@pytest.mark.parametrize(
    "value", [{"a": 1}, [], [[]], ["x"], [1, 1, 1, 1], None, 5, b"", [["x", "1"] + [None] * 20], [[b"x", 1]]]
)
def test_rows_of_a_wrong_shape_are_refused(value: object) -> None:
    with pytest.raises(CodecError):
        check_entry("episode", make_entry(1.0, 1, [pack_row(value)]))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_a_wrong_type_is_refused(kind: str) -> None:
    """The checksum proves that the bytes are as written, not that a library wrote them: a forged file is possible."""
    [packed] = rows_of(kind, 1)
    for index in range(2, len(RECORDS[kind].columns)):
        row = read_entry(packed)
        row[index] = [row[index]]  # no column stores a list
        for rows in ([pack_row(row)], [packed, pack_row(row)]):  # one that is right is no pass for the next
            with pytest.raises(CodecError):
                check_entry(kind, make_entry(1.0, 1, rows))
