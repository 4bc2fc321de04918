"""Models that run in this process."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from memory_store.embedders.base import failure
from memory_store.errors import MemoryStoreError

if TYPE_CHECKING:
    from memory_store.embedders.base import Float32Array

__all__ = ["LocalModel"]

M = TypeVar("M")


class LocalModel(ABC, Generic[M]):
    """A model that is loaded when it is first used, and runs in a thread, never on the event loop.

    One thread at a time has it: tokenizers are changed by their use, and raise `Already borrowed` when two threads meet
    (https://github.com/huggingface/tokenizers/issues/537).
    """

    concurrency = 1

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self._model: M | None = None
        self._lock = threading.Lock()

    async def __call__(self, texts: list[str], /) -> Float32Array:
        """Return a vector for each text, in their order: a float32 array (n, d).

        Cancelling it leaves the thread to its end, unheard.

        Raises:
            EmbedderError: the model cannot be loaded, or failed.
        """
        return await self.run(self.embed, texts)

    async def run(self, embed: Callable[[M, list[str]], Float32Array], texts: list[str]) -> Float32Array:
        """Run a function of the model and some texts in a thread."""
        return await asyncio.to_thread(self._run, embed, texts)

    @abstractmethod
    def load(self) -> M:
        """Load the model, in a thread."""

    @abstractmethod
    def embed(self, model: M, texts: list[str]) -> Float32Array:
        """Return a vector for each text, in a thread."""

    def _run(self, embed: Callable[[M, list[str]], Float32Array], texts: list[str]) -> Float32Array:
        with self._lock:
            doing = "cannot be loaded"
            try:
                if self._model is None:
                    self._model = self.load()
                doing = "failed"
                return embed(self._model, texts)
            except MemoryStoreError:
                raise
            except Exception as error:
                raise failure(self.model_name, doing, error) from error
