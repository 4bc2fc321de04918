"""A value that the driver itself refuses leaves the connection as it was."""

from __future__ import annotations

import pytest

from memory_store import ConstraintError, MemoryStore
from memory_store.durable.connection import Connection
from memory_store.durable.log import one_state

REFUSED = "SELECT id FROM episodes WHERE namespace = ? AND created_at = ?"


async def test_the_next_transaction_begins(server_url: str) -> None:
    """Outside of one the driver has said nothing that ends the statement it had prepared."""

    def refused_then_read(connection: Connection) -> int:
        for _ in range(2):
            with pytest.raises(ConstraintError):
                connection.execute(REFUSED, ("n", 10**30))
            assert not connection.in_transaction
        with one_state(connection):
            return int(connection.execute("SELECT count(*) FROM episodes").fetchall()[0][0])

    async with MemoryStore(server_url) as store:
        assert await store._access.durable.scan.run(refused_then_read) == 0
