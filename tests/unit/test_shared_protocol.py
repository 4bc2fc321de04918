"""What is stored at the shared cache level: watermarks, sealed entries, names, and the trail that leads on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.cache.shared import Mark, Names, new_generation, seal, unseal
from memory_store.cache.trail import Gone, Trail, touched_by
from memory_store.codec import CODECS, make_entry, pack_row
from memory_store.config import Limits
from memory_store.durable.changes import PUBLISH_LIMIT, HeadState
from memory_store.durable.log import STORE, Logged
from memory_store.errors import CodecError
from tests.unit.samples import make_episode

HEAD = HeadState(7, 70, "ab" * 16, 1, 3)
GENERATION = new_generation()


def entry() -> bytes:
    return make_entry(0.0, 7, [pack_row(CODECS["episode"].encode(make_episode(id="x"), Limits()))])


def logged(position: int, key: str | None = "x", **changes: object) -> Logged:
    return Logged(position, position * 10, "episode", "ns", key, None)._replace(**changes)


@given(st.integers(1, (1 << 63) - 1), st.integers(0, (1 << 63) - 1), st.binary(min_size=16, max_size=16))
def test_a_watermark_is_read_back(position: int, nonce: int, generation: bytes) -> None:
    mark = Mark(position, nonce, generation)
    assert Mark.parse(bytes(mark)) == mark


@given(st.none() | st.binary(max_size=80))
def test_garbage_is_no_watermark(value: bytes | None) -> None:
    assert Mark.parse(value) is None


@pytest.mark.parametrize("spoil", [b" ", b"\n", b"0"])
def test_a_watermark_with_more_behind_it_is_none(spoil: bytes) -> None:
    assert Mark.parse(bytes(Mark(7, 70, GENERATION)) + spoil) is None


def test_a_sealed_entry_is_read_back() -> None:
    [row] = unseal("episode", b"name", GENERATION, seal(b"name", GENERATION, entry())) or []
    assert row[0] == "x"


def test_what_was_sealed_for_another_generation_is_absent() -> None:
    assert unseal("episode", b"name", new_generation(), seal(b"name", GENERATION, entry())) is None


def test_what_was_sealed_under_another_name_is_damaged() -> None:
    with pytest.raises(CodecError):
        unseal("episode", b"other", GENERATION, seal(b"name", GENERATION, entry()))


def test_a_sealed_entry_of_another_kind_is_refused() -> None:
    with pytest.raises(CodecError):
        unseal("step", b"name", GENERATION, seal(b"name", GENERATION, entry()))


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    sealed = seal(b"name", GENERATION, entry())
    for bit in range(len(sealed) * 8):
        spoiled = bytearray(sealed)
        spoiled[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            unseal("episode", b"name", GENERATION, bytes(spoiled))
    for length in range(len(sealed)):
        with pytest.raises(CodecError):
            unseal("episode", b"name", GENERATION, sealed[:length])


@given(st.binary(max_size=200))
def test_garbage_is_no_entry(value: bytes) -> None:
    with pytest.raises(CodecError):
        unseal("episode", b"name", GENERATION, value)


NAMESPACES = st.text("ab/:-._", min_size=1, max_size=6)
IDS = st.text("ab/ :}{", max_size=6)


@given(st.tuples(NAMESPACES, IDS), st.tuples(NAMESPACES, IDS))
def test_no_two_keys_share_a_name(one: tuple[str, str], other: tuple[str, str]) -> None:
    names = Names(HEAD, "key")
    same = names.entry(("episode", *one)) == names.entry(("episode", *other))
    assert same == (one == other)


def test_a_name_can_be_made_of_any_text() -> None:
    assert Names(HEAD, "key").entry(("episode", "ns", "\ud800 \0 \U0001f600"))


@pytest.mark.parametrize("change", [{"store_id": "cd" * 16}, {"epoch": 2}, {"shard": 4}])
def test_another_database_epoch_or_shard_has_other_names(change: dict[str, object]) -> None:
    ours, theirs = Names(HEAD, "key"), Names(HEAD._replace(**change), "key")
    assert ours.mark != theirs.mark
    assert ours.entry(("episode", "ns", "x")) != theirs.entry(("episode", "ns", "x"))


def test_another_version_key_has_other_names() -> None:
    assert Names(HEAD, "key").mark != Names(HEAD, "other").mark


def test_all_keys_of_a_shard_are_in_one_slot_of_a_cluster() -> None:
    names = Names(HEAD, "key")

    def tag(name: bytes) -> bytes:
        start = name.index(b"{")
        return name[start : name.index(b"}", start)]

    assert tag(names.mark) == tag(names.entry(("episode", "ns", "}{")))


def test_what_changes_touch() -> None:
    part = Logged(8, 80, "step", "ns", "s", "e")
    parts = Logged(8, 80, "step", "ns", None, "e2")
    note = Logged(8, 80, STORE, "", None, None)
    assert touched_by([logged(8), part, parts, note]) == Gone(
        frozenset({("episode", "ns", "x"), ("step", "ns", "e"), ("step", "ns", "e2")})
    )


def test_a_change_of_a_whole_kind_touches_everything() -> None:
    assert touched_by([logged(8), logged(8, None)]).everything


def test_too_many_keys_are_everything() -> None:
    assert not touched_by([logged(8, str(n)) for n in range(PUBLISH_LIMIT)]).everything
    assert touched_by([logged(8, str(n)) for n in range(PUBLISH_LIMIT + 1)]).everything


def head_at(position: int) -> HeadState:
    return HEAD._replace(position=position, nonce=position * 10)


def mark_at(position: int) -> Mark:
    return Mark(position, position * 10, GENERATION)


def test_a_trail_leads_on_from_each_of_its_commits() -> None:
    trail = Trail(head_at(7))
    trail.follow([logged(8, "a"), logged(8, "b"), logged(9, "c")], head_at(9))
    trail.add(head_at(10), touched_by([logged(10, "d")]))
    for position, keys in ((7, "abcd"), (8, "cd"), (9, "d"), (10, "")):
        gone = trail.since(mark_at(position))
        assert gone is not None
        assert gone == Gone(frozenset(("episode", "ns", key) for key in keys))


@pytest.mark.parametrize("mark", [mark_at(6), mark_at(10), mark_at(8)._replace(nonce=1), mark_at(7)._replace(nonce=1)])
def test_a_trail_does_not_lead_on_from_elsewhere(mark: Mark) -> None:
    trail = Trail(head_at(7))
    trail.follow([logged(8), logged(9)], head_at(9))
    assert trail.since(mark) is None


def test_a_trail_with_a_range_on_it_says_everything() -> None:
    trail = Trail(head_at(7))
    trail.follow([logged(8), logged(9, None), logged(10)], head_at(10))
    assert [(trail.since(mark_at(at)) or Gone(frozenset())).everything for at in (7, 8, 9, 10)] == [
        True,
        True,
        False,
        False,
    ]


def test_a_trail_begins_again_where_its_run_has_a_gap_at_the_end() -> None:
    trail = Trail(head_at(7))
    trail.follow([logged(8)], head_at(9))
    assert trail.since(mark_at(7)) is None
    assert trail.since(mark_at(9)) == Gone(frozenset())


def test_a_trail_forgets_what_is_far_behind_and_nothing_else() -> None:
    trail, rng = Trail(head_at(1)), random.Random(1)
    said: dict[int, set[str]] = {}
    for position in range(2, 4000):
        keys = {str(rng.randrange(10_000)) for _ in range(rng.choice((1, 3, 40)))}
        said[position] = keys
        trail.add(head_at(position), touched_by([logged(position, key) for key in keys]))
    known, wanted = 0, set[tuple[str, str, str]]()
    for position in range(3999, 0, -1):
        gone = trail.since(mark_at(position))
        if gone is not None:
            assert known == 3999 - position, "it has a gap"
            known += 1
            assert gone.everything if len(wanted) > PUBLISH_LIMIT else gone.keys == wanted
        wanted |= {("episode", "ns", key) for key in said.get(position, ())}
    assert 200 < known < 1100
