"""What the database holds, and what it must hold: every state that an acknowledged or running write allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from tests.power.driver import Connection

__all__ = ["Dump", "Violation", "difference", "dump", "positions", "problems"]

Dump: TypeAlias = dict[str, list[tuple[Any, ...]]]
"""Every row of every table, in the order of its first columns."""


class Violation(AssertionError):  # noqa: N818 - what it is
    """The database breaks a promise."""


def dump(connection: Connection) -> Dump:
    """Return all that a database holds, its schema included."""
    schema = sorted(connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall())
    tables = [name for kind, name, _ in schema if kind == "table"]
    held = {name: sorted(connection.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr) for name in tables}
    return {"sqlite_master": [tuple(row) for row in schema], **held}


def difference(found: Dump, allowed: Iterable[Dump]) -> str:
    """Say in which rows a state differs from each allowed one."""
    said = []
    for number, other in enumerate(allowed, 1):
        parts = []
        for table in sorted({*found, *other}):
            ours, theirs = found.get(table, []), other.get(table, [])
            if ours != theirs:
                more = [row for row in ours if row not in theirs]
                less = [row for row in theirs if row not in ours]
                parts.append(f"{table}: {_short(more)} not expected, {_short(less)} missing")
        said.append(f"from allowed state {number}: " + "; ".join(parts))
    return "\n    ".join(said)


def _short(rows: list[Any]) -> str:
    return f"{len(rows)} rows {[str(row)[:160] for row in rows[:2]]!s}" if rows else "none"


def problems(connection: Connection) -> list[str]:
    """Return what is wrong with a database in itself: its pages, its references, its log."""
    found = [f"integrity_check: {row}" for row in connection.execute("PRAGMA integrity_check") if row != ("ok",)]
    found += [f"foreign_key_check: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
    columns = [row[1] for row in connection.execute("PRAGMA table_info(head)")]
    [(position, nonce)] = connection.execute("SELECT position, nonce FROM head").fetchall()
    if "writing" in columns and connection.execute("SELECT writing FROM head").fetchall() != [(0,)]:
        found.append("head.writing is not 0")
    log = connection.execute("SELECT position, idx, nonce FROM changes ORDER BY position, idx").fetchall()
    by_position: dict[int, list[tuple[int, int]]] = {}
    for at, index, number in log:
        by_position.setdefault(at, []).append((index, number))
    if list(by_position) != list(range(1, position + 1)):
        found.append(f"the log has positions {list(by_position)[-5:]}, the head is {position}")
    for at, rows in by_position.items():
        if [index for index, _ in rows] != list(range(len(rows))) or len({number for _, number in rows}) != 1:
            found.append(f"position {at} has rows {rows[:5]}")
    if by_position and position in by_position and by_position[position][0][1] != nonce:
        found.append(f"the head's nonce is {nonce}, that of its last change {by_position[position][0][1]}")
    return found


def positions(held: Dump) -> dict[int, int]:
    """Return the nonce of each position in the log."""
    # shard, position, idx, kind, namespace, key, parent, operation, revision, actor, at, nonce, image
    return {row[1]: row[11] for row in held["changes"]}
