"""What surrounds the processes of a history: database, disk, clock, other programs, power.

A process may be stopped at any statement and at any reading of the clock; that is where `tick` lets other things
happen.
"""

from __future__ import annotations

import random
import sqlite3

from memory_store.durable.changes import HeadState
from memory_store.durable.log import begin_epoch
from tests.simulation.checker import Checker
from tests.simulation.clients import Clients, foreign_change
from tests.simulation.connection import Connection, driver_error
from tests.simulation.database import Database
from tests.simulation.loop import Clock
from tests.simulation.process import Disk, Process

__all__ = ["FAVOURITES", "Environment", "brief"]

FAVOURITES = ("", "", "rewind", "restart", "slow", "parts", "far")


class Environment:
    """Everything of a history but its plot.

    Args:
        seed: decides everything.
        trace: takes what happens, line by line; None to be fast.
        favourite: what happens more often than in other histories; drawn where it is None.
        gaps: whether the database hands out positions that become visible out of order (a mutant).
    """

    def __init__(self, seed: int, trace: list[str] | None, favourite: str | None, *, gaps: bool) -> None:
        self.seed, self.trace = seed, trace
        self.rng = rng = random.Random(seed)
        self.clock = Clock()
        self.database = Database(rng, self._now, gaps=gaps)
        self.disk = Disk()
        self.checker = Checker(self.database)
        self.clients = Clients(self.database, self.clock, self.checker, rng, self.note)
        self.processes: list[Process] = []
        self._started = 0
        self._wanted = rng.choice((1, 2, 2, 3, 3, 4))
        drawn = rng.choice(FAVOURITES)
        self._favourite = drawn if favourite is None else favourite
        # Taking the database back behind everybody's back makes every other promise weaker, so most histories do not.
        self._rewinds = self._favourite == "rewind" or rng.random() < 0.1
        self._rewinds_next = False
        """Whether the database is taken back when something happens in the middle of things."""
        self._faults = rng.random() < 0.5
        self._fuse = self._draw_fuse()
        self._recovering = 0
        """Looks that the probe cannot take yet."""
        self.database.tick = self._before_statement
        self.clock.tick = self._at_clock

    def _now(self) -> float:
        return self.clock.now

    def note(self, line: str) -> None:
        """Add a line to the trace."""
        if self.trace is not None:
            self.trace.append(line)

    # What happens in the middle of things

    def _draw_fuse(self) -> int:
        return 3 + int(self.rng.random() ** 2 * 120)

    def _before_statement(self, connection: Connection, text: str) -> None:
        if connection.role == "probe" and self._recovering and text != "COMMIT":
            self._recovering -= 1
            self.note("  the database is being recovered: the probe cannot look")
            raise driver_error(sqlite3.SQLITE_BUSY, "busy")
        self._fuse -= 1
        if self._fuse > 0:
            return
        self._fuse = self._draw_fuse()
        roll = self.rng.random()
        if roll < 0.3 and self._faults:
            # A lane meets a lock that does not go away.
            if text != "COMMIT" and connection.owner and not connection.in_transaction:
                self.note(f"  the database is busy for {connection.role} of {getattr(connection.owner, 'number', 0)}")
                raise driver_error(sqlite3.SQLITE_BUSY, "busy")
        else:
            self._meanwhile()

    def _at_clock(self) -> bool:
        self._fuse -= 1
        if self._fuse > 0:
            return False
        self._fuse = self._draw_fuse()
        self._meanwhile()
        return self.rng.random() < 0.5

    def _meanwhile(self) -> None:
        """Something happens while the process that is running is stopped between two statements."""
        rng = self.rng
        if rng.random() < 0.8 and self.database.locked_by is None:
            if self._rewinds and (self._rewinds_next or rng.random() < 0.05):
                self._rewinds_next = False
                self._rewind()
            else:
                self._foreign()
        if rng.random() < 0.5:
            self.clock.pass_(rng.choice((1, 40, 70, 200)))
            self.note(f"  meanwhile it has become {self.clock.now}")

    def _foreign(self) -> None:
        self.database.commit_foreign(foreign_change(self.rng, self.clients.token))
        self.note(
            f"  plain SQL: head {brief(self.database.current.head)} {[row[2:] for row in self.database.current.log]}"
        )

    def _fails_commit(self) -> str:
        if not self._faults or self.rng.random() > 0.04:
            return ""
        return self.rng.choice(("lost", "kept"))

    # Processes

    def _start(self) -> None:
        self._started += 1
        if self.rng.random() < 0.08:
            self._tear()
        on_server = self.rng.random() < (0.8 if self._favourite == "far" else 0.4)
        process = Process(self._started, self.database, self.clock, self.disk, self.rng, on_server=on_server)
        process.connections["write"].fails_commit = self._fails_commit
        self.processes.append(process)
        self.note(
            f"process {process.number} starts{' on a server' * on_server}, {process.freshness}, {process.staleness_s} s"
        )

    def _kill(self, process: Process) -> None:
        self.note(f"process {process.number} is killed")
        process.kill()
        self.processes.remove(process)

    # What happens outside

    def _outside(self, roll: float) -> None:
        """Something happens to database, disk or clock."""
        rng, database = self.rng, self.database
        if roll < 35:
            if database.locked_by is None:
                self._foreign()
            if rng.random() < 0.3:
                self._hint(database.current.head.position - 2 + int(rng.random() * 4))
        elif roll < 75:
            self.clock.pass_(rng.choice((1, 8, 30, 64, 64, 130, 130, 900)))
            self.note(f"it is {self.clock.now}")
        elif roll < 84:
            database.trim(database.current.head.position - int(rng.random() * 8))
            self.note(f"the log is trimmed up to {database.current.trimmed}")
        elif roll < 88:
            self._begin_epoch()
        elif roll < 91:
            self._power_cut()
        elif self._rewinds and database.locked_by is None:
            self._rewind()

    def _hint(self, position: int) -> None:
        """Tell every process that listens of a position, which may be wrong."""
        for process in self.processes:
            if process.watch is not None:
                process.loop.call_soon(process.watch.hinted, 0, position)

    def _begin_epoch(self) -> None:
        """Upgrade the database, or restore an older state as the library does it."""
        if self.database.locked_by is not None:
            return
        connection = Connection(self.database, None, "restore")
        connection.execute("BEGIN IMMEDIATE")
        operation = self.rng.choice(("upgrade", "restore"))
        if operation == "restore":
            connection.restore(self.rng.choice(self.database.versions))
        head = begin_epoch(connection.execute, operation)
        connection.execute("COMMIT")
        self.note(f"{operation}: {head}")

    def _tear(self) -> None:
        """The file of the saved cache is damaged, cut off, or an older one put back."""
        disk, rng = self.disk, self.rng
        if not disk.content:
            return
        roll = rng.random()
        if roll < 0.4:
            disk.content = rng.choice(disk.older)
        elif roll < 0.7:
            disk.content = disk.content[: int(rng.random() * len(disk.content))]
        else:
            place = int(rng.random() * len(disk.content))
            damaged = bytearray(disk.content)
            damaged[place] ^= 1 << int(rng.random() * 8)
            disk.content = bytes(damaged)
        self.note("the saved cache is not what it was")

    def _power_cut(self) -> None:
        """Every process dies at once, and the disk has lied about the last commits."""
        for process in list(self.processes):
            self._kill(process)
        self._rewind()

    def _rewind(self) -> None:
        self.database.rewind(1 + int(self.rng.random() ** 2 * 5))
        self.checker.rewound(self.processes)
        self.note(f"the database is taken back to {self.database.current.head}")


def brief(head: HeadState) -> str:
    return f"{head.position}#{head.nonce % 4096:03x}"
