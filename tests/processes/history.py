"""What processes did and saw, with the times on the clock they share; written by each to a file of its own."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

EPISODES = [f"e{i}" for i in range(16)]
PAIRS = [(f"p{i}a", f"p{i}b") for i in range(4)]
DOMAINS = ["d0", "d1", "d2"]

Seen = tuple[str, Any]
"""A register and what it held.

`episode/<id>`: (token, revision) or None. `steps/<episode>`: ((step id, revision), ...). `step/<id>`: revision or None.
`count/` and `count/<domain>`: how many episodes. `list/<domain>`: ((id, token, revision), ...) by id.
"""

Wrote = tuple[str, str, int | None, str]
"""Kind, id, revision (None: deleted), token (of an episode) or episode (of a step)."""


class Operation(NamedTuple):
    """One call, as its process saw it."""

    process: int
    name: str
    began: int
    """Nanoseconds on the boot clock."""
    ended: int
    fresh: str
    """How fresh its reads had to be: "linearizable", "bounded", or "before commit" for those of a transaction that
    wrote, which must be what the commit before its own left."""
    reads: tuple[Seen, ...] = ()
    """What it saw, all of it at one commit."""
    at_least: int = 0
    position: int | None = None
    """Of its commit; None for the ones that did not tell (a plain delete), and for reads."""
    wrote: tuple[Wrote, ...] = ()
    wrong: str = ""
    """What the process itself found wrong."""


def now_ns() -> int:
    """Return the boot clock, which all processes share and the store itself goes by."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def domain_of(token: str) -> str:
    """Return the domain of the episode that carries a token."""
    return DOMAINS[int(token.rpartition(".")[2]) % len(DOMAINS)]


class Recorder:
    """Where one process notes its operations; and its tokens, each used once."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.operations: list[Operation] = []
        self._numbers = itertools.count(1)

    def token(self) -> str:
        """Return a token that nobody else has."""
        return f"{self.process}.{next(self._numbers)}"

    def note(self, name: str, began: int, fresh: str, reads: Sequence[Seen] = (), **more: Any) -> None:
        """Note an operation that has just ended."""
        self.operations.append(Operation(self.process, name, began, now_ns(), fresh, tuple(reads), **more))

    def save(self, path: Path) -> None:
        """Write everything noted to a file."""
        path.write_bytes(pickle.dumps([tuple(operation) for operation in self.operations]))


def load(paths: Sequence[Path]) -> list[Operation]:
    """Return the operations of all processes, by the time they began."""
    operations = [Operation(*values) for path in paths for values in pickle.loads(path.read_bytes())]
    operations.sort(key=lambda operation: operation.began)
    return operations
