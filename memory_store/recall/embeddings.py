"""The embeddings of a namespace: texts become vectors by the store's model, and change over to another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memory_store.cache.entries import Space
from memory_store.collection import Access, Parts
from memory_store.errors import ConflictError, RecordNotFoundError
from memory_store.recall.spaces import load_arrays
from memory_store.records import RECORDS, Embedding

if TYPE_CHECKING:
    from memory_store.recall.models import Models

__all__ = ["Embeddings"]

_AT_ONCE = 64
"""Records that one call of a model, and one read, are for when a space changes over."""


class Embeddings(Parts[Embedding]):
    """The embeddings of one namespace, in no transaction.

    Args:
        namespace: whose.
        space: where they are cached.
        access: the way to the tiers.
        models: of the store.
    """

    def __init__(self, namespace: str, space: Space, access: Access, models: Models) -> None:
        super().__init__(RECORDS["embedding"], namespace, space, access)
        self._models = models

    async def add(self, episode_id: str, contents: str | Sequence[str]) -> list[Embedding]:
        """Embed texts by the store's model, and put them as embeddings of an episode, all of them or none.

        The same text is embedded once. To give a vector of your own, `put` an `Embedding`.

        Args:
            episode_id: the episode they belong to.
            contents: a text, or several.

        Raises:
            ConfigurationError: the store was given no model.
            EmbedderError: the model failed; nothing was written, and it says whether to try again.
            RecordNotFoundError: the episode does not exist.
            InvalidRecordError: a text or vector is over its limit.
        """
        texts = [contents] if isinstance(contents, str) else list(contents)
        embedder = self._models.newest
        await load_arrays()
        vectors = await embedder(texts)
        return await self.append(
            episode_id,
            [
                Embedding(
                    episode_id=episode_id,
                    content=text,
                    embedding=vector.tobytes(),
                    model_name=embedder.model_name,
                    vector_dim=len(vector),
                )
                for text, vector in zip(texts, vectors, strict=True)
            ],
        )

    async def reembed(self, *, on_progress: Callable[[int, int], None] | None = None) -> int:
        """Embed by the store's first model whatever another one has embedded, and return how many records that were.

        Searches go on meanwhile: a record has its old vector until it has the new one, and both are found if the old
        model is among those given as `embed=`. It can be stopped at any point, and goes on where it was. What somebody
        else changes or deletes meanwhile is left as it is then.

        Args:
            on_progress: called with how many are done, of how many.

        Raises:
            ConfigurationError: the store was given no model.
            EmbedderError: the model failed; what was done so far stays.
        """
        embedder = self._models.newest
        await load_arrays()
        others = Embedding.c.model_name != embedder.model_name
        total, done = await self.count(others), 0
        cursor: str | None = None
        while True:
            page = await self.list(others, limit=_AT_ONCE, cursor=cursor)
            if page.items:
                vectors = await embedder([record.content for record in page.items])
                changes = zip(page.items, vectors, strict=True)
                await asyncio.gather(*(self._change_over(*change, embedder.model_name) for change in changes))
                done += len(page.items)
                if on_progress is not None:
                    on_progress(done, max(total, done))
            cursor = page.cursor
            if cursor is None:
                return done

    async def _change_over(self, record: Embedding, vector: Any, model: str) -> None:
        values: dict[str, Any] = {"embedding": vector.tobytes(), "model_name": model, "vector_dim": len(vector)}
        try:
            await self.update(record.id, expected_revision=record.revision, **values)
        except (ConflictError, RecordNotFoundError):
            return  # changed or deleted by somebody else
