"""Every code block of every page does what the page says."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from pathlib import Path

import pytest

from memory_store.config import resolve_settings
from memory_store.durable.engine import parse_url
from tests.children import Done, run_function
from tests.docs.pages import PAGES, REPOSITORY, blocks_of, name_of
from tests.docs.run_page import main
from tests.servers.installation import postgres_programs

RUN = {"python", "console", "sql"}
RUNNING = [page for page in PAGES if {b.language for b in blocks_of(page.read_text("utf-8"))} & RUN]
URL = re.compile(r"""\b(?:sqlite|postgresql)(?:\+\w+)?://[^\s`'")|]+""")
DIAGRAMS = ("flowchart ", "sequenceDiagram", "stateDiagram-v2", "classDiagram", "erDiagram", "xychart-beta")


def run_page(page: Path, folder: Path, **variables: str) -> Done:
    own = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder)}
    return run_function(main, ["run_page", str(page)], folder, own | variables)


@pytest.fixture
def servers(page: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """What a page is told of its servers. A PostgreSQL of its own: roles belong to the server.

    The role `agent` and its database `agents` are there, unless the page makes them.
    """
    code = "".join(block.text for block in blocks_of(page.read_text("utf-8")) if block.language in RUN)
    told = {}
    if "db.example" in code or "\n```sql" in page.read_text("utf-8"):
        server = request.getfixturevalue("make_postgres")()  # durable, or `doctor` finds it wrong
        if "CREATE DATABASE agents" not in code:
            server.execute("CREATE ROLE agent LOGIN")
            server.execute("CREATE DATABASE agents OWNER agent TEMPLATE template0")
        told = {"DOCS_POSTGRES": str(server.socket_folder), "DOCS_POSTGRES_PROGRAMS": str(postgres_programs())}
    if "cache.example" in code:
        told["DOCS_REDIS"] = request.getfixturevalue("redis_url")
    return told


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_blocks_run(page: Path, tmp_path: Path, servers: dict[str, str]) -> None:
    done = run_page(page, tmp_path, **servers)

    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```python\nprint(1)  #> 2\n```\n", "prints ['1'], the page says ['2']"),
        ("```python\nprint(1)\n```\n", "prints ['1'], the page says []"),
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```python\nimport asyncio\nawait asyncio.sleep(0)\nprint(name)\n```\n", "NameError"),
        ("```console\n$ python -c 'raise SystemExit(3)'\n```\n", "ended with 3"),
        ("```console\n$ memory-store check\n```\n", "ended with 3"),
        ("```console\n$ rm -rf nothing\n```\n", "do not know"),
    ],
)
def test_a_wrong_block_is_noticed(block: str, complaint: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{block}", "utf-8")

    done = run_page(page, tmp_path)

    assert done.code != 0
    assert complaint in done.err


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_have_a_language_and_the_right_form(page: Path) -> None:
    for block in blocks_of(page.read_text("utf-8")):
        place = f"{name_of(page)}:{block.line}"
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "jsonl":
            assert [json.loads(line) for line in block.text.splitlines()], place
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "ini":
            configparser.ConfigParser().read_string(block.text)
        elif block.language == "mermaid":
            assert block.text.startswith(DIAGRAMS), place
        else:
            assert block.language in {*RUN, "text"}, place


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_urls_are_understood(page: Path) -> None:
    """Also where they stand in what is not run."""
    for url in URL.findall(page.read_text("utf-8")):
        if "..." not in url:
            resolve_settings(parse_url(url.rstrip(".,;:")).parameters, {})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8")))
    text = page.read_text("utf-8")
    console = "".join(block.text for block in blocks_of(text) if block.language == "console")

    named = set(re.findall(r"(?m)^\$ make ([a-z-]+)", console)) | set(re.findall(r"`make ([a-z-]+)", text))

    assert named <= targets
