"""Vectors found by the server: PostgreSQL with pgvector, whose processes need not load them.

Few are compared one by one. Where a model has a graph it is asked, unless so few of its vectors are of the namespace
and meet the condition that comparing them is faster: and certain, for graphs lose recall where most of what they meet
does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from memory_store.access import TieredAccess
from memory_store.durable.connection import Connection
from memory_store.durable.text_index import Condition
from memory_store.durable.vectors import MOST_DIMENSIONS, has_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memory_store.durable.dialects.postgresql_vectors import GraphSearch, Near, Space

__all__ = ["ServerSpaces"]

# Vectors that are compared in the time in which a graph is a step further.
_COMPARED_A_STEP = 20
# Of these, and more where more are asked for, recall@10 is .99 on 100,000 mixtures of real sentence vectors.
_LEAST_WIDTH, _MOST_WIDTH = 200, 1000
# Ids that meet a condition and are compared one by one, where there is no graph to do without them.
_MOST_GIVEN = 10_000
# Part of a space that may change before it is counted again.
_STALE_SHARE = 0.05
# What half floats find nearest is compared again as it is stored, and so many more at most: they move a similarity by
# 0.0005, which in tight groups decides what is nearest.
_MOST_MORE = 20

Found: TypeAlias = tuple[str, str, float]
"""Id, episode id, cosine similarity."""


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

        unit = unit_rows(vector, len(vector), field="query", axes=1)[0]
        space = Space(access.namespace, model, len(vector))
        more = limit + min(limit, _MOST_MORE)
        find = partial(self._find, access=access, space=space, unit=unit.tolist(), limit=more, condition=condition)
        near, complete = await access.shard.indexer.read(access.durable.scan, access.namespace, find)
        return _exact(near, unit)[:limit], complete

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
    ) -> list[Near] | None:
        from memory_store.durable.dialects import postgresql_vectors as server

        behind, in_graph = server.look(connection, access.shard.number, space)
        if behind and not anyway:
            return None
        if condition.keys is not None and not behind:
            condition = condition._replace(ids=condition.keys)
        total = self._count(connection, access, space) if in_graph and any(unit) else 0
        enough = math.isqrt(2 * limit * max(in_graph, total) * _COMPARED_A_STEP) if total else _MOST_GIVEN
        # Read first, and given back: as one statement to find and to compare 1,000 takes 15 ms, so 7.
        given = None if condition.ids is None else server.read_ids(connection, condition.ids, enough + 1)
        counts = total if given is None else len(given)
        if total and counts > enough:
            search = _in_graph(total, max(in_graph, total), counts, limit)
            found = server.search_graph(connection, space, unit, limit, condition, search)
            if found is not None:
                return found
        if given is None or condition.ids is None:
            return server.compare_all(connection, space, unit, limit)
        ids = server.given_ids(given) if counts <= enough else condition.ids
        return server.compare_some(connection, space, unit, limit, ids)

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


def _in_graph(total: int, in_graph: int, counts: int, limit: int) -> GraphSearch:
    """Return how to search a graph of so many vectors, of which `total` are of the namespace.

    Of these, `counts` meet the condition. To find twice as many of them as are asked for, the graph meets
    `2 * limit * in_graph / counts`, each in the time of some comparisons: comparing what counts is faster, up to as
    many of it as that.
    """
    from memory_store.durable.dialects import postgresql_vectors as server

    depth = 2 * limit * total // counts + 1
    met = depth * in_graph // total
    return server.GraphSearch(depth, min(max(_LEAST_WIDTH, depth), _MOST_WIDTH), 4 * max(met, _MOST_WIDTH))


def _exact(near: Sequence[Near], unit: NDArray[Any]) -> list[Found]:
    """Return what was found, nearest first by the stored numbers, equally near ones by id.

    Where plain SQL has left no numbers, or where the record has just gone, the half floats say how near.
    """
    import numpy as np

    from memory_store.search.vectors.rows import similarities, unit_rows

    scores = np.array([-one.distance for one in near], np.float32)
    sound = [place for place, one in enumerate(near) if one.numbers is not None and len(one.numbers) == 4 * len(unit)]
    if sound:
        stored = np.frombuffer(b"".join([near[place].numbers or b"" for place in sound]), "<f4").reshape(-1, len(unit))
        finite = np.isfinite(stored).all(axis=1)
        units = unit_rows(stored[finite], len(unit), field="embedding", axes=2)
        scores[np.array(sound)[finite]] = similarities(units, unit)
    bounded = np.clip(scores, -1, 1).tolist()
    found = [(one.id, one.episode_id, score) for one, score in zip(near, bounded, strict=True)]
    return sorted(found, key=lambda one: (-one[2], one[0]))
