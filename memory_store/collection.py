"""`Collection`: the verbs for one kind in one namespace, the same inside and outside a transaction."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol

from sqlalchemy import Dialect
from sqlalchemy.sql.elements import ColumnElement

from memory_store.cache.entries import Space
from memory_store.codec import CODECS, Row
from memory_store.config import Freshness, Limits, check_freshness
from memory_store.durable.changes import HeadState
from memory_store.durable.log import Run
from memory_store.durable.operations import Delete, Operation, Put, Update
from memory_store.durable.outcomes import PutOnce
from memory_store.durable.query import Query, count_query, cursor_after, page_query, parse_order
from memory_store.durable.writer import Written
from memory_store.errors import ConfigurationError
from memory_store.records import Record, RecordSpec
from memory_store.records.base import check_key
from memory_store.records.spec import R

__all__ = ["Access", "Collection", "Page", "Parts"]

_MAX_PAGE = 1000
_STREAM_PAGE = 256
# Records encoded before other tasks get a turn: about 2 ms.
_ENCODE_AT_ONCE = 128


class Access(Protocol):
    """How a collection reaches the tiers: through cache and group commit, or through one open transaction."""

    limits: Limits
    dialect: Dialect
    """In which users' expressions are compiled."""
    asks_head_of: int | None
    """The shard whose head a query reads along with its rows, None where none is to be read."""

    def cached(
        self, space: Space, id_: str, freshness: Freshness | None = None, at_least: int | None = None
    ) -> builtins.list[Any] | None:
        """Return a live cache entry that is fresh enough, or None."""
        ...

    def load(
        self, space: Space, ids: Sequence[str], freshness: Freshness | None = None, at_least: int | None = None
    ) -> Awaitable[builtins.list[builtins.list[Row]]]:
        """Read what the cache did not have: for each id its rows."""
        ...

    async def rows_by_id(
        self, kind: str, namespace: str, ids: builtins.list[str], at_least: int | None = None
    ) -> dict[str, Row]:
        """Read rows by id, past the cache."""
        ...

    def write(self, operation: Operation) -> Awaitable[Written]:
        """Make a write durable and visible, and return its result."""
        ...

    async def count(self, reads: Space, query: Query, freshness: Freshness | None = None) -> int:
        """Run a query that counts records of the kind and namespace of `reads`."""
        ...

    async def query(self, query: Query) -> builtins.list[tuple[Any, ...]]:
        """Run a query in one hop."""
        ...

    async def changes_since(self, known: HeadState | None) -> Run | None:
        """Return what leads from a commit to the newest one; None where what is read has no place in the log yet."""
        ...


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """Some records, and where the next ones start.

    Args:
        items: the records, in the order asked for.
        cursor: pass it to `list` with the same order for the next page; None when this was the last.
    """

    items: list[R]
    cursor: str | None


