"""The page on the command line names every command there is, and no other."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import memory_store.cli
from tests.docs.pages import PAGES, REPOSITORY, blocks_of, name_of

# Fixed: scripts and people rely on them.
COMMANDS = {
    "upgrade",
    "check",
    "history",
    "import",
    "export",
    "list",
    "show",
    "similar",
    "stats",
    "doctor",
    "demo",
    "backup",
    "restore",
    "verify",
    "copy",
    "partition",
    "secure",
} | {f"cache {command}" for command in ("status", "rebuild", "clear")}


def apps() -> Iterator[typer.Typer]:
    names = [f"memory_store.cli.{item.name}" for item in pkgutil.iter_modules(memory_store.cli.__path__)]
    for module in [memory_store.cli, *(importlib.import_module(name) for name in names if not name.endswith(".demo"))]:
        yield from (value for value in vars(module).values() if isinstance(value, typer.Typer))


def commands_of(group: Any, prefix: str = "") -> set[str]:
    found = set()
    for name, command in group.commands.items():
        found |= commands_of(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name}
    return found


@pytest.fixture(scope="module")
def commands() -> set[str]:
    """The commands of the program, asked of the program itself."""
    groups = [typer.main.get_command(app) for app in apps()]
    return max((commands_of(group) for group in groups if hasattr(group, "commands")), key=len)


def test_the_promised_commands_are_there(commands: set[str]) -> None:
    assert commands >= COMMANDS


def test_every_command_is_on_the_page(commands: set[str]) -> None:
    page = (REPOSITORY / "docs" / "cli.md").read_text("utf-8")

    assert {name for name in commands if not re.search(rf"\b{name}\b", page)} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_shows_another_command(page: Any, commands: set[str]) -> None:
    text = page.read_text("utf-8")
    console = "".join(block.text for block in blocks_of(text) if block.language in ("console", "text"))
    shown = re.findall(r"(?m)^\$ memory-store ([a-z]+(?: [a-z]+)?)", console)
    shown += re.findall(r"`memory-store ([a-z]+(?: [a-z]+)?)", text)

    known = commands | {name.split()[0] for name in commands}
    assert [name for name in shown if name not in known and name.split()[0] not in known - {"cache"}] == []
