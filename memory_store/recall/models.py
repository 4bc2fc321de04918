"""The models of a store: what makes its vectors, and what puts its hits in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from memory_store.access import TieredAccess
from memory_store.durable.connection import Connection
from memory_store.durable.text_index import Condition
from memory_store.errors import ConfigurationError
from memory_store.recall.spaces import load_arrays
from memory_store.recall.vectors import VectorSpaces
from memory_store.search.asked import Asked
from memory_store.search.fusion import DEFAULT_WEIGHT
from memory_store.search.results import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memory_store.embedders import CheckedEmbedder, Embedder

__all__ = ["Models", "Reranker"]

Reranker: TypeAlias = Callable[[str, list[str]], Awaitable[Sequence[float]]]
"""`await rerank(query, texts)` returns a number for each text: the greater, the better it answers the query."""


class Models:
    """What a store was given to search with.

    Args:
        embedders: models that make vectors. The first one makes those of new texts; what the others have made is still
            found.
        rerank: puts the best hits in order, None for none.
        spaces: where vectors are found.
    """

    def __init__(self, embedders: Sequence[Embedder], rerank: Reranker | None, spaces: VectorSpaces) -> None:
        self._embedders: dict[str, CheckedEmbedder] = {}
        self._weights: dict[str, float] = {}
        for embedder in embedders:
            from memory_store.embedders import CheckedEmbedder

            checked = CheckedEmbedder(embedder)
            if checked.model_name in self._embedders:
                raise ConfigurationError(f"embed names model {checked.model_name!r:.80} twice")
            self._embedders[checked.model_name] = checked
            self._weights[checked.model_name] = float(getattr(embedder, "fusion_weight", DEFAULT_WEIGHT))
        self.rerank, self.spaces = rerank, spaces

    @property
    def has_any(self) -> bool:
        """Whether there is a model that makes vectors."""
        return bool(self._embedders)

    @property
    def newest(self) -> CheckedEmbedder:
        """The model that makes the vectors of new texts.

        Raises:
            ConfigurationError: the store was given none.
        """
        for embedder in self._embedders.values():
            return embedder
        raise ConfigurationError("the store has no model that makes vectors: MemoryStore(url, embed=...)")

    def weight(self, model: str | None) -> float:
        """Return how much a model's ranking counts beside that by text; see `search/fusion.py`."""
        names = [model] if model is not None else list(self._weights)[:1]
        return next((self._weights[name] for name in names if name in self._weights), DEFAULT_WEIGHT)

    def play_no_part(self, asked: Asked) -> bool:
        """Return whether a search is by text alone: it asks for that, or there is no vector to compare with."""
        return asked.mode == "text" or not (self.has_any or asked.vector is not None)

    async def nearest(
        self, access: TieredAccess, asked: Asked, limit: int, condition: Condition
    ) -> tuple[list[tuple[str, str, float]], bool]:
        """Return (id, episode id, similarity) of the nearest vectors, of all models, best first; and whether of all.

        Where there are several models, each record has the vector of one of them, and similarities of different models
        do not compare: the best of each come first, then the second best, and so on.
        """
        found: list[list[tuple[str, str, float]]] = []
        complete = True
        for model, vector in (await self._vectors(asked)).items():
            ranked, looked_at_all = await self.spaces.nearest(access, model, vector, limit, condition)
            found.append(ranked)
            complete = complete and looked_at_all
        if len(found) == 1:
            return found[0], complete
        merged = [(rank, one) for ranked in found for rank, one in enumerate(ranked)]
        best: dict[str, tuple[str, str, float]] = {}
        for _, one in sorted(merged, key=lambda item: (item[0], item[1][0])):
            best.setdefault(one[0], one)  # what changed over in between was found twice
        return list(best.values())[:limit], complete

    async def vectors_of(self, access: TieredAccess, asked: Asked, hits: Sequence[Hit]) -> list[NDArray[Any] | None]:
        """Return the hits' vectors at length 1, None for one that has none; an episode has that of one of its own."""
        found: list[NDArray[Any] | None] = [None] * len(hits)
        if self.play_no_part(asked):
            return found  # by text alone no model is asked, which costs, and may fail
        episodes = [hit.id for hit in hits if hit.kind == "episode"]
        of_episode = await access.durable.scan.run(lambda connection: _first_of(connection, access.namespace, episodes))
        keys = [hit.id if hit.kind == "embedding" else of_episode.get(hit.id, "") for hit in hits]
        for model, vector in (await self._vectors(asked)).items():
            there = await self.spaces.vectors_of(access, model, len(vector), keys)
            found = [there.get(key, known) for key, known in zip(keys, found, strict=True)]
        return found

    async def _vectors(self, asked: Asked) -> dict[str, NDArray[Any]]:
        """Return the query as a vector of each model, of the newest one last.

        In this order they are asked: records change over to the newest model meanwhile, and would be found by neither
        if it were asked before.
        """
        await load_arrays()
        if asked.vector is not None:
            import numpy as np

            model = asked.model
            if model is None:
                model = self.newest.model_name
            return {model: np.asarray(asked.vector, dtype=np.float32)}
        return {
            name: (await embedder.embed_queries([asked.for_models]))[0]
            for name, embedder in reversed(self._embedders.items())
        }

    async def close(self) -> None:
        """Close the models and save what is worth it."""
        try:
            await self.spaces.close()
        finally:
            for embedder in self._embedders.values():
                await embedder.aclose()


def _first_of(connection: Connection, namespace: str, episodes: Sequence[str]) -> dict[str, str]:
    """Return the id of an embedding of each episode that has one."""
    if not episodes:
        return {}
    rows = connection.execute(
        "SELECT episode_id, min(id) FROM embeddings WHERE namespace = ? "  # noqa: S608 - our own words
        f"AND episode_id IN ({', '.join('?' * len(episodes))}) GROUP BY episode_id",
        (namespace, *episodes),
    )
    return dict(rows.fetchall())
