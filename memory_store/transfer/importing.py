"""`import_lines`: JSON Lines into a store, in constant memory, line by line all or nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from itertools import count
from typing import Any, Literal, NamedTuple

from memory_store.access import TieredAccess
from memory_store.cache.shard import Shards
from memory_store.clock import utc_now
from memory_store.durable.changes import shard_of
from memory_store.durable.restore import Outcome, Restore, Unit
from memory_store.durable.writer import Written
from memory_store.errors import ConfigurationError, ConstraintError
from memory_store.namespace import Namespace
from memory_store.transfer.lines import MAX_LINE_BYTES, LineError, LineParser

__all__ = ["ImportReport", "Rejection", "import_lines"]

OnConflict = Literal["reject", "skip", "replace"]

# One transaction holds about this much: large enough that its sync costs little, small enough that other writers and
# readers of this process hardly notice it, and that memory stays small.
_BATCH_LINES = 2000
_BATCH_BYTES = 4 * 1024 * 1024


class Rejection(NamedTuple):
    """A line that was not imported.

    Args:
        source: where the line came from, e.g. the file's name.
        line: its number, from 1.
        id: id of its record, where it could be read.
        field: the field at fault, None for the line as a whole.
        reason: what is wrong with it.
    """

    source: str
    line: int
    id: str | None
    field: str | None
    reason: str

    def __str__(self) -> str:
        what = f" {self.field}" if self.field else ""
        return f"{self.source}:{self.line}:{what} {self.reason}"


@dataclass(slots=True)
class ImportReport:
    """What an import did so far.

    Args:
        lines: lines read, blank ones included.
        bytes: bytes of those lines.
        rejected: lines that were not imported because something is wrong with them.
        skipped: lines left out because they exist with other content and `on_conflict="skip"` was asked for.
        inserted: new records, by kind.
        unchanged: records, by kind, that were there already, with the same content.
        replaced: records, by kind, that were there with other content, and were replaced.
        deleted: steps that were deleted because the episode that replaced theirs has no such steps.
    """

    lines: int = 0
    bytes: int = 0
    rejected: int = 0
    skipped: int = 0
    inserted: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    deleted: int = 0


class _Line(NamedTuple):
    number: int
    unit: Unit


class _Group(NamedTuple):
    """Lines that are one transaction: no two hold the same record, and their namespaces share a head."""

    shard: int
    lines: list[_Line]
    keys: set[Any]


class _Batch(NamedTuple):
    """Some lines, parsed."""

    lines: int
    bytes: int
    groups: list[_Group]
    rejections: list[Rejection]


async def import_lines(
    store: Namespace,
    lines: Iterable[bytes | str] | AsyncIterable[bytes | str],
    *,
    on_conflict: OnConflict = "reject",
    timezone: tzinfo = UTC,
    source: str = "line",
    max_line_bytes: int = MAX_LINE_BYTES,
    on_rejection: Callable[[Rejection], None] | None = None,
    on_progress: Callable[[ImportReport], None] | None = None,
) -> ImportReport:
    """Import lines of JSON: recorded runs, and records as `export_lines` writes them.

    Each line goes in whole or not at all; one that is wrong is reported and takes no other with it. Importing the same
    lines again changes nothing, so an import that was interrupted is simply run again. Lines are read and parsed in a
    thread, a batch at a time, while the batch before is being committed.

    Args:
        store: an open store, or a namespace of it; lines that name no namespace go there.
        lines: the lines. Iterated in a thread, unless they come asynchronously. `bounded_lines(file)` reads a file
            whose lines may be of any length.
        on_conflict: what to do with a line whose record exists with other content: "reject" it (default), "skip" it
            silently, or "replace" what exists.
        timezone: what times without a zone are in.
        source: name of the source in rejections.
        max_line_bytes: the longest line accepted.
        on_rejection: called with each line that was not imported.
        on_progress: called with the report after each batch.

    Raises:
        ConfigurationError: `on_conflict` is none of the three words.
        DurableError: the database failed; what was committed stays, run it again.
    """
    if on_conflict not in ("reject", "skip", "replace"):
        raise ConfigurationError(f'on_conflict must be "reject", "skip" or "replace", got {on_conflict!r:.40}')
    access = store._access
    access.require_writable()
    assert access.shards is not None
    parser = LineParser(store.name, access.limits, timezone, utc_now(), max_line_bytes)
    importer = _Importer(access, access.shards, on_conflict, source, on_rejection)
    pending: tuple[_Batch, list[asyncio.Future[Written]]] | None = None
    async for batch in _batches(lines, _Batcher(parser, source, len(access.shards))):
        if pending is not None:
            await importer.settle(*pending)
            if on_progress is not None:
                on_progress(importer.report)
        pending = batch, [importer.submit(group.shard, group.lines) for group in batch.groups]
    if pending is not None:
        await importer.settle(*pending)
        if on_progress is not None:
            on_progress(importer.report)
    return importer.report


class _Importer:
    def __init__(
        self,
        access: TieredAccess,
        shards: Shards,
        on_conflict: OnConflict,
        source: str,
        on_rejection: Callable[[Rejection], None] | None,
    ) -> None:
        self._access, self._shards, self._on_conflict, self._source = access, shards, on_conflict, source
        self._on_rejection = on_rejection
        self.report = ImportReport()

    def submit(self, shard: int, lines: list[_Line]) -> asyncio.Future[Written]:
        restore = Restore([line.unit for line in lines], replace=self._on_conflict == "replace")
        return self._access.write(restore, self._shards[shard])

    async def settle(self, batch: _Batch, writes: list[asyncio.Future[Written]]) -> None:
        """Wait for a batch's transactions and count what became of its lines."""
        rejections = list(batch.rejections)
        results = await asyncio.gather(*writes, return_exceptions=True)
        for group, result in zip(batch.groups, results, strict=True):
            if isinstance(result, ConstraintError):
                await self._one_by_one(group, rejections)
            elif isinstance(result, BaseException):
                raise result
            else:
                for line, outcome in zip(group.lines, result.result, strict=True):
                    self._count(line, outcome, rejections)
        self.report.lines += batch.lines
        self.report.bytes += batch.bytes
        self.report.rejected += len(rejections)
        if self._on_rejection is not None:
            for rejection in sorted(rejections, key=lambda rejection: rejection.line):
                self._on_rejection(rejection)

    async def _one_by_one(self, group: _Group, rejections: list[Rejection]) -> None:
        """Find the line that the database itself refused: the others go in."""
        for line in group.lines:
            try:
                [outcome] = (await self.submit(group.shard, [line])).result
            except ConstraintError as error:
                rejections.append(self._rejection(line, None, str(error)))
            else:
                self._count(line, outcome, rejections)

    def _count(self, line: _Line, outcome: Outcome, rejections: list[Rejection]) -> None:
        first = outcome.statuses[0]
        if first == "refused" or (first == "conflict" and self._on_conflict != "skip"):
            rejections.append(self._rejection(line, outcome.field, outcome.reason))
            return
        if first == "conflict":
            self.report.skipped += 1
            return
        counters = {
            "inserted": self.report.inserted,
            "unchanged": self.report.unchanged,
            "replaced": self.report.replaced,
        }
        for item, status in zip(line.unit.items, outcome.statuses, strict=True):
            counters[status][item.spec.kind] += 1
        self.report.deleted += outcome.deleted

    def _rejection(self, line: _Line, name: str | None, reason: str) -> Rejection:
        return Rejection(self._source, line.number, line.unit.items[0].row[0], name, reason)


