"""`import` and `export`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

from memory_store.cli.options import Code, opened, run_async
from memory_store.cli.screen import bar, print_json, print_line, printable, write_line
from memory_store.errors import ConfigurationError
from memory_store.transfer import (
    ExportProgress,
    ImportReport,
    Rejection,
    bounded_lines,
    export_file,
    export_lines,
    import_lines,
)

__all__ = ["export_records", "import_files"]

# Every rejection goes to stderr; the JSON report holds the first ones, so that it fits into memory.
_MOST_REPORTED = 1000


def import_files(names: Sequence[str], url: str, namespace: str, on_conflict: str, timezone: str, as_json: bool) -> int:
    """Import the files one after another, telling each line that was not imported."""
    zone = _zone(timezone)
    if on_conflict not in ("reject", "skip", "replace"):
        raise ConfigurationError(f"--on-conflict is reject, skip or replace, got {on_conflict!r:.40}")
    for name in names:
        if name != "-" and not Path(name).is_file() and not Path(name).is_fifo():
            raise ConfigurationError(f"{name} is not a file")
    total = ImportReport()
    rejections: list[Rejection] = []

    async def work() -> None:
        with bar() as progress:
            console = progress.console

            def reject(rejection: Rejection) -> None:
                console.print(printable(str(rejection)), markup=False, highlight=False, soft_wrap=True)
                if len(rejections) < _MOST_REPORTED:
                    rejections.append(rejection)

            async with opened(url, namespace, writes=True) as store:
                for name in names:
                    with _open(name) as file:
                        task = progress.add_task(name[-40:], total=_size(name), note="")
                        report = await import_lines(
                            store,
                            bounded_lines(file),
                            on_conflict=on_conflict,  # type: ignore[arg-type]
                            timezone=zone,
                            source=name,
                            on_rejection=reject,
                            on_progress=lambda now, task=task: progress.update(  # type: ignore[misc]
                                task, completed=now.bytes, note=f"{now.lines:,} lines"
                            ),
                        )
                    _add(total, report)

    run_async(work())
    if as_json:
        print_json({**_as_json(total), "rejections": [rejection._asdict() for rejection in rejections]})
    else:
        _print_report(total)
    return Code.PROBLEMS if total.rejected else Code.OK


def export_records(
    url: str, namespace: str, kinds: Sequence[str] | None, all_namespaces: bool, output: str | None, as_json: bool
) -> int:
    """Write to the file, or to standard output."""
    last = ExportProgress()

    async def work() -> None:
        with bar() as progress:
            task = progress.add_task("export", total=None, note="")

            def note(now: ExportProgress) -> None:
                nonlocal last
                last = now
                done = sum(now.done.values())
                progress.update(task, completed=done, total=now.total, note=f"{done:,} records")

            async with opened(url, namespace) as store:
                options: dict[str, Any] = {
                    "kinds": kinds or None,
                    "all_namespaces": all_namespaces,
                    "on_progress": note,
                }
                if output is not None:
                    await export_file(store, output, **options)
                    return
                lines = export_lines(store, **options)
                try:
                    async for line in lines:
                        write_line(line)
                finally:
                    await lines.aclose()

    run_async(work())
    if as_json:
        # Standard output is the records themselves where no file is named.
        summary = {"file": output, "records": last.done, "bytes": last.bytes}
        print_json(summary, to_stderr=output is None)
    elif output is not None:
        print_line(f"{sum(last.done.values()):,} records, {last.bytes:,} bytes, in {output}")
    return Code.OK


def _zone(name: str) -> tzinfo:
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"--timezone {name!r:.60} is not known; use a name such as Europe/Paris") from error


@contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with closing(Path(name).open("rb")) as file:
        yield file


def _size(name: str) -> int | None:
    return None if name == "-" else Path(name).stat().st_size or None


def _add(total: ImportReport, report: ImportReport) -> None:
    for name in ("lines", "bytes", "rejected", "skipped", "deleted"):
        setattr(total, name, getattr(total, name) + getattr(report, name))
    for name in ("inserted", "unchanged", "replaced"):
        getattr(total, name).update(getattr(report, name))


def _as_json(report: ImportReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in ImportReport.__dataclass_fields__}


def _print_report(report: ImportReport) -> None:
    print_line(f"lines: {report.lines:,} read, {report.rejected:,} rejected, {report.skipped:,} skipped")
    counts: dict[str, Counter[str]] = {
        "inserted": report.inserted,
        "unchanged": report.unchanged,
        "replaced": report.replaced,
    }
    for name, counter in counts.items():
        if counter:
            each = ", ".join(f"{number:,} {kind}" for kind, number in counter.items())
            print_line(f"{name}: {each}")
    if report.deleted:
        print_line(f"deleted: {report.deleted:,} step")
