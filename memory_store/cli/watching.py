"""`stats --watch`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import datetime
from math import isfinite
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from memory_store.activity import Activity, Watch
from memory_store.cli.options import Code, opened, run_async
from memory_store.cli.screen import ReaderGone, cell, print_json, print_line, printable
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.errors import ConfigurationError
from memory_store.records import RECORDS

__all__ = ["watch_stats"]

_NOTE = "What is in the database, from outside: hits and lag are counted in each agent's process, by its store.stats()."


def watch_stats(url: str, interval_s: float, count: int | None, as_json: bool) -> int:
    """Show what happens in a database, until interrupted or often enough."""
    if not (isfinite(interval_s) and interval_s > 0):
        raise ConfigurationError(f"--interval must be more than 0 seconds, got {interval_s:g}")
    if count is not None and count < 1:
        raise ConfigurationError(f"--count must be at least 1, got {count}")

    target = parse_url(url)
    name = target.name if isinstance(target, ServerTarget) else url  # which may hold a password

    async def work() -> int:
        async with opened(url, "default") as store:
            watch = Watch(store)
            screen, show = _screen(name, as_json)
            with screen:
                show(await watch.look())
                shown = 1
                while count is None or shown < count:
                    await asyncio.sleep(interval_s)
                    show(await watch.look())
                    shown += 1
        return Code.OK

    return run_async(work())


def _screen(name: str, as_json: bool) -> tuple[AbstractContextManager[Any], Callable[[Activity], None]]:
    """Return what must be open while it is shown, and what shows it: in place on a terminal, else a line each."""
    if as_json:
        return nullcontext(), lambda activity: _flushed(print_json, json.dumps(asdict(activity), default=_iso))
    console = Console(highlight=False)
    if not console.is_terminal:
        print_line(_NOTE)
        return nullcontext(), lambda activity: _flushed(print_line, _line(activity))
    live = Live(console=console, auto_refresh=False)
    return live, lambda activity: live.update(_picture(name, activity), refresh=True)


def _flushed(show: Callable[[str], None], text: str) -> None:
    """Show a line at once: whoever reads it should not wait for a buffer to fill."""
    show(text)
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error


def _iso(moment: datetime) -> str:
    return moment.isoformat()


def _line(activity: Activity) -> str:
    changes = activity.changes_per_s
    by_kind = "-" if changes is None else ", ".join(f"{kind} {rate:,.1f}/s" for kind, rate in sorted(changes.items()))
    return (
        f"{cell(activity.at)}  position {activity.position:,}  {_rate(activity.commits_per_s)} commits/s"
        f"  changes: {by_kind or 'none'}  {_sizes(activity)}"
    )


def _picture(name: str, activity: Activity) -> Group:
    rates = activity.changes_per_s
    table = Table(box=None, pad_edge=False)
    table.add_column("kind")
    table.add_column("changes/s", justify="right")
    for kind in dict.fromkeys((*RECORDS, *(rates or ()))):
        table.add_row(Text(printable(kind)), _rate(None if rates is None else rates.get(kind, 0.0)))
    head = f"{cell(activity.at)}  {printable(name)}"
    position = f"position {activity.position:,}, {_rate(activity.commits_per_s)} commits/s"
    return Group(Text(head), Text(position), "", table, "", Text(_sizes(activity)), Text(_NOTE))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _sizes(activity: Activity) -> str:
    saved = (
        "none" if activity.cache_s_ago is None else f"{activity.cache_bytes:,} bytes, {activity.cache_s_ago:,.0f} s old"
    )
    if activity.connections is None:
        return f"database {activity.database_bytes:,} bytes, WAL {activity.wal_bytes:,} bytes, saved cache {saved}"
    return (
        f"database {activity.database_bytes:,} bytes, {activity.connections:,} connections, "
        f"{activity.busy_connections:,} of them busy, saved cache {saved}"
    )
