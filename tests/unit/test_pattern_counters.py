"""A pattern's counters: exact whole numbers, and a confidence that follows from them by Wilson's formula."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memory_store import InvalidRecordError, Pattern
from tests.unit.samples import counts, make_pattern, shares

Z = 1.959963984540054
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def counted(successes: int, uses: int) -> Pattern:
    """A pattern with these counters."""
    return make_pattern().recounted(uses, successes, None)


def textbook(successes: int, uses: int) -> float:
    """Wilson's lower end as it is usually written."""
    rate = successes / uses
    spread = Z * math.sqrt(rate * (1 - rate) / uses + Z * Z / (4 * uses * uses))
    return (rate + Z * Z / (2 * uses) - spread) / (1 + Z * Z / uses)


@pytest.mark.parametrize(
    ("successes", "uses", "expected"),
    [(0, 0, 0.0), (0, 1, 0.0), (1, 1, 0.2065), (10, 10, 0.7225), (90, 100, 0.8256), (9, 10, 0.5958), (0, 1000, 0.0)],
)
def test_known_lower_bounds(successes: int, uses: int, expected: float) -> None:
    assert counted(successes, uses).lower_bound == pytest.approx(expected, abs=5e-5)


@given(st.integers(1, 10**6), st.data())
def test_the_lower_bound_is_the_textbook_s(uses: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, uses))
    assert counted(successes, uses).lower_bound == pytest.approx(textbook(successes, uses), abs=1e-9)


@given(shares, counts)
def test_the_lower_bound_is_a_share_and_never_above_the_rate(rate: float, uses: int) -> None:
    """Whatever somebody put: ranking by the rate first relies on it."""
    pattern = make_pattern(success_rate=rate, usage_count=uses)
    assert 0 <= pattern.lower_bound <= pattern.success_rate
    assert 0 <= pattern.successes <= uses


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_success_raises_the_bound_and_a_failure_lowers_it(successes: int, failures: int) -> None:
    before = counted(successes, successes + failures).lower_bound
    raised = counted(successes + 1, successes + failures + 1).lower_bound
    assert raised > before or (raised == before and successes > 1 << 24), "as far as floats tell"
    assert counted(successes, successes + failures + 1).lower_bound <= before


@given(st.integers(0, 1 << 51), st.integers(0, 1 << 51))
def test_counters_are_exact_whatever_their_size(successes: int, failures: int) -> None:
    uses = successes + failures
    assume(uses <= 1 << 51)
    pattern = counted(successes, uses)
    assert (pattern.usage_count, pattern.successes) == (uses, successes)


@given(st.lists(st.booleans(), max_size=60))
def test_counting_one_by_one_comes_to_the_same_as_at_once(outcomes: list[bool]) -> None:
    pattern = make_pattern()
    for success in outcomes:
        pattern = pattern.recounted(pattern.usage_count + 1, pattern.successes + success, None)
    assert pattern == make_pattern(created_at=pattern.created_at, updated_at=pattern.updated_at).recounted(
        len(outcomes), sum(outcomes), None
    )


def test_a_share_of_somebody_s_own_is_rounded_to_whole_successes() -> None:
    assert make_pattern(success_rate=0.9, usage_count=7).successes == 6
    assert make_pattern(success_rate=0.9, usage_count=0).successes == 0
    assert make_pattern(success_rate=1.0, usage_count=(1 << 63) - 1).successes == (1 << 63) - 1


def test_the_latest_last_use_stays() -> None:
    later = NOON.astimezone(timezone(timedelta(hours=2))) + timedelta(seconds=1)
    used = make_pattern().recounted(1, 1, NOON)
    assert used.last_used == NOON
    assert used.recounted(2, 2, later).last_used == later
    assert used.recounted(2, 2, NOON - timedelta(days=1)).last_used == NOON
    assert used.recounted(2, 2, None).last_used == NOON
    assert make_pattern().recounted(0, 0, None).last_used is None


def test_recounting_keeps_the_rest_and_is_refused_past_64_bits() -> None:
    pattern = make_pattern(id="mine", domain="web", metadata={"n": 1})
    again = pattern.recounted(4, 3, None)
    assert (again.id, again.domain, again.metadata, again.pattern_data) == (
        "mine",
        "web",
        {"n": 1},
        pattern.pattern_data,
    )
    assert (again.success_rate, again.confidence) == (0.75, again.lower_bound)
    with pytest.raises(InvalidRecordError, match="usage_count must fit 64 bits") as caught:
        pattern.recounted(1 << 63, 0, None)
    assert (caught.value.key, caught.value.field) == ("mine", "usage_count")
