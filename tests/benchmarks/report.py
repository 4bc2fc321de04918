"""Tables for the terminal, and docs/benchmarks.md with its two plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .catalogue import BENCHMARKS
from .harness import REPOSITORY

PAGE = REPOSITORY / "docs" / "benchmarks.md"
_PLOTS = REPOSITORY / "docs" / "images"
_GOOD, _BAD, _PLAIN = "#2f7d5b", "#b5473c", "#7a8794"


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return results as a plain table."""
    rows = _rows(results)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    if results and "peer" in results[0]:
        return _vector_peer_rows(results) if "rows" in results[0] else _peer_rows(results)
    return _quality_rows(results) if results and "set" in results[0] else _budget_rows(results)


def _budget_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["operation", "against", "ours", "baseline", "ratio", "budget", "verdict"]]
    for found in results:
        benchmark = BENCHMARKS[found["name"]]
        rows.append(
            [
                benchmark.title,
                benchmark.against,
                f"{_number(found['ours'])} {found['unit']}",
                f"{_number(found['baseline'])} {found['unit']}",
                f"{found['ratio']:.2f}",
                _budget(found),
                found["verdict"],
            ]
        )
    return rows


def _budget(found: dict[str, Any]) -> str:
    if found["budget"] is None:
        return "none"
    sign = "≤" if found["bound"] == "at most" else "≥"
    if found["compared"] == "ours":
        return f"ours {sign} {found['budget']:g} {found['unit']}"
    if found["compared"] == "difference":
        return f"{sign} {found['budget']:g} {found['unit']} more"
    return f"{sign} {found['budget']:g}x"


def _peer_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["peer", "operation", "its time", "ours", "this store is", "budget", "verdict"]]
    for found in results:
        budget = f"≥ {found['budget']:g}x" if found["budget"] else "none"
        times = [f"{_number(found[side])} µs" for side in ("peer_us", "ours_us")]
        faster = f"{_number(found['ratio'])}x as fast"
        rows.append([found["peer"], found["operation"], *times, faster, budget, found["verdict"]])
    return rows


def _vector_peer_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["peer", "operation", "of", "its time", "its recall", "ours", "our recall", "this store is"]]
    for found in results:
        sides = [_time_and_recall(found, side) for side in ("peer", "ours")]
        faster = f"{_number(found['ratio'])}x as fast"
        rows.append([found["peer"], found["operation"], f"{found['rows']:,}", *sides[0], *sides[1], faster])
    return rows


def _time_and_recall(found: dict[str, Any], side: str) -> list[str]:
    recall = found.get(f"{side}_recall")
    return [f"{_number(found[f'{side}_us'])} µs", "" if recall is None else f"{recall:.3f}"]


def _quality_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["set", "found by", "model", "Recall@10", "nDCG@10", "budget", "verdict"]]
    for found in results:
        least = "none"
        if found["least_recall"] is not None:
            least = f"≥ {found['least_recall']:.3f} / {found['least_ndcg']:.3f}"
        figures = [f"{found['recall']:.3f}", f"{found['ndcg']:.3f}"]
        rows.append([found["set"], found["method"], found["model"], *figures, least, found["verdict"]])
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_budget(results: Sequence[dict[str, Any]]) -> None:
    """Put the results and their plot into the page, beside whatever else it holds."""
    _plot("benchmarks.svg", lambda axes: _draw_budget(axes, results))
    body = [_markdown(_budget_rows(results)), "", _machine(results[0]["environment"]), "", *_details(results)]
    _replace("budget", "\n".join(body))


def write_quality(found: dict[str, Any]) -> None:
    """Put how much is found into the page, beside whatever else it holds."""
    _replace("quality", "\n".join([_markdown(_quality_rows(found["quality"])), "", _machine(found["environment"])]))


