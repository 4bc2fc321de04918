"""The steps of a copy: rows out that are no longer right, rows in, the log."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

from memory_store.codec import pack_row
from memory_store.durable.changes import HeadState, shard_of
from memory_store.durable.connection import Connection
from memory_store.durable.log import STORE, nonce_at
from memory_store.durable.statements import log_insert
from memory_store.durable.streams import (
    STREAMS,
    Page,
    Row,
    Stream,
    delete_rows,
    find_rows,
    insert_rows,
    read_log_page,
    read_page,
)
from memory_store.errors import ConstraintError
from memory_store.transfer.copy_state import CopyState, Ledger, Place
from memory_store.transfer.ends import End

__all__ = ["CopySteps", "log_pages", "pages_of"]

T = TypeVar("T")

_LOG_ROWS = 4096
_BEFORE_THE_LOG = 1


class CopySteps:
    """Copies from one end to the other.

    Args:
        source: in a transaction that sees one state.
        target: marked as unfinished.
        ledger: takes pages and how far the copy is.
        shards: number of heads, of the source and of the target.
        tell: told what is being done and how many rows are done.
    """

    state: CopyState

    def __init__(
        self, source: End, target: End, ledger: Ledger, shards: tuple[int, int], tell: Callable[[str, int], None]
    ) -> None:
        self.source, self.target, self._ledger, self._shards, self.tell = source, target, ledger, shards, tell
        self.positions_kept = shards[0] == shards[1]
        self.streams = STREAMS
        if not self.positions_kept:
            self.streams = tuple(
                stream.with_fixed("position", _BEFORE_THE_LOG) if stream.name == "idempotency" else stream
                for stream in STREAMS
            )

    @property
    def ends(self) -> tuple[tuple[End, int], tuple[End, int]]:
        """Source and target, each with its number of heads."""
        return (self.source, self._shards[0]), (self.target, self._shards[1])

    def start(self, state: CopyState) -> CopyState:
        """Begin with nothing copied."""
        self.state = state
        self._forget_log()
        return state

    async def resume(self, earlier: CopyState, now: CopyState) -> None:
        """Go on with an earlier copy, of which everything is brought to the state that the source has now."""
        self.state = earlier
        if earlier.heads != now.heads:
            lost = not await self.source.run(partial(_leads_on, earlier=earlier, now=now))
            earlier.heads, earlier.tails, earlier.stale = now.heads, now.tails, True
            await self._save(forget_log=lost)
        if earlier.stale:
            await self._take_out()
            earlier.stale, earlier.has_rows = False, True
            earlier.stream, earlier.after = 0, None
            earlier.done = {name: count for name, count in earlier.done.items() if name == "changes"}
            await self._save()

    async def distrust(self) -> None:
        """Let the next run compare everything that was copied, and copy the log again."""
        self.state.stale = True
        await self._save(forget_log=True)

    async def copy_records(self) -> None:
        """Copy the tables of records and the idempotency keys."""
        state = self.state
        for number in range(state.stream, len(self.streams)):
            if number != state.stream:
                state.stream, state.after = number, None
            await self._fill(self.streams[number])

    async def copy_log(self) -> None:
        """Copy the log, its positions as they are or numbered anew."""
        parts = self._kept() if self.positions_kept else self._merged()
        async with aclosing(_ahead(parts)) as batches:
            async for batch in batches:
                rows = batch.rows if self.positions_kept else self._place(batch.rows)
                for row in batch.rows:
                    self.state.log[row[0]] = [row[1], row[2]]
                self.state.current = batch.current
                self._count("changes", len(batch.rows))
                await self._ledger.page(partial(_log_rows, rows=rows), self.state, len(rows))
                self.tell("copying the log", sum(self.state.done.values()))

    async def _fill(self, stream: Stream) -> None:
        state = self.state
        async with aclosing(_ahead(pages_of(self.source, stream, state.after))) as pages:
            async for page in pages:
                rows = page.rows
                if state.has_rows:
                    keys = [(row[0], row[1]) for row in rows]
                    there = await self.target.run(partial(find_rows, stream=stream, keys=keys))
                    rows = [row for row in rows if (row[0], row[1]) not in there]
                state.after = [page.rows[-1][0], page.rows[-1][1]]
                self._count(stream.name, len(page.rows))
                try:
                    await self._ledger.page(partial(insert_rows, stream=stream, rows=rows), state, len(rows))
                except ConstraintError as error:
                    await self._blame(stream, rows, error)
                self.tell(f"copying {stream.name}", sum(state.done.values()))

    async def _blame(self, stream: Stream, rows: Sequence[Row], error: ConstraintError) -> None:
        """Raise the error with the name of the row that is refused."""
        while len(rows) > 1:
            half = rows[: len(rows) // 2]
            fine = await self._ledger.accepts(partial(insert_rows, stream=stream, rows=half))
            rows = rows[len(half) :] if fine else half
        namespace, key = rows[0][:2]
        raise ConstraintError(
            f"{stream.name} {key!r:.120} in namespace {namespace!r} cannot be stored there: {error}",
            kind=stream.name,
            namespace=namespace,
            key=key,
        ) from error

    async def _take_out(self) -> None:
        """Delete every row of the target that is not what the source has now."""
        checked = 0
        for stream in self.streams:
            async with aclosing(pages_of(self.target, stream, None)) as pages:
                async for page in pages:
                    keys = [(row[0], row[1]) for row in page.rows]
                    theirs = await self.source.run(partial(find_rows, stream=stream, keys=keys))
                    wrong = _different(stream, page.rows, theirs)
                    if wrong:
                        await self._ledger.page(partial(delete_rows, stream=stream, keys=wrong), self.state, len(wrong))
                    checked += len(keys)
                    self.tell(f"comparing {stream.name}", checked)

    async def _save(self, *, forget_log: bool = False) -> None:
        if forget_log:
            self._forget_log()
        await self._ledger.page(_delete_log if forget_log else _nothing, self.state, 0)

    def _forget_log(self) -> None:
        source, target = self._shards
        self.state.log, self.state.current = [[0, -1] for _ in range(source)], None
        self.state.places = [] if self.positions_kept else [Place() for _ in range(target)]
        self.state.done.pop("changes", None)

    def _count(self, name: str, rows: int) -> None:
        self.state.done[name] = self.state.done.get(name, 0) + rows

    async def _kept(self) -> AsyncGenerator[_Batch, None]:
        for shard, after in enumerate([list(place) for place in self.state.log]):
            async with aclosing(log_pages(self.source, shard, after)) as pages:
                async for page in pages:
                    yield _Batch(page.rows, None)

    async def _merged(self) -> AsyncGenerator[_Batch, None]:
        """Yield the logs of all heads as one: each one's commits in their order, the oldest commit next."""
        logs = [_Log(self.source, shard, after, self._shards[0]) for shard, after in enumerate(self.state.log)]
        current, rows = self.state.current, list[Row]()
        position = 0 if current is None else self.state.log[current][0]
        while True:
            for log in logs:
                await log.fill()
            if current is None:
                first = min((log for log in logs if log.rows), key=lambda log: log.rows[0][_AT], default=None)
                if first is None:
                    break
                current, position = first.shard, first.rows[0][1]
            rows += logs[current].take(position)
            if logs[current].rows or not logs[current].more:
                current = None  # the commit is whole
            if len(rows) >= _LOG_ROWS:
                yield _Batch(rows, current)
                rows = []
        if rows:
            yield _Batch(rows, None)

    def _place(self, rows: Sequence[Row]) -> list[Row]:
        """Give changes their new positions: a commit is one commit in each head that it has changes for."""
        placed = []
        for row in rows:
            if row[_KIND] == STORE:
                continue
            shard = _shard_of(row[_NAMESPACE], self._shards[1])
            place = self.state.places[shard]
            if place.source == [row[0], row[1]]:
                place.idx += 1
            else:
                place.position, place.idx, place.source = place.position + 1, 0, [row[0], row[1]]
            placed.append((shard, place.position, place.idx, *row[3:]))
        return placed


