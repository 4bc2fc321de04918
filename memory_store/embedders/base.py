"""What an embedder is: a model that turns texts into vectors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, TypeAlias

from memory_store.errors import ConfigurationError, EmbedderError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Float32Array: TypeAlias = NDArray[np.float32]

__all__ = ["Embedder", "FunctionEmbedder", "failure", "require_extra"]

# A server's error page can be long, and may repeat the texts that were sent.
_REASON_CHARACTERS = 300


class Embedder(Protocol):
    """A model that turns texts into vectors: any object with a name that can be called so.

    It may have more, each found by its name:

    - `batch_size: int`, the texts that one call takes at most (32);
    - `concurrency: int`, how many calls may be under way at once (1);
    - `fusion_weight: float`, how much its ranking counts beside that by text, for a short query (0.83): less for a
      model that averages the vectors of words, see `memory_store/search/fusion.py`;
    - `async embed_queries(texts)`, called like the object itself, for a model that embeds what is searched for
      differently from what is to be found;
    - `async aclose()`, which gives its connections back when the store is closed.
    """

    @property
    def model_name(self) -> str:
        """What its vectors are stored under. Vectors are compared only with those of the same name."""
        ...

    async def __call__(self, texts: list[str], /) -> ArrayLike:
        """Return a vector for each text, in their order: a float32 array (n, d), or what numpy makes one of.

        Raises:
            EmbedderError: the model failed; any other exception is counted as one that is not worth a retry.
        """
        ...


class FunctionEmbedder:
    """An embedder made of a plain async function.

    Args:
        function: takes a list of texts and returns a vector for each.
        model_name: what its vectors are stored under.
        queries: the same for what is searched for, where the model embeds that differently.
        batch_size: texts that one call takes at most.
        concurrency: calls under way at once, at most.
    """

    def __init__(
        self,
        function: Callable[[list[str]], Awaitable[ArrayLike]],
        model_name: str,
        *,
        queries: Callable[[list[str]], Awaitable[ArrayLike]] | None = None,
        batch_size: int = 32,
        concurrency: int = 1,
    ) -> None:
        self._function = function
        self.model_name = model_name
        self.embed_queries = queries
        self.batch_size = batch_size
        self.concurrency = concurrency

    async def __call__(self, texts: list[str], /) -> ArrayLike:
        """Return what the function makes of the texts."""
        return await self._function(texts)


def require_extra(what: str, extra: str, *packages: str) -> None:
    """Make sure that the packages of an extra are installed, without importing them.

    Raises:
        ConfigurationError: one of them is not; the message names the extra.
    """
    if any(find_spec(package) is None for package in packages):
        raise ConfigurationError(f"{what} needs an extra: pip install 'memory-store[{extra}]'")


def failure(
    model_name: str, what: str, error: Exception, *, reason: str | None = None, retryable: bool = False
) -> EmbedderError:
    """Return the error that says what went wrong with a model, and why: what the exception says, if nothing better."""
    reason = " ".join((str(error) if reason is None else reason).split())
    if len(reason) > _REASON_CHARACTERS:
        reason = f"{reason[:_REASON_CHARACTERS]}..."
    said = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return EmbedderError(f"model {model_name!r} {what}: {said}", retryable=retryable)
