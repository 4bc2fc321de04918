"""A vector space in the process: the index of a namespace and model, kept true by following the change log.

A space is made when it is first searched: from its saved index where there is one, else from the records. It knows the
commit it stands at. Before it answers it is brought up to the newest one the process knows of, by reading again
whatever the log says has changed; where nothing has, the database is not asked. Where the log does not lead on (it
was trimmed, a backup was restored) it starts again from the records.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from memory_store.access import TieredAccess
from memory_store.clock import boot_s
from memory_store.codec import pack_row
from memory_store.durable.changes import HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.log import NOTHING, STORE, nonce_at, one_state, read_head
from memory_store.embedders.base import require_extra
from memory_store.errors import CacheError

if TYPE_CHECKING:
    from memory_store.search.vectors.index import VectorIndex
    from memory_store.search.vectors.snapshot import Built

__all__ = ["VectorSpace", "load_arrays"]

_KIND = "embedding"
_PAGE = 1000
# Changes that are read one by one; for more of them all records are read again.
_MOST_FOLLOWED = 20_000
_AT_ONCE = 500
# Smaller indexes are made from the records as fast as from a file.
_LEAST_SAVED = 1000
_COLUMNS = "id, episode_id, embedding"

Row = tuple[str, str, bytes]


async def load_arrays() -> None:
    """Import what vectors are compared with, in a thread: it takes 100 ms, for which the event loop would stand still.

    Raises:
        ConfigurationError: it is not installed.
    """
    if "memory_store.search.vectors.index" not in sys.modules:
        require_extra("search by vectors", "vectors", "numpy")
        await asyncio.to_thread(importlib.import_module, "memory_store.search.vectors.index")


class _Step(NamedTuple):
    """What leads from one commit to another: records to put, ids and parents to discard before that."""

    head: HeadState
    rows: list[Row]
    ids: list[str]
    parents: list[str]


class VectorSpace:
    """The vectors of one model and size in one namespace.

    Args:
        access: the way to the namespace.
        model: whose vectors.
        dimensions: numbers in each.
        folder: where its index is saved, None for nowhere.
    """

    def __init__(self, access: TieredAccess, model: str, dimensions: int, folder: Path | None) -> None:
        self._access, self._model, self._dimensions, self._folder = access, model, dimensions, folder
        self._index: VectorIndex | None = None
        self._head = NOTHING
        self._saved = NOTHING
        self._restarts = -1
        self._lock = asyncio.Lock()
        self._building: asyncio.Future[None] | None = None
        self._stop = threading.Event()

    async def current(self) -> VectorIndex:
        """Return the index as of the newest commit this process knows of.

        Raises:
            DurableError: the database cannot be read.
        """
        access = self._access
        if boot_s() >= access.coherence.fresh_until:
            await access.coherence.catch_up()
        if self._index is None or self._is_behind():
            async with self._lock:
                if self._index is None or self._is_behind():
                    await self._follow()
        assert self._index is not None
        return self._index

    def _is_behind(self) -> bool:
        tier = self._access.cache
        changed = tier.space(_KIND, self._access.namespace).changed
        return changed > self._head.position or tier.restarts != self._restarts

    async def _follow(self) -> None:
        run, restarts = self._access.durable.scan.run, self._access.cache.restarts
        if self._index is None:
            await self._open()
        step = None
        if self._index is not None:
            step = await run(lambda connection: self._read_on(connection, self._head))
        if step is None:
            await self._load()
        else:
            self._apply(step)
        self._restarts = restarts
        self._build()

    async def _open(self) -> None:
        from memory_store.search.vectors.index import VectorIndex

        if self._folder is None:
            return
        try:
            index, state = await asyncio.to_thread(VectorIndex.open, self._folder, self._dimensions)
            head = HeadState(*msgpack.unpackb(state))
        except (CacheError, ValueError, TypeError):
            return  # there is none, or none that is of use: the records are there
        self._index, self._head, self._saved = index, head, head

    async def _load(self) -> None:
        """Make the index from the records; what changes meanwhile is followed after that."""
        from memory_store.search.vectors.index import VectorIndex

        run = self._access.durable.scan.run
        index, after = VectorIndex(self._dimensions), ""
        head = await run(lambda connection: read_head(connection, self._access.shard.number))
        while rows := await run(partial(self._page, after=after)):
            self._put(index, rows)
            after = rows[-1][0]
        self._index, self._head = index, head
        step = await run(lambda connection: self._read_on(connection, head))
        if step is not None:
            self._apply(step)

    def _page(self, connection: Connection, after: str) -> list[Row]:
        # The model's name in an expression: by the index on it, each page would sort all of its records.
        sql = (
            f"SELECT {_COLUMNS} FROM embeddings WHERE namespace = ? AND id > ? AND model_name || '' = ? "  # noqa: S608
            f"AND vector_dim = ? ORDER BY id LIMIT {_PAGE}"
        )
        return connection.execute(sql, (self._access.namespace, after, self._model, self._dimensions)).fetchall()

    def _read_on(self, connection: Connection, known: HeadState) -> _Step | None:
        """Return what leads from a commit to the newest one, None where the log does not say."""
        namespace, shard = self._access.namespace, self._access.shard.number
        with one_state(connection):
            head = read_head(connection, shard)
            same = (head.store_id, head.epoch) == (known.store_id, known.epoch)
            if not same or head.position < known.position or nonce_at(connection, known.position, head) != known.nonce:
                return None
            changes = connection.execute(
                "SELECT kind, key, parent FROM changes WHERE shard = ? AND position > ? AND position <= ? "
                "AND (kind = ? OR (kind = ? AND namespace = ?)) LIMIT ?",
                (shard, known.position, head.position, STORE, _KIND, namespace, _MOST_FOLLOWED + 1),
            ).fetchall()
            unclear = any(kind == STORE or key is parent is None for kind, key, parent in changes)
            if unclear or len(changes) > _MOST_FOLLOWED:
                return None
            ids = list(dict.fromkeys(key for _, key, _ in changes if key is not None))
            parents = list(dict.fromkeys(parent for _, key, parent in changes if key is None))
            rows = [*self._named(connection, "id", ids), *self._named(connection, "episode_id", parents)]
            return _Step(head, rows, ids, parents)

    def _named(self, connection: Connection, column: str, keys: Sequence[str]) -> list[Row]:
        rows: list[Row] = []
        for start in range(0, len(keys), _AT_ONCE):
            chunk = keys[start : start + _AT_ONCE]
            sql = (
                f"SELECT {_COLUMNS} FROM embeddings WHERE namespace = ? AND model_name = ? AND vector_dim = ? "  # noqa: S608
                f"AND {column} IN ({', '.join('?' * len(chunk))})"
            )
            rows += connection.execute(sql, (self._access.namespace, self._model, self._dimensions, *chunk)).fetchall()
        return rows

    def _apply(self, step: _Step) -> None:
        assert self._index is not None
        for parent in step.parents:
            self._index.discard_parent(parent)
        there = self._put(self._index, step.rows)
        for id_ in step.ids:
            if id_ not in there:
                self._index.discard(id_)
        self._head = step.head

    def _put(self, index: VectorIndex, rows: Sequence[Row]) -> set[str]:
        """Put rows and return their ids, without those that plain SQL has damaged: all others are to be found."""
        import numpy as np

        rows = [row for row in rows if isinstance(row[2], bytes) and len(row[2]) == 4 * self._dimensions]
        vectors = np.frombuffer(b"".join([row[2] for row in rows]), "<f4").reshape(len(rows), self._dimensions)
        sound = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        ids = [rows[place][0] for place in sound]
        if ids:
            index.put_many(ids, [rows[place][1] for place in sound], vectors[sound])
        return set(ids)

    def _build(self) -> None:
        """Begin to build a graph, where it is time: in a thread that nobody waits for, not even at the end."""
        if self._index is None or self._building is not None or not self._index.needs_build:
            return
        loop, snapshot, stop = asyncio.get_running_loop(), self._index.snapshot(), self._stop
        self._building = loop.create_future()

        def build() -> None:
            try:
                built = snapshot.build(stop)
            except CacheError:  # what was saved is damaged
                built = None
            if not stop.is_set():
                loop.call_soon_threadsafe(self._built, built)

        threading.Thread(target=build, name="memory_store vector index", daemon=True).start()

    def _built(self, built: Built | None) -> None:
        building, self._building = self._building, None
        if built is None:
            self._index = None  # it is made again from the records
        elif self._index is not None and self._index.adopt(built):
            self._saved = NOTHING
        if building is not None and not building.done():
            building.set_result(None)

    async def wait(self) -> None:
        """Wait until no graph is being built."""
        while self._building is not None:
            await asyncio.shield(self._building)

    async def save(self) -> None:
        """Save the index where that is worth it and has not been done."""
        index = self._index
        if index is None or self._folder is None or len(index) < _LEAST_SAVED or self._saved == self._head:
            return
        head = self._head
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(index.snapshot().save, self._folder, pack_row(head))
        self._saved = head

    def stop(self) -> None:
        """Build no more."""
        self._stop.set()
