"""The change log: `head`, one row a shard, and `changes`, one row a change, written in the rows' own transaction.

The log is the audit trail, the history of kinds that keep one, and the feed by which caches and other followers stay
true. A position is one commit: every change of a group commit has the same position and an `idx` of its own.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, PrimaryKeyConstraint, Table, text

from memory_store.records.columns import METADATA, ShortText, UtcDateTime

__all__ = [
    "CHANGES",
    "COPY_LOCK",
    "HEAD",
    "HEADS_LOCK",
    "IDEMPOTENCY",
    "PUBLISH_LIMIT",
    "SHARD",
    "UPGRADE_LOCK",
    "Change",
    "HeadState",
    "new_nonce",
    "shard_of",
]

PUBLISH_LIMIT = 1000
"""A commit with more changes than this invalidates caches instead of filling them: a bulk load should not push out what
is in use. Its changes need no packed rows."""

SHARD = 0
"""The one shard of SQLite, whose writers share one lock anyway."""

# Advisory locks of a server: any numbers will do that nobody else takes.
UPGRADE_LOCK = 7883953330219640933
"""Of one upgrade at a time."""
HEADS_LOCK = 7883953330219640934
"""Taken first by whoever locks more than one head, as the triggers of plain SQL do: no two wait for each other."""
COPY_LOCK = 7883953330219640935
"""Held by a copy into a database for as long as it runs."""

HEAD = Table(
    "head",
    METADATA,
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    Column("nonce", BigInteger, nullable=False),
    Column("store_id", ShortText(32), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    # 1 only inside a transaction of this library, which logs its changes itself: the triggers that log what plain SQL
    # changes look at it.
    Column("writing", Integer, nullable=False, server_default=text("0")),
)

CHANGES = Table(
    "changes",
    METADATA,
    Column("shard", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("idx", Integer, nullable=False),
    Column("kind", ShortText(64), nullable=False),
    Column("namespace", ShortText(200), nullable=False),
    # NULL: every record of this kind that belongs to `parent`.
    Column("key", ShortText()),
    # The episode of a step, embedding or spatiotemporal entry: their caches are kept per episode, so a follower must
    # know it even when the row itself is gone.
    Column("parent", ShortText()),
    Column("operation", ShortText(16), nullable=False),
    Column("revision", BigInteger),
    Column("actor", ShortText(256), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    # The commit's own random number: a position reached again after a restore has another one.
    Column("nonce", BigInteger, nullable=False),
    # The version this change replaced or deleted, for kinds with history: with the row itself that is every version,
    # and an insert, the commonest change, is not written twice.
    Column("image", LargeBinary),
    # An ordinary table on SQLite: WITHOUT ROWID measured +40 % on a batch of 64 writes with images.
    PrimaryKeyConstraint("shard", "position", "idx"),
)


IDEMPOTENCY = Table(
    "idempotency",
    METADATA,
    Column("namespace", ShortText(200), nullable=False),
    Column("key", ShortText(), nullable=False),
    Column("kind", ShortText(64), nullable=False),
    # Of what the caller gave: a key used again for something else is a mistake, not a retry.
    Column("digest", LargeBinary, nullable=False),
    Column("id", ShortText(), nullable=False),
    # What of the row the caller did not give: its id, revision, times, number, as msgpack.
    Column("stored", LargeBinary, nullable=False),
    Column("position", BigInteger, nullable=False),
    PrimaryKeyConstraint("namespace", "key"),
)
"""What a keyed write stored, so that its retry can be answered without writing again."""


class HeadState(NamedTuple):
    """The newest commit of a shard: its position and nonce, which database it is, which life of it, which shard."""

    position: int
    nonce: int
    store_id: str
    epoch: int
    shard: int = SHARD


def shard_of(namespace: str, shards: int) -> int:
    """Return the shard a namespace's changes are logged in: by a hash that SQL can compute as well."""
    return 0 if shards == 1 else hashlib.sha256(namespace.encode()).digest()[0] % shards


class Change(NamedTuple):
    """One change of one record, or of all records of a parent (`key` None).

    `body` is the packed new row, None after a delete, empty where it was not worth packing. `follows` says where a part
    stands among its parent's records: True at their end, False as the first one, None unknown. `image` is the packed
    row this change replaced or deleted, for kinds with history.
    """

    kind: str
    namespace: str
    key: str | None
    parent: str | None
    operation: str
    revision: int | None
    body: bytes | None = None
    follows: bool | None = None
    image: bytes | None = None


def new_nonce() -> int:
    """Return 63 random bits."""
    return int.from_bytes(os.urandom(8), "big") >> 1
