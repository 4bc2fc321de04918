"""What every fault test runs under: nothing may go wrong unseen on the event loop, and nothing may be left behind."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _older_objects_are_frozen() -> None:
    """Walk what earlier tests left behind once, not at the end of each test: it took a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
async def _nothing_goes_wrong_unseen(_older_objects_are_frozen: None) -> AsyncIterator[None]:
    """Fail a test when a future's exception was never looked at or a callback raised."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    yield
    gc.collect()  # a future tells of its unseen exception when it goes
    await asyncio.sleep(0)
    assert unseen == []


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fail a test that leaves a thread of a connection running."""
    before = set(threading.enumerate())
    yield
    # asyncio.to_thread keeps its workers with the loop; they are no connection's.
    started = [thread for thread in threading.enumerate() if thread not in before and "asyncio" not in thread.name]
    for thread in started:
        thread.join(timeout=3)  # it answers "closed" a moment before its own end
    assert [thread.name for thread in started if thread.is_alive()] == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which those of `tmp_path` are not."""
    folder = Path(tempfile.mkdtemp(prefix="memory_store-fault-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
