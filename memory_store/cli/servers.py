"""`partition`, `secure`: for databases on a server."""

from __future__ import annotations

import asyncio

from memory_store.cli.options import Code
from memory_store.cli.screen import print_json, print_line
from memory_store.durable.engine import parse_url
from memory_store.scaling import partition_tables, secure_role

__all__ = ["partition", "secure"]


def partition(url: str, partitions: int, as_json: bool) -> int:
    """Split the record tables."""
    done = asyncio.run(partition_tables(url, partitions))
    if as_json:
        print_json({"partitions": partitions, "changed": done})
    else:
        state = "is partitioned" if done else "was partitioned already"
        print_line(f"{parse_url(url).name} {state}, into {partitions}")
    return Code.OK


def secure(url: str, role: str, as_json: bool) -> int:
    """Secure the tables for a role."""
    asyncio.run(secure_role(url, role))
    if as_json:
        print_json({"role": role})
    else:
        print_line(
            f"{role} sees the namespace that its setting memory_store.namespace names: "
            f"ALTER ROLE {role} SET memory_store.namespace = '...'"
        )
    return Code.OK
