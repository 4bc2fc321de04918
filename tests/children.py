"""Child processes, forked from one that has imported everything: they are there in milliseconds.

None of them inherits a thread or a connection of the tests.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from memory_store.cli import main

__all__ = ["CHILDREN", "Done", "run_function", "run_program"]

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    [
        *["memory_store", "memory_store.durable.server", "memory_store.cli.app", "tests.fault.support"],
        *["aiosqlite", "alembic.command", "sqlalchemy.dialects.sqlite.aiosqlite"],
        # What is imported late: pydantic, by typer, took nine tenths of a short command's time.
        *["typer._adapters", "pydantic", "rich._emoji_codes", "alembic.config", "logging.config", "snowballstemmer"],
        *["memory_store.durable.embedded", "memory_store.durable.dialects.sqlite_text"],
        # What test modules import, whose functions are run.
        *["pytest", "tests.servers.fixtures", "opentelemetry.trace", "sqlalchemy.dialects.postgresql.asyncpg"],
    ]
)


class Done(NamedTuple):
    """How a run of the program ended: its exit code, negative for a signal, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        assert self.out, self.err
        return json.loads(self.out)


def run_program(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdin: bytes = b"", timeout_s: float = 120
) -> Done:
    """Run `memory-store` with arguments to its end: all of it but the half second of its imports."""
    return run_function(main, ["memory-store", *arguments], folder, environment, stdin, timeout_s)


def run_function(
    function: Callable[[], None],
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    stdin: bytes = b"",
    timeout_s: float = 120,
) -> Done:
    """Run a function, found by its import path, as a program with arguments (`sys.argv`), to its end.

    It may start such programs itself.
    """
    with tempfile.TemporaryDirectory() as streams:
        given, out, err = [Path(streams) / name for name in ("in", "out", "err")]
        given.write_bytes(stdin)
        wanted = (function, list(arguments), folder, dict(environment), given, out, err)
        # A daemon ends with the tests however these end, but may start no others.
        process = CHILDREN.Process(target=_become_program, args=wanted, daemon=function is main)
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{arguments} is still running after {timeout_s} s")
        return Done(process.exitcode, out.read_bytes().decode(), err.read_bytes().decode())


def _become_program(
    function: Callable[[], None],
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    given: Path,
    out: Path,
    err: Path,
) -> None:
    for number, path, flags in [(0, given, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)]:
        opened = os.open(path, flags | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    # As the interpreter opens them.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as the environment says
    sys.argv = arguments
    warnings.simplefilter("error")
    function()
