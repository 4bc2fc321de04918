"""One history: a seed decides everything that happens, and in which order."""

from __future__ import annotations

import random
import sqlite3
from typing import Any

from memory_store.durable.changes import HeadState
from memory_store.durable.log import begin_epoch
from tests.simulation.checker import Checker, Violation
from tests.simulation.clients import Clients, foreign_change
from tests.simulation.connection import Connection, driver_error
from tests.simulation.database import Database
from tests.simulation.loop import Clock
from tests.simulation.process import Disk, Process

__all__ = ["CURRENT", "History", "run"]


class History:
    """One history.

    Args:
        seed: decides everything.
        trace: takes what happens, line by line; None to be fast.
        gaps: whether the database hands out positions that become visible out of order (a mutant).
    """

    def __init__(self, seed: int, trace: list[str] | None = None, *, gaps: bool = False) -> None:
        self.seed, self.trace = seed, trace
        self.rng = rng = random.Random(seed)
        self.clock = Clock()
        self.database = Database(rng, self.clock_now, gaps=gaps)
        self.disk = Disk()
        self.checker = Checker(self.database)
        self.clients = Clients(self.database, self.clock, self.checker, rng, self.note)
        self.processes: list[Process] = []
        self._started = 0
        self._wanted = rng.choice((1, 2, 2, 3, 3, 4))
        # Taking the database back behind everybody's back makes every other promise weaker, so most histories do not.
        self._favourite = rng.choice(("", "", "rewind", "restart", "slow", "parts"))
        self._rewinds = self._favourite == "rewind" or rng.random() < 0.1
        self._faults = rng.random() < 0.5
        self._fuse = self._draw_fuse()
        self._saved = False
        self._recovering = 0
        """Looks that the probe cannot take yet."""
        self.database.tick = self._before_statement
        self.clock.tick = self._at_clock

    def clock_now(self) -> float:
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
            self._foreign()
        if rng.random() < 0.5:
            self.clock.pass_(rng.choice((1, 40, 70, 200)))
            self.note(f"  meanwhile it has become {self.clock.now}")

    def _foreign(self) -> None:
        self.database.commit_foreign(foreign_change(self.rng, self.clients.token))
        self.note(f"  plain SQL: head {_brief(self.database.current.head)} {[row[2:] for row in self.database.current.log]}")

    def _fails_commit(self) -> str:
        if not self._faults or self.rng.random() > 0.04:
            return ""
        return self.rng.choice(("lost", "kept"))

    # What is done

    def run(self) -> None:
        """Run the history.

        Raises:
            Violation: a promise was broken.
        """
        rng = self.rng
        for _ in range(30 + int(rng.random() * 51)):
            self._act()
            self._go_on(int(rng.random() ** 2 * 14))
            self._check()
        self._finish()

    def _act(self) -> None:
        rng = self.rng
        if len(self.processes) < self._wanted and rng.random() < 0.3:
            self._start()
            return
        roll = rng.random() * 100
        process = rng.choice(self.processes) if self.processes else None
        if process is None or not process.is_open:
            if roll < 30:
                self._outside(rng.random() * 40)
            return
        if self._favourite and rng.random() < 0.2:
            self._do_favourite(process)
            return
        if roll < 42:
            for _ in range(1 if rng.random() < 0.7 else 3):
                self._call(process, *self.clients.a_read(process))
        elif roll < 66:
            for _ in range(1 if rng.random() < 0.75 else 3):
                self._call(process, *self.clients.a_write(process))
            if rng.random() < 0.3:
                self._call(process, *self.clients.a_read(process))
        elif roll < 86:
            self._outside((roll - 66) * 100 / 20)
        elif roll < 89:
            self._cancel(process)
        elif roll < 92:
            process.stalled = 5 + int(rng.random() * 40)
            self.note(f"process {process.number} is stopped for {process.stalled} steps")
        elif roll < 96:
            self._keep(process)
        else:
            self._end(process)

    def _do_favourite(self, process: Process) -> None:
        """Do what this history does more often than others: rare things are met where they come in numbers."""
        roll = self.rng.random()
        if self._favourite == "parts":
            self._call(process, *self.clients.an_append(process))
            self._call(process, *self.clients.a_read(process, again=True))
        elif self._favourite == "slow":
            self._recovering = 3
            self._call(process, *self.clients.a_read(process))
            self.clock.pass_(50)
        elif self._favourite == "rewind":
            if self.database.locked_by is None and roll < 0.4:
                self._rewind()
            else:
                self._call(process, *(self.clients.a_read if roll < 0.7 else self.clients.a_write)(process))
        elif self._saved and roll < 0.5:
            self._saved = False
            self._power_cut()
            self._start()
        else:
            # Saved while entries change, and while another process opens, which will read it.
            self._saved = True
            self._save(process)
            self._call(process, *self.clients.a_write(process))
            if roll > 0.7:
                for other in [one for one in self.processes if one is not process][:1]:
                    self._kill(other)
                self._start()

    def _call(self, process: Process, name: str, call: Any) -> None:
        self.note(f"process {process.number}: {name}")
        process.calls.append(process.loop.create_task(call))

    def _start(self) -> None:
        self._started += 1
        if self.rng.random() < 0.08:
            self._tear()
        process = Process(self._started, self.database, self.clock, self.disk, self.rng)
        process.connections["write"].fails_commit = self._fails_commit
        self.processes.append(process)
        self.note(f"process {process.number} starts, {process.freshness}, {process.staleness_s} s")

    def _cancel(self, process: Process) -> None:
        waiting = [call for call in process.calls if not call.done()]
        if waiting:
            self.note(f"process {process.number}: a call is cancelled")
            self.rng.choice(waiting).cancel()

    def _keep(self, process: Process) -> None:
        """Something is done with the cache as a whole."""
        assert process.keeper is not None
        roll = self.rng.random()
        if roll < 0.75:
            self._save(process)
        elif roll < 0.85:
            self._call(process, "cache.clear", process.keeper.clear())
        else:
            self._call(process, "cache.rebuild", process.keeper.rebuild())

    def _save(self, process: Process) -> None:
        assert process.keeper is not None
        self._call(process, "cache.save", process.keeper.save())

    def _end(self, process: Process) -> None:
        if self.rng.random() < 0.35:
            self.note(f"process {process.number} is closed")
            process.is_open = False
            process.loop.create_task(process.close(), name="close")
        else:
            self._kill(process)

    def _kill(self, process: Process) -> None:
        self.note(f"process {process.number} is killed")
        process.kill()
        self.processes.remove(process)

    def _outside(self, roll: float) -> None:
        """Something happens to database, disk or clock."""
        rng, database = self.rng, self.database
        if roll < 35:
            if database.locked_by is None:
                self._foreign()
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

    # The scheduler

    def _go_on(self, steps: int) -> None:
        rng = self.rng
        for _ in range(steps):
            if not self.processes:
                return
            process = self.processes[int(rng.random() * len(self.processes))]
            if process.stalled:
                process.stalled -= 1
                continue
            options = process.options()
            if options:
                self._step(process, options[int(rng.random() * len(options))])

    def _step(self, process: Process, what: Any) -> None:
        if self.trace is None:
            process.go_on(what)
        else:
            before = process.cache.head
            done = process.go_on(what)
            if done != "loop" or before != process.cache.head:
                self.note(f"  process {process.number}: {done}, at {_brief(process.cache.head)}")
        if not process.alive and not process.loop.ready:
            self.processes.remove(process)

    def _settle(self, calls: list[Any]) -> list[Any]:
        """Take the results of ended calls: a call that failed is a violation, since refusals are caught."""
        for call in calls:
            if call.done() and not call.cancelled() and (error := call.exception()) is not None:
                raise error
        return [call for call in calls if not call.done()]

    def _check(self) -> None:
        for process in self.processes:
            if process.changed:
                process.changed = False
                process.calls = self._settle(process.calls)
                self.checker.invariant(process)

    def _finish(self) -> None:
        """Let everything come to its end, and compare every cache with the database as it is now."""
        self.note("the end")
        for process in self.processes:
            process.stalled = 0
        for _ in range(400):
            self._go_on(20)
            if not any(process.options() for process in self.processes):
                break
        self.clock.pass_(256)
        self._faults, self._fuse, self._recovering = False, 1_000_000, 0
        for process in self.processes:
            process.calls = self._settle(process.calls)
            if process.is_open:
                if process.calls:
                    raise Violation(f"process {process.number} hangs: {process.calls}")
                assert process.coherence.look()
                if process.cache.head != self.database.current.head:
                    raise Violation(f"process {process.number} ends at {process.cache.head}")
            self.checker.invariant(process)


    def end(self) -> None:
        """Let go of everything."""
        for process in self.processes:
            process.kill()


def run(seed: int, trace: list[str] | None = None, *, gaps: bool = False) -> History:
    """Run the history of a seed.

    Raises:
        Violation: a promise was broken.
    """
    history = History(seed, trace, gaps=gaps)
    CURRENT.history = history
    try:
        history.run()
    finally:
        history.end()
    return history


def _brief(head: HeadState) -> str:
    return f"{head.position}#{head.nonce % 4096:03x}"


class _Current:
    history: History


CURRENT = _Current()
