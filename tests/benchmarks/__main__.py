"""`python -m tests.benchmarks NAME --json`, `... all --write`, `... quality`, `... peers --write`, `... list`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from functools import partial
from typing import Any

from .catalogue import BENCHMARKS
from .harness import Sizes, Workspace
from .report import table, write_budget, write_peers, write_quality


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="How fast, against a baseline.")
    parser.add_argument("name", choices=[*BENCHMARKS, "all", "quality", "peers", "list"])
    parser.add_argument("--json", action="store_true", help="print JSON, nothing else, on standard output")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/benchmarks.md")
    parser.add_argument("--rows", type=int, default=Sizes().rows, help="rows of the large tables (%(default)s)")
    parser.add_argument("--rounds", type=int, default=Sizes().rounds, help="rounds (%(default)s)")
    return parser.parse_args()


async def run(name: str, sizes: Sizes, workspace: Workspace) -> dict[str, Any]:
    """Run one benchmark and return its JSON object."""
    benchmark = BENCHMARKS[name]
    return benchmark.report(await benchmark.run(workspace, sizes))


async def _run_all(sizes: Sizes) -> list[dict[str, Any]]:
    results = []
    with Workspace() as workspace:
        for name in BENCHMARKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results.append(await run(name, sizes, workspace))
    return results


async def _run_one(name: str, sizes: Sizes) -> dict[str, Any]:
    with Workspace() as workspace:
        return await run(name, sizes, workspace)


def main() -> None:
    arguments = _arguments()
    if arguments.name == "list":
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:18} {benchmark.title}  |  against: {benchmark.against}")
        print("quality            how much of what is wanted is found, on the retrieval sets beside the checkout")
        print("peers              what a user would pick instead; runs in the environment `make bench-peers` makes")
        return
    sizes = Sizes(rows=arguments.rows, rounds=arguments.rounds)
    if arguments.name == "peers":
        from .peers import measure_peers  # here: the peers are installed in an environment of their own

        found: Any = asyncio.run(measure_peers(sizes))
        text = f"{table(found['peers'])}\n\n{table(found['vectors'])}"
        write = partial(write_peers, found)
    elif arguments.name == "quality":
        from .quality import measure_quality  # here: it needs numpy and a model

        found = asyncio.run(measure_quality())
        text, write = table(found["quality"]), partial(write_quality, found)
    elif arguments.name == "all":
        found = asyncio.run(_run_all(sizes))
        text, write = table(found), partial(write_budget, found)
    else:
        found = asyncio.run(_run_one(arguments.name, sizes))
        text, write = table([found]), None
        if arguments.write:
            sys.exit("--write is for `all`, `quality` and `peers`: a page holds figures of one run")
    print(json.dumps(found, indent=None if arguments.json else 2) if arguments.json else text)
    if arguments.write and write is not None:
        write()


if __name__ == "__main__":
    main()
