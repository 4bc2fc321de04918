"""Models behind an HTTP API: each adapter is its maker's own client, with the errors said in our words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Any, TypeAlias

from memory_store.embedders.base import failure
from memory_store.errors import ConfigurationError

__all__ = ["RemoteModel", "Vectors", "check_timeout"]

Vectors: TypeAlias = list[list[float]]
"""As clients return them: checked, and made float32, with everyone else's."""


class RemoteModel(ABC):
    """A model that is asked over the network.

    Keys come from the environment only: an argument would end up in source code and tracebacks.

    Args:
        model_name: the model.
        lost: exceptions of the client that mean that the server could not be reached, or was too slow.
    """

    concurrency = 4

    def __init__(self, model_name: str, lost: tuple[type[Exception], ...]) -> None:
        self.model_name = model_name
        self._lost = lost

    async def __call__(self, texts: list[str], /) -> Vectors:
        """Return a vector for each text, in their order, as the server sent them.

        Raises:
            EmbedderError: the server refused or failed or could not be reached, after the client's own retries; or its
                answer is not understood. `retryable` after a lost connection, a timeout, 408, 409, 429 and 5xx.
        """
        return await self.receive(self.request(texts))

    @abstractmethod
    async def request(self, texts: list[str]) -> Vectors:
        """Ask the server; the vectors come in the order of the texts."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections to the server."""

    async def receive(self, request: Awaitable[Vectors]) -> Vectors:
        """Return the vectors that a request brings, with its errors said in our words."""
        try:
            return await request
        except Exception as error:
            status = _status_of(error)
            if status is not None:
                what = f"was refused by its server with status {status}"
            elif isinstance(error, self._lost):
                what = "cannot be reached"
            else:
                what = "got an answer that is not understood"
            passing, reason = self.passing(error), self.reason(error)
            raise failure(self.model_name, what, error, reason=reason, retryable=passing) from error

    def passing(self, error: BaseException) -> bool:
        """Return whether an error of the client may be gone the next time."""
        status = _status_of(error)
        return isinstance(error, self._lost) if status is None else status in (408, 409, 429) or status >= 500

    def reason(self, error: Exception) -> str:
        """Return what an error of the client says."""
        return str(error)


def check_timeout(timeout_s: Any) -> None:
    """Refuse a timeout that is none.

    Raises:
        ConfigurationError: it is not above 0 and finite.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
        raise ConfigurationError(f"timeout_s must be a finite number above 0, got {timeout_s!r}")


def _status_of(error: BaseException) -> int | None:
    """Return the status by which a server refused; clients also fail over answers of status 200."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None
