"""The circuit breaker, with its clock in hand."""

from __future__ import annotations

import pytest

from memory_store import ConfigurationError, DurableTimeoutError, DurableUnavailableError
from memory_store.durable.breaker import Breaker
from memory_store.durable.dialects import ConnectionLostError

PAUSE_S = 30.0
FAILURES = [
    DurableUnavailableError("nobody listens"),
    ConnectionLostError("the connection broke"),
    DurableTimeoutError("no answer"),
]


class Clock:
    """A boot clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("memory_store.durable.breaker.boot_s", lambda: made.now)
    return made


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(3, PAUSE_S)


def attempt(breaker: Breaker, clock: Clock, error: BaseException | None) -> None:
    """Try, and tell how it went."""
    clock.now += 0.0625
    breaker.require_closed()
    began, clock.now = clock.now, clock.now + 0.0625
    breaker.note(error, began)


def fail(breaker: Breaker, clock: Clock, times: int) -> None:
    """Try and fail, one after another."""
    for number in range(times):
        attempt(breaker, clock, FAILURES[number % len(FAILURES)])


def refused(breaker: Breaker, wait: str) -> None:
    """Check that a caller is told at once, and for how long."""
    with pytest.raises(DurableUnavailableError, match=wait):
        breaker.require_closed()
    assert breaker.is_open


def test_it_opens_after_so_many_failures_in_a_row(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, 2)
    breaker.require_closed()
    assert (breaker.is_open, breaker.failures, breaker.opened) == (False, 2, 0)
    fail(breaker, clock, 1)
    assert (breaker.is_open, breaker.failures, breaker.opened) == (True, 3, 1)
    refused(breaker, r"3 times in a row, the next try is in 30\.0 s \(nobody listens\)")


def test_success_in_between_begins_the_count_anew(breaker: Breaker, clock: Clock) -> None:
    for _ in range(5):
        fail(breaker, clock, 2)
        attempt(breaker, clock, None)
    assert (breaker.is_open, breaker.failures, breaker.opened) == (False, 0, 0)


@pytest.mark.parametrize("error", [ConfigurationError("no such setting"), ValueError("a mistake"), KeyboardInterrupt()])
def test_what_says_nothing_of_the_server_does_not_count(error: BaseException, breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, 2)
    attempt(breaker, clock, error)
    assert (breaker.is_open, breaker.failures) == (False, 2), "nor does it say that the server is well"


def test_after_the_pause_one_caller_tries_and_the_others_wait_for_him(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, 3)
    clock.now += PAUSE_S - 0.25
    refused(breaker, r"in 0\.[23] s")
    clock.now += 0.25
    assert not breaker.is_open
    breaker.require_closed()
    refused(breaker, r"in 30\.0 s")


def test_it_closes_when_that_try_goes_well(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, 3)
    clock.now += PAUSE_S
    attempt(breaker, clock, None)
    for _ in range(10):
        breaker.require_closed()
    assert (breaker.is_open, breaker.failures, breaker.opened) == (False, 0, 1)
    fail(breaker, clock, 3)
    assert breaker.opened == 2


def test_it_stays_open_when_that_try_fails_and_the_next_one_is_a_pause_later(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, 3)
    for tries in range(1, 4):
        clock.now += PAUSE_S
        attempt(breaker, clock, DurableTimeoutError(f"try {tries}"))
        refused(breaker, rf"{3 + tries} times in a row, .* in 29\.9 s \(try {tries}\)")
    assert breaker.opened == 1, "it has not been closed meanwhile"


def test_a_try_that_nobody_tells_of_is_followed_by_another_after_the_pause(breaker: Breaker, clock: Clock) -> None:
    """The caller was cancelled, say."""
    fail(breaker, clock, 3)
    clock.now += PAUSE_S
    breaker.require_closed()
    refused(breaker, "the next try")
    clock.now += PAUSE_S
    breaker.require_closed()


def test_tries_that_fail_together_are_one_failure(breaker: Breaker, clock: Clock) -> None:
    began = clock.now
    for _ in range(10):
        breaker.require_closed()
    for _ in range(10):
        clock.now += 0.0625
        breaker.note(FAILURES[0], began)
    assert (breaker.failures, breaker.is_open) == (1, False)
    attempt(breaker, clock, FAILURES[0])
    assert breaker.failures == 2


def test_a_try_that_was_under_way_when_it_opened_does_not_put_the_next_one_off(breaker: Breaker, clock: Clock) -> None:
    began = clock.now
    fail(breaker, clock, 3)
    clock.now += PAUSE_S / 2
    breaker.note(FAILURES[0], began)
    breaker.note(FAILURES[0], clock.now)
    clock.now += PAUSE_S / 2
    breaker.require_closed()


def test_without_a_pause_it_turns_nobody_away(clock: Clock) -> None:
    breaker = Breaker(1, 0)
    fail(breaker, clock, 20)
    breaker.require_closed()
    assert not breaker.is_open
