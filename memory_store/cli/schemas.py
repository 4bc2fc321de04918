"""`upgrade`, `check`, `history`, `doctor`."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict
from importlib.metadata import version

from memory_store import inspection
from memory_store.cli.options import Code, complain
from memory_store.cli.screen import print_json, print_line, print_table
from memory_store.config import resolve_settings
from memory_store.durable import schema
from memory_store.durable.engine import ServerTarget, Target, parse_url
from memory_store.durable.examine import require_file
from memory_store.errors import ConfigurationError, SchemaMismatchError

__all__ = ["check", "doctor", "history", "print_version", "upgrade"]


def print_version() -> None:
    """Print the versions that matter in a bug report."""
    print_line(
        f"memory-store {version('memory-store')}, schema {schema.HEAD_REVISION}, SQLite {sqlite3.sqlite_version}"
    )


def upgrade(url: str, as_json: bool) -> int:
    """Make or upgrade the database."""
    target = _file(url)
    copies: list[str] = []
    settings = resolve_settings(target.parameters, {})
    before, after = schema.upgrade(target, settings.timeout_s, heads=settings.heads, on_copy=copies.append)
    if as_json:
        print_json({"before": before, "after": after, "copy": copies[0] if copies else None})
    elif before == after:
        print_line(f"{target.name} is at revision {after} already")
    else:
        print_line(f"{target.name} is at revision {after} now, was {before or 'empty'}")
        for copy in copies:
            print_line(f"the database as it was before is in {copy}")
    return Code.OK


def check(url: str, as_json: bool) -> int:
    """Compare the database's revision with the library's."""
    target = _file(url)
    require_file(target)
    try:
        found = schema.current_revision(target)
        schema.check(found, target)
    except SchemaMismatchError as error:
        if as_json:
            print_json({"ok": False, "found": error.found, "expected": error.expected})
        complain(str(error))
        return Code.DATABASE
    if as_json:
        print_json({"ok": True, "found": found, "expected": schema.HEAD_REVISION})
    else:
        print_line(f"{target.name} is at revision {found}, as this library needs it")
    return Code.OK


def history(url: str, as_json: bool) -> int:
    """List the migrations."""
    target = _file(url)
    if isinstance(target, Target):
        target.require_folder()
    found = schema.current_revision(target)
    migrations = schema.history(found)
    if found is not None and not any(item.applied for item in migrations):
        schema.check(found, target)  # raises: a revision this library does not know
    if as_json:
        print_json([item._asdict() for item in migrations])
    else:
        print_table(
            ["revision", "applied", "what"],
            [[item.revision, "yes" if item.applied else "no", item.message] for item in migrations],
        )
    return Code.OK


def doctor(url: str, as_json: bool) -> int:
    """Print the findings."""
    findings = inspection.diagnose(url)
    sound = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": sound, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [["ok" if item.ok else "WRONG", item.name, _text(item.value), item.hint] for item in findings]
        print_table(["", "what", "found", "meaning"], rows, length=1000)
    if not sound:
        complain("; ".join(f"{item.name}: {item.hint}" for item in findings if not item.ok))
    return Code.OK if sound else Code.PROBLEMS


def _text(value: object) -> object:
    if isinstance(value, dict):
        return "; ".join(f"{name.replace('_', ' ')}: {_text(item)}" for name, item in value.items() if item != "")
    return f"{value:,}" if type(value) is int else value


def _file(url: str) -> Target | ServerTarget:
    target = parse_url(url)
    if target.memory:
        raise ConfigurationError("a :memory: database ends with the program: name a file, e.g. sqlite:///agent.db")
    resolve_settings(target.parameters, {})
    return target
