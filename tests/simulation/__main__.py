"""`python -m tests.simulation SEED` replays a history with its trace; `--histories N [--from SEED]` runs many."""

from __future__ import annotations

import argparse
import time

from tests.simulation.seams import simulated
from tests.simulation.world import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--histories", type=int, default=0)
    parser.add_argument("--from", dest="first", type=int, default=0)
    given = parser.parse_args()
    with simulated():
        if given.seed is not None:
            trace: list[str] = []
            try:
                run(given.seed, trace)
            finally:
                print("\n".join(trace))
            return
        began, busy, failed = time.perf_counter(), time.process_time(), []
        for seed in range(given.first, given.first + given.histories):
            try:
                run(seed)
            except Exception as error:
                failed.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
        rate = given.histories / (time.perf_counter() - began)
        alone = given.histories / (time.process_time() - busy)
        print(f"{given.histories} histories, {rate:.0f} a second ({alone:.0f} a second of processor time)")
        print(f"{len(failed)} failed: {failed[:20]}")


if __name__ == "__main__":
    main()
