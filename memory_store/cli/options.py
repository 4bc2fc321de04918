"""What the commands share: options, exit codes, opening a store, turning errors into one line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Annotated, Any, TypeVar

import typer

from memory_store.durable.engine import parse_url
from memory_store.durable.examine import require_file
from memory_store.errors import ConfigurationError, MemoryStoreError, QuerySyntaxError, RecordError
from memory_store.store import MemoryStore

__all__ = ["Code", "Json", "Name", "Url", "code_of", "complain", "opened", "run_async"]

T = TypeVar("T")

DEFAULT_URL = "sqlite:///agent.db"
Url = Annotated[
    str, typer.Option("--url", envvar="MEMORY_STORE_URL", metavar="URL", help="The database, e.g. sqlite:///agent.db")
]
Name = Annotated[str, typer.Option("--namespace", metavar="NAME", help="Whose records.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class Code(IntEnum):
    """Exit codes of the program, documented in docs/cli.md."""

    OK = 0
    PROBLEMS = 1
    USAGE = 2
    DATABASE = 3
    INTERRUPTED = 130
    PIPE = 141


def complain(message: str) -> None:
    """Print one line on stderr."""
    line = " ".join(message.split())
    with contextlib.suppress(OSError):
        print(f"memory-store: {line}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr, flush=True)


def code_of(error: MemoryStoreError) -> Code:
    """Return the exit code of an error of the library."""
    return Code.USAGE if isinstance(error, ConfigurationError | RecordError | QuerySyntaxError) else Code.DATABASE


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine. Ctrl-C cancels it, lets it close its store, and ends the program."""

    async def guarded() -> T:
        try:
            return await work
        except asyncio.CancelledError:
            # The interpreter would wait for a thread that is reading standard input, maybe for ever.
            complain("interrupted")
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(Code.INTERRUPTED)

    return asyncio.run(guarded())


@asynccontextmanager
async def opened(url: str, namespace: str, *, writes: bool = False, cached: bool = False) -> AsyncIterator[MemoryStore]:
    """Open a store for one command.

    Args:
        url: the database.
        namespace: whose records.
        writes: make or upgrade the database if need be; otherwise it must be there, at this library's revision.
        cached: load the saved cache, and save it again; other commands have no use for it.
    """
    target = parse_url(url)
    settings: dict[str, Any] = {} if writes or target.memory else {"migrate": "check"}
    if not cached:
        settings.update(cache_max_bytes=0, cache_path="")
    store = MemoryStore(url, namespace=namespace, **settings)
    if not writes:
        require_file(target)
    async with store:
        yield store