async def _batches(
    lines: Iterable[bytes | str] | AsyncIterable[bytes | str], batcher: _Batcher
) -> AsyncIterator[_Batch]:
    if isinstance(lines, AsyncIterable):
        chunk: list[bytes | str] = []
        size = 0
        async for line in lines:
            chunk.append(line)
            size += len(line)
            if len(chunk) >= _BATCH_LINES or size >= _BATCH_BYTES:
                yield await asyncio.to_thread(batcher.parse, chunk)
                chunk, size = [], 0
        if chunk:
            yield await asyncio.to_thread(batcher.parse, chunk)
        return
    iterator = iter(lines)
    while (batch := await asyncio.to_thread(lambda: batcher.parse(_take(iterator)))).lines:
        yield batch


def _take(iterator: Iterator[bytes | str]) -> Iterator[bytes | str]:
    size = 0
    for taken, line in enumerate(iterator, 1):
        size += len(line)
        yield line
        if taken >= _BATCH_LINES or size >= _BATCH_BYTES:
            return


class _Batcher:
    """Makes batches of lines, and counts them."""

    def __init__(self, parser: LineParser, source: str, shards: int) -> None:
        self._parser, self._source, self._shards = parser, source, shards
        self._numbers = count(1)

    def parse(self, chunk: Iterable[bytes | str]) -> _Batch:
        """Parse some lines. Of one shard, groups are in the order of their lines."""
        groups: list[_Group] = []
        filling: dict[int, _Group] = {}
        rejections: list[Rejection] = []
        lines = size = 0
        for line, number in zip(chunk, self._numbers):  # noqa: B905 - the numbers never end
            lines, size = lines + 1, size + len(line)
            try:
                unit = self._parser.parse(line)
            except LineError as error:
                rejections.append(Rejection(self._source, number, error.id, error.field, error.reason))
                continue
            if unit is None:
                continue
            shard = shard_of(unit.items[0].namespace, self._shards)
            keys = {(item.spec.kind, item.namespace, item.row[0]) for item in unit.items}
            if shard not in filling or not filling[shard].keys.isdisjoint(keys):
                filling[shard] = _Group(shard, [], set())
                groups.append(filling[shard])
            filling[shard].keys.update(keys)
            filling[shard].lines.append(_Line(number, unit))
        return _Batch(lines, size, groups, rejections)
