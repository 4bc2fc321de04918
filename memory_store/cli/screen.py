"""Printing: tables for people, JSON for programs, progress bars on a terminal's stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

__all__ = [
    "ReaderGone",
    "bar",
    "cell",
    "print_json",
    "print_line",
    "print_lines",
    "print_table",
    "printable",
    "write_line",
]

_CELL = 60
_IDS, _ID = ("id", "episode_id"), 2000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise ReaderGone


class ReaderGone(Exception):  # noqa: N818 - nothing is wrong
    """Nobody reads standard output any more. No OSError, which Typer would answer by itself, with another code."""


def write_line(line: bytes) -> None:
    """Write bytes to standard output as they are.

    Raises:
        ReaderGone: nobody reads it any more.
    """
    try:
        sys.stdout.buffer.write(line)
    except BrokenPipeError as error:
        raise ReaderGone from error


def print_json(value: Any, *, to_stderr: bool = False) -> None:
    """Print a value, or JSON text, as one document, in UTF-8 whatever the terminal says."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if to_stderr:
        print(text, file=sys.stderr)
    else:
        write_line(text.encode() + b"\n")


def print_line(text: str) -> None:
    """Print one line of text."""
    print_lines([text])


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of text, whatever characters they hold."""
    for line in lines:
        write_line(f"{printable(line)}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, length: int = _CELL) -> None:
    """Print a table; where standard output is no terminal, wide enough to cut no id."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        # An id is what the next command needs: it is never cut.
        table.add_row(
            *(Text(cell(value, _ID if name in _IDS else length)) for name, value in zip(columns, row, strict=True))
        )
    console = _Console(highlight=False)
    if not console.is_terminal:
        console = _Console(highlight=False, width=max(console.width, 240))
    console.print(table)


def cell(value: Any, length: int = _CELL) -> str:
    """Return a value as short text on one line."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = printable(text[: length + 1])
    return text if len(text) <= length else text[: length - 1] + "…"


def printable(text: str) -> str:
    """Return text without anything a terminal would obey: recorded output holds control sequences."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bar() -> Progress:
    """Return a progress bar on stderr, which shows nothing where stderr is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
