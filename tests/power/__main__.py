"""`python -m tests.power MODE SCENARIO STEP SEED` runs one case again; without STEP and SEED, a whole scenario."""

from __future__ import annotations

import argparse
import sys

from tests.power import vfs
from tests.power.cases import run_steps, steps_of
from tests.power.sampling import MODES, steps_for
from tests.power.scenarios import SCENARIOS


def main() -> int:
    """Run what was asked for; 1 if it breaks a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.power", description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("step", nargs="?", type=int)
    parser.add_argument("seed", nargs="?", type=int)
    asked = parser.parse_args()
    vfs.install()
    names = steps_of(asked.scenario)
    steps = steps_for(asked.mode, names) if asked.step is None else [asked.step]
    seeds = range(10) if asked.seed is None else [asked.seed]
    tally = run_steps(asked.mode, asked.scenario, steps, seeds, thorough=True)
    print(f"{len(names)} steps, {tally.cases} cases, {tally.images} different disks, {tally.acknowledged} acknowledged")
    for violation in tally.violations:
        print(violation)
    return 1 if tally.violations else 0


sys.exit(main())
