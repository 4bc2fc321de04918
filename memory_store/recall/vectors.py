"""`VectorSpaces`: the nearest vectors, wherever they are found: by the server, or in the process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cachetools import LRUCache

from memory_store.access import TieredAccess
from memory_store.clock import boot_s
from memory_store.durable.conditions import meeting
from memory_store.durable.connection import Connection
from memory_store.durable.log import one_state
from memory_store.durable.text_index import Condition, text_index
from memory_store.errors import CacheError, DimensionMismatchError
from memory_store.recall.moment import Moment
from memory_store.recall.server_spaces import ServerSpaces
from memory_store.recall.spaces import VectorSpace

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["VectorSpaces"]

# Ids that are remembered of the conditions asked last.
_MOST_MET = 200_000
# What a condition on embeddings may say something of.
_READ = ("embedding", "episode")


class _Met(NamedTuple):
    """The ids of the embeddings that met a condition, and when."""

    ids: list[str]
    moment: Moment


class VectorSpaces:
    """The vector spaces of an open store: on its server, where that keeps vectors, else in the process.

    Args:
        folder: where their indexes are saved, None for nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._spaces: dict[tuple[str, str, int], VectorSpace] = {}
        self._on_server = ServerSpaces()
        self._met: LRUCache[Any, _Met] = LRUCache(_MOST_MET, getsizeof=lambda met: len(met.ids) + 64)

    def space(self, access: TieredAccess, model: str, dimensions: int) -> VectorSpace:
        """Return the space of a model's vectors in a namespace."""
        name = access.namespace, model, dimensions
        space = self._spaces.get(name)
        if space is None:
            folder = None if self._folder is None else self._folder / _folder_name(*name)
            space = self._spaces[name] = VectorSpace(access, model, dimensions, folder)
        return space

    async def nearest(
        self, access: TieredAccess, model: str, vector: NDArray[Any], limit: int, condition: Condition
    ) -> tuple[list[tuple[str, str, float]], bool]:
        """Return the nearest vectors of a model that meet a condition, best first, and whether all were looked at.

        Each as (id, episode id, cosine similarity).

        Raises:
            DimensionMismatchError: the model's vectors have another size.
            InvalidRecordError: a number is not finite.
            DurableError: the database cannot be read.
        """
        if await self._on_server.serves(access, len(vector)):
            found, complete = await self._on_server.nearest(access, model, vector, limit, condition)
        else:
            found, complete = await self._nearest_here(access, model, vector, limit, condition), True
        if not found:
            await self._check_size(access, model, len(vector))
        return found, complete

    async def _nearest_here(
        self, access: TieredAccess, model: str, vector: NDArray[Any], limit: int, condition: Condition
    ) -> list[tuple[str, str, float]]:
        index, among = await self.space(access, model, len(vector)).current(), None
        if condition.ids is not None:
            among = await self._among(access, condition)
        return [(key, index.parent_of(key), score) for key, score in index.search(vector, limit, among=among)]

    async def _among(self, access: TieredAccess, condition: Condition) -> list[str]:
        """Return the ids of the embeddings that meet a condition, as of the newest commit this process knows of.

        They are remembered while no episode and no embedding changes: to ask for 1,000 of 100,000 takes 10 ms, mostly
        for reading their rows.
        """
        # With their types: 1 and 1.0 are equal, but not as text.
        key = (condition.sql, *condition.parameters, *map(type, condition.parameters))
        known = self._met.get(key)
        if known is not None and known.moment.lasts(access, _READ, boot_s()):
            return known.ids
        moment = Moment.of(access)
        ids = await access.durable.scan.run(lambda connection: _read_ids(connection, access, condition))
        if len(ids) <= _MOST_MET // 8:
            self._met[key] = _Met(ids, moment)
        return ids

    async def vectors_of(
        self, access: TieredAccess, model: str, dimensions: int, ids: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the vectors at length 1 of those of the ids that have one of this model and size."""
        if await self._on_server.serves(access, dimensions):
            return await self._on_server.vectors_of(access, model, dimensions, ids)
        index = await self.space(access, model, dimensions).current()
        there = [id_ for id_ in ids if id_ in index]
        return dict(zip(there, index.vectors_of(there), strict=True))

    async def _check_size(self, access: TieredAccess, model: str, size: int) -> None:
        asked = "SELECT vector_dim FROM embeddings WHERE namespace = ? AND model_name = ? LIMIT 1"
        found = await access.durable.scan.run(lambda c: c.execute(asked, (access.namespace, model)).fetchall())
        if found and found[0][0] != size:
            raise DimensionMismatchError(
                f"the query has {size:,} numbers, the vectors of {model!r:.80} have {found[0][0]:,}",
                expected=int(found[0][0]),
                actual=size,
            )

    async def close(self) -> None:
        """Stop building, and save what is worth it; what cannot be saved is made again from the records."""
        for space in self._spaces.values():
            space.stop()
        for space in self._spaces.values():
            try:
                await space.save()
            except (CacheError, OSError):
                continue
        self._spaces.clear()
        self._met.clear()


def _read_ids(connection: Connection, access: TieredAccess, condition: Condition) -> list[str]:
    """Return the ids of the embeddings that meet a condition."""
    if condition.keys is None:
        return meeting(connection, condition)
    with one_state(connection):
        if text_index(connection).state(access.shard.number, access.namespace).is_behind:
            return meeting(connection, condition)
        return [id_ for (id_,) in connection.execute(*condition.keys)]


def _folder_name(namespace: str, model: str, dimensions: int) -> str:
    return hashlib.blake2b(f"{namespace}\0{model}\0{dimensions}".encode(), digest_size=16).hexdigest()
