"""Times as integers, and ids that sort by time."""

from __future__ import annotations

import os
import threading
import time
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import clock
from memory_store.clock import from_us, new_id, now_us, to_us, utc_now

EDGES = [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
]


@pytest.mark.parametrize("moment", EDGES)
def test_the_edges_of_the_calendar_come_back_exactly(moment: datetime) -> None:
    assert from_us(to_us(moment)) == moment
    assert from_us(to_us(moment)).tzinfo is UTC


@given(st.integers(to_us(EDGES[0]), to_us(EDGES[-1])))
def test_microseconds_come_back_exactly(microseconds: int) -> None:
    assert to_us(from_us(microseconds)) == microseconds


def test_known_moments() -> None:
    assert to_us(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert to_us(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1
    assert to_us(datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)) == 1_000_000_000_000_000


def test_both_readings_of_the_wall_clock_agree() -> None:
    before, between, after = now_us(), to_us(utc_now()), now_us()
    assert before - 1 <= between <= after + 1
    assert utc_now().tzinfo is UTC


def test_an_id_is_a_version_7_uuid_of_this_moment() -> None:
    before = time.time_ns() // 1_000_000
    parsed = uuid.UUID(new_id())
    after = time.time_ns() // 1_000_000
    assert parsed.variant == uuid.RFC_4122
    assert parsed.version == 7
    # The source never goes back, so after a burst of ids it may be a moment ahead, never behind.
    assert before <= parsed.int >> 80 <= max(after, clock._IDS._millis)


def test_ids_of_one_process_are_strictly_increasing() -> None:
    ids = [new_id() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(str(uuid.UUID(text)) == text for text in ids[::100])


def test_ids_of_many_threads_are_distinct_and_increasing_in_each() -> None:
    made: list[list[str]] = [[] for _ in range(4)]
    start = threading.Barrier(4)

    def work(own: list[str]) -> None:
        start.wait()
        own.extend(new_id() for _ in range(5_000))

    threads = [threading.Thread(target=work, args=(own,)) for own in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in made:
        assert own == sorted(own)
    assert len({text for own in made for text in own}) == 20_000


def test_ids_keep_increasing_when_the_wall_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source = clock._IdSource()
    now = [2_000_000_000_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    ids = [source.next()]
    for step in (-3600_000_000_000, 0, 1, 3599_000_000_000, 2_000_000_000):
        now[0] += step
        ids.append(source.next())
    assert ids == sorted(set(ids))
    assert all(uuid.UUID(text).version == 7 for text in ids)


def test_the_counter_never_spills_into_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    source = clock._IdSource()
    monkeypatch.setattr(os, "urandom", lambda count: b"\xff" * count)
    monkeypatch.setattr(time, "time_ns", lambda: 2_000_000_000_000_000_000)
    ids = [uuid.UUID(source.next()) for _ in range(1_000)]
    assert {parsed.int >> 80 for parsed in ids} == {2_000_000_000_000}
    assert {(parsed.version, parsed.variant) for parsed in ids} == {(7, uuid.RFC_4122)}
    assert ids == sorted(set(ids))


def test_a_forked_child_does_not_repeat_its_parents_ids() -> None:
    new_id()  # the child would otherwise continue from here
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(send, " ".join(new_id() for _ in range(100)).encode())
        os._exit(0)
    os.close(send)
    own = {new_id() for _ in range(100)}
    with os.fdopen(receive) as file:
        theirs = set(file.read().split())
    os.waitpid(child, 0)
    assert len(theirs) == 100
    assert not own & theirs
