"""kill -9 with three processes on one file: nothing acknowledged is lost, nothing is half there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes.kills import Figures, kill_again_and_again
from tests.processes.ledger import Ledger, LostError

PLACES = [
    "opening",
    "closing",
    "the beginning of a transaction",
    "writing the log",
    "commit",
    "after the commit, before the answer",
    "checkpoint",
    "saving the cache",
]
"""Where kills must fall on purpose, besides anywhere."""


def missed(figures: Figures) -> list[str]:
    few = [when for when, seconds in figures.recovered_s.items() if len(seconds) <= 10]
    return [place for place in PLACES if not figures.stops[place]] + few


def test_nothing_acknowledged_is_lost_over_100_kills(tmp_path: Path, show: Callable[..., None]) -> None:
    """Over a hundred, or as many more as it takes to meet every place."""
    figures = kill_again_and_again(tmp_path / "agent.db", 100, seed=1, most=250, enough=lambda found: not missed(found))
    show(figures.lines())
    assert figures.acknowledged > 200
    assert missed(figures) == []


def ledger() -> Ledger:
    made = Ledger()
    made.sure = {"a": (1, "m1"), "b": (1, "m1")}
    made.may = {"a": (2, "m2"), "b": (2, "m2"), "a/steps": ("m2",)}
    return made


@pytest.mark.parametrize(
    "found",
    [
        {"a": (1, "m1"), "b": (1, "m1"), "a/steps": None},
        {"a": (2, "m2"), "b": (2, "m2"), "a/steps": ("m2",)},
    ],
)
def test_the_last_write_may_be_there_or_not(found: dict[str, Any]) -> None:
    settled = ledger()
    settled.settle(found)
    assert settled.sure == {key: value for key, value in found.items() if value is not None}
    settled.settle(found)  # from now on it is sure


@pytest.mark.parametrize(
    "found",
    [
        {"a": None, "b": (1, "m1"), "a/steps": None},  # lost
        {"a": (1, "m0"), "b": (1, "m1"), "a/steps": None},  # something else
        {"a": (2, "m2"), "b": (1, "m1"), "a/steps": None},  # half there
        {"a": (2, "m2"), "b": (2, "m2"), "a/steps": None},
        {"a": (3, "m3"), "b": (3, "m3"), "a/steps": ("m2",)},  # never asked for
    ],
)
def test_what_is_lost_or_half_there_is_found(found: dict[str, Any]) -> None:
    with pytest.raises(LostError):
        ledger().settle(found)