def write_peers(found: dict[str, Any]) -> None:
    """Put the peers' figures and their plot into the page, beside whatever else it holds."""
    _plot("benchmarks-peers.svg", lambda axes: _draw_peers(axes, found["peers"]))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    tables = [_markdown(_peer_rows(found["peers"])), "", _markdown(_vector_peer_rows(found["vectors"]))]
    _replace("peers", "\n".join([*tables, "", _machine(found["environment"]), "", versions]))


def _replace(section: str, body: str, page: Path | None = None) -> None:
    page = page or PAGE
    text = page.read_text("utf-8")
    pattern = re.compile(rf"(<!-- {section} -->\n).*?(\n<!-- /{section} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{page} has no place for {section}: a pair of <!-- {section} --> and <!-- /{section} -->")
    page.write_text(pattern.sub(lambda found: found[1] + body + found[2], text), "utf-8")


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def _machine(environment: dict[str, Any]) -> str:
    where = "{cpu}, {cores} cores, {system}, Python {python}, SQLite {sqlite}".format(**environment)
    packages = ", ".join(f"{name} {environment[name]}" for name in ("sqlalchemy", "aiosqlite", "cachetools", "msgpack"))
    return (
        f"Measured {environment['date']} on {where}, {packages}; commit {environment['commit']}, {environment['tree']}."
    )


def _details(results: Sequence[dict[str, Any]]) -> list[str]:
    """Say how much the rounds spread, and what else a benchmark has to say."""
    lines = []
    for found in results:
        detail = dict(found["detail"])
        said = []
        if "ratio_p25" in detail:
            low, high = sorted((detail.pop("ratio_p25"), detail.pop("ratio_p75")))
            said.append(f"half of the {detail.pop('rounds'):.0f} rounds between {low:.2f} and {high:.2f}")
        said += [f"{name.replace('_', ' ')} {_number(value)}" for name, value in detail.items()]
        if said:
            lines.append(f"- `{found['name']}`: {'; '.join(said)}")
    return lines


def _plot(name: str, draw: Callable[[Any], None]) -> None:
    import matplotlib as mpl  # here: only the page needs it

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    draw(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _PLOTS.mkdir(exist_ok=True)
    figure.savefig(_PLOTS / name, metadata={"Date": None})
    plt.close(figure)


def _draw_budget(axes: Any, results: Sequence[dict[str, Any]]) -> None:
    bounded = [found for found in results if found["budget"] is not None][::-1]
    shares = [_share(found) for found in bounded]
    colours = [_GOOD if found["verdict"] == "met" else _BAD for found in bounded]
    bars = axes.barh([BENCHMARKS[found["name"]].title for found in bounded], shares, color=colours, height=0.65)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.1, max(4.0, *(share * 2 for share in shares)))
    axes.set_xticks([0.1, 0.25, 0.5, 1, 2, 4], ["10%", "25%", "50%", "budget", "200%", "400%"], minor=False)
    axes.minorticks_off()
    axes.set_title("Share of the budget used (left of the line is met)", loc="left", fontsize=10)


def _share(found: dict[str, Any]) -> float:
    measured = {"ours": found["ours"], "difference": found["ours"] - found["baseline"], "ratio": found["ratio"]}
    figure = measured[found["compared"]]
    return float(figure / found["budget"] if found["bound"] == "at most" else found["budget"] / figure)


def _draw_peers(axes: Any, peers: Sequence[dict[str, Any]]) -> None:
    shown = list(peers)[::-1]
    names = [f"{found['peer']}: {found['operation']}" for found in shown]
    colours = [{"met": _GOOD, "missed": _BAD}.get(found["verdict"], _PLAIN) for found in shown]
    bars = axes.barh(names, [found["ratio"] for found in shown], color=colours, height=0.65)
    axes.bar_label(bars, [f"{_number(found['ratio'])}x" for found in shown], padding=3)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(0.5, max(found["ratio"] for found in shown) * 5)
    axes.set_title("How many times faster memory_store is (log scale)", loc="left", fontsize=10)
