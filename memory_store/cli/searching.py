"""`search`, `reindex`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from memory_store.cli.options import Code, opened, run_async
from memory_store.cli.reading import parse_where
from memory_store.cli.screen import bar, print_json, print_line, print_table, printable
from memory_store.errors import ConfigurationError
from memory_store.filters import parse_filter
from memory_store.records import RECORDS
from memory_store.search.results import Hit, SearchResults
from memory_store.transfer import to_json

__all__ = ["reindex", "search"]

_MOST_CHARACTERS = 300


def search(
    url: str,
    namespace: str,
    query: str,
    kinds: Sequence[str] | None,
    where: str | None,
    expert: bool,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> int:
    """Print what a search by text finds."""
    condition = None
    if where is not None:
        if not kinds or len(kinds) > 1 or kinds[0] not in RECORDS:
            raise ConfigurationError("--where filters one kind: name it by --kind")
        condition = parse_filter(RECORDS[kinds[0]], parse_where(where))

    async def work() -> int:
        async with opened(url, namespace) as store:
            results = await store.search(
                query,
                kinds=kinds or None,
                where=condition,
                mode="text",
                syntax="expert" if expert else "plain",
                limit=limit,
                cursor=cursor,
            )
        if as_json:
            _print_as_json(results, namespace)
        else:
            _print(results)
        return Code.OK

    return run_async(work())


def _print_as_json(results: SearchResults, namespace: str) -> None:
    items = ",".join(
        f'{{"score":{json.dumps(hit.score)},"scores":{json.dumps(dict(hit.scores))},'
        f'"highlights":{json.dumps({one.field: one.marked() for one in hit.highlights}, ensure_ascii=False)},'
        f'"record":{to_json(hit.record, namespace)}}}'
        for hit in results
    )
    print_json(f'{{"items":[{items}],"cursor":{json.dumps(results.cursor)},"complete":{json.dumps(results.complete)}}}')


def _print(results: SearchResults) -> None:
    if not results:
        print_line("nothing was found")
    else:
        rows = [[f"{hit.score:.2f}", hit.kind, hit.id, _excerpt(hit)] for hit in results]
        print_table(["score", "kind", "id", "where"], rows, length=_MOST_CHARACTERS)
    if not results.complete:
        print_line("not everything is indexed yet; more may be found in a moment")
    if results.cursor is not None:
        print_line(f"more: --cursor {results.cursor}")


def _excerpt(hit: Hit) -> str:
    return " … ".join(f"{one.field}: {printable(' '.join(one.marked().split()))}" for one in hit.highlights)


def reindex(url: str, as_json: bool) -> int:
    """Make the full-text index anew, and show how far it is."""

    async def work() -> int:
        began = time.monotonic()
        with bar() as progress:
            task = progress.add_task("indexing", total=None, note="")

            def tell(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total)

            async with opened(url, "default") as store:
                count = await store.reindex(on_progress=tell)
        seconds = time.monotonic() - began
        if as_json:
            print_json({"records": count, "seconds": seconds})
        else:
            print_line(f"{count:,} records indexed, in {seconds:.1f} s")
        return Code.OK

    return run_async(work())
