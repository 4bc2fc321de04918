"""What the demo looks like: a heading a stage, tables for what was found, one line a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from memory_store.cli.demo.summary import Summary

__all__ = ["Screen"]


class Screen:
    """Prints the demo; quiet when its result is wanted as JSON."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(quiet=quiet, highlight=False)
        self._stage = 0
        self._shown = 0

    def start(self, summary: Summary) -> None:
        """Print where it works."""
        self._console.print(
            Panel.fit(
                f"An agent inspects [bold]{summary.inspected}[/bold]\nand remembers in [bold]{summary.database}[/bold]",
                title="memory_store demo",
                border_style="cyan",
            )
        )

    def stage(self, title: str) -> None:
        """Print a stage's heading."""
        self._stage += 1
        self._console.print(f"\n[bold cyan]{self._stage}  {title}[/bold cyan]")

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar while the block runs; the block calls what it is given with (done, total)."""
        columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total or None)

    def recorded(self, summary: Summary) -> None:
        """Print what was recorded."""
        found = summary.record
        self._table(
            ["records", "stored"],
            [[kind, f"{found[kind]:,}"] for kind in ("episode", "step", "embedding", "spatiotemporal", "pattern")],
        )
        self._line(
            f"{found['files']} files looked at in {found['seconds']:.1f} s, the tools' own time included;\n"
            f"{found['acknowledged']:,} writes acknowledged in {found['commits']:,} commits, each synced to disk"
        )

    def read(self, summary: Summary) -> None:
        """Print hit against miss."""
        found = summary.read
        rows = []
        for name, what in (("episode", "episodes.get(id)"), ("steps", "steps.of(episode_id)")):
            miss, hit = found[f"{name}_miss_us"], found[f"{name}_hit_us"]
            rows.append([what, f"{miss:,.1f} µs", f"{hit:,.1f} µs", f"{miss / hit:,.0f} times"])
        self._table([f"median of {found['reads']} reads", "miss", "hit", "faster"], rows)

    def crashed(self, summary: Summary) -> None:
        """Print what the crash left."""
        found = summary.crash
        self._line(
            f"killed after {found['acknowledged']:,} acknowledged writes, {found['episodes_cut_short']} episodes "
            f"cut short;\nreopened and answering after {found['reopened_ms']:.0f} ms"
        )

    def rebuilt(self, summary: Summary) -> None:
        """Print how the rebuild went."""
        found = summary.rebuild
        self._line(
            f"{found['reason']}: {found['entries']:,} entries, {found['used_bytes'] / 1e6:.1f} MB filled in "
            f"{found['milliseconds']:.0f} ms;\n{found['served_meanwhile']} reads served meanwhile"
        )

    def learned(self, summary: Summary) -> None:
        """Print the patterns and the tools."""
        self._table(
            ["goal", "tools used (! failed)", "uses", "success"],
            [[p["goal"], p["tools"], f"{p['uses']}", f"{p['success_rate']:.0%}"] for p in summary.patterns],
        )
        self._table(
            ["tool, slowest first", "uses", "failed", "median", "slowest"],
            [
                [t["tool"], f"{t['uses']:,}", f"{t['failures']:,}", f"{t['median_ms']:g} ms", f"{t['slowest_ms']} ms"]
                for t in summary.tools
            ],
        )

    def checks(self, summary: Summary) -> None:
        """Print the checks that were made since the last call."""
        for check in summary.checks[self._shown :]:
            mark = "[green]✓[/green]" if check.passed else "[bold red]✗[/bold red]"
            self._console.print(f"   {mark} {check.name} [dim]({check.detail})[/dim]")
        self._shown = len(summary.checks)

    def end(self, summary: Summary) -> None:
        """Print the verdict."""
        kept = sum(check.passed for check in summary.checks)
        colour = "green" if summary.passed else "red"
        self._console.print(
            f"\n[bold {colour}]{kept} of {len(summary.checks)} checks held[/bold {colour}] in {summary.seconds:.1f} s\n"
            f"look around: memory-store stats --url sqlite:///{summary.database}",
            soft_wrap=True,
        )

    def _line(self, text: str) -> None:
        self._console.print(Padding(text, (0, 0, 0, 3)))

    def _table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2), expand=False)
        for index, heading in enumerate(headings):
            numeric = index > 0 and rows and rows[0][index][:1].isdigit()
            table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._console.print(Padding(table, (0, 0, 0, 3)))
