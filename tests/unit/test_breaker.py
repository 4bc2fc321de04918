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


def fail(breaker: Breaker, times: int) -> None:
    """Try and fail."""
    for number in range(times):
        breaker.require_closed()
        breaker.note(FAILURES[number % len(FAILURES)])


def refused(breaker: Breaker, wait: str) -> None:
    """Check that a caller is told at once, and for how long."""
    with pytest.raises(DurableUnavailableError, match=wait):
        breaker.require_closed()
    assert breaker.is_open


def test_it_opens_after_so_many_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.require_closed()
    assert (breaker.is_open, breaker.failures, breaker.opened) == (False, 2, 0)
    fail(breaker, 1)
    assert (breaker.is_open, breaker.failures, breaker.opened) == (True, 3, 1)
    refused(breaker, r"3 times in a row, the next try is in 30\.0 s \(nobody listens\)")


def test_success_in_between_begins_the_count_anew(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker, 2)
        breaker.note(None)
    assert (breaker.is_open, breaker.failures, breaker.opened) == (False, 0, 0)


@pytest.mark.parametrize("error", [ConfigurationError("no such setting"), ValueError("a mistake"), KeyboardInterrupt()])
def test_what_says_nothing_of_the_server_does_not_count(error: BaseException, breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.note(error)
    assert (breaker.is_open, breaker.failures) == (False, 2), "nor does it say that the server is well"


def test_after_the_pause_one_caller_tries_and_the_others_wait_for_him(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += PAUSE_S - 0.25
    refused(breaker, r"in 0\.[23] s")
    clock.now += 0.25
    assert not breaker.is_open
    breaker.require_closed()
    refused(breaker, r"in 30\.0 s")


def test_it_closes_when_that_try_goes_well(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += PAUSE_S
    breaker.require_closed()
    breaker.note(None)
    for _ in range(10):
        breaker.require_closed()
    assert (breaker.is_open, breaker.failures, breaker.opened) == (False, 0, 1)
    fail(breaker, 3)
    assert breaker.opened == 2


def test_it_stays_open_when_that_try_fails_and_the_next_one_is_a_pause_later(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    for tries in range(1, 4):
        clock.now += PAUSE_S
        breaker.require_closed()
        breaker.note(DurableTimeoutError(f"try {tries}"))
        refused(breaker, rf"{3 + tries} times in a row, .* in 30\.0 s \(try {tries}\)")
    assert breaker.opened == 1, "it has not been closed meanwhile"


def test_a_try_that_nobody_tells_of_is_followed_by_another_after_the_pause(breaker: Breaker, clock: Clock) -> None:
    """The caller was cancelled, say."""
    fail(breaker, 3)
    clock.now += PAUSE_S
    breaker.require_closed()
    refused(breaker, "the next try")
    clock.now += PAUSE_S
    breaker.require_closed()


def test_failures_of_callers_that_were_under_way_do_not_put_the_next_try_off(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += PAUSE_S / 2
    breaker.note(FAILURES[0])
    clock.now += PAUSE_S / 2
    breaker.require_closed()


def test_without_a_pause_it_turns_nobody_away(clock: Clock) -> None:
    breaker = Breaker(1, 0)
    fail(breaker, 20)
    breaker.require_closed()
    assert not breaker.is_open
