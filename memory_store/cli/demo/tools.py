"""The agent's four tools: list, read, search, run Python. They do real work on real files and really fail."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outcome", "Toolbox", "source_files"]

_SKIPPED = frozenset({"node_modules", "__pycache__", "build", "dist", "site-packages", "venv"})
_MAX_FILES = 400
_MAX_FILE_BYTES = 256 * 1024
_MAX_RESULT = 6000
_PYTHON_TIMEOUT_S = 20.0


class _ToolError(Exception):
    """The tool did its work and the answer is no."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one use of a tool came to."""

    tool_name: str
    action: str
    result: str
    success: bool
    duration_ms: int


def source_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files of a checkout in a stable order, at most 400, none hidden, generated or huge."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(names):
            path = Path(parent, name)
            if name.endswith(".py") and path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES:
                yield path
                count += 1
                if count == _MAX_FILES:
                    return


class Toolbox:
    """The tools, working in one checkout.

    Args:
        folder: the checkout; nothing in it is changed.
        scratch: a folder for what the tools write.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder, self.scratch = folder, scratch
        scratch.mkdir(parents=True, exist_ok=True)

    async def list_files(self, under: str = ".") -> Outcome:
        """Return the Python files under a folder, one a line."""
        return await self._in_thread("list_files", under, lambda: self._list(under))

    async def read_file(self, path: str) -> Outcome:
        """Return a file's text, cut after 6,000 characters."""
        return await self._in_thread("read_file", path, lambda: self._read(path))

    async def search(self, pattern: str, under: str = ".") -> Outcome:
        """Return the lines that match a regular expression, as `path:line: text`; no match is a failure."""
        return await self._in_thread("search", f"{pattern} in {under}", lambda: self._search(pattern, under))

    async def run_python(self, *arguments: str) -> Outcome:
        """Run the interpreter, apart from the checkout's own modules, and return what it printed."""
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-X",
            f"pycache_prefix={self.scratch}",  # py_compile writes next to its source otherwise
            *arguments,
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _PYTHON_TIMEOUT_S)
            result, success = output.decode(errors="replace").strip(), process.returncode == 0
        except TimeoutError:
            result, success = f"no answer after {_PYTHON_TIMEOUT_S:g} s", False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Outcome("run_python", " ".join(arguments), result[-_MAX_RESULT:], success, _milliseconds(started))

    async def _in_thread(self, tool_name: str, action: str, work: Callable[[], str]) -> Outcome:
        started = time.perf_counter()
        try:
            result, success = await asyncio.to_thread(work), True
        except (_ToolError, OSError, UnicodeDecodeError) as error:
            result, success = f"{type(error).__name__.lstrip('_')}: {error}", False
        return Outcome(tool_name, action, result, success, _milliseconds(started))

    def _list(self, under: str) -> str:
        top = self._folder / under
        if not top.is_dir():
            raise NotADirectoryError(f"no folder {under}")
        return "\n".join(path.relative_to(self._folder).as_posix() for path in source_files(top))

    def _read(self, path: str) -> str:
        return (self._folder / path).read_text("utf-8")[:_MAX_RESULT]

    def _search(self, pattern: str, under: str) -> str:
        matcher = re.compile(pattern)
        found = []
        for path in source_files(self._folder / under):
            name = path.relative_to(self._folder).as_posix()
            for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
                if matcher.search(line):
                    found.append(f"{name}:{number}: {line.strip()[:120]}")
        if not found:
            raise _ToolError("no match")
        return "\n".join(found[:60])


def _milliseconds(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)
