"""`cache status`, `cache rebuild`, `cache clear`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from memory_store import inspection
from memory_store.cli.options import Code, complain, opened, run_async
from memory_store.cli.screen import bar, print_json, print_line
from memory_store.durable.engine import parse_url
from memory_store.errors import ConfigurationError

__all__ = ["clear", "rebuild", "status"]

_LOOK_AGAIN_S = 0.1


def status(url: str, as_json: bool) -> int:
    """Print what the saved cache holds."""
    _require_file(url)

    async def work() -> int:
        async with opened(url, "default") as store:
            found = await inspection.saved_cache(store)
        if as_json:
            print_json(asdict(found))
        elif found.path is None:
            print_line("no cache is saved: cache_path is empty")
        else:
            print_line(f"{found.path}: {found.entries:,} entries, {found.bytes:,} bytes")
            reason = f"no, {found.reason}: it will be rebuilt in the background"
            print_line(f"used at the next start: {'yes' if found.usable else reason}")
        return Code.OK

    return run_async(work())


def rebuild(url: str, as_json: bool) -> int:
    """Fill the cache, showing how far it is."""
    _require_file(url)

    async def work() -> int:
        async with opened(url, "default", cached=True) as store:
            filling = asyncio.create_task(store.cache.rebuild())
            try:
                with bar() as progress:
                    task = progress.add_task("cache", total=None, note="")
                    while not (await asyncio.wait([filling], timeout=_LOOK_AGAIN_S))[0]:
                        now = await store.cache.status()
                        progress.update(task, completed=now.done, total=now.total, note=f"{now.entries:,} entries")
                await filling
            finally:
                filling.cancel()
            await store.cache.save()
            found = await store.cache.status()
        if as_json:
            print_json(asdict(found))
        else:
            print_line(f"the cache holds {found.entries:,} entries, {found.used_bytes:,} of {found.max_bytes:,} bytes")
        if found.error:
            complain(found.error)
        return Code.PROBLEMS if found.error else Code.OK

    return run_async(work())


def clear(url: str, as_json: bool) -> int:
    """Empty the cache."""
    _require_file(url)

    async def work() -> int:
        async with opened(url, "default", cached=True) as store:
            await store.cache.clear()
            found = await store.cache.status()
        if as_json:
            print_json(asdict(found))
        elif found.path is None:
            print_line("no cache is saved: cache_path is empty")
        else:
            print_line(f"the saved cache in {found.path} is empty")
        return Code.OK

    return run_async(work())


def _require_file(url: str) -> None:
    if parse_url(url).memory:
        raise ConfigurationError("a :memory: database has no saved cache: name a file, e.g. sqlite:///agent.db")
