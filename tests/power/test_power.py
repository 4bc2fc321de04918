"""Power cuts, killed processes and I/O errors at sampled steps of every scenario (`make torture` runs every step)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.power.client import ShimProcess
from tests.power.sampling import MODES, sampled

SCENARIOS = [
    "single_put",
    "batch_of_64",
    "batch_with_failing_writes",
    "update_and_compare",
    "replace",
    "delete_with_cascade",
    "steps_appended",
    "transaction_of_several",
    "big_record",
    "commit_after_commit",
    "checkpoint_between",
    "wal_written_over",
    "checkpoint_by_the_library",
    "checkpoint_under_a_reader",
    "two_checkpoints_in_a_row",
    "restart",
    "killed_between",
    "power_cut_before",
    "import_batch",
    "put_once_and_again",
    "put_once_among_others",
    "growing_and_shrinking",
    "schema_upgrade",
]
"""By name: the scenarios themselves are code of the other process, which this one must not load."""

_STEPS = {"cut": 8, "kill": 6, "error": 8, "forget": 3}


@pytest.fixture(scope="module")
def shim() -> Iterator[ShimProcess]:
    with ShimProcess() as process:
        yield process


def seeds(mode: str, scenario: str) -> list[int]:
    """Others for each scenario, so that all together meet every kind of damage."""
    first = SCENARIOS.index(scenario)
    return [first % 10, (first + 3) % 10, 10 + first] if mode == "cut" else [first]


def test_every_scenario_is_run(shim: ShimProcess) -> None:
    assert sorted(shim.steps) == sorted(SCENARIOS)


def test_the_scenarios_do_what_their_names_say(shim: ShimProcess) -> None:
    steps = shim.steps
    log_begun = "write agent.db-wal 32 at 0"
    assert [steps[name].count(log_begun) for name in ("commit_after_commit", "wal_written_over")] == [1, 4]
    # The first checkpoint could not finish, so the log was written on; after the second it was written over.
    assert steps["checkpoint_under_a_reader"].count(log_begun) == 2
    assert steps["checkpoint_by_the_library"].count("sync agent.db") >= 2
    assert steps["restart"].count("delete agent.db-wal") == 2
    assert len(steps["big_record"]) > 1000
    assert steps["schema_upgrade"].count("sync agent.db-wal") >= 3


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_acknowledged_is_lost(shim: ShimProcess, scenario: str) -> None:
    for mode in MODES:
        steps = sampled(mode, shim.steps[scenario], _STEPS[mode])
        tally = shim.run(mode, scenario, steps, seeds(mode, scenario))
        assert not tally["violations"], "\n".join(tally["violations"])
        assert tally["cases"] >= len(steps)


# A harness that cannot fail proves nothing: what follows must be found.


def test_a_commit_that_is_not_synced_is_found_lost(shim: ShimProcess) -> None:
    weak = {"synchronous": "OFF"}
    tally = shim.run("cut", "commit_after_commit", steps_to_the_end(shim, "commit_after_commit"), [0, 2], weak=weak)
    assert any("after the power cut: from allowed state" in violation for violation in tally["violations"])


def test_syncing_less_than_full_is_found_to_lose_commits(shim: ShimProcess) -> None:
    weak = {"synchronous": "NORMAL"}
    tally = shim.run("cut", "commit_after_commit", steps_to_the_end(shim, "commit_after_commit"), [0, 2], weak=weak)
    assert any("after the power cut: from allowed state" in violation for violation in tally["violations"])
    assert not any("integrity_check" in violation for violation in tally["violations"])  # it loses, it does not damage


def test_a_disk_that_lies_about_syncs_is_found_to_lose_and_to_damage(shim: ShimProcess) -> None:
    steps = steps_to_the_end(shim, "wal_written_over")
    tally = shim.run("cut", "wal_written_over", steps, list(range(10)), weak={"lies": True})
    for words in ("from allowed state", "integrity_check", "is malformed"):
        assert any(words in violation for violation in tally["violations"]), words


def steps_to_the_end(shim: ShimProcess, scenario: str) -> list[int]:
    """Return a few steps late in a scenario."""
    last = len(shim.steps[scenario])
    return list(range(last // 2, last + 1, max(last // 12, 1)))


def test_a_case_is_the_same_each_time(shim: ShimProcess) -> None:
    weak = {"lies": True}
    once, again = (shim.run("cut", "restart", [40, 60, 80], [3, 5, 12], weak=weak) for _ in range(2))
    assert once == again
    assert once["violations"]
