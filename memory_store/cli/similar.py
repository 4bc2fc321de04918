"""`similar`."""

from __future__ import annotations

import json

from memory_store.cli.options import Code, complain, opened, run_async
from memory_store.cli.screen import print_json, print_line, print_table
from memory_store.errors import ConfigurationError
from memory_store.records import Pattern
from memory_store.transfer import to_json

__all__ = ["list_similar"]


def list_similar(
    url: str, namespace: str, text: str | None, pattern: str | None, limit: int, threshold: float, as_json: bool
) -> int:
    """Print the near-duplicates of a text, or of a stored pattern."""
    if (text is None) == (pattern is None):
        raise ConfigurationError("similar takes a text or --pattern, one of them")

    async def work() -> int:
        async with opened(url, namespace) as store:
            asked: Pattern | str | None = text if pattern is None else await store.patterns.get(pattern)
            if asked is None:
                complain(f"there is no pattern {pattern!r:.300} in namespace {namespace!r}")
                return Code.PROBLEMS
            found = await store.patterns.similar(asked, limit=limit, threshold=threshold)
        if as_json:
            items = (
                f'{{"similarity":{json.dumps(each.similarity)},"pattern":{to_json(each.pattern, namespace)}}}'
                for each in found
            )
            print_json(f'{{"items":[{",".join(items)}]}}')
        elif not found:
            print_line("nothing is similar")
        else:
            print_table(
                ["similarity", "id", "domain", "usage_count", "pattern_data"],
                [
                    [
                        f"{each.similarity:.2f}",
                        each.pattern.id,
                        each.pattern.domain,
                        each.pattern.usage_count,
                        each.pattern.pattern_data,
                    ]
                    for each in found
                ],
            )
        return Code.OK

    return run_async(work())
