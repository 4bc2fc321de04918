"""The durable tier of one database: its lanes, and what writes and reads through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Dialect

from memory_store.config import Settings
from memory_store.durable.changes import HeadState
from memory_store.durable.checkpoint import Checkpointer
from memory_store.durable.engine import ServerTarget, Target
from memory_store.durable.lane import Lane
from memory_store.durable.log import Listener
from memory_store.durable.probe import Probe
from memory_store.durable.reader import Reader
from memory_store.durable.writer import Writer
from memory_store.telemetry import Telemetry

__all__ = ["Durable", "durable_tier"]


class Durable(Protocol):
    """One database, open."""

    @property
    def target(self) -> Target | ServerTarget:
        """Where it is."""
        ...

    heads: list[HeadState]
    """The newest commit of each shard when it was opened."""

    scan: Lane
    """For everything that may take long: lists, counts, rebuilds."""

    replica: Lane | None
    """For reads of a copy of the database that may be behind."""

    probe: Probe | None
    """Reads the head on the event loop's own thread; None where that means asking a server."""

    checkpointer: Checkpointer | None
    """Of an embedded database."""

    dialect: Dialect
    """In which users' expressions are compiled."""

    async def open(self) -> None:
        """Connect; create or upgrade the schema as the settings say.

        Raises:
            DurableUnavailableError: the database cannot be reached or opened.
            SchemaMismatchError: it is newer, or older and `migrate="check"`, or no memory store.
        """
        ...

    def writer(self, listener: Listener, head: HeadState) -> Writer:
        """Return what writes one shard."""
        ...

    def reader(self, listener: Listener) -> Reader:
        """Return what reads one shard."""
        ...

    def begin_hints(self, hinted: Callable[[int, int], None]) -> None:
        """Be told from now on of what other processes commit (a shard and its position), where that is possible."""
        ...

    async def close(self) -> None:
        """Finish what is queued and close every connection."""
        ...


def durable_tier(target: Target | ServerTarget, settings: Settings, telemetry: Telemetry | None) -> Durable:
    """Return the durable tier of a target, to be opened."""
    if isinstance(target, ServerTarget):
        from memory_store.durable.server import ServerTier

        return ServerTier(target, settings, telemetry)
    from memory_store.durable.embedded import EmbeddedTier

    return EmbeddedTier(target, settings, telemetry)
