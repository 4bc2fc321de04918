"""Reading the change log whole and in order, as a change feed does."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from memory_store.durable.changes import SHARD, HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.log import STORE, nonce_at, one_state, read_head
from memory_store.durable.statements import feed_select
from memory_store.errors import ConfigurationError, PositionLostError

_LAST_POSITION = (1 << 63) - 1
_LAST_IDX = (1 << 31) - 1

__all__ = ["Cursor", "FeedPage", "read_feed"]


class Cursor(NamedTuple):
    """A change: its commit, its place there, and the commit's random number, by which another past is recognised."""

    position: int
    idx: int
    nonce: int

    def __str__(self) -> str:
        return f"{self.position}.{self.idx}.{self.nonce:x}"

    @classmethod
    def end(cls, head: HeadState) -> Cursor:
        """Return the cursor behind all of a commit."""
        return cls(head.position, _LAST_IDX, head.nonce)

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor of its text.

        Raises:
            ConfigurationError: it is none.
        """
        found = re.fullmatch(r"([0-9]{1,19})\.([0-9]{1,19})\.([0-9a-f]{1,16})", text)
        if found is None:
            raise ConfigurationError(f'after must be "start", "end" or the cursor of a change, got {text[:80]!r}')
        cursor = cls(int(found[1]), int(found[2]), int(found[3], 16))
        if max(cursor.position, cursor.nonce) > _LAST_POSITION or cursor.idx > _LAST_IDX:
            raise ConfigurationError(f"a cursor of larger numbers than any change has: {text[:80]!r}")
        return cursor


class FeedPage(NamedTuple):
    """Some rows of the log, behind a cursor: position, idx, and the other columns of `changes` without the image.

    `end` is where the log ended then; None where more rows follow.
    """

    rows: list[tuple[Any, ...]]
    end: Cursor | None


def read_feed(connection: Connection, after: Cursor | None, limit: int, shard: int = SHARD) -> FeedPage:
    """Return the next changes behind a cursor, in order; None for the oldest ones the log holds.

    Raises:
        PositionLostError: the log does not lead on from the cursor: it was trimmed, or the database taken back.
    """
    with one_state(connection):
        head = read_head(connection, shard)
        position, index = (0, -1) if after is None else after[:2]
        rows = connection.execute(feed_select(), (shard, position, index, limit)).fetchall()
        if after is not None:
            # A restored backup leaves a gap that whoever stands where the backup was made can step over.
            gap = bool(rows) and rows[0][0] > position + 1 and rows[0][2] != STORE
            if gap or position > head.position or nonce_at(connection, position, head) != after.nonce:
                raise PositionLostError(
                    f"the log does not lead on from position {position:,}: it was trimmed, or a backup was restored; "
                    "start again from nothing",
                    position=position,
                    head=head.position,
                )
        return FeedPage(rows, Cursor.end(head) if len(rows) < limit else None)
