"""A store with several heads on a SQLite file: what is true of shards, without a server."""

from __future__ import annotations

import sqlite3

import pytest

from memory_store import MemoryStore
from memory_store.durable.changes import shard_of
from memory_store.durable.embedded import EmbeddedTier
from memory_store.durable.log import read_heads

SHARDS = 4
NAMESPACES = ["d", "tenant/1", "a", "default"]
"""One for each shard, by its number."""


class ManyHeads(EmbeddedTier):
    """SQLite with several heads, whose shards share its lanes; it looks by way of a lane, as on a server."""

    async def open(self) -> None:
        """Open the database, and give it the heads it lacks."""
        await super().open()
        await self._write.run(_add_heads)
        self.heads = await self.scan.run(read_heads)
        self.probe = None


def _add_heads(connection: sqlite3.Connection) -> None:
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")  # they know of one head
    for shard in range(1, SHARDS):
        connection.execute(
            "INSERT OR IGNORE INTO head SELECT ?1, position, nonce + ?1, store_id, epoch, 0 FROM head WHERE shard = 0 "
            "AND NOT EXISTS (SELECT 1 FROM head WHERE shard = ?1)",
            (shard,),
        )
        connection.execute(
            "INSERT INTO changes SELECT ?1, position, 0, 'store', '', NULL, NULL, 'upgrade', NULL, '', 0, nonce, NULL "
            "FROM head WHERE shard = ?1 AND NOT EXISTS (SELECT 1 FROM changes WHERE shard = ?1)",
            (shard,),
        )


def with_many_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stores that are opened from now on have several heads."""
    assert [shard_of(name, SHARDS) for name in NAMESPACES] == list(range(SHARDS))
    monkeypatch.setattr("memory_store.store.durable_tier", ManyHeads)


def positions(store: MemoryStore) -> list[int]:
    """The positions of the shards of a store."""
    return [head.position for head in (store._shards or pytest.fail("it is not open")).heads]
