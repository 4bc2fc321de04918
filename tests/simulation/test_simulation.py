"""Histories of several processes, decided by a seed: no promise is broken, and no rule of the protocol is idle.

A failure names its seed; `python -m tests.simulation SEED` replays it with everything that happened.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.checker import Violation
from tests.simulation.mutants import MUTANTS
from tests.simulation.mutation import Mutant, mutated
from tests.simulation.seams import simulated
from tests.simulation.world import run

_BLOCKS, _BLOCK = 6, 150
# The first 5,000, of which `make test` runs a part, and 100,000 others.
_LONG_BLOCK = 5_000
_LONG_BLOCKS = [0, *range(1_000_000, 1_100_000, _LONG_BLOCK)]
_MOST = 3_000


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulated():
        yield


def run_block(first: int, count: int) -> tuple[int, int]:
    """Run histories and return how many reads and acknowledged writes were checked; a failure shows its trace."""
    reads = writes = 0
    for seed in range(first, first + count):
        try:
            checker = run(seed).checker
        except Exception as error:
            trace: list[str] = []
            with pytest.raises(type(error)):  # the same again: a seed decides everything
                run(seed, trace)
            lines = "\n".join([*trace, f"{type(error).__name__}: {error}", f"python -m tests.simulation {seed}"])
            pytest.fail(lines, pytrace=False)
        reads, writes = reads + checker.reads, writes + checker.writes
    return reads, writes


@pytest.mark.parametrize("block", range(_BLOCKS))
def test_no_history_breaks_a_promise(block: int) -> None:
    reads, writes = run_block(block * _BLOCK, _BLOCK)
    assert reads > 20 * _BLOCK
    assert writes > 3 * _BLOCK


@pytest.mark.slow
@pytest.mark.parametrize("first", _LONG_BLOCKS)
def test_no_history_of_very_many_breaks_a_promise(first: int) -> None:
    run_block(first, _LONG_BLOCK)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_protocol_without_one_of_its_rules_is_caught(mutant: Mutant) -> None:
    with mutated(mutant):
        for seed in range(mutant.first, mutant.first + _MOST):
            try:
                run(seed, favourite=mutant.favourite, gaps=mutant.gaps)
            except Violation:
                return
    pytest.fail(f"{_MOST} histories did not notice: {mutant.name}")


def test_a_seed_decides_everything() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        run(7, trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 50
