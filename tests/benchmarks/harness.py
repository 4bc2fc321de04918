"""What every benchmark shares: interleaved rounds, the result's shape, the workspace, and where it ran."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

REPOSITORY = Path(__file__).parents[2]

T = TypeVar("T")

Slice = Callable[[int], Awaitable[float]]
"""Does one round's share of work and returns the seconds one operation took."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; the tests shrink it.

    Args:
        rows: rows a large table has.
        rounds: rounds of a benchmark whose round takes milliseconds; slower ones take fewer.
        slice: operations a round.
        ticks: samples of the event loop's lateness, an operation.
        queries: texts of each sort that are sought.
    """

    rows: int = 100_000
    rounds: int = 25
    slice: int = 1000
    ticks: int = 3000
    queries: int = 10

    def fewer(self, most: int) -> int:
        """Return the rounds of a slow benchmark."""
        return min(self.rounds, most)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a benchmark found: its own figure and the baseline's in `unit`, and how they compare."""

    ratio: float
    ours: float
    baseline: float
    unit: str
    detail: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One row of the budget.

    Args:
        name: what it is called on the command line.
        title: what is measured.
        against: the baseline.
        run: measures it.
        budget: the bound, None where there is none.
        bound: whether the compared figure must stay under or over the budget.
        compared: what is held to the budget: the ratio, ours alone, or by how much ours is above the baseline.
    """

    name: str
    title: str
    against: str
    run: Run
    budget: float | None
    bound: Literal["at most", "at least"] = "at most"
    compared: Literal["ratio", "ours", "difference"] = "ratio"

    def figure(self, measured: Measured) -> float:
        """Return the figure that the budget bounds."""
        if self.compared == "ours":
            return measured.ours
        return measured.ratio if self.compared == "ratio" else measured.ours - measured.baseline

    def verdict(self, measured: Measured) -> str:
        """Return "met", "missed", or "no budget"."""
        if self.budget is None:
            return "no budget"
        figure = self.figure(measured)
        return "met" if (figure <= self.budget if self.bound == "at most" else figure >= self.budget) else "missed"

    def report(self, measured: Measured) -> dict[str, Any]:
        """Return the JSON object of a result."""
        return {
            "name": self.name,
            "ratio": _rounded(measured.ratio),
            "budget": self.budget,
            "bound": self.bound,
            "compared": self.compared,
            "verdict": self.verdict(measured),
            "ours": _rounded(measured.ours),
            "baseline": _rounded(measured.baseline),
            "unit": measured.unit,
            "against": self.against,
            "detail": {name: _rounded(value) for name, value in measured.detail.items()},
            "environment": environment(),
        }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


class Workspace:
    """A folder on the disk the checkout is on; memory-backed folders would make every sync free.

    Databases that several benchmarks read are made once.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or REPOSITORY / ".bench"
        parent.mkdir(exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
        self._made: dict[str, Path] = {}
        self._count = 0
        self._kept = ExitStack()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def until_the_end(self, resource: AbstractContextManager[T]) -> T:
        """Enter what several benchmarks use; it is left with the workspace."""
        return self._kept.enter_context(resource)

    def new(self, name: str) -> Path:
        """Return the path of a database that does not exist yet, in a folder of its own."""
        self._count += 1
        folder = self.folder / f"{self._count}-{name}"
        folder.mkdir()
        return folder / "agent.db"

    async def shared(self, name: str, make: Callable[[Path], Awaitable[None]]) -> Path:
        """Return the path of a database, made by the first who asks."""
        if name not in self._made:
            path = self.new(name)
            await make(path)
            self._made[name] = path
        return self._made[name]


async def compare(ours: Slice, baseline: Slice, rounds: int, *, unit: str, scale: float = 1e6) -> Measured:
    """Time both in turns and return the median of the rounds' ratios.

    One untimed round warms both up. Who goes first changes from round to round, so that neither always runs on the
    other's heated caches. A slow moment of the machine spoils one round, not the median.
    """
    await ours(0)
    await baseline(0)
    gc.collect()
    gc.freeze()  # what was prepared is not walked again while the clock runs
    pairs = []
    try:
        for number in range(1, rounds + 1):
            if number % 2:
                mine = await ours(number)
                theirs = await baseline(number)
            else:
                theirs = await baseline(number)
                mine = await ours(number)
            pairs.append((mine, theirs))
    finally:
        gc.unfreeze()
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    quarter = len(ratios) // 4
    return Measured(
        ratio=statistics.median(ratios),
        ours=statistics.median(mine for mine, _ in pairs) * scale,
        baseline=statistics.median(theirs for _, theirs in pairs) * scale,
        unit=unit,
        detail={"rounds": rounds, "ratio_p25": ratios[quarter], "ratio_p75": ratios[-1 - quarter]},
    )


Run = Callable[[Workspace, Sizes], Awaitable[Measured]]


def on_one_core(run: Run) -> Run:
    """Measure on one core first, which counts, then on all, which is reported beside it.

    Waking a thread takes 10 µs on the same core and 60 on another, and the kernel settles on one or the other for a
    whole process. Where a hop or two is most of what is measured, only the same core for both sides compares them.
    """

    async def both(workspace: Workspace, sizes: Sizes) -> Measured:
        with _one_core():
            measured = await run(workspace, sizes)
        free = await run(workspace, sizes)
        return replace(measured, detail={**measured.detail, "ratio_all_cores": free.ratio})

    return both


@contextmanager
def _one_core() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def as_rate(times: Measured, *, unit: str) -> Measured:
    """Turn seconds an operation (with `scale=1`) into operations a second; the ratio turns over with them."""
    detail = dict(times.detail)
    detail["ratio_p25"], detail["ratio_p75"] = 1 / times.detail["ratio_p75"], 1 / times.detail["ratio_p25"]
    return Measured(1 / times.ratio, 1 / times.ours, 1 / times.baseline, unit, detail)


def environment() -> dict[str, str | int]:
    """Return where and with what it was measured."""
    packages = ("sqlalchemy", "aiosqlite", "cachetools", "msgpack")
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: importlib.metadata.version(name) for name in packages},
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.release()}",
        "commit": _git("log", "-1", "--format=%h of %cs") or "unknown",
        "tree": "with uncommitted changes" if _git("status", "--porcelain", "--", "memory_store") else "as committed",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
