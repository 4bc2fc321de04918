"""What a database on a server can be told beyond its schema: to be partitioned, to keep namespaces apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from memory_store.config import resolve_settings
from memory_store.durable.connection import Connection
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.durable.partitions import partition
from memory_store.durable.row_security import secure
from memory_store.durable.visiting import visit
from memory_store.errors import ConfigurationError

__all__ = ["partition_tables", "secure_role"]

T = TypeVar("T")


async def partition_tables(url: str, partitions: int) -> bool:
    """Split the record tables by a hash of their namespace, and return whether anything was done.

    In one transaction: it is done or nothing is. Writers wait for its end, 10 to 20 s a million rows; readers go on
    until the tables are exchanged. Safe to call again with the same number.

    Args:
        url: a PostgreSQL database, as the owner of its tables.
        partitions: how many, 2 to 1,024.

    Raises:
        ConfigurationError: it is no server's, or partitioned already into another number.
        DurableError: the server refused, or cannot be reached.
    """
    return await _in_transaction(url, lambda connection: partition(connection.execute, partitions))


async def secure_role(url: str, role: str) -> None:
    """Let a role see the records of one namespace only: the one its setting `memory_store.namespace` names.

    In one transaction; safe to call again, and for several roles.

    Args:
        url: a PostgreSQL database, as the owner of its tables.
        role: one that does not own them.

    Raises:
        ConfigurationError: it is no server's, there is no such role, or security does not apply to it.
        DurableError: the server refused, or cannot be reached.
    """
    await _in_transaction(url, lambda connection: secure(connection.execute, role))


async def _in_transaction(url: str, work: Callable[[Connection], T]) -> T:
    target = parse_url(url)
    if not isinstance(target, ServerTarget):
        raise ConfigurationError(f"{target.name} is a file: this is for databases on a PostgreSQL server")

    def run(connection: Connection) -> T:
        connection.execute("BEGIN IMMEDIATE")
        done = work(connection)
        connection.execute("COMMIT")
        return done

    return await visit(target, resolve_settings(target.parameters, {}).timeout_s, run)