class Collection(Generic[R]):
    """The records of one kind in one namespace.

    Every method raises `StoreClosedError` on a store that is not open, `DurableTimeoutError` when another program keeps
    the database locked for `timeout_s`, `StorageFullError` and `DurableUnavailableError` when the database cannot be
    written or read, and `CommitUnknownError` when nobody can say whether a write happened.
    """

    def __init__(self, spec: RecordSpec[R], namespace: str, space: Space, access: Access) -> None:
        self._spec, self._namespace, self._space, self._access = spec, namespace, space, access
        self._codec = CODECS[spec.kind]

    async def put(self, record: R, *, idempotency_key: str | None = None) -> R:
        """Store a record, new or in place of the one with its id, and return it as stored, durable and visible.

        A replaced record is replaced as a whole and its revision goes up by one; to change only some fields, or only if
        nobody else did, use `update`. Safe to retry with the same record. The record returned carries the `position` of
        its commit.

        Args:
            record: what to store.
            idempotency_key: text of 1 to 256 bytes that names this write in this namespace. It is made once however
                often it is asked for, by whichever process: a retry returns what the first one stored, with its id,
                number and times, and changes nothing, even when the record has been changed since.

        Raises:
            InvalidRecordError: a value is over its limit; nothing was written.
            RecordNotFoundError: the episode it belongs to does not exist.
            ConflictError: its number within the episode is taken, or the key was used for another record.
            CommitUnknownError: nobody can say whether it was written; with an idempotency key, just put it again.
        """
        row = self._encode(record)
        if idempotency_key is not None:
            self._require_key(record, idempotency_key)
            written = await self._access.write(PutOnce(self._spec, self._namespace, row, idempotency_key))
            stored, noted = written.result
            position = noted or written.position
        else:
            written = await self._access.write(Put(self._spec, self._namespace, [row]))
            [stored], position = written
        kept: R = self._codec.decode_written(stored, position)
        return kept

    async def put_many(self, records: Iterable[R]) -> builtins.list[R]:
        """Store records as `put` does, all of them or none, and return them as stored, in order.

        More than 1,000 at once are stored without entering the cache. They are one transaction: other writers wait for
        its end, so import millions in batches of some thousands.

        Raises:
            InvalidRecordError: as for `put`, or an id appears twice.
        """
        rows: builtins.list[Row] = []
        for record in records:
            rows.append(self._encode(record))
            if len(rows) % _ENCODE_AT_ONCE == 0:
                await asyncio.sleep(0)
        if not rows:
            return []
        stored, position = await self._access.write(Put(self._spec, self._namespace, rows))
        return await self._decode_all(stored, position)

    async def get(
        self,
        id: str,  # noqa: A002 - the field's own name
        *,
        freshness: Freshness | None = None,
        at_least: int | None = None,
    ) -> R | None:
        """Return the record, or None if there is none.

        Args:
            id: the record.
            freshness: "bounded" may miss what other processes wrote in the last `staleness_s` seconds, "linearizable"
                misses nothing and looks at the head each time (5 µs); None is the store's own setting.
            at_least: a `position` from another process: its write, and all before it, are seen.

        Raises:
            PositionLostError: the database has no such position (yet); it was restored, or is another one.
        """
        entry = self._access.cached(self._space, id, freshness, at_least)
        if entry is not None:
            return self._codec.decode(entry[2]) if len(entry) > 2 else None
        [rows] = await self._access.load(self._space, [id], freshness, at_least)
        return self._codec.decode(rows[0]) if rows else None

    async def get_many(
        self, ids: Iterable[str], *, freshness: Freshness | None = None, at_least: int | None = None
    ) -> builtins.list[R | None]:
        """Return the records in the order of the ids, None where there is none.

        Each is as fresh as asked for (see `get`); what is not cached is read in one snapshot, which may be newer than
        the rest.
        """
        found: builtins.list[R | None] = []
        missing: dict[str, builtins.list[int]] = {}
        for id_ in ids:
            entry = self._access.cached(self._space, id_, freshness, at_least)
            if entry is None:
                missing.setdefault(id_, []).append(len(found))
                found.append(None)
            else:
                found.append(self._codec.decode(entry[2]) if len(entry) > 2 else None)
        if missing:
            loaded = await self._access.load(self._space, list(missing), freshness, at_least)
            for places, rows in zip(missing.values(), loaded, strict=True):
                for place in places if rows else ():
                    found[place] = self._codec.decode(rows[0])
        return found

    async def update(self, id: str, *, expected_revision: int | None = None, **values: Any) -> R:  # noqa: A002
        """Change fields of a stored record and return it as stored.

        Args:
            id: the record.
            expected_revision: change it only if it is still at this revision; None changes it whatever it is.
            values: fields and their new values; id, revision, updated_at and the episode cannot be changed.

        Raises:
            RecordNotFoundError: there is no such record.
            ConflictError: it is at another revision; read it again before retrying.
            InvalidRecordError: a new value breaks a rule or limit; nothing was changed.
            TypeError: a field does not exist or cannot be changed.
        """
        fixed = {"id", "revision", "updated_at", self._spec.parent}
        for name in values:
            if name not in self._spec.columns or name in fixed:
                raise TypeError(f"{self._spec.kind} has no field {name!r} that can be changed")
        self._require_id(id)
        operation = Update(self._spec, self._namespace, id, values, expected_revision, self._access.limits)
        row, position = await self._access.write(operation)
        record: R = self._codec.decode_written(row, position)
        return record

    async def delete(self, id: str, *, expected_revision: int | None = None) -> bool:  # noqa: A002
        """Delete a record with everything that belongs to it, and return whether it existed. Safe to retry.

        Raises:
            ConflictError: `expected_revision` was given and it is at another revision, or gone.
        """
        self._require_id(id)
        operation = Delete(self._spec, self._namespace, id, expected_revision)
        return bool((await self._access.write(operation)).result)

    async def list(
        self,
        where: ColumnElement[bool] | None = None,
        *,
        order_by: Any = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[R]:
        """Return one page of the records that meet a condition.

        Args:
            where: a SQLAlchemy expression over the kind's columns, e.g. `Episode.c.domain == "web"`; None for all.
            order_by: a column or expression, `.desc()` for highest first, or a list of them; by id when absent.
            limit: records a page, 1 to 1,000.
            cursor: where the page before ended (`page.cursor`); the order must be the same.

        Raises:
            ConfigurationError: the expression reads another table, the limit is out of range, or the cursor is not one
                of this order.
        """
        if not isinstance(limit, int) or not 1 <= limit <= _MAX_PAGE:
            raise ConfigurationError(f"limit must be 1 to {_MAX_PAGE:,}, got {limit!r}; use stream() for more")
        rows, next_cursor = await self._page(where, order_by, limit, cursor)
        return Page([self._codec.decode(row) for row in rows], next_cursor)

    async def stream(self, where: ColumnElement[bool] | None = None, *, order_by: Any = None) -> AsyncIterator[R]:
        """Yield every record that meets a condition, in constant memory and without a lock between items.

        It reads page by page, so a record written meanwhile may or may not appear, but none appears twice. Arguments
        are those of `list`.
        """
        cursor: str | None = None
        while True:
            rows, cursor = await self._page(where, order_by, _STREAM_PAGE, cursor)
            for row in rows:
                yield self._codec.decode(row)
            if cursor is None:
                return

    async def count(self, where: ColumnElement[bool] | None = None, *, freshness: Freshness | None = None) -> int:
        """Return how many records meet a condition; kept in the cache until a record of the kind changes.

        Freshness is that of `get`.
        """
        return await self._access.count(
            self._space, count_query(self._access.dialect, self._spec, self._namespace, where), freshness
        )

    async def _page(
        self, where: Any, order_by: Any, limit: int, cursor: str | None
    ) -> tuple[builtins.list[Sequence[Any]], str | None]:
        orders = parse_order(self._spec, order_by)
        # One more than asked for tells whether another page follows.
        access = self._access
        query = page_query(
            access.dialect, self._spec, self._namespace, where, orders, limit + 1, cursor, access.asks_head_of
        )
        rows = await self._access.query(query)
        following = cursor_after(self._spec, orders, rows[limit - 1]) if len(rows) > limit else None
        width = len(self._spec.columns)  # behind the row stand values of its order, and the head
        return [row[:width] for row in rows[:limit]], following

    async def _decode_all(self, rows: Sequence[Row], position: int) -> builtins.list[R]:
        records: builtins.list[R] = []
        for row in rows:
            records.append(self._codec.decode_written(row, position))
            if len(records) % 2048 == 0:
                await asyncio.sleep(0)
        return records

    def _encode(self, record: R) -> Row:
        if type(record) is not self._spec.record:
            raise TypeError(f"expected {self._spec.record.__name__}, got {type(record).__name__}")
        return self._codec.encode(record, self._access.limits)

    def _require_key(self, record: R, key: str) -> None:
        size, limit = len(check_key(record, "idempotency_key", key).encode()), self._access.limits.key_bytes
        if not 1 <= size <= limit:
            record._refuse("idempotency_key", f"has {size:,} bytes, not 1 to {limit:,}", limit=limit, size=size)

    def _require_id(self, id_: str) -> None:
        if not isinstance(id_, str):
            raise TypeError(f"id must be a str, got {type(id_).__name__}")


class Parts(Collection[R]):
    """A kind whose records belong to an episode: they are cached per episode, and `of` is their fast read."""

    async def of(
        self, episode_id: str, *, freshness: Freshness | None = None, at_least: int | None = None
    ) -> builtins.list[R]:
        """Return all of an episode's records in their order; none if there is no such episode.

        Freshness is that of `Collection.get`.
        """
        entry = self._access.cached(self._space, episode_id, freshness, at_least)
        rows = (
            entry[2:]
            if entry is not None
            else (await self._access.load(self._space, [episode_id], freshness, at_least))[0]
        )
        return [self._codec.decode(row) for row in rows]

    async def append(self, episode_id: str, records: R | Iterable[R]) -> builtins.list[R]:
        """Add records to an episode, all of them or none, and return them as stored.

        Steps without a number get the next ones.

        Raises:
            RecordNotFoundError: the episode does not exist.
            ConflictError: a number is taken.
            InvalidRecordError: a value is over its limit, or a record names another episode.
        """
        self._require_id(episode_id)
        given = [records] if isinstance(records, Record) else records
        assert self._spec.parent is not None
        return await self.put_many(map(partial(self._belonging_to, episode_id), given))

    async def get(
        self,
        id: str,  # noqa: A002
        *,
        freshness: Freshness | None = None,
        at_least: int | None = None,
    ) -> R | None:
        """Return the record, or None. Reads the durable tier: these are cached by episode, see `of`."""
        return (await self.get_many([id], freshness=freshness, at_least=at_least))[0]

    async def get_many(
        self, ids: Iterable[str], *, freshness: Freshness | None = None, at_least: int | None = None
    ) -> builtins.list[R | None]:
        """Return the records in the order of the ids, None where there is none. Reads the durable tier, see `of`.

        It misses nothing, whatever `freshness` says.
        """
        check_freshness(freshness)
        wanted = list(ids)
        for id_ in wanted:
            self._require_id(id_)
        rows: dict[str, Row] = {}
        if wanted:
            rows = await self._access.rows_by_id(self._spec.kind, self._namespace, wanted, at_least)
        return [self._codec.decode(rows[id_]) if id_ in rows else None for id_ in wanted]

    def _belonging_to(self, episode_id: str, record: R) -> R:
        if type(record) is not self._spec.record:
            raise TypeError(f"expected {self._spec.record.__name__}, got {type(record).__name__}")
        parent: str = self._spec.parent or ""
        named = getattr(record, parent)
        if named == episode_id:
            return record
        if named:
            record._refuse(parent, f"is {named!r:.80}, appended to {episode_id!r:.80}")
        belonging: dict[str, Any] = {parent: episode_id}
        return replace(record, **belonging)
