"""`memory-store demo`: a real run from an empty file to a crash and back, with every claim checked on the way."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

__all__ = ["run"]


def run(folder: str | None, as_json: bool) -> int:
    """Run the demo and return the exit code: 0 when every check held, 1 when one did not, 2 when it cannot start.

    Args:
        folder: the checkout to inspect, the current directory when None. Where there is nothing to inspect, the agent
            inspects this package.
        as_json: print one JSON object at the end, and nothing else.
    """
    inspected = Path(folder or ".").absolute()
    if not inspected.is_dir():
        print(f"error: {inspected} is not a folder", file=sys.stderr)
        return 2
    try:
        database = _empty_place() / "agent.db"
    except OSError as error:
        print(f"error: no place for the demo's database: {error}", file=sys.stderr)
        return 2
    return asyncio.run(_run(inspected, database, as_json))


async def _run(inspected: Path, database: Path, as_json: bool) -> int:
    # Imported here: the command line must start fast, and rich is an extra.
    from memory_store.cli.demo import stages
    from memory_store.cli.demo.goals import pick_folder
    from memory_store.cli.demo.screen import Screen
    from memory_store.cli.demo.summary import Paths, Summary

    started = time.perf_counter()
    paths = Paths(pick_folder(inspected), database)
    summary = Summary(str(paths.checkout), str(database))
    screen = Screen(quiet=as_json)
    screen.start(summary)

    screen.stage("Record: the agent works on questions about the files, and remembers")
    with screen.progress("episodes") as progress:
        await stages.record(paths, summary, progress)
    screen.recorded(summary)
    screen.checks(summary)

    screen.stage("Read: from the database, and again from the cache")
    await stages.read(paths, summary)
    screen.read(summary)
    screen.checks(summary)

    screen.stage("Crash: another process goes on, and is killed in the middle of writing")
    await stages.crash(paths, summary)
    screen.crashed(summary)
    screen.checks(summary)

    screen.stage("Rebuild: the version key changes, so the saved cache is not used")
    with screen.progress("cache keys") as progress:
        await stages.rebuild(paths, summary, progress)
    screen.rebuilt(summary)
    screen.checks(summary)

    screen.stage("Learned: what the memory says now")
    await stages.learned(paths, summary)
    screen.learned(summary)
    screen.checks(summary)

    summary.seconds = round(time.perf_counter() - started, 2)
    if as_json:
        print(json.dumps({"passed": summary.passed, **asdict(summary)}, ensure_ascii=False))
    screen.end(summary)
    return 0 if summary.passed else 1


def _empty_place() -> Path:
    """Return `.demo` under the current directory, or a folder for temporary files, without an older demo's files."""
    place = Path(".demo").absolute()
    try:
        place.mkdir(exist_ok=True)
        # Only what a demo leaves: somebody may keep other things there.
        for old in place.glob("agent.db*"):
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()
        shutil.rmtree(place / "scratch", ignore_errors=True)
        (place / ".writable").touch()
        (place / ".writable").unlink()
    except OSError:
        place = Path(tempfile.mkdtemp(prefix="memory_store-demo-"))
    return place
