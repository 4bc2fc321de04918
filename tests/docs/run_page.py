"""Runs the blocks of one page in order, in the current directory: a program of its own, so that nothing of it stays.

Python blocks share one namespace and one event loop and may await at the top level; what they print must be what their
`#> ` comments say. Console blocks run the commands after `$ `, each of which must succeed.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.docs.pages import REPOSITORY, Block, blocks_of

PROGRAMS = Path(sys.executable).parent


class BlockError(Exception):
    """A block does not do what the page says."""


def run_python(block: Block, namespace: dict[str, Any], runner: asyncio.Runner, page: Path) -> None:
    source = "\n" * block.line + block.text  # so that a traceback names the page's own lines
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if code.co_flags & inspect.CO_COROUTINE:

            async def run() -> None:
                await eval(code, namespace)

            runner.run(run())
        else:
            exec(code, namespace)
    promised = [line.rstrip() for line in re.findall(r"#> ?(.*)$", block.text, re.MULTILINE)]
    said = printed.getvalue().splitlines()
    if said != promised:
        raise BlockError(f"prints {said}, the page says {promised}")


def run_console(block: Block) -> None:
    for line in block.text.splitlines():
        if not line.startswith("$ "):
            continue
        words = shlex.split(line[2:], comments=True)
        if words[0] in ("memory-store", "alembic", "python"):
            environment = {**os.environ, "ALEMBIC_CONFIG": str(REPOSITORY / "alembic.ini")}
            done = subprocess.run(
                [str(PROGRAMS / words[0]), *words[1:]], env=environment, capture_output=True, text=True, timeout=60
            )
            if done.returncode != 0:
                raise BlockError(f"{line!r} ended with {done.returncode}: {done.stdout}{done.stderr}")
        elif words[0] not in ("make", "pip", "git"):
            raise BlockError(f"{line!r} starts with a command the tests do not know")


def main(page: Path) -> None:
    warnings.simplefilter("error")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in blocks_of(page.read_text("utf-8")):
            try:
                if block.language == "python":
                    run_python(block, namespace, runner, page)
                elif block.language == "console":
                    run_console(block)
            except BlockError as error:
                sys.exit(f"{page.name}, block on line {block.line}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
