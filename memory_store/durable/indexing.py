"""Bringing the full-text index up to what was left behind: bulk loads, plain SQL, records from before the index.

What is indexed is what stands in the database now, whatever the log says happened to it, so nothing is lost or spoilt
by doing it late, twice, or beside new writes. Each piece is a transaction that also notes how far it came.
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, TypeVar

from memory_store.durable.changes import shard_of
from memory_store.durable.connection import Connection
from memory_store.durable.documents import WHOLE_NAMESPACE, make_document
from memory_store.durable.lane import Lane
from memory_store.durable.lookup import Ask, Work, find_existing
from memory_store.durable.operations import Context
from memory_store.durable.text_index import Gone
from memory_store.durable.writer import Writer
from memory_store.errors import DurableError, IndexDamagedError, MemoryStoreError, StoreClosedError
from memory_store.records import RECORDS
from memory_store.text.documents import SEARCHED

__all__ = ["IndexBehind", "Indexer", "LeaveBehind"]

T = TypeVar("T")
_Asking = Generator[Ask, list[tuple[Any, ...]], Any]

PIECE = 64
"""Records brought in by one transaction: about 5 ms, for which other writes wait."""

_MOST_PIECES = 40
"""Pieces that a search brings in before it answers without the rest."""

_PAUSE_S = 0.05
"""After a bulk load's commit: the next one is likely to follow, and both would have to wait for the other."""


class IndexBehind:
    """Bring in one piece of what was left behind in a shard. Returns how many records; None where nothing was left.

    Args:
        shard: of which.
        namespace: of which; None for whichever was left first.
    """

    size = 1

    def __init__(self, shard: int, namespace: str | None = None) -> None:
        self.shard, self.namespace = shard, namespace

    def run(self, context: Context) -> Work:
        """Take what was left first, as much as makes a piece, and note how far that is."""
        ours = "" if self.namespace is None else " AND namespace = ?"
        given = [self.shard] if self.namespace is None else [self.shard, self.namespace]
        found = yield Ask(
            f"SELECT position, namespace, idx, kind, key FROM backlog WHERE shard = ?{ours} "
            f"ORDER BY position, namespace LIMIT {PIECE}",
            given,
        )
        if not found:
            return None
        context.text.is_due = True
        left = PIECE
        for position, namespace, idx, kind, key in found:
            if position == WHOLE_NAMESPACE:
                count, progress = yield from self._records(context, namespace, kind or SEARCHED[0], key)
            else:
                count, progress = yield from self._changes(context, position, namespace, idx, left)
            entry = (self.shard, position, namespace)
            if progress is not None:
                yield Ask(
                    "UPDATE backlog SET idx = ?, kind = ?, key = ? WHERE shard = ? AND position = ? AND namespace = ?",
                    (*progress, *entry),
                )
                break
            yield Ask("DELETE FROM backlog WHERE shard = ? AND position = ? AND namespace = ?", entry)
            left -= count
            if left <= 0:
                break
        return len(context.text.documents)

    def _changes(self, context: Context, position: int, namespace: str, after: int, limit: int) -> _Asking:
        """Bring in records that a commit changed; return how many, and how far that is, None for all."""
        rows = yield Ask(
            "SELECT idx, kind, key, parent FROM changes WHERE shard = ? AND position = ? AND namespace = ? AND idx > ? "
            f"ORDER BY idx LIMIT {limit}",
            (self.shard, position, namespace, after),
        )
        for kind in SEARCHED:
            keys = list(dict.fromkeys(key for _, of, key, _ in rows if of == kind and key is not None))
            yield from _index(context, namespace, kind, keys)
            for parent in [parent for _, of, key, parent in rows if of == kind and key is None]:
                # Of a parent's records, only those that are gone: others may have come since.
                yield from self._orphans(context, namespace, kind, "AND d.parent = ?" if parent else "", parent)
        return len(rows), None if len(rows) < limit else (rows[-1][0], "", "")

    def _records(self, context: Context, namespace: str, kind: str, after: str) -> _Asking:
        """Bring in the next records of a namespace; return how many, and how far that is, None for all."""
        spec = RECORDS[kind]
        rows = yield Ask(
            f"SELECT {', '.join(spec.columns)} FROM {spec.table.name} WHERE namespace = ? AND id > ? "
            f"ORDER BY id LIMIT {PIECE}",
            (namespace, after),
        )
        context.text.documents.extend(make_document(kind, namespace, row) for row in rows)
        if len(rows) == PIECE:
            return PIECE, (-1, kind, rows[-1][0])
        yield from self._orphans(context, namespace, kind)
        following = SEARCHED[SEARCHED.index(kind) + 1 :]
        return len(rows), (-1, following[0], "") if following else None

    def _orphans(self, context: Context, namespace: str, kind: str, of: str = "", parent: str | None = None) -> _Asking:
        rows = yield Ask(
            f"SELECT d.id FROM documents AS d WHERE d.namespace = ? AND d.kind = ? {of} AND NOT EXISTS "
            f"(SELECT 1 FROM {RECORDS[kind].table.name} AS r WHERE r.namespace = d.namespace AND r.id = d.id)",
            (namespace, kind) if parent is None else (namespace, kind, parent),
        )
        context.text.gone.extend(Gone(namespace, kind, id_, None) for (id_,) in rows)


