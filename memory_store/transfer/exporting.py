"""`export_lines`: a store as JSON Lines, in constant memory, such that importing them gives back every bit.

Each episode is followed by its parts, in their order; then come the patterns. What is written meanwhile may or may not
appear, but no part appears without its episode: an export can always be imported.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import JSON, Boolean, Float, String, Text

from memory_store.clock import from_us
from memory_store.codec import CODECS, Row
from memory_store.config import Limits
from memory_store.durable.scans import Portion, count_rows, list_namespaces, read_portion
from memory_store.errors import ConfigurationError
from memory_store.namespace import Namespace
from memory_store.records import PARTS, RECORDS, Record, RecordSpec
from memory_store.records.columns import Float32Vector, UtcDateTime

__all__ = ["ExportProgress", "export_file", "export_lines", "to_json"]

T = TypeVar("T")


@dataclass(slots=True)
class ExportProgress:
    """How far an export is.

    Args:
        done: records written, by kind.
        total: records there were when it began, of all kinds asked for.
        bytes: bytes written.
    """

    done: dict[str, int] = field(default_factory=dict)
    total: int = 0
    bytes: int = 0


async def export_lines(
    store: Namespace,
    *,
    kinds: Iterable[str] | None = None,
    all_namespaces: bool = False,
    on_progress: Callable[[ExportProgress], None] | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yield records as lines of JSON, each with its newline.

    Args:
        store: an open store, or a namespace of it.
        kinds: names of the kinds wanted; None for all.
        all_namespaces: every namespace of the store instead of only this one.
        on_progress: called now and then.

    Raises:
        ConfigurationError: there is no such kind.
        DurableError: the database cannot be read.
    """
    wanted = list(RECORDS) if kinds is None else list(dict.fromkeys(kinds))
    for kind in wanted:
        store.collection(kind)
    namespaces = [store.name]
    if all_namespaces:
        namespaces = await _scan(store, list_namespaces)
    progress = ExportProgress(dict.fromkeys(wanted, 0))
    if on_progress is not None:
        progress.total = await _scan(
            store, lambda connection: sum(count_rows(connection, kind, name) for kind in wanted for name in namespaces)
        )
    for namespace in namespaces:
        async for kind, lines in _namespace_lines(store, namespace, wanted):
            for line in lines:
                yield line
            progress.done[kind] += len(lines)
            progress.bytes += sum(map(len, lines))
            if on_progress is not None:
                on_progress(progress)


async def export_file(
    store: Namespace,
    path: str | Path,
    *,
    kinds: Iterable[str] | None = None,
    all_namespaces: bool = False,
    on_progress: Callable[[ExportProgress], None] | None = None,
) -> None:
    """Write an export to a file, readable by its owner only. A file of that name is replaced once all is written.

    Raises:
        ConfigurationError: there is no such kind, or the file cannot be written.
        DurableError: the database cannot be read.
    """
    target = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise ConfigurationError(f"cannot write in {target.parent}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
            lines = export_lines(store, kinds=kinds, all_namespaces=all_namespaces, on_progress=on_progress)
            async for line in lines:
                file.write(line)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        os.replace(name, target)  # noqa: PTH105 - pathlib is said to block the event loop; a rename does not
    except OSError as error:
        raise ConfigurationError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed
            os.unlink(name)  # noqa: PTH108


def to_json(record: Record, namespace: str) -> str:
    """Return a record as `export_lines` writes it, without the newline."""
    # What is stored has met the limits of the store that wrote it; they are not asked again.
    row = CODECS[record.kind].encode(record, _NO_LIMITS)
    return _LINES[record.kind].line(namespace, row).decode()[:-1]


async def _namespace_lines(
    store: Namespace, namespace: str, wanted: Sequence[str]
) -> AsyncIterator[tuple[str, list[bytes]]]:
    episode = RECORDS["episode"]
    parts = [spec for spec in PARTS if spec.kind in wanted]
    if parts or episode.kind in wanted:
        async for portion in _portions(store, episode, namespace, None):
            if episode.kind in wanted:
                yield episode.kind, portion.lines
            for spec in parts:
                async for part in _portions(store, spec, namespace, portion.ids):
                    yield spec.kind, part.lines
    for spec in RECORDS.values():
        if spec.kind in wanted and spec.parent is None and spec is not episode:
            async for portion in _portions(store, spec, namespace, None):
                yield spec.kind, portion.lines


async def _portions(
    store: Namespace, spec: RecordSpec[Any], namespace: str, parents: list[str] | None
) -> AsyncIterator[Portion]:
    write = _LINES[spec.kind].line
    after: tuple[Any, ...] | None = None if parents == [] else ()
    while after is not None:
        read = partial(read_portion, spec=spec, namespace=namespace, parents=parents, after=after, write=write)
        portion = await _scan(store, read)
        yield portion
        after = portion.after


async def _scan(store: Namespace, read: Callable[[sqlite3.Connection], T]) -> T:
    access = store._access
    access.require_usable()
    return await access.durable.scan.run(read)


_quote = json.JSONEncoder(ensure_ascii=False).encode


class _Lines:
    """Writes the rows of one kind."""

    def __init__(self, spec: RecordSpec[Any]) -> None:
        self._start = f'{{"kind":{_quote(spec.kind)},"namespace":'
        self._columns = [(f",{_quote(name)}:", _writer(spec.table.c[name].type)) for name in spec.columns]

    def line(self, namespace: str, row: Sequence[Any] | Row) -> bytes:
        """Return a row as a line."""
        parts = [self._start, _quote(namespace)]
        for (name, write), value in zip(self._columns, row, strict=True):
            parts.append(name)
            parts.append("null" if value is None else write(value))
        parts.append("}\n")
        return "".join(parts).encode()


def _writer(kind: Any) -> Callable[[Any], str]:
    if isinstance(kind, UtcDateTime):
        return _time
    if isinstance(kind, JSON):
        return str  # stored as JSON text
    if isinstance(kind, Float32Vector):
        return lambda packed: f'"{base64.b64encode(packed).decode()}"'
    if isinstance(kind, Boolean):
        return lambda value: "true" if value else "false"
    if isinstance(kind, String | Text):
        return _quote
    return float.__repr__ if isinstance(kind, Float) else repr


def _time(microseconds: int) -> str:
    return f'"{from_us(microseconds).isoformat(timespec="microseconds").removesuffix("+00:00")}Z"'


_LINES = {kind: _Lines(spec) for kind, spec in RECORDS.items()}
_HUGE = 1 << 62
_NO_LIMITS = Limits(
    episode_bytes=_HUGE,
    step_bytes=_HUGE,
    pattern_bytes=_HUGE,
    content_bytes=_HUGE,
    embedding_dimensions=_HUGE,
    json_depth=500,
    key_bytes=_HUGE,
)
