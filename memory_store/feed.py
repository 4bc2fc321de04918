"""The change feed: every change of the log, in order, to whoever wants to derive something from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from memory_store.access import TieredAccess
from memory_store.clock import boot_s, from_us
from memory_store.durable.feed import Cursor, FeedPage, read_feed
from memory_store.errors import ConfigurationError, MemoryStoreError

__all__ = ["LoggedChange", "follow", "follow_shards"]

_PAGE = 512
_SHORTEST_WAIT_S = 0.005


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """One change of one record, as the change log has it.

    Args:
        cursor: where it stands; `follow(after=cursor)` goes on behind it, in this process or another.
        position: its commit; changes of one commit share it.
        kind: kind of the record, or "store" for what concerns the database as a whole (upgrade, restore, barrier).
        namespace: whose it is.
        key: id of the record; None where all records of `parent` changed.
        parent: the episode it belongs to, None for kinds that belong to none.
        operation: "insert", "update", "delete", or "move" (it left that parent).
        revision: the record's revision after it, where known.
        actor: who made it; "sql" for plain SQL.
        at: when, by the writer's clock.
    """

    cursor: str
    position: int
    kind: str
    namespace: str
    key: str | None
    parent: str | None
    operation: str
    revision: int | None
    actor: str
    at: datetime


def follow(access: TieredAccess, after: str, namespace: str | None) -> AsyncIterator[LoggedChange]:
    """Yield the changes of a shard behind a cursor, and go on as they are made.

    Args:
        access: to the shard.
        after: "start", "end" (as of this call, not of the first iteration) or a cursor.
        namespace: only its changes; None for all.
    """
    access.require_usable()
    if after == "end":
        return _follow(access, _end(access), namespace)
    parts = after.split(",")  # a cursor of all shards has one for this one
    return _follow(
        access, _parse(parts[access.shard.number] if 1 < len(parts) > access.shard.number else after), namespace
    )


def follow_shards(accesses: Sequence[TieredAccess], after: str) -> AsyncIterator[LoggedChange]:
    """Yield the changes of several shards, each shard's in its order; a cursor is that of each, joined by commas."""
    if after == "end":
        cursors: list[Cursor | None] = [_end(access) for access in accesses]
    else:
        parts = after.split(",") if after != "start" else [after] * len(accesses)
        if len(parts) != len(accesses):
            raise ConfigurationError(
                f"the cursor is of a database with {len(parts)} heads, this one has {len(accesses)}"
            )
        cursors = list(map(_parse, parts))
    feeds = [_follow(access, cursor, None) for access, cursor in zip(accesses, cursors, strict=True)]
    return _merge(feeds, ["start" if cursor is None else str(cursor) for cursor in cursors])


def _parse(after: str) -> Cursor | None:
    return None if after == "start" else Cursor.parse(after)


def _end(access: TieredAccess) -> Cursor:
    # Where no look can be taken at once, what others did since the last one may come as well: nothing is ever lost.
    access.coherence.look()
    return Cursor.end(access.coherence.head)


async def _merge(
    feeds: Sequence[AsyncGenerator[LoggedChange, None]], cursors: list[str]
) -> AsyncIterator[LoggedChange]:
    coming = {asyncio.ensure_future(anext(feed)): number for number, feed in enumerate(feeds)}
    try:
        while True:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                change, number = task.result(), coming.pop(task)
                coming[asyncio.ensure_future(anext(feeds[number]))] = number
                cursors[number] = change.cursor
                yield replace(change, cursor=",".join(cursors))
    finally:
        for task in coming:
            task.cancel()
        # What else went wrong meanwhile is told when that shard is followed again; a change that had come, comes again.
        await asyncio.gather(*coming, return_exceptions=True)
        for feed in feeds:
            await feed.aclose()


async def _follow(
    access: TieredAccess, cursor: Cursor | None, namespace: str | None
) -> AsyncGenerator[LoggedChange, None]:
    coherence = access.coherence
    access.shard.feeds += 1
    try:
        while True:
            page = await _read(access, cursor)
            access.require_usable()
            # What the caller reads next is no older than the changes he is told of.
            await coherence.catch_up()
            for row in page.rows:
                position, index, kind, of, key, parent, operation, revision, actor, at, nonce = row
                cursor = Cursor(position, index, nonce)
                if namespace is None or of == namespace:
                    yield LoggedChange(
                        str(cursor), position, kind, of, key, parent, operation, revision, actor, from_us(at)
                    )
            if page.end is None:
                continue
            cursor = page.end
            # Another nonce at that position is another past: the next read says so.
            while coherence.head[:2] == (cursor.position, cursor.nonce):
                await _wait(access)
                await coherence.catch_up()
    finally:
        access.shard.feeds -= 1


async def _read(access: TieredAccess, cursor: Cursor | None) -> FeedPage:
    access.require_usable()
    return await access.durable.scan.run(lambda connection: read_feed(connection, cursor, _PAGE, access.shard.number))


async def _wait(access: TieredAccess) -> None:
    """Wait until this process sees a new commit, looking as often as a hit would: others do not tell us.

    The looks are made by a timer: waking this task for each of them would cost ten times as much.
    """
    access.require_usable()
    loop, coherence = asyncio.get_running_loop(), access.coherence
    waiting: asyncio.Future[None] = loop.create_future()
    pause_s = max(coherence.staleness_s, _SHORTEST_WAIT_S)
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        timer = loop.call_later(pause_s, look)
        try:
            # A new commit wakes whoever waits. On a server somebody else looks for all.
            seen = boot_s() < coherence.fresh_until or coherence.look()
        except MemoryStoreError:
            seen = False
        if not seen and not waiting.done():
            waiting.set_result(None)  # the task looks by way of a lane, and tells its caller what is wrong

    timer = loop.call_later(pause_s, look)
    access.shard.waiting.add(waiting)
    try:
        await waiting
    finally:
        timer.cancel()
        access.shard.waiting.discard(waiting)
    access.require_usable()
