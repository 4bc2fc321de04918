"""The one place through which models are called: each text once, and nothing unchecked.

A text is known by a hash of its content. Its vector is kept in memory; nothing is kept on disk, where the embeddings
that were stored are already.

A blank text, empty or white space only, is never sent to a model: some answer with NaN, some refuse the request with
all the texts beside it. Its vector is zero, which is similar to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from cachetools import LRUCache

from memory_store.embedders.base import Embedder, failure, require_extra
from memory_store.embedders.batcher import Batcher
from memory_store.embedders.checks import check_vectors, finite_rows
from memory_store.errors import ConfigurationError, EmbedderError, MemoryStoreError, SearchError
from memory_store.records import KNOWN_DIMENSIONS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from memory_store.embedders.base import Float32Array

__all__ = ["CheckedEmbedder", "content_hash"]

_MIB = 1024 * 1024
# Array header, key, and its places in the cache's dictionaries, measured with tracemalloc.
_ENTRY_OVERHEAD_BYTES = 420
# Its size is the model's, if nothing but blank texts has been asked for.
_PROBE = "size"


def content_hash(text: str) -> bytes:
    """Return the 128 bits by which a text is known: BLAKE2b of its UTF-8.

    Raises:
        EmbedderError: it holds a lone surrogate, which no UTF-8 can.
    """
    try:
        return blake2b(text.encode(), digest_size=16).digest()
    except UnicodeEncodeError as error:
        raise EmbedderError(f"a text has a lone surrogate at {error.start}, and cannot be sent to a model") from error


class CheckedEmbedder:
    """An embedder whose every vector is checked and remembered, for one store on one event loop.

    The same text is never embedded twice: while it is in memory, or under way for somebody else, that vector is given.
    A failed call is not remembered.

    Args:
        embedder: the model. It belongs to this object from now on, and is closed with it.
        cache_bytes: memory for vectors; 0 remembers none.

    Raises:
        ConfigurationError: numpy is not installed, or the embedder has no name or a limit below 1.
    """

    def __init__(self, embedder: Embedder, *, cache_bytes: int = 32 * _MIB) -> None:
        require_extra("search by vectors", "vectors", "numpy")
        self._embedder = embedder
        self.model_name: Final = _name_of(embedder)
        self.dimensions: int | None = KNOWN_DIMENSIONS.get(self.model_name)
        """Numbers in a vector; None until a model that the store does not know has returned the first."""
        batch_size, concurrency = _limit_of(embedder, "batch_size", 32), _limit_of(embedder, "concurrency", 1)
        # A caller queues no more than what is sent at once: one who brings thousands of texts would keep all others
        # waiting for the last of them, and hashing them would keep the event loop waiting.
        self._share = batch_size * concurrency
        queries = getattr(embedder, "embed_queries", None)

        self._cache: LRUCache[tuple[bool, bytes], Float32Array] = LRUCache(cache_bytes, getsizeof=_cost_of)

        def batcher(embed: Callable[[list[str]], Awaitable[ArrayLike]], *, query: bool) -> Batcher[Float32Array]:
            call, remember = partial(self._call, embed), partial(self._remember, query)
            return Batcher(call, remember, batch_size=batch_size, concurrency=concurrency)

        self._documents = batcher(embedder, query=False)
        self._queries = self._documents if queries is None else batcher(queries, query=True)
        self._closed = False

    async def __call__(self, texts: list[str], /) -> Float32Array:
        """Return the vectors of texts that are to be found: a new array (n, d), in their order.

        Raises:
            EmbedderError: the model failed or returned no such vectors; `retryable` says whether to try again.
            DimensionMismatchError: its vectors have another size than the model is known for, or had before.
            StoreClosedError: `aclose` was called.
        """
        return await self._embed(texts, self._documents)

    async def embed_queries(self, texts: list[str], /) -> Float32Array:
        """Return the vectors of texts that are searched for, which some models embed differently; raises the same."""
        return await self._embed(texts, self._queries)

    async def aclose(self) -> None:
        """Cancel what is under way and close the model. A call that runs in a thread ends there, unheard."""
        if self._closed:
            return
        self._closed = True
        await self._documents.aclose()
        await self._queries.aclose()
        close = getattr(self._embedder, "aclose", None)
        if close is not None:
            await close()

    async def _embed(self, texts: list[str], batcher: Batcher[Float32Array]) -> Float32Array:
        import numpy as np

        _check_texts(texts)
        found: list[Float32Array | None] = []
        for start in range(0, len(texts), self._share):
            if start:
                await asyncio.sleep(0)  # where all is remembered, 5,000 texts would hold the event loop for 40 ms
            found += await self._look_up(texts[start : start + self._share], batcher)
        if self.dimensions is None and texts:
            await self._look_up([_PROBE], batcher)
        vectors = np.zeros((len(texts), self.dimensions or 0), np.float32)
        for index, vector in enumerate(found):
            if vector is not None:
                vectors[index] = vector
        return vectors

    async def _look_up(self, texts: list[str], batcher: Batcher[Float32Array]) -> list[Float32Array | None]:
        """Return the vector of each text, None for a blank one."""
        query = batcher is not self._documents
        keys = [content_hash(text) if text.strip() else None for text in texts]
        known: dict[bytes, Float32Array] = {}
        wanted: dict[bytes, str] = {}
        for key, text in zip(keys, texts, strict=True):
            if key is None:
                continue
            vector = self._cache.get((query, key))
            if vector is None:
                wanted[key] = text
            else:
                known[key] = vector
        known |= await batcher.ask(wanted)
        return [None if key is None else known[key] for key in keys]

    def _remember(self, query: bool, key: bytes, vector: Float32Array) -> None:
        if _cost_of(vector) <= self._cache.maxsize:
            self._cache[query, key] = vector

    async def _call(
        self, embed: Callable[[list[str]], Awaitable[ArrayLike]], texts: list[str]
    ) -> Sequence[Float32Array | Exception]:
        count = len(texts)
        try:
            returned = await embed(texts)
        except MemoryStoreError:
            raise
        except Exception as error:
            passing = isinstance(error, ConnectionError | TimeoutError)
            raise failure(self.model_name, "failed", error, retryable=passing) from error
        try:
            vectors = check_vectors(self.model_name, returned, count, self.dimensions)
        except SearchError as error:
            return [error] * count  # whatever the texts are
        self.dimensions = vectors.shape[1]
        return finite_rows(self.model_name, vectors)


def _cost_of(vector: Float32Array) -> int:
    return int(vector.nbytes) + _ENTRY_OVERHEAD_BYTES


def _check_texts(texts: Any) -> None:
    if not isinstance(texts, list):
        raise TypeError(f"texts must be a list of str, got {type(texts).__name__}")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must be a list of str, one is {type(text).__name__}")


def _name_of(embedder: Embedder) -> str:
    name = embedder.model_name
    if not isinstance(name, str):
        raise TypeError(f"model_name must be a str, got {type(name).__name__}")
    if not name:
        raise ConfigurationError("model_name must not be empty: vectors are stored under it")
    return name


def _limit_of(embedder: Embedder, name: str, default: int) -> int:
    value = getattr(embedder, name, default)
    if type(value) is not int or value < 1:
        raise ConfigurationError(
            f"{name} of embedder {embedder.model_name!r} must be a positive integer, got {value!r}"
        )
    return value
