"""Power cuts, killed processes and I/O errors at every step of every scenario, ten ways each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.power.client import ShimProcess
from tests.power.sampling import MODES, steps_for
from tests.power.test_power import SCENARIOS

pytestmark = pytest.mark.slow

_DAMAGES = list(range(10))
_TOGETHER = 20


@pytest.fixture(scope="module")
def shim() -> Iterator[ShimProcess]:
    with ShimProcess() as process:
        yield process


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_acknowledged_is_lost_at_any_step(shim: ShimProcess, mode: str, scenario: str) -> None:
    steps = steps_for(mode, shim.steps[scenario])
    # Seeds from 10 on damage each file in a way of its own.
    seeds = [*_DAMAGES, 10, 11] if mode == "cut" else _DAMAGES
    violations: list[str] = []
    cases = 0
    for start in range(0, len(steps), _TOGETHER):
        part = steps[start : start + _TOGETHER]
        # A megabyte is a thousand steps that are all alike: each is cut, the recovery of each is not cut again.
        tally = shim.run(mode, scenario, part, seeds, thorough=scenario != "big_record")
        violations += tally["violations"]
        cases += tally["cases"]
    assert not violations, "\n".join(violations[:5])
    assert cases == len(steps) * len(seeds)