_KIND, _NAMESPACE, _AT = 3, 4, 10


class _Batch(NamedTuple):
    """Rows of the log, and the shard of the commit in whose middle they end."""

    rows: list[Row]
    current: int | None


class _Log:
    """The log of one shard of several that are read together, so that all of them fit into memory."""

    def __init__(self, source: End, shard: int, after: Sequence[int], shards: int) -> None:
        self._source, self._after, self._most = source, list(after), max(64, _LOG_ROWS // shards)
        self._ask = min(128, self._most)
        self.shard, self.rows, self.more = shard, deque[Row](), True

    async def fill(self) -> None:
        """Read on if nothing is left."""
        if self.rows or not self.more:
            return
        read = partial(read_log_page, shard=self.shard, after=self._after, ask=self._ask)
        page = await self._source.run(read)
        self.rows.extend(page.rows)
        self.more, self._ask = page.more, min(page.ask, self._most)
        if page.rows:
            self._after = [page.rows[-1][1], page.rows[-1][2]]

    def take(self, position: int) -> list[Row]:
        """Return the changes at a position that have been read."""
        taken = []
        while self.rows and self.rows[0][1] == position:
            taken.append(self.rows.popleft())
        return taken


_shard_of = lru_cache(maxsize=4096)(shard_of)


async def pages_of(end: End, stream: Stream, after: Sequence[str] | None) -> AsyncGenerator[Page, None]:
    """Yield the rows of a table behind a key."""
    page = Page([])
    while page.more:
        page = await end.run(partial(read_page, stream=stream, after=after, ask=page.ask))
        if page.rows:
            after = page.rows[-1][:2]
            yield page


async def log_pages(end: End, shard: int, after: Sequence[int]) -> AsyncGenerator[Page, None]:
    """Yield the log of a shard behind a position and idx."""
    page = Page([])
    while page.more:
        page = await end.run(partial(read_log_page, shard=shard, after=after, ask=page.ask))
        if page.rows:
            after = page.rows[-1][1:3]
            yield page


async def _ahead(pages: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Yield what an iterator yields, reading the next while the last is being used."""
    reading = asyncio.ensure_future(_next(pages))
    try:
        while (page := await reading) is not None:
            reading = asyncio.ensure_future(_next(pages))
            yield page
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()  # looked at: what went wrong first is being raised


async def _next(pages: AsyncIterator[T]) -> T | None:
    return await anext(pages, None)


def _different(stream: Stream, rows: list[Row], others: Mapping[tuple[str, str], Row]) -> list[tuple[str, str]]:
    """Return the keys of the rows that the other database does not hold like that."""
    known = {(row[0], row[1]): pack_row(row) for row in stream.comparable(list(others.values()))}
    found = ((row[0], row[1], pack_row(row)) for row in stream.comparable(rows))
    return [(namespace, key) for namespace, key, packed in found if known.get((namespace, key)) != packed]


def _leads_on(connection: Connection, earlier: CopyState, now: CopyState) -> bool:
    """Return whether the source's log is that of an earlier snapshot, and perhaps more."""
    for old, new, tail, tail_now in zip(earlier.heads, now.heads, earlier.tails, now.tails, strict=True):
        known, head = HeadState(*old), HeadState(*new)
        if known[2:] != head[2:] or known.position > head.position or tail not in (0, tail_now):
            return False
        if nonce_at(connection, known.position, head) != known.nonce:
            return False
    return True


def _log_rows(connection: Connection, rows: Sequence[Row]) -> None:
    connection.executemany(log_insert(), rows)


def _delete_log(connection: Connection) -> None:
    connection.execute("DELETE FROM changes")


def _nothing(connection: Connection) -> None:
    pass
