"""`backup`, `restore`, `verify`, `doctor --repair`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from memory_store import upkeep
from memory_store.cli.options import Code, complain, run_async
from memory_store.cli.screen import bar, print_json, print_line, print_lines
from memory_store.durable.working import Progress
from memory_store.upkeep import Problem

__all__ = ["backup", "repair", "restore", "verify"]


def backup(file: str, url: str, overwrite: bool, as_json: bool) -> int:
    """Make a backup."""
    done = _run(lambda tell: upkeep.backup(url, file, overwrite=overwrite, on_progress=tell))
    if as_json:
        print_json(asdict(done))
    else:
        print_line(f"{done.path}: {done.bytes:,} bytes, position {done.position:,}, verified, in {done.seconds:.1f} s")
    return Code.OK


def restore(file: str, url: str, force: bool, as_json: bool) -> int:
    """Put a backup back."""
    done = _run(lambda tell: upkeep.restore(file, url, force=force, on_progress=tell))
    if as_json:
        print_json(asdict(done))
    else:
        how = "written over" if done.replaced else "made"
        print_line(
            f"{done.path} was {how}: {done.bytes:,} bytes, revision {done.revision}, epoch {done.epoch} from position "
            f"{done.position:,} on, in {done.seconds:.1f} s"
        )
    return Code.OK


def verify(url: str, as_json: bool) -> int:
    """Print what is wrong."""
    done = _run(lambda tell: upkeep.verify(url, on_progress=tell))
    if as_json:
        problems = [problem._asdict() for problem in done.problems]
        print_json({"ok": done.ok, "total": done.total, **asdict(done), "problems": problems})
    else:
        _print_problems(done.problems, done.total)
        for check, count in done.found.items():
            print_line(f"{check}: {f'{count:,} problems' if count else 'ok'}")
        print_line(f"saved cache: {done.saved_cache}" if "saved cache" not in done.found else "")
        print_line(f"{done.path} at position {done.position:,}, in {done.seconds:.1f} s")
    if not done.ok:
        complain(f"{done.total:,} problems in {done.path}; see `memory-store doctor --repair`, or restore a backup")
    return Code.OK if done.ok else Code.PROBLEMS


def repair(url: str, as_json: bool, without_copy: bool = False) -> int:
    """Repair, and print what was done."""
    done = _run(lambda tell: upkeep.repair(url, without_copy=without_copy, on_progress=tell))
    if as_json:
        problems, left = ([problem._asdict() for problem in found] for found in (done.problems, done.left))
        print_json({"ok": not done.left, **asdict(done), "problems": problems, "left": left})
    elif not done.done:
        print_line(f"{done.path}: nothing is wrong, nothing was changed")
    else:
        _print_problems(done.problems, done.total)
        print_lines(f"repaired: {what}" for what in done.done)
        if done.copy is not None:
            print_line(f"the database as it was before is in {done.copy}")
    if done.left:
        complain(f"still wrong: {'; '.join(map(str, done.left[:3]))}")
    return Code.PROBLEMS if done.left else Code.OK


def _print_problems(problems: Sequence[Problem], total: int) -> None:
    print_lines(map(str, problems))
    if total > len(problems):
        print_line(f"and {total - len(problems):,} more")


def _run(start: Callable[[Progress], Coroutine[Any, Any, Any]]) -> Any:
    with _shown() as tell:
        return run_async(start(tell))


@contextmanager
def _shown() -> Iterator[Progress]:
    """Show how far it is, on a terminal."""
    with bar() as progress:
        task = progress.add_task("", total=None, note="")

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield tell
