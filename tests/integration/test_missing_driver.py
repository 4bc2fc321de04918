"""Without the extra that a URL needs, whoever names a server is told what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The driver is hidden as if it were not installed: nothing finds or imports it.
_HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("asyncpg", "tenacity", "redis", "datasketch")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hidden
"""
_SERVER = "postgresql://agent@127.0.0.1:1/agents"


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has no driver."""
    return subprocess.run([sys.executable, "-c", _HIDDEN + code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "command",
    ["upgrade", "check", "history", "doctor", "stats", "verify", "partition", "secure --role r", "copy sqlite:///x.db"],
)
def test_every_command_says_what_to_install(command: str) -> None:
    name, *options = command.split()
    target = [_SERVER] if name == "copy" else ["--url", _SERVER]
    done = run(f"from memory_store.cli.app import run\nsys.exit(run({[name, *options, *target]!r}))")

    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'memory-store[postgres]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_store_says_what_to_install() -> None:
    done = run(f"from memory_store import MemoryStore\nMemoryStore({_SERVER!r})")

    assert done.stderr.splitlines()[-1].startswith("memory_store.errors.ConfigurationError: ")
    assert "pip install 'memory-store[postgres]'" in done.stderr


def test_a_shared_cache_says_what_to_install() -> None:
    code = """
import asyncio
from memory_store import MemoryStore
asyncio.run(MemoryStore("sqlite:///:memory:", shared_cache="redis://localhost").open())
"""
    done = run(code)

    assert done.stderr.splitlines()[-1].startswith("memory_store.errors.ConfigurationError: ")
    assert "pip install 'memory-store[redis]'" in done.stderr


@pytest.mark.parametrize("call", ["similar('x')", "merge_duplicates()"])
def test_near_duplicates_say_what_to_install(call: str) -> None:
    code = f"""
import asyncio
from memory_store import MemoryStore, Pattern
async def main():
    async with MemoryStore("sqlite:///:memory:") as store:
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data="x"))
        await store.patterns.record_use("p", success=True)
        await store.patterns.{call}
asyncio.run(main())
"""
    done = run(code)

    assert done.stderr.splitlines()[-1].startswith("memory_store.errors.ConfigurationError: ")
    assert "pip install 'memory-store[similarity]'" in done.stderr


def test_files_need_no_driver() -> None:
    code = """
import asyncio
from memory_store import Episode, MemoryStore
async def main():
    async with MemoryStore("sqlite:///:memory:") as store:
        await store.episodes.put(Episode(id="e", task_type="t", domain="d"))
        print((await store.episodes.get("e")).id, (await store.episodes.list()).items[0].id)
asyncio.run(main())
"""
    done = run(code)

    assert (done.returncode, done.stdout, done.stderr) == (0, "e e\n", "")
