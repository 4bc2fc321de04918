"""What a database is being used for, seen from outside: how its log grows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

from memory_store.durable.changes import HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.log import STORE, one_state, read_heads

__all__ = ["Growth", "read_growth"]


class Growth(NamedTuple):
    """How a log has grown.

    Args:
        heads: the newest commit of each shard.
        changes: changes by kind since the commits seen before; None where the log does not lead on from those.
    """

    heads: list[HeadState]
    changes: dict[str, int] | None


# Two statements however many shards have moved: a server may be far away. Written out, since both databases take them.


@cache
def _nonces_select(shards: int) -> str:
    """Shard and position of each -> shard, nonce of the commits there."""
    places = " OR ".join(["(shard = ? AND position = ?)"] * shards)
    return f"SELECT shard, nonce FROM changes WHERE idx = 0 AND ({places})"  # noqa: S608 - no values


@cache
def _counts_select(shards: int) -> str:
    """Shard and position of each -> kind, number of its changes behind these, without those of the store itself."""
    behind = " OR ".join(["(shard = ? AND position > ?)"] * shards)
    return f"SELECT kind, count(*) FROM changes WHERE kind <> '{STORE}' AND ({behind}) GROUP BY kind"  # noqa: S608


def read_growth(connection: Connection, known: Sequence[HeadState] | None) -> Growth:
    """Return the newest commits, and what was changed since `known`; it reads no more of the log than that part."""
    with one_state(connection):
        heads = read_heads(connection)
        if known is None or len(known) != len(heads):
            return Growth(heads, None)
        moved: list[HeadState] = []
        for then, now in zip(known, heads, strict=True):
            if now[2:] != then[2:] or now.position < then.position:
                return Growth(heads, None)
            if now != then:
                if now.position == then.position:
                    return Growth(heads, None)
                moved.append(then)
        begun = [then for then in moved if then.position]
        if begun and not _are_past(connection, begun):
            return Growth(heads, None)
        if not moved:
            return Growth(heads, {})
        places = list(chain.from_iterable((then.shard, then.position) for then in moved))
        return Growth(heads, dict(connection.execute(_counts_select(len(moved)), places).fetchall()))


def _are_past(connection: Connection, known: Sequence[HeadState]) -> bool:
    """Return whether the log holds all these commits."""
    places = list(chain.from_iterable((then.shard, then.position) for then in known))
    held = set(connection.execute(_nonces_select(len(known)), places).fetchall())
    return held == {(then.shard, then.nonce) for then in known}
