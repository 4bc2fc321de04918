"""Fixtures every suite shares: a store on each backend, and the recorded runs of real agents."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import MemoryStore

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

pytest_plugins = ["tests.servers.fixtures", "tests.migration.postgresql"]

BACKENDS = ["sqlite-file", "sqlite-memory", "postgresql", "postgresql-redis"]


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL of an empty database, once for each backend."""
    if request.param.endswith("-redis"):
        monkeypatch.setenv("MEMORY_STORE_SHARED_CACHE", str(request.getfixturevalue("redis_url")))
    if request.param.startswith("postgresql"):
        return str(request.getfixturevalue("postgres_url"))
    return {"sqlite-file": f"sqlite:///{tmp_path}/agent.db", "sqlite-memory": "sqlite:///:memory:"}[request.param]


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """A URL of an empty SQLite file, for what only a file can show."""
    return f"sqlite:///{tmp_path}/agent.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[MemoryStore]:
    """An open store on each backend."""
    async with MemoryStore(url, namespace="test-agent") as opened:
        yield opened


@pytest.fixture
async def file_store(file_url: str) -> AsyncIterator[MemoryStore]:
    """An open store on a SQLite file."""
    async with MemoryStore(file_url, namespace="test-agent") as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real inputs; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared real inputs are not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def recorded_lines(shared_data: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Return the episodes of one recorded source, e.g. `recorded_lines("aider")`."""

    def read(source: str) -> list[dict[str, Any]]:
        path = shared_data / "episodes" / f"{source}.jsonl"
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]

    return read
