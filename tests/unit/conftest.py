"""A migrated database for each test, and the durable tier's parts on it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from memory_store.durable import schema
from memory_store.durable.changes import HeadState
from memory_store.durable.dialects.sqlite import connection_pragmas
from memory_store.durable.engine import Target, make_engine
from memory_store.durable.lane import Lane, ThreadLane
from memory_store.durable.log import Commit, Run, read_head
from memory_store.durable.reader import Snapshot


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database at the newest revision, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    schema.upgrade(Target(str(path), False, {}), 30.0)
    return path


@pytest.fixture
def path(migrated: Path, tmp_path: Path) -> str:
    """The path of a migrated database of the test's own."""
    return str(shutil.copy(migrated, tmp_path / "agent.db"))


@pytest.fixture
def connection(path: str) -> Iterator[sqlite3.Connection]:
    """A connection to it, set up as the store's own are."""
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        opened.executescript(connection_pragmas(5.0, durable=True))
        yield opened


@pytest.fixture
async def lane(path: str) -> AsyncIterator[ThreadLane]:
    """A lane to it."""
    engine = make_engine(Target(path, False, {}), 5.0)
    opened = await ThreadLane.open(engine)
    yield opened
    await opened.close()
    await engine.dispose()


@dataclass
class Ears:
    """A listener that stands where the log is, and keeps what it is told."""

    head: HeadState
    commits: list[Commit] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    doubts: int = 0

    def deliver(self, run: Run, began: float | None = None) -> None:
        """Keep what a lane saw of others' commits."""
        self.runs.append(run)
        self.head = max(self.head, run.head)

    def publish(self, commit: Commit) -> None:
        """Keep a commit, behind what was committed before it."""
        if commit.before is not None:
            self.deliver(commit.before)
        self.commits.append(commit)
        self.head = commit.head

    def doubt(self) -> None:
        """Count the commits whose outcome is unknown."""
        self.doubts += 1


@pytest.fixture
def ears(connection: sqlite3.Connection) -> Ears:
    """A listener at the newest commit of the test's own database."""
    return Ears(read_head(connection))


class Blocker:
    """Keeps a lane's thread busy for as long as a test needs."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    @asynccontextmanager
    async def block(self) -> AsyncIterator[None]:
        """Until the end of the block nothing else runs on the lane; what is submitted meanwhile runs after it."""
        entered, leave = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def hold(_connection: sqlite3.Connection) -> None:
            loop.call_soon_threadsafe(entered.set)
            assert leave.wait(60)

        held = self._lane.submit(hold)
        await entered.wait()
        try:
            yield
        finally:
            leave.set()
            await held


class HeldRead:
    """Holds what a lane reads next as a `Snapshot` between its last row and its answer: it has seen, and not told."""

    def __init__(self, lane: Any) -> None:
        self._lane, self._leave = lane, threading.Event()
        self.reached = asyncio.Event()

    async def __aenter__(self) -> HeldRead:
        loop, lane = asyncio.get_running_loop(), self._lane

        def held(function: Callable[[Any], Any], connection: Any) -> Any:
            result = function(connection)
            if isinstance(result, Snapshot) and not self._leave.is_set():
                loop.call_soon_threadsafe(self.reached.set)
                assert self._leave.wait(60)
            return result

        submit, post = lane.submit, lane.post
        lane.submit = lambda function: submit(partial(held, function))
        lane.post = lambda function, done: post(partial(held, function), done)
        return self

    def release(self) -> None:
        """Let it go on."""
        self._leave.set()

    async def __aexit__(self, *_: object) -> None:
        self.release()
        del self._lane.submit, self._lane.post


@pytest.fixture
def blocker() -> type[Blocker]:
    """The class that blocks lanes."""
    return Blocker
