"""The databases that scenarios begin on, made by the library itself with the plain driver, each closed again."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from memory_store import Episode, MemoryStore, Step
from memory_store.durable import schema
from memory_store.durable.engine import Target
from memory_store.durable.statements import STATEMENTS
from tests.power.library import CHANCE
from tests.power.writes import NAMESPACE, put_episode

__all__ = ["current", "old", "upgrade_statements"]

Statements = Sequence[tuple[str, Sequence[Any]]]


def _in_folder(make: Callable[[Path], Any]) -> bytes:
    """Return the database file that `make(path)` leaves."""
    with tempfile.TemporaryDirectory(prefix="memory_store-power-") as folder:
        path = Path(folder) / "agent.db"
        with CHANCE.installed():
            make(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()


@cache
def current() -> bytes:
    """Return a database of this schema with an episode, "seed", and two steps."""

    async def fill(path: Path) -> None:
        async with MemoryStore(f"sqlite:///{path}", namespace=NAMESPACE, cache_path="") as store:
            await store.episodes.put(Episode(id="seed", task_type="testing", domain="web"))
            await store.steps.append("seed", Step(action="ls"))

    return _in_folder(lambda path: asyncio.run(fill(path)))


def _make_old(path: Path) -> None:
    from alembic import command

    schema._use_wal(str(path), 5.0)
    command.upgrade(schema._config(Target(str(path), False, {})), "0001")
    with closing(sqlite3.connect(path)) as connection, connection:
        row = put_episode("old").rows[0]
        connection.execute(STATEMENTS["episode"].insert, (NAMESPACE, *row))


@cache
def old() -> bytes:
    """Return a database of the schema before this one, with an episode."""
    return _in_folder(_make_old)


@cache
def upgrade_statements() -> Statements:
    """Return what a real upgrade from there executes, its COMMIT included."""
    recorded: list[tuple[str, Sequence[Any]]] = []

    def note(_connection: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, _many: bool) -> None:
        recorded.append((sql, tuple(parameters or ())))

    def upgrade(path: Path) -> None:
        path.write_bytes(old())
        event.listen(Engine, "before_cursor_execute", note)
        try:
            schema.upgrade(Target(str(path), False, {}), 5.0)
        finally:
            event.remove(Engine, "before_cursor_execute", note)

    _in_folder(upgrade)
    return [*recorded, ("COMMIT", ())]
