"""Concurrent requests share the calls of a model, as concurrent writes share commits.

No request waits for company. While calls are free a text is sent at once; what arrives while they run forms the next
batch. 64 callers with a text each make two calls of OpenAI's instead of 64, and WordLlama takes a quarter of the time.
A text that is already wanted, queued or under way, is not asked for again.

A caller who is cancelled leaves his texts to the others who want them. What nobody wants any more is taken out of the
queue, and a call all of whose texts are unwanted is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from memory_store.errors import EmbedderError, StoreClosedError

__all__ = ["Batcher"]

V = TypeVar("V")


class _Wanted(Generic[V]):
    """One text that somebody waits for; its future is done, by a cancel, as soon as nobody does."""

    __slots__ = ("alone", "askers", "batch", "call", "key", "text", "vector")

    def __init__(self, key: bytes, text: str) -> None:
        self.key, self.text = key, text
        self.vector: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self.askers = 0
        self.alone = False
        self.batch: list[_Wanted[V]] = []
        self.call: asyncio.Task[None] | None = None


class Batcher(Generic[V]):
    """Asks a model for vectors, a batch at a time.

    Args:
        embed: makes the vectors of a batch, in its order; an error in the place of one is told to who wants that text.
        landed: takes each vector with its key, before anybody else can ask for that text.
        batch_size: texts in one batch, at most.
        concurrency: calls under way at once, at most.
    """

    def __init__(
        self,
        embed: Callable[[list[str]], Awaitable[Sequence[V | Exception]]],
        landed: Callable[[bytes, V], None],
        *,
        batch_size: int,
        concurrency: int,
    ) -> None:
        self._embed, self._landed = embed, landed
        self._batch_size, self._concurrency = batch_size, concurrency
        self._wanted: dict[bytes, _Wanted[V]] = {}
        self._queue: deque[_Wanted[V]] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._closed = False

    async def ask(self, texts: Mapping[bytes, str]) -> dict[bytes, V]:
        """Return the vectors of some texts by their keys; a key stands for one text, whoever asks.

        Raises:
            StoreClosedError: `aclose` was called.
        """
        if self._closed:
            raise StoreClosedError("the embedder is closed")
        if not texts:
            return {}
        asked = [self._join(key, text) for key, text in texts.items()]
        self._start()
        try:
            await asyncio.wait([one.vector for one in asked], return_when=asyncio.FIRST_EXCEPTION)
            # All of them are done, or one of those that are raises here.
            return {one.key: one.vector.result() for one in asked if one.vector.done()}
        finally:
            for one in asked:
                self._leave(one)

    async def aclose(self) -> None:
        """Cancel every call; whoever waits is told that the embedder is closed."""
        self._closed = True
        self._queue.clear()
        for one in list(self._wanted.values()):
            self._refuse(one, StoreClosedError("the embedder was closed"))
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _join(self, key: bytes, text: str) -> _Wanted[V]:
        one = self._wanted.get(key)
        if one is None:
            one = self._wanted[key] = _Wanted(key, text)
            self._queue.append(one)
        one.askers += 1
        return one

    def _leave(self, one: _Wanted[V]) -> None:
        one.askers -= 1
        if one.vector.done():
            if not one.vector.cancelled():
                one.vector.exception()  # seen, although another text's error is the one that was raised
        elif not one.askers:
            del self._wanted[one.key]
            one.vector.cancel()
            if one.call is not None and all(other.vector.done() for other in one.batch):
                one.call.cancel()

    def _start(self) -> None:
        """Begin calls. What is asked for before a call gets its turn still goes with it."""
        batches = -(-len(self._queue) // self._batch_size)
        for _ in range(min(batches, self._concurrency - len(self._calls))):
            call = asyncio.get_running_loop().create_task(self._call())
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._start()

    def _take(self) -> list[_Wanted[V]]:
        batch: list[_Wanted[V]] = []
        while self._queue and len(batch) < self._batch_size:
            one = self._queue.popleft()
            if one.vector.done():
                continue
            batch.append(one)
            if one.alone:  # those are in front of the others
                break
        return batch

    async def _call(self) -> None:
        batch = self._take()
        if not batch:
            return
        for one in batch:
            one.batch, one.call = batch, asyncio.current_task()
        try:
            for one, vector in zip(batch, await self._embed([one.text for one in batch]), strict=True):
                self._settle(one, vector)
        except asyncio.CancelledError:
            for one in batch:  # unwanted or told already, unless the model cancelled itself
                self._refuse(one, EmbedderError("the call of the model was cancelled"))
            raise
        except Exception as error:
            self._fail(batch, error)
        finally:
            for one in batch:  # else they would keep the vectors until the garbage collector came
                one.batch, one.call = [], None

    def _settle(self, one: _Wanted[V], vector: V | Exception) -> None:
        if isinstance(vector, Exception):
            self._refuse(one, vector)
            return
        self._landed(one.key, vector)
        if not one.vector.done():
            del self._wanted[one.key]
            one.vector.set_result(vector)

    def _fail(self, batch: list[_Wanted[V]], error: Exception) -> None:
        """Tell who waits; but a batch that failed for good is tried again text by text.

        One text that the model refuses (it is too long, say) shall not fail those that strangers asked for. Its caller
        leaves at once, and takes the rest of his own texts out of the queue.
        """
        if len(batch) > 1 and isinstance(error, EmbedderError) and not error.retryable:
            again = [one for one in batch if not one.vector.done()]
            for one in again:
                one.alone = True
            self._queue.extendleft(reversed(again))
            return
        for one in batch:
            self._refuse(one, error)

    def _refuse(self, one: _Wanted[V], error: Exception) -> None:
        if not one.vector.done():
            del self._wanted[one.key]
            one.vector.set_exception(error)
