"""Whether a copy is what the source holds: both are read whole and added up, by kind and namespace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial

from memory_store.durable.connection import Connection
from memory_store.durable.log import STORE
from memory_store.durable.streams import Page, Stream, Sum, Sums, add_up, read_log_page, read_page
from memory_store.errors import MemoryStoreError
from memory_store.records import RECORDS
from memory_store.transfer.copy_steps import CopySteps
from memory_store.transfer.ends import End

__all__ = ["Compared", "CopyDiffersError", "compare_all"]

_NAMESPACE_IN_LOG, _KIND_IN_LOG, _PLACE_IN_LOG = 4, 3, 3


class CopyDiffersError(MemoryStoreError):
    """The copy is not what the source holds."""


@dataclass(slots=True)
class Compared:
    """What was found to be the same.

    Args:
        rows: how many of each kind of record, of idempotency keys ("idempotency") and of changes ("changes").
        names: the namespaces that hold records.
    """

    rows: dict[str, int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


async def compare_all(steps: CopySteps) -> Compared:
    """Read everything of both ends and compare it, which takes little memory: sums that agree are forgotten.

    Raises:
        CopyDiffersError: something differs; it names kind and namespace.
    """
    compared = Compared()
    for stream in steps.streams:
        ends = [_table_sums(end, stream) for end in (steps.source, steps.target)]
        names = compared.names if stream.name in RECORDS else set[str]()
        await _compare(stream.name, ends, steps.tell, compared, names)
    kept = steps.positions_kept
    logs = [_log_sums(end, shards, kept=kept) for end, shards in steps.ends]
    await _compare("changes", logs, steps.tell, compared, set())
    return compared


async def _compare(
    name: str,
    ends: Sequence[AsyncGenerator[Sums, None]],
    tell: Callable[[str, int], None],
    compared: Compared,
    names: set[str],
) -> None:
    """Compare what two ends add up to; both are read at the same time and forgotten where they agree."""
    before = sum(compared.rows.values())
    left: Sums = {}
    count = 0
    async with AsyncExitStack() as opened:
        source, target = [await opened.enter_async_context(aclosing(end)) for end in ends]
        while True:
            ours, theirs = await asyncio.gather(_next(source), _next(target))
            if ours is None and theirs is None:
                break
            for namespace, (rows, digest) in (ours or {}).items():
                names.add(namespace)
                count += rows
                _add(left, namespace, Sum(rows, digest))
            for namespace, (rows, digest) in (theirs or {}).items():
                _add(left, namespace, Sum(-rows, -digest))
            tell(f"verifying {name}", before + count)
    for namespace, (rows, _) in sorted(left.items()):
        how = f"{abs(rows):,} {'fewer' if rows > 0 else 'more'} in the copy" if rows else "other content in the copy"
        raise CopyDiffersError(f"{name} of namespace {namespace!r}: {how}", kind=name, namespace=namespace)
    compared.rows[name] = count


def _add(left: Sums, namespace: str, more: Sum) -> None:
    known = left.pop(namespace, Sum(0, 0))
    now = Sum(known.rows + more.rows, known.digest + more.digest)
    if now != (0, 0):
        left[namespace] = now


async def _next(sums: AsyncIterator[Sums]) -> Sums | None:
    return await anext(sums, None)


async def _table_sums(end: End, stream: Stream) -> AsyncGenerator[Sums, None]:
    after: Sequence[str] | None = None

    def read(connection: Connection, ask: int) -> tuple[Page, Sums]:
        page = read_page(connection, stream, after, ask)
        return page, add_up(stream.comparable(page.rows))

    page = Page([])
    while page.more:
        page, sums = await end.run(partial(read, ask=page.ask))
        if page.rows:
            after = page.rows[-1][:2]
            yield sums


async def _log_sums(end: End, shards: int, *, kept: bool) -> AsyncGenerator[Sums, None]:
    """Add up the log; where positions are not kept, without them and without what is not copied then."""
    for shard in range(shards):
        after: Sequence[int] = (0, -1)

        def read(connection: Connection, ask: int, shard: int, after: Sequence[int]) -> tuple[Page, Sums]:
            page = read_log_page(connection, shard, after, ask)
            if kept:
                return page, add_up(page.rows, _NAMESPACE_IN_LOG)
            of_records = [row for row in page.rows if row[_KIND_IN_LOG] != STORE]
            return page, add_up(of_records, _NAMESPACE_IN_LOG, _PLACE_IN_LOG)

        page = Page([])
        while page.more:
            page, sums = await end.run(partial(read, ask=page.ask, shard=shard, after=after))
            if page.rows:
                after = page.rows[-1][1:3]
                yield sums
