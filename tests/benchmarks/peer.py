"""What a peer is measured by, whichever database it uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from .harness import compare
from .rows import episode

Act = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Peer:
    """What a peer does: read the one record that is there, write the record of a number, search by a field."""

    read: Act
    write: Act
    search: Act | None = None


def payload(number: int) -> dict[str, Any]:
    record = episode(number)
    return {
        "id": record.id,
        "task_type": record.task_type,
        "domain": record.domain,
        "created_at": record.created_at.isoformat(),
        "status": record.status,
        "reward_score": record.reward_score,
        "context": record.context,
        "reflection": record.reflection,
        "metadata": record.metadata,
    }


async def measure(
    name: str,
    operation: str,
    theirs: Act,
    mine: Act,
    rounds: int,
    *,
    count: int = 1,
    together: int = 1,
    budget: float | None = None,
) -> dict[str, Any]:
    """Return how often an operation of this store fits into the peer's, and both times.

    Args:
        name: of the peer.
        operation: what both do.
        theirs: the peer's.
        mine: this store's.
        rounds: how often they take turns.
        count: operations a round, one after another.
        together: how many at once.
        budget: what the ratio is to be at least.
    """

    def timed(act: Act) -> Act:
        async def slice_(number: int) -> float:
            first = (number + 1) * count * together
            start = perf_counter()
            for place in range(count):
                if together == 1:
                    await act(first + place)
                else:
                    await asyncio.gather(*(act(first + place * together + each) for each in range(together)))
            return (perf_counter() - start) / count / together

        return slice_

    found = await compare(timed(theirs), timed(mine), rounds, unit="µs")
    verdict = "no budget" if budget is None else "met" if found.ratio >= budget else "missed"
    return {
        "peer": name,
        "operation": operation,
        "ratio": float(f"{found.ratio:.3g}"),
        "budget": budget,
        "verdict": verdict,
        "peer_us": float(f"{found.ours:.4g}"),
        "ours_us": float(f"{found.baseline:.4g}"),
    }
