"""`list`, `show`, `stats`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from memory_store import inspection
from memory_store.cli.options import Code, complain, opened, run_async
from memory_store.cli.screen import cell, print_json, print_line, print_lines, print_table
from memory_store.collection import Parts
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.errors import ConfigurationError
from memory_store.filters import parse_filter, parse_order_by
from memory_store.namespace import Namespace
from memory_store.records import PARTS, RECORDS, Record, RecordSpec
from memory_store.transfer import to_json

__all__ = ["list_records", "parse_where", "show_record", "show_stats"]

# What a table of many records leaves out: long values, and what hardly anybody looks for.
_NOT_LISTED = frozenset(
    {
        "revision",
        "updated_at",
        "context",
        "metadata",
        "reflection",
        "result",
        "pattern_data",
        "embedding",
        "success_rate",
    }
)
_SHOWN = 4000


def list_records(
    url: str,
    namespace: str,
    kind: str,
    where: str | None,
    order_by: str | None,
    desc: bool,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> int:
    """Print one page."""
    spec = _spec(kind)
    condition = None if where is None else parse_filter(spec, parse_where(where))
    order = parse_order_by(spec, order_by or "id", descending=desc)

    async def work() -> int:
        async with opened(url, namespace) as store:
            page = await store.collection(kind).list(condition, order_by=order, limit=limit, cursor=cursor)
        if as_json:
            items = ",".join(to_json(item, namespace) for item in page.items)
            print_json(f'{{"items":[{items}],"cursor":{json.dumps(page.cursor)}}}')
            return Code.OK
        names = [name for name in spec.columns if name not in _NOT_LISTED]
        print_table(names, [[getattr(item, name) for name in names] for item in page.items])
        if page.cursor is not None:
            print_line(f"more: --cursor {page.cursor}")
        return Code.OK

    return run_async(work())


def show_record(url: str, namespace: str, kind: str, id_: str, as_json: bool) -> int:
    """Print one record, and the parts of an episode."""
    _spec(kind)

    async def work() -> int:
        async with opened(url, namespace) as store:
            record: Record | None = await store.collection(kind).get(id_)
            if record is None:
                complain(f"there is no {kind} {id_!r:.300} in namespace {namespace!r}")
                return Code.PROBLEMS
            parts = await _parts_of(store, id_) if kind == "episode" else {}
        if as_json:
            own = to_json(record, namespace)
            lists = "".join(
                f",{json.dumps(name)}:[{','.join(to_json(item, namespace) for item in items)}]"
                for name, items in parts.items()
            )
            print_json(f'{{"record":{own}{lists}}}')
            return Code.OK
        print_lines(f"{name + ':':<16} {cell(getattr(record, name), _SHOWN)}" for name in RECORDS[kind].columns)
        for name, items in parts.items():
            if items:
                print_line("")
                print_line(f"{name}: {len(items):,}")
                columns = [c for c in RECORDS[name].columns if c not in ("id", "revision", "updated_at", "episode_id")]
                print_table(columns, [[getattr(item, column) for column in columns] for item in items])
        return Code.OK

    return run_async(work())


def show_stats(url: str, as_json: bool) -> int:
    """Print the counts."""

    async def work() -> int:
        async with opened(url, "default") as store:
            found = await inspection.stats(store)
        if as_json:
            print_json(asdict(found))
            return Code.OK
        print_table(
            ["namespace", *RECORDS],
            [[name, *(f"{rows:,}" for rows in counts.values())] for name, counts in found.rows.items()],
        )
        print_line(f"position {found.position:,}, change log {found.changes:,} entries")
        sizes = {"database": found.database_bytes, "WAL": found.wal_bytes, "saved cache": found.cache_bytes}
        if isinstance(parse_url(url), ServerTarget):
            del sizes["WAL"]
        print_line(", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()))
        return Code.OK

    return run_async(work())


async def _parts_of(store: Namespace, id_: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for spec in PARTS:
        parts = store.collection(spec.kind)
        assert isinstance(parts, Parts)
        found[spec.kind] = await parts.of(id_)
    return found


def _spec(kind: str) -> RecordSpec[Any]:
    if kind not in RECORDS:
        raise ConfigurationError(f"unknown kind {kind!r:.80}; known: {', '.join(RECORDS)}")
    return RECORDS[kind]


def parse_where(text: str) -> Any:
    """Return the filter of the option --where.

    Raises:
        ConfigurationError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--where is not JSON ({error})") from error
