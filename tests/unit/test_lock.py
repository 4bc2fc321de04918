"""The lock file: shared among writers, exclusive for checkpoints and upgrades, across processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memory_store import DurableTimeoutError, DurableUnavailableError
from memory_store.durable.lock import FileLock


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., FileLock]]:
    """A factory of locks on one file."""
    made: list[FileLock] = []

    def lock(timeout_s: float = 0.05) -> FileLock:
        made.append(FileLock(str(tmp_path / "lock"), timeout_s))
        return made[-1]

    yield lock
    for one in made:
        one.close()


def test_writers_share_it(make: Callable[..., FileLock]) -> None:
    first, second = make(), make()
    with first.shared(), second.shared():
        pass
    with first.shared(), second.exclusive_if_free() as held:
        assert not held
    with second.exclusive_if_free() as held:
        assert held


def test_exclusive_shuts_everybody_out(make: Callable[..., FileLock]) -> None:
    first, second = make(), make()
    with first.exclusive():
        for attempt in (second.shared, second.exclusive):
            with pytest.raises(
                DurableTimeoutError, match=r"another process held .*lock for more than 0\.05 s"
            ) as caught:
                enter(attempt)
            assert caught.value.retryable
        with second.exclusive_if_free() as held:
            assert not held
    with second.exclusive():
        pass


def enter(attempt: Callable[[], object]) -> None:
    """Enter a context and leave it."""
    with attempt():  # type: ignore[attr-defined]
        pass


def test_a_waiter_gets_it_when_it_is_free(make: Callable[..., FileLock]) -> None:
    first, second = make(), make(timeout_s=30)
    got, waiting = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        with second.shared():
            got.set()

    with first.exclusive():
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(10)
        assert not got.is_set()
    assert got.wait(10)
    thread.join()


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock exclusively until it is killed."""
    source = (
        "import sys; from memory_store.durable.lock import FileLock\n"
        "with FileLock(sys.argv[1], 5.0).exclusive(): print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", source, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    with child:
        try:
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_it_works_between_processes_and_death_frees_it(make: Callable[..., FileLock], tmp_path: Path) -> None:
    lock = make()
    with held_by_another_process(tmp_path / "lock") as child:
        with pytest.raises(DurableTimeoutError):
            enter(lock.shared)
        child.kill()
        child.wait()
        with lock.exclusive_if_free() as held:
            assert held


def test_an_exception_frees_it(make: Callable[..., FileLock]) -> None:
    first, second = make(), make()

    def fail() -> None:
        with first.exclusive():
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    with second.exclusive_if_free() as held:
        assert held


def test_the_file_stays_and_closing_twice_is_safe(make: Callable[..., FileLock], tmp_path: Path) -> None:
    lock = make()
    lock.close()
    lock.close()
    assert (tmp_path / "lock").exists()


def test_a_folder_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(DurableUnavailableError, match="cannot open the lock file"):
        FileLock(str(tmp_path / "nothing" / "lock"), 1.0)
