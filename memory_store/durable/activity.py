"""What a database is being used for, seen from outside: how its log grows."""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import NamedTuple

from sqlalchemy import bindparam, func, literal_column, select

from memory_store.durable.changes import CHANGES, SHARD, HeadState
from memory_store.durable.log import STORE, nonce_at, one_state, read_head
from memory_store.durable.statements import dialect

__all__ = ["Growth", "read_growth"]


class Growth(NamedTuple):
    """How a log has grown.

    Args:
        head: the newest commit.
        changes: changes by kind since the commit seen before; None where the log does not lead on from that one.
    """

    head: HeadState
    changes: dict[str, int] | None


@cache
def _counts_select() -> str:
    """Position, kind -> kind, number of its changes after that position, without changes of the given kind."""
    behind = (CHANGES.c.shard == literal_column(str(SHARD))) & (CHANGES.c.position > bindparam("position"))
    counts = select(CHANGES.c.kind, func.count()).where(behind, CHANGES.c.kind != bindparam("without"))
    return str(counts.group_by(CHANGES.c.kind).compile(dialect=dialect()))


def read_growth(connection: sqlite3.Connection, known: HeadState | None) -> Growth:
    """Return the newest commit, and what was changed since `known`; it reads no more of the log than that part."""
    with one_state(connection):
        head = read_head(connection)
        if known is None or head[2:] != known[2:] or head.position < known.position:
            return Growth(head, None)
        if nonce_at(connection, known.position, head) != known.nonce:
            return Growth(head, None)
        return Growth(head, dict(connection.execute(_counts_select(), (known.position, STORE)).fetchall()))
