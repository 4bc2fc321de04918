"""Every benchmark runs and says what it found in the promised shape; nothing here is timed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import report
from .catalogue import BENCHMARKS
from .harness import REPOSITORY, Benchmark, Measured, Sizes, Workspace, as_rate, compare
from .quality import Retrieval, measure_quality, retrieval_sets

TINY = Sizes(rows=300, rounds=1, slice=64, ticks=20, queries=1)
KEYS = {"name", "ratio", "budget", "ours", "baseline", "unit", "environment", "verdict"}
ENVIRONMENT = {"python", "sqlite", "cpu", "cores", "system", "commit", "date", "sqlalchemy", "aiosqlite"}


# They build graphs, for which nothing smaller than 10,000 vectors will do, are others again with more rows, or start
# servers and processes of their own, as several others do.
SLOW = {
    *("vectors_graph", "vectors_filter", "vectors_put", "vectors_open", "text_100k", "server_text_100k", "visible"),
    *("server_list", "server_put_many", "server_put_64", "server_heads", "server_miss", "server_search_filter"),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """One for all of them, as on the command line: what they measure on is made once. Nothing is left in the end."""
    folder = tmp_path_factory.mktemp("benchmarks")
    with Workspace(folder) as made:
        yield made
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BENCHMARKS]
)
async def test_it_runs_and_reports(name: str, workspace: Workspace) -> None:
    measured = await BENCHMARKS[name].run(workspace, TINY)
    found = json.loads(json.dumps(BENCHMARKS[name].report(measured)))

    assert found.keys() >= KEYS
    assert found["environment"].keys() >= ENVIRONMENT
    assert all(math.isfinite(found[figure]) and found[figure] > 0 for figure in ("ratio", "ours", "baseline"))
    assert found["verdict"] == BENCHMARKS[name].verdict(measured)


def test_every_row_of_the_budget_is_there() -> None:
    bounded = {name: (b.bound, b.budget, b.compared) for name, b in BENCHMARKS.items() if b.budget is not None}

    assert bounded == {
        "hit": ("at most", 2.0, "ratio"),
        "miss": ("at most", 1.3, "ratio"),
        "concurrent_misses": ("at least", 2.5, "ratio"),
        "put_alone": ("at most", 1.1, "ratio"),
        "put_64": ("at least", 0.5, "ratio"),
        "put_many": ("at least", 0.5, "ratio"),
        "list": ("at most", 1.5, "ratio"),
        "open": ("at most", 15.0, "difference"),
        "import_package": ("at most", 1.15, "ratio"),
        "memory": ("at most", 1.35, "ratio"),
        "hit_bounded": ("at most", 0.5, "difference"),
        "hit_linearizable": ("at most", 2.0, "ratio"),
        "linearizable_row": ("at least", 5.0, "ratio"),
        "commit_1": ("at least", 0.9, "ratio"),
        "commit_64": ("at least", 0.9, "ratio"),
        "commit_512": ("at least", 0.9, "ratio"),
        "visible": ("at most", 1.0, "ratio"),
        "idle_feed": ("at most", 0.5, "ours"),
        "save": ("at most", 1.5, "ratio"),
        "warm": ("at most", 500.0, "ours"),
        "text_10k": ("at most", 1.3, "ratio"),
        "text_100k": ("at most", 1.3, "ratio"),
        "text_half": ("at most", 20.0, "ours"),
        "search_again": ("at most", 25.0, "ours"),
        "search_filter": ("at most", 1.5, "ratio"),
        "recall": ("at most", 10.0, "ours"),
        "recall_text": ("at most", 10.0, "ours"),
        "server_miss": ("at most", 1.3, "ratio"),
        "server_put": ("at most", 1.5, "ratio"),
        "server_put_64": ("at least", 3.0, "ratio"),
        "server_put_many": ("at least", 0.5, "ratio"),
        "server_list": ("at most", 1.5, "ratio"),
        "server_heads": ("at least", 1.8, "ratio"),
        "vectors_graph": ("at most", 1.3, "ratio"),
        "vectors_filter": ("at most", 1.5, "ratio"),
        "vectors_put": ("at most", 1.0, "ours"),
        "vectors_open": ("at most", 50.0, "ours"),
        "server_search_vector": ("at most", 1.5, "ratio"),
        "server_text_10k": ("at most", 1.3, "ratio"),
        "server_text_100k": ("at most", 1.3, "ratio"),
        "server_text_half": ("at most", 20.0, "ours"),
        "server_search_filter": ("at most", 1.5, "ratio"),
        "copy": ("at least", 0.4, "ratio"),
        "pause": ("at most", 10.0, "ours"),
    }


@pytest.mark.parametrize(
    ("bound", "compared", "met", "missed"),
    [
        ("at most", "ratio", Measured(2.0, 9, 1, "ms"), Measured(2.1, 0, 1, "ms")),
        ("at least", "ratio", Measured(2.0, 0, 1, "ms"), Measured(1.9, 9, 1, "ms")),
        ("at most", "ours", Measured(9, 2.0, 1, "ms"), Measured(0, 2.1, 1, "ms")),
        ("at most", "difference", Measured(9, 3.0, 1, "ms"), Measured(0, 3.1, 1, "ms")),
    ],
)
def test_the_verdict_follows_the_bound(bound: Any, compared: Any, met: Measured, missed: Measured) -> None:
    benchmark = Benchmark("n", "t", "a", BENCHMARKS["hit"].run, 2.0, bound, compared)

    assert (benchmark.verdict(met), benchmark.verdict(missed)) == ("met", "missed")


async def test_rounds_are_compared_pair_by_pair() -> None:
    # Round 2 ran on a machine five times slower; its ratio is right all the same.
    mine, theirs = [0, 2.0, 10.0, 3.0], [0, 1.0, 5.0, 1.0]
    order: list[str] = []

    async def ours(number: int) -> float:
        order.append("ours")
        return mine[number]

    async def baseline(number: int) -> float:
        order.append("baseline")
        return theirs[number]

    times = await compare(ours, baseline, 3, unit="", scale=1)

    assert (times.ratio, times.ours, times.baseline) == (2.0, 3.0, 1.0)
    assert order[2:] == ["ours", "baseline", "baseline", "ours", "ours", "baseline"]
    assert as_rate(times, unit="1/s").ratio == 0.5


def test_the_command_prints_one_json_object() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "hit", "--json", "--rounds", "1"]

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout).keys() >= KEYS


def test_the_page_keeps_what_another_run_wrote(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- budget -->\nold\n<!-- /budget -->\nb\n<!-- peers -->\nkept\n<!-- /peers -->\n", "utf-8")

    report._replace("budget", "| a \\1 | b |", page)

    assert page.read_text("utf-8") == (
        "a\n<!-- budget -->\n| a \\1 | b |\n<!-- /budget -->\nb\n<!-- peers -->\nkept\n<!-- /peers -->\n"
    )


async def test_the_quality_of_every_set_is_measured_in_every_way(tmp_path: Path) -> None:
    if not retrieval_sets():
        pytest.skip("no retrieval sets beside the checkout")

    found = await measure_quality(queries=3)

    rows = found["quality"]
    assert {row["set"] for row in rows} == {folder.name for folder in retrieval_sets()}
    for name in {row["set"] for row in rows}:
        methods = [row["method"] for row in rows if row["set"] == name]
        assert methods[:4] == ["FTS5's BM25", "text", "vectors", "both"]
    assert all(0 <= row[measure] <= 1 for row in rows for measure in ("recall", "ndcg"))
    assert len(report.table(rows).splitlines()) == len(rows) + 2


def test_recall_and_gain_are_those_of_the_textbook() -> None:
    found = Retrieval("s", {}, {}, {"q": {"a": 2.0, "b": 1.0}, "r": {"c": 1.0}})

    # q finds b first and misses a; r finds c in the second place: gains of 1 and 1 / log2(3) of what there is to gain.
    figures = found.measure({"q": ["b", "x"], "r": ["y", "c"]})

    most = 3 / math.log2(2) + 1 / math.log2(3)
    assert figures.recall == 0.75
    assert figures.ndcg == pytest.approx((1 / most + 1 / math.log2(3)) / 2)


async def test_both_plots_and_both_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "_PLOTS", tmp_path / "images")
    report.PAGE.write_text("<!-- budget -->\n\n<!-- /budget -->\n<!-- peers -->\n\n<!-- /peers -->\n", "utf-8")
    results = [
        b.report(Measured(1.5, 3.0, 2.0, "ms", {"rounds": 2, "ratio_p25": 1, "ratio_p75": 2}))
        for b in BENCHMARKS.values()
    ]
    peer = {
        "peer": "P",
        "operation": "read",
        "peer_us": 9.0,
        "ours_us": 3.0,
        "ratio": 3.0,
        "budget": 100,
        "verdict": "missed",
    }

    vectors = {**peer, "operation": "top 10", "rows": 100_000, "peer_recall": 0.5, "ours_recall": 1.0}

    report.write_budget(results)
    report.write_peers(
        {"peers": [peer], "vectors": [vectors], "versions": {"p": "1"}, "environment": results[0]["environment"]}
    )

    text = report.PAGE.read_text("utf-8")
    assert all(f"| {benchmark.title} | {benchmark.against} |" in text for benchmark in BENCHMARKS.values())
    assert "| P | read | 9 µs | 3 µs | 3x as fast | ≥ 100x | missed |" in text
    assert "| P | top 10 | 100,000 | 9 µs | 0.500 | 3 µs | 1.000 | 3x as fast |" in text
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"benchmarks.svg", "benchmarks-peers.svg"}
