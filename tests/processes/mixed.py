"""Several processes on one file for a while, and the verdict on what they saw: `python -m tests.processes.mixed`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.fault.support import Child
from tests.processes.checker import Verdict, judge
from tests.processes.history import Operation, load, now_ns
from tests.processes.reads import Plan
from tests.processes.truth import integrity_problems, read_log
from tests.processes.workload import NAMESPACE, actor_of, use

STALENESS_S = 0.05
# Half of them each; one of each half closes its store and opens it again; one has room for a few entries only; one only
# asks what its cache can answer.
FRESHNESS = ["linearizable", "bounded", "bounded", "linearizable"]
REOPENS_AFTER_S = [0.0, 0.4, 0.0, 0.9]
CACHE_BYTES = [1 << 20, 1 << 20, 1 << 20, 12_000]
WRITES = [1.0, 0.2, 0.0, 0.2]
QUIET = 2
HANDS_OVER_TO = {0: 1, 1: 3, 2: 2, 3: 0}


def actors() -> list[str]:
    """Who writes, by number."""
    return [actor_of(number) for number in range(len(FRESHNESS))]


@contextmanager
def running(url: str, folder: Path, seconds: float, seed: int) -> Iterator[list[Child]]:
    """Run them beside what is done within `with`, whose end waits for theirs; `loaded` then has what they saw."""
    count = len(FRESHNESS)
    # Where each tells its neighbour the positions of its commits.
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(count)]
    with ExitStack() as held:
        children = []
        for number, history in enumerate(_histories(folder)):
            plan = Plan(
                number=number,
                freshness=FRESHNESS[number],
                staleness_s=STALENESS_S,
                seed=seed * 10 + number,
                reopens_after_s=REOPENS_AFTER_S[number],
                cache_max_bytes=CACHE_BYTES[number],
                writes=WRITES[number],
                quiet=number == QUIET,
            )
            told, tells = pipes[number][0], pipes[HANDS_OVER_TO[number]][1]
            children.append(held.enter_context(Child(use, url, plan, str(history), tells, told)))
        for child in children:
            assert child.receive() == "ready"
        ends_at_ns = now_ns() + int(seconds * 1e9)
        for child in children:  # they all open a database that is not there yet
            child.send(ends_at_ns)
        yield children
        for child in children:
            assert child.receive(seconds + 60) is None
    for receiving, sending in pipes:
        receiving.close()
        sending.close()


def loaded(folder: Path) -> list[Operation]:
    """Return what they did and saw."""
    return load(_histories(folder))


def _histories(folder: Path) -> list[Path]:
    return [folder / f"{number}.history" for number in range(len(FRESHNESS))]


def run_processes(
    folder: Path, seconds: float, seed: int, allowed_s: float = STALENESS_S
) -> tuple[list[Operation], Verdict]:
    """Run them and judge their history; return both.

    Args:
        folder: where the database and the histories go.
        seconds: how long.
        seed: of their choices; when each call comes is up to the machine.
        allowed_s: how far behind a bounded read may be; less than the stores are told is to try the judge.
    """
    path = folder / "agent.db"
    with running(f"sqlite:///{path}", folder, seconds, seed):
        pass
    operations = loaded(folder)
    verdict = judge(read_log(path), operations, actors(), NAMESPACE, allowed_s)
    verdict.violations += [f"integrity: {problem}" for problem in integrity_problems(path)]
    return operations, verdict


def summary(operations: list[Operation], verdict: Verdict, seconds: float) -> list[str]:
    """Return what to print."""
    names = Counter(operation.name for operation in operations)
    behind = sorted(verdict.behind_s)
    lines = [
        f"{len(operations):,} operations of {len(FRESHNESS)} processes in {seconds:g} s "
        f"({len(operations) / seconds:,.0f}/s), {sum(verdict.checks.values()):,} checks, "
        f"{len(verdict.violations)} violations",
        "operations: " + ", ".join(f"{name} {number:,}" for name, number in names.most_common()),
    ]
    if behind:
        lines.append(
            f"{len(behind):,} bounded reads were behind another process, by {behind[len(behind) // 2] * 1000:.1f} ms "
            f"in the middle, {behind[-1] * 1000:.1f} ms at most; allowed: {STALENESS_S * 1000:g} ms"
        )
    return lines


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory_store-processes-") as folder:
        operations, verdict = run_processes(Path(folder), arguments.seconds, arguments.seed)
    print("\n".join(summary(operations, verdict, arguments.seconds)))
    print("\n".join(verdict.violations[:10]))
    return bool(verdict.violations)


if __name__ == "__main__":
    sys.exit(main())
