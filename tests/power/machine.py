"""A machine with a disk, which counts the steps made on it and stops, kills or fails at one of them.

A step is whatever changes the disk or makes it safe: a write, a change of length, a sync, a file made or removed. Reads
are none: a power cut between two reads leaves the same disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import apsw

from tests.power.disk import Disk, File

__all__ = ["Fault", "Killed", "Machine", "PowerCut", "Session", "io_error"]


class PowerCut(BaseException):
    """The machine has lost its power: nothing runs any more."""


class Killed(BaseException):
    """The process is gone (`kill -9`); the machine and what the system keeps of its writes go on."""


@dataclass(frozen=True)
class Fault:
    """What happens at a step.

    Args:
        at: the step, from 1.
        kind: the power is cut, the process is killed, or the step fails: with an I/O error, or with a full disk (which
            no sync reports).
        times: steps that fail, for errors.
        forget: after a failed sync the system takes the data for written.
        share: how much of a failed write happened all the same, 0 to 1.
    """

    at: int
    kind: Literal["cut", "kill", "io", "full"] = "cut"
    times: int = 1
    forget: bool = False
    share: float = 0.0


class Session:
    """One process on the machine; its open files do nothing any more once it is dead."""

    def __init__(self, machine: Machine, folder: str) -> None:
        self.machine, self.folder = machine, folder
        self.alive = True

    def check(self) -> None:
        """Raise what ended it, if it has ended."""
        if not self.machine.on:
            raise PowerCut
        if not self.alive:
            raise Killed


def io_error(code: int) -> apsw.Error:
    """Return the error by which a file tells SQLite a result code."""
    error = (apsw.FullError if code == apsw.SQLITE_FULL else apsw.IOError)("made to fail")
    error.result, error.extendedresult = code & 0xFF, code
    return error


class Machine:
    """The disk, the steps, and what is to go wrong.

    Args:
        disk: its disk.
        faults: at most one a step; they count steps from now on.
        lies: whether a sync says it is done and does nothing.
    """

    def __init__(self, disk: Disk, faults: tuple[Fault, ...] = (), *, lies: bool = False) -> None:
        self.disk, self.lies = disk, lies
        self.on = True
        self.steps = 0
        self.failures = 0
        """Steps that were made to fail."""
        self.trace: deque[str] = deque(maxlen=12)
        self.done: list[str] = []
        """Every step, by name."""
        self.forgets = any(fault.forget for fault in faults)
        self._faults = list(faults)

    def heal(self) -> None:
        """Let nothing fail any more; power cuts still happen."""
        self._faults = [fault for fault in self._faults if fault.kind == "cut"]

    def spare(self) -> None:
        """Let nothing go wrong any more."""
        self._faults = []

    def step(
        self, session: Session, what: str, done: Callable[[float], None], failed: Callable[[bool], None] | None = None
    ) -> None:
        """Make a step, or what a fault makes of it.

        Args:
            session: who makes it.
            what: its name, for people.
            done: does it, or a share of it; a share of 0 is nothing.
            failed: what happens to the file when it fails, for a sync.
        """
        if not (self.on and session.alive):
            raise io_error(apsw.SQLITE_IOERR)
        self.steps += 1
        kind = what.split()[0]
        self.done.append(what)
        fault = next((fault for fault in self._faults if self._hits(fault, kind)), None)
        self.trace.append(f"{self.steps} {what}{'' if fault is None else ' <- ' + fault.kind}")
        if fault is None:
            done(1.0)
            return
        if fault.kind == "cut":
            if kind != "sync":  # it was on its way: any part of it may be there
                done(1.0)
            self.on = False
        elif fault.kind == "kill":
            done(fault.share if kind == "write" else 0.0)
            session.alive = False
        else:
            self.failures += 1
            if kind == "sync":
                assert failed is not None
                failed(fault.forget)
                raise io_error(apsw.SQLITE_IOERR_FSYNC)
            done(fault.share if kind == "write" else 0.0)
            raise io_error(apsw.SQLITE_FULL if fault.kind == "full" else _CODES[kind])
        raise io_error(apsw.SQLITE_IOERR)

    def _hits(self, fault: Fault, kind: str) -> bool:
        if fault.kind == "full" and kind not in ("write", "create"):
            return False
        return fault.at <= self.steps < fault.at + fault.times

    def sync(self, file: File) -> None:
        """Make a file safe."""
        if not self.lies:
            file.sync()


_CODES = {
    "write": apsw.SQLITE_IOERR_WRITE,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "delete": apsw.SQLITE_IOERR_DELETE,
    "create": apsw.SQLITE_CANTOPEN,
}
