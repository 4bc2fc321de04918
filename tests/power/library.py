"""The library on a machine: its own functions, called as its writer's thread calls them."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from memory_store.clock import now_us
from memory_store.durable import schema
from memory_store.durable.batches import Applied, InDoubtError, run_batch, run_in_savepoint
from memory_store.durable.checkpoint import Checkpointer
from memory_store.durable.commits import LogWriter, rollback
from memory_store.durable.dialects.sqlite import connection_pragmas
from memory_store.durable.lock import FileLock
from memory_store.durable.log import CommitToken, read_head
from memory_store.durable.operations import Context, Operation
from memory_store.durable.outcomes import Resolve
from tests.power import vfs
from tests.power.driver import Connection
from tests.power.machine import Killed, Machine, PowerCut, Session

__all__ = ["CHANCE", "DATABASE", "Chance", "Library"]

DATABASE = "agent.db"
_sessions = itertools.count()


class Chance:
    """The random numbers and the time of the process, the same in every run of a case."""

    def __init__(self) -> None:
        self.state = (0, 0)
        """Random numbers drawn; operations begun, each a millisecond after the one before."""

    def urandom(self, amount: int) -> bytes:
        """Stand in for `os.urandom`."""
        drawn, ticks = self.state
        self.state = drawn + 1, ticks
        return hashlib.shake_128(f"{drawn}".encode()).digest(amount)

    def time_ns(self) -> int:
        """Stand in for `time.time_ns`."""
        return 1_800_000_000_000_000_000 + self.state[1] * 1_000_000

    def tick(self) -> None:
        """Let time pass."""
        drawn, ticks = self.state
        self.state = drawn, ticks + 1

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put them in the place of the system's."""
        kept = os.urandom, time.time_ns
        os.urandom, time.time_ns = self.urandom, self.time_ns  # type: ignore[assignment]
        try:
            yield
        finally:
            os.urandom, time.time_ns = kept


CHANCE = Chance()


class Library:
    """One process that uses the library on a machine's database.

    Args:
        machine: where it runs.
        synchronous: another setting than the library's own FULL, to see what that loses.
    """

    def __init__(self, machine: Machine, synchronous: str | None = None) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._real = tempfile.mkdtemp(prefix="memory_store-power-", dir=base)
        self.session = Session(machine, self._real)
        vfs.SESSIONS[self._real] = self.session
        self._connections: list[Connection] = []
        self._pragmas = connection_pragmas(0.05, durable=True)
        if synchronous is not None:
            self._pragmas += f"PRAGMA synchronous = {synchronous};"
        try:
            self._open()
        except BaseException:
            self.die()
            raise

    def _open(self) -> None:
        self.connection = self.connect()
        # As `memory_store.durable.checkpoint.sync_log`, which works on real files.
        self.connection.beside_sqlite(lambda: vfs.sync_beside(self.session, f"{DATABASE}-wal"))
        self.revision = schema.read_revision(cast(Any, self.connection))
        self.reader: Connection | None = None
        self._lock = FileLock(str(Path(self._real) / "lock"), 0.05)
        self.checkpointer = Checkpointer(DATABASE, self._lock)
        if self.revision == schema.HEAD_REVISION:
            self.known = read_head(cast(Any, self.connection))
            self._log = LogWriter("power", self.known.epoch)

    def connect(self) -> Connection:
        """Open one more connection, as the library sets them up."""
        connection = Connection(self.session, DATABASE)
        self._connections.append(connection)
        connection.executescript(self._pragmas)
        return connection

    def batch(self, operations: Sequence[Operation]) -> Applied:
        """Do what the writer does with a batch."""
        try:
            with self._lock.shared():
                applied = run_batch(cast(Any, self.connection), operations, self._log, self.known)
        except InDoubtError as error:
            raise error.unknown from error
        if applied.commit.changes:
            self._committed(applied.commit.position, applied.commit.nonce)
            self.checkpointer.after_commit(cast(Any, self.connection), len(applied.commit.changes))
        return applied

    def transaction(self, operations: Sequence[Operation]) -> list[Any]:
        """Do what a unit of work does: its operations one by one, then the commit."""
        connection: Any = self.connection
        with self._lock.shared():
            opened = self._log.begin(connection, self.known)
            context = Context.new(now_us(), opened.head.position + 1)
            try:
                outcomes = [run_in_savepoint(connection, operation, context) for operation in operations]
            except Exception:
                rollback(connection)
                raise
            commit = self._log.commit(connection, context, opened)
        if commit.changes:
            self._committed(commit.position, commit.nonce)
            self.checkpointer.after_commit(connection, len(commit.changes))
        return outcomes

    def _committed(self, position: int, nonce: int) -> None:
        self.known = self.known._replace(position=position, nonce=nonce)

    def resolve(self, token: str) -> Any:
        """Do what `MemoryStore.resolve` does."""
        return self.batch([Resolve(CommitToken.parse(token))]).outcomes[0]

    def checkpoint(self) -> bool:
        """Checkpoint as the writer does."""
        return self.checkpointer.checkpoint(cast(Any, self.connection))

    def run_script(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Run recorded statements, as a migration does."""
        try:
            for sql, parameters in statements:
                self.connection.execute(sql, parameters)
        except Exception:
            rollback(cast(Any, self.connection))
            raise

    def close(self) -> None:
        """Close every connection; SQLite checkpoints and removes the WAL with the last one."""
        try:
            for connection in self._connections[::-1]:
                connection.close()
        finally:
            self.die()

    def die(self) -> None:
        """End without a word, as `kill -9` does it."""
        self.session.alive = False
        for connection in self._connections[::-1]:
            try:
                connection.close()
            except (Killed, PowerCut):
                continue
        self._leave()

    def _leave(self) -> None:
        if hasattr(self, "_lock"):
            self._lock.close()
        vfs.SESSIONS.pop(self._real, None)
        shutil.rmtree(self._real, ignore_errors=True)
