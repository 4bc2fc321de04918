"""An embedder whose calls a test sees, holds and spoils."""

from __future__ import annotations

import asyncio
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike


def vector_of(text: str, dimensions: int = 3) -> list[float]:
    """Return the toy's vector of a text; float32 holds its numbers exactly."""
    return [float(byte) for byte in blake2b(text.encode(), digest_size=dimensions).digest()]


def array_of(texts: list[str], dimensions: int = 3) -> np.ndarray:
    """Return the toy's vectors of some texts; blank ones have zeros."""
    rows = [vector_of(text, dimensions) if text.strip() else [0.0] * dimensions for text in texts]
    return np.array(rows, np.float32).reshape(len(texts), dimensions)


class ToyModel:
    """Returns `vector_of` each text, once `go` is set.

    A text in `refused` raises the error there; `calls` has the texts of each call that began, `cancelled` those of each
    that was cancelled.
    """

    model_name = "toy"

    def __init__(self, *, batch_size: int = 4, concurrency: int = 1) -> None:
        self.batch_size, self.concurrency = batch_size, concurrency
        self.calls: list[list[str]] = []
        self.cancelled: list[list[str]] = []
        self.refused: dict[str, Exception] = {}
        self.dimensions = 3
        self.closed = self.under_way = self.most_under_way = 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, texts: list[str], /) -> ArrayLike:
        self.calls.append(texts)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.go.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled.append(texts)
            raise
        finally:
            self.under_way -= 1
        for text in texts:
            if text in self.refused:
                raise self.refused[text]
        return [vector_of(text, self.dimensions) for text in texts]

    async def aclose(self) -> None:
        self.closed += 1


async def settle() -> None:
    """Give every task that can go on a turn."""
    for _ in range(10):
        await asyncio.sleep(0)
