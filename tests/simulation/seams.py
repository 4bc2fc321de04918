"""What the library is run on in the simulation: its clock, its nonces, the saved cache's file, and small limits.

Nothing of the protocol is replaced. The limits are small so that a history of some dozen steps reaches all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memory_store import clock
from memory_store.cache import keeper, rebuild, reconcile, snapshot, tier
from memory_store.durable import changes, commits, log, operations, reader, writer
from tests.simulation.process import SavedCache, save
from tests.simulation.world import CURRENT

__all__ = ["replaced", "simulated"]

_PUBLISH_LIMIT = 2
_LIMITS: list[tuple[Any, str, Any]] = [
    (tier, "PUBLISH_LIMIT", _PUBLISH_LIMIT),
    (operations, "PUBLISH_LIMIT", _PUBLISH_LIMIT),
    (log.read_run, "__defaults__", (8,)),
    (reader, "_BATCH_KEYS", 2),
    (writer, "_BATCH_ROWS", 4),
    (keeper, "_COPY_AT_ONCE", 1),
    (snapshot, "_FRAME_ENTRIES", 2),
    (rebuild, "_READ_AT_ONCE", 4),
    (reconcile, "_MOST_CHANGES", 12),
]


def _boot_s() -> float:
    return CURRENT.history.clock.read()


def _now_us() -> int:
    return int(CURRENT.history.clock.now * 1024)


def _new_nonce() -> int:
    return CURRENT.history.database.new_nonce()


@contextmanager
def replaced(places: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace attributes, and put the old ones back."""
    old = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(old):
            setattr(owner, name, value)


@contextmanager
def simulated() -> Iterator[None]:
    """Run the library on the simulation's clock, disk and limits."""
    own = {id(clock.boot_s): _boot_s, id(clock.now_us): _now_us, id(changes.new_nonce): _new_nonce}
    version_key = keeper.version_key("")
    places = [
        (module, name, own[id(value)])
        for module_name, module in list(sys.modules.items())
        if module_name.startswith("memory_store.")
        for name, value in list(vars(module).items())
        if id(value) in own
    ]
    places += [
        *_LIMITS,
        (keeper, "save", save),
        (keeper, "Snapshot", SavedCache),
        (keeper, "version_key", lambda own: version_key),
        # Which revision the schema is at is asked with SQL that the simulated connection does not know.
        (commits, "require_current", lambda connection: None),
    ]
    with replaced(places):
        yield
