"""Vectors found by the server: PostgreSQL with pgvector, whose processes need not load them.

Few are compared one by one. Where a model has a graph it is asked, unless so few of its vectors are of the namespace
and meet the condition that comparing them is faster: and certain, for graphs lose recall where most of what they meet
does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from memory_store.access import TieredAccess
from memory_store.durable.connection import Connection
from memory_store.durable.text_index import Condition
from memory_store.durable.vectors import MOST_DIMENSIONS, has_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memory_store.durable.dialects.postgresql_vectors import Found, GraphSearch, Space

__all__ = ["ServerSpaces"]

# Vectors that are compared in the time in which a graph is a step further.
_COMPARED_A_STEP = 20
# Of these, and more where more are asked for, recall@10 is .99 on 100,000 mixtures of real sentence vectors.
_LEAST_WIDTH, _MOST_WIDTH = 200, 1000
# Part of a space that may change before it is counted again.
_STALE_SHARE = 0.05


class ServerSpaces:
    """The vector spaces of an open store as its server keeps them."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, bool]] = {}
        self._counted: dict[Space, tuple[int, int]] = {}

    async def serves(self, access: TieredAccess, dimensions: int) -> bool:
        """Return whether the database finds vectors of a size: asked once in an epoch, see `durable/vectors.py`."""
        if access.dialect.name != "postgresql" or dimensions > MOST_DIMENSIONS:
            return False
        restarts, shard = access.cache.restarts, access.shard.number
        known = self._kept.get(shard)
        if known is None or known[0] != restarts:
            known = self._kept[shard] = restarts, await access.durable.scan.run(has_vectors)
        return known[1]

    async def nearest(
        self, access: TieredAccess, model: str, vector: NDArray[Any], limit: int, condition: Condition
    ) -> tuple[list[Found], bool]:
        """Return the nearest vectors of a model that meet a condition, best first, and whether all were looked at.

        Raises:
            InvalidRecordError: a number is not finite.
            DurableError: the database cannot be read.
        """
        from memory_store.durable.dialects.postgresql_vectors import Space
        from memory_store.search.vectors.rows import unit_rows

        unit = unit_rows(vector, len(vector), field="query", axes=1)[0].tolist()
        space = Space(access.namespace, model, len(vector))
        find = partial(self._find, access=access, space=space, unit=unit, limit=limit, condition=condition)
        return await access.shard.indexer.read(access.durable.scan, access.namespace, find)

    def _find(
        self,
        connection: Connection,
        anyway: bool,
        *,
        access: TieredAccess,
        space: Space,
        unit: Sequence[float],
        limit: int,
        condition: Condition,
    ) -> list[Found] | None:
        from memory_store.durable.dialects import postgresql_vectors as server

        behind, in_graph = server.look(connection, access.shard.number, space)
        if behind and not anyway:
            return None
        if in_graph and any(unit):
            count = self._count(connection, access, space)
            search = self._plan(connection, count, max(in_graph, count), limit, condition)
            if search is not None:
                found = server.search_graph(connection, space, unit, limit, condition, search)
                if found is not None:
                    return found
        if condition.ids is None:
            return server.compare_all(connection, space, unit, limit)
        return server.compare_some(connection, space, unit, limit, condition.ids)

    def _plan(
        self, connection: Connection, count: int, in_graph: int, limit: int, condition: Condition
    ) -> GraphSearch | None:
        """Return how to search the graph, None where comparing what counts is faster.

        Of `in_graph` vectors, `counts` are of the namespace and meet the condition. To find twice as many of these as
        are asked for, the graph meets `2 * limit * in_graph / counts`, each in the time of some comparisons.
        """
        from memory_store.durable.dialects import postgresql_vectors as server

        enough = math.isqrt(2 * limit * in_graph * _COMPARED_A_STEP)
        counts = count
        if condition.ids is not None and count > enough:
            counts = server.count_met(connection, condition.ids, enough + 1)
        if counts <= enough:
            return None
        depth = 2 * limit * count // counts + 1
        met = depth * in_graph // count
        return server.GraphSearch(depth, min(max(_LEAST_WIDTH, depth), _MOST_WIDTH), 4 * max(met, _MOST_WIDTH))

    def _count(self, connection: Connection, access: TieredAccess, space: Space) -> int:
        """Return how many vectors a space has, counted again when a twentieth of them may have changed."""
        from memory_store.durable.dialects.postgresql_vectors import count_vectors

        changed = access.cache.space("embedding", space.namespace).changed
        seen, count = self._counted.get(space, (-1, 0))
        if seen < 0 or changed < seen or changed - seen > count * _STALE_SHARE:
            count = count_vectors(connection, space)
            self._counted[space] = changed, count
        return count

    async def vectors_of(
        self, access: TieredAccess, model: str, dimensions: int, ids: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the vectors at length 1 of those of the ids that have one."""
        import numpy as np

        from memory_store.durable.dialects.postgresql_vectors import Space, read_vectors

        space = Space(access.namespace, model, dimensions)
        found = await access.durable.scan.run(lambda connection: read_vectors(connection, space, ids))
        return {id_: np.array(numbers, np.float32) for id_, numbers in found.items()}
