"""Runs the blocks of one page in order, in the current directory: a program of its own, so that nothing of it stays.

Python blocks share one namespace and one event loop and may await at the top level; what they print must be what their
`#> ` comments say. Console blocks run the commands after `$ `, each of which must succeed. SQL blocks are run by psql
as the server's administrator, in the database `postgres` until they connect to another.

The pages' servers are `db.example` and `cache.example`: in what is run, the URL of a real one stands in their place,
with the user, the database and the parameters of the page.
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
from urllib.parse import quote

from tests.children import run_program
from tests.docs.pages import REPOSITORY, Block, blocks_of

PROGRAMS = Path(sys.executable).parent
# Where the servers are, if the page needs them: the folder of PostgreSQL's socket, that of its programs, Redis's URL.
POSTGRES, POSTGRES_PROGRAMS, REDIS = "DOCS_POSTGRES", "DOCS_POSTGRES_PROGRAMS", "DOCS_REDIS"

_POSTGRES_URL = re.compile(r"postgresql://(\w+)@db\.example/(\w+)(\?)?")
_REDIS_URL = re.compile(r"redis://cache\.example/0")


class BlockError(Exception):
    """A block does not do what the page says."""


def with_servers(text: str) -> str:
    """Put the servers of this run in the place of the page's."""

    def of_postgres(found: re.Match[str]) -> str:
        return (
            f"postgresql://{found[1]}@/{found[2]}?host={quote(os.environ[POSTGRES], safe='')}{'&' if found[3] else ''}"
        )

    return _REDIS_URL.sub(lambda _: os.environ[REDIS], _POSTGRES_URL.sub(of_postgres, text))


def run_python(block: Block, namespace: dict[str, Any], runner: asyncio.Runner, page: Path) -> None:
    source = "\n" * block.line + with_servers(block.text)  # so that a traceback names the page's own lines
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
        words = shlex.split(with_servers(line[2:]), comments=True)
        if words[0] == "memory-store":
            done = run_program(words[1:], Path.cwd(), os.environ, timeout_s=60)
            require_success(line, done.code, done.out + done.err)
        elif words[0] in ("alembic", "python"):
            run_command(line, [str(PROGRAMS / words[0]), *words[1:]])
        elif words[0] in ("pg_dump", "pg_restore"):
            run_command(line, [str(Path(os.environ[POSTGRES_PROGRAMS]) / words[0]), *words[1:]])
        elif words[0] not in ("make", "pip", "git"):
            raise BlockError(f"{line!r} starts with a command the tests do not know")


def run_command(line: str, command: list[str]) -> None:
    environment = {**os.environ, "ALEMBIC_CONFIG": str(REPOSITORY / "alembic.ini")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    require_success(line, done.returncode, done.stdout + done.stderr)


def require_success(line: str, code: int, said: str) -> None:
    if code != 0:
        raise BlockError(f"{line!r} ended with {code}: {said}")


def run_sql(block: Block) -> None:
    psql, host = Path(os.environ[POSTGRES_PROGRAMS]) / "psql", os.environ[POSTGRES]
    command = [str(psql), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", host, "-U", "postgres"]
    done = subprocess.run(command, input=block.text, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise BlockError(f"psql ended with {done.returncode}: {done.stderr}")


def main() -> None:
    """Run the page that `sys.argv` names, with all that asyncio can check."""
    page = Path(sys.argv[1])
    warnings.simplefilter("error")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner(debug=True) as runner:
        for block in blocks_of(page.read_text("utf-8")):
            try:
                if block.language == "python":
                    run_python(block, namespace, runner, page)
                elif block.language == "console":
                    run_console(block)
                elif block.language == "sql":
                    run_sql(block)
            except BlockError as error:
                sys.exit(f"{page.name}, block on line {block.line}: {error}")


if __name__ == "__main__":
    main()
