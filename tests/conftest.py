"""Fixtures every suite shares: a store on each backend, and the recorded runs of real agents."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import MemoryStore
from memory_store.durable import schema
from memory_store.durable.engine import Target

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

pytest_plugins = ["tests.servers.fixtures", "tests.migration.postgresql"]


def pytest_collection_finish() -> None:
    """Walk what the collected tests consist of no more: it took a third of a second, once a fault test alone."""
    gc.collect()
    gc.freeze()


BACKENDS = ["sqlite-file", "sqlite-memory", "postgresql", "postgresql-redis"]


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at the newest revision, to be copied: to migrate is most of a short test's time."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    schema.upgrade(Target(str(path), False, {}), 30.0)
    return path


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL of a database without records, once for each backend; only the one in memory is still to be migrated."""
    if request.param.endswith("-redis"):
        monkeypatch.setenv("MEMORY_STORE_SHARED_CACHE", str(request.getfixturevalue("redis_url")))
    if request.param.startswith("postgresql"):
        return str(request.getfixturevalue("server_url"))
    if request.param == "sqlite-memory":
        return "sqlite:///:memory:"
    return str(request.getfixturevalue("file_url"))


@pytest.fixture
def file_url(migrated_file: Path, tmp_path: Path) -> str:
    """A URL of a SQLite file without records, for what only a file can show."""
    return f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'agent.db')}"


@pytest.fixture
def absent_url(tmp_path: Path) -> str:
    """A URL of a SQLite file that is not there yet."""
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