class LeaveBehind:
    """Leave all records of a shard behind, to be indexed again."""

    size = 1

    def __init__(self, shard: int) -> None:
        self.shard = shard

    def run(self, context: Context) -> Work:
        """Note every namespace that has records, or documents."""
        context.text.is_due = context.text.is_anew = True
        tables = [*(RECORDS[kind].table.name for kind in SEARCHED), "documents"]
        rows = yield Ask(" UNION ".join(f"SELECT namespace FROM {table}" for table in tables), ())
        [(shards,)] = yield Ask("SELECT count(*) FROM head", ())
        # What was left of some commits is among all of it.
        yield Ask("DELETE FROM backlog WHERE shard = ?", (self.shard,))
        entries = [
            (self.shard, WHOLE_NAMESPACE, namespace)
            for (namespace,) in rows
            if shard_of(namespace, shards) == self.shard
        ]
        if entries:
            yield Ask(
                "INSERT INTO backlog (shard, position, namespace) VALUES (?, ?, ?) "
                "ON CONFLICT (namespace, shard, position) DO UPDATE SET kind = '', key = ''",
                entries,
                many=True,
            )
        return None


def _index(context: Context, namespace: str, kind: str, keys: Sequence[str]) -> _Asking:
    if keys:
        rows = yield from find_existing(RECORDS[kind], namespace, keys)
        # In the order in which they were written, not that of the database: of equal scores the oldest comes first.
        context.text.documents.extend(make_document(kind, namespace, rows[key]) for key in keys if key in rows)
        context.text.gone.extend(Gone(namespace, kind, key, None) for key in keys if key not in rows)


class Indexer:
    """Brings the full-text index of a shard up to date whenever the writer has nothing else to do.

    Args:
        writer: of the shard.
        shard: its number.
    """

    def __init__(self, writer: Writer, shard: int) -> None:
        self._writer, self._shard = writer, shard
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        writer.left_behind = self.begin

    def begin(self) -> None:
        """Begin to bring in what was left behind, unless that is under way."""
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name="memory_store full-text index")

    async def _run(self) -> None:
        # What fails here stays in the backlog, for the next search: which raises what it meets.
        with contextlib.suppress(MemoryStoreError):
            await asyncio.sleep(_PAUSE_S)
            await self._writer.drain()
            while await self.bring_in(None) is not None:
                await self._writer.drain()

    async def bring_in(self, namespace: str | None) -> int | None:
        """Bring in one piece; return how many records, None where nothing was left.

        Raises:
            DurableError: the database cannot be written.
            StoreClosedError: the store was closed; behind that nothing may be written any more.
        """
        written = await self._submit(IndexBehind(self._shard, namespace))
        return None if written.result is None else int(written.result)

    async def read(self, lane: Lane, namespace: str, find: Callable[[Connection, bool], T | None]) -> tuple[T, bool]:
        """Return what a search finds, and whether all that is stored was looked at.

        What was left behind is brought in first, unless it is so much, or cannot be written, that the search does
        without the rest: a disk that is full, or a row that cannot be indexed, is no reason to find nothing.

        Args:
            lane: where it reads.
            namespace: of the search.
            find: `find(connection, anyway)` returns None where something is still to be indexed, unless `anyway`.

        Raises:
            DurableError: the database cannot be read.
            IndexDamagedError: its index is damaged.
        """
        for _ in range(_MOST_PIECES):
            found = await lane.run(lambda connection: find(connection, False))
            if found is not None:
                return found, True
            try:
                await self.bring_in(namespace)
            except IndexDamagedError:
                raise
            except DurableError:
                break
        found = await lane.run(lambda connection: find(connection, True))
        assert found is not None
        self.begin()
        return found, False

    async def renew(self) -> AsyncIterator[int]:
        """Index every record of the shard again, and yield how many have been.

        Raises:
            DurableError: the database cannot be written; what is left stays in the backlog.
            StoreClosedError: the store was closed; the same.
        """
        await self._submit(LeaveBehind(self._shard))
        done = 0
        while (count := await self.bring_in(None)) is not None:
            done += count
            yield done

    def _submit(self, operation: IndexBehind | LeaveBehind) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreClosedError("the store is closed")
        return self._writer.submit(operation)

    async def close(self) -> None:
        """Stop; what is left stays in the backlog."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
