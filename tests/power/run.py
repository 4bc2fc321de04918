"""One run of a scenario: what is asked of the library, what it answers, and what may therefore be on the disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memory_store.durable.commits import rollback
from memory_store.durable.dialects.sqlite import translate
from memory_store.durable.log import CommitToken
from memory_store.durable.operations import Operation
from memory_store.errors import CommitUnknownError, MemoryStoreError
from tests.power.checks import check_rows, held, powered_on
from tests.power.disk import Disk
from tests.power.ledger import Dump, Violation, difference, dump, positions
from tests.power.library import CHANCE, DATABASE, Library
from tests.power.machine import Killed, Machine
from tests.power.writes import put_episode

__all__ = ["Run"]

Action = Callable[[Library], Any]


@dataclass(frozen=True)
class Flight:
    """A write that has begun: what it does, the database it began on, and the random numbers it began with."""

    action: Action
    image: bytes
    chance: tuple[int, int]


class Run:
    """A scenario's hands.

    Args:
        machine: where it runs.
        seed: how a client behaves where he has a choice.
        synchronous: see `Library`.
    """

    def __init__(self, machine: Machine, seed: int, synchronous: str | None = None) -> None:
        self.machine, self.synchronous = machine, synchronous
        self.choice = random.Random(f"client {seed}")
        self.flight: Flight | None = None
        self.acknowledged = 0
        self.met: set[str] = set()
        """What happened to writes: "acknowledged", "failed", "unknown", "killed", "came to life"."""
        self.answers: dict[tuple[int, int], bool] = {}
        """What `resolve` said, by position and nonce."""
        self.history: dict[int, int] = {}
        """The nonce of each position that was acknowledged."""
        self.possible = [held(machine.disk)]
        """What a recovery may find when nothing is running."""

    def open(self) -> None:
        """Start the process; a failure to open is a failure the user sees, who tries again."""
        while True:
            try:
                self.library = Library(self.machine, self.synchronous)
            except Killed:
                continue
            except Exception as error:
                if not isinstance(translate(error), MemoryStoreError) or not self.machine.failures:
                    raise
                self.machine.heal()
                continue
            return

    # What a scenario does

    def write(self, *operations: Operation, retry: bool = False) -> Any:
        """Write a batch; where the process dies in it, start it again and, with `retry`, write the same again."""
        applied = self.act(lambda library: library.batch(operations), retry=retry)
        if applied is not None:
            check_rows(operations, applied, self.possible[0])
        return applied

    def transaction(self, *operations: Operation) -> Any:
        """Write several operations in one transaction."""
        return self.act(lambda library: library.transaction(operations))

    def checkpoint(self) -> None:
        """Checkpoint; one that fails loses nothing."""
        self._without_effect(lambda library: library.checkpoint())

    def restart(self) -> None:
        """Close, and open again."""
        self._without_effect(lambda library: library.close(), reopen=True)

    def kill(self) -> None:
        """Kill the process and start it again."""
        self._reopen()

    def read_on(self) -> None:
        """Open a snapshot on a second connection and keep it."""
        try:
            self.library.reader = reader = self.library.reader or self.library.connect()
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM head")
        except Killed:
            self._reopen()

    def read_off(self) -> None:
        """End the snapshot, if there is one."""
        reader = self.library.reader
        if reader is not None and reader.in_transaction:
            reader.execute("COMMIT")

    def act(self, action: Action, *, retry: bool = False, undone: bool = True) -> Any:
        """Do a write that is acknowledged when it returns, and settle what may be on the disk when it does not.

        Args:
            action: the write.
            retry: whether a client repeats it where the process died or the write failed.
            undone: whether a reported failure promises that it will never be there.
        """
        CHANCE.tick()
        self.flight = flight = Flight(action, self.library.connection.image(), CHANCE.state)
        try:
            result = action(self.library)
        except Killed:
            self._killed(flight)
            return self.act(action, retry=True) if retry else None
        except Exception as error:
            self._refused(flight, translate(error))
            if not undone:
                self.possible = [*self.possible, self._whole(flight)]
            return self.act(action, retry=True) if retry else None
        self._acknowledge()
        return result

    # What may be there

    def allowed(self) -> list[Dump]:
        """Return every state in which a recovery may find the database now."""
        return self.possible if self.flight is None else [*self.possible, self._whole(self.flight)]

    def _whole(self, flight: Flight) -> Dump:
        """Return the state in which a write leaves the database when nothing goes wrong."""
        kept, CHANCE.state = CHANCE.state, flight.chance
        library = Library(Machine(Disk.holding({DATABASE: flight.image})))
        try:
            flight.action(library)
            return dump(library.connection)
        finally:
            library.die()
            CHANCE.state = kept

    def _acknowledge(self) -> None:
        now = dump(self.library.connection)
        self._check_history(now)
        self.possible, self.flight = [now], None
        self.history = positions(now)
        self.acknowledged += 1
        self.met.add("acknowledged")

    def _check_history(self, now: Dump) -> None:
        found = positions(now)
        for position, nonce in self.history.items():
            if found.get(position) != nonce:
                raise Violation(f"position {position} was acknowledged with nonce {nonce}, it is {found.get(position)}")
        for (position, nonce), answer in self.answers.items():
            if (found.get(position) == nonce) is not answer:
                raise Violation(f"`resolve` said {answer} of the commit at {position}, and it is the other way round")

    # What goes wrong

    def _killed(self, flight: Flight) -> None:
        self.met.add("killed")
        self.possible, self.flight = [*self.possible, self._whole(flight)], None
        self._reopen()

    def _reopen(self) -> None:
        """Start the process again on what the system kept."""
        self.library.die()
        self.open()
        self.look()

    def look(self) -> None:
        """Check that what is to be seen is one of the possible states."""
        now = dump(self.library.connection)
        self._check_history(now)
        if now not in self.possible:
            raise Violation("after a restart: " + difference(now, self.possible))
        if now != self.possible[0]:
            self.met.add("came to life")

    def _refused(self, flight: Flight, error: BaseException) -> None:
        if not isinstance(error, MemoryStoreError) or not self.machine.failures:
            raise error
        if isinstance(error, CommitUnknownError):
            self.met.add("unknown")
            self._unknown(flight, error.token)
            return
        self.met.add("failed")
        self.flight = None
        self._recover_connection()
        now = dump(self.library.connection)
        if now not in self.possible:
            raise Violation(f"a write was reported as failed ({error}): " + difference(now, self.possible))
        self.possible = [now] if len(self.possible) == 1 else self.possible
        if self.choice.random() < 0.5:
            self.machine.heal()

    def _recover_connection(self) -> None:
        """Go on with the connection; a transaction that could not be rolled back is given one more chance."""
        try:
            rollback(self.library.connection)  # type: ignore[arg-type]
        except MemoryStoreError:
            self.machine.heal()
            rollback(self.library.connection)  # type: ignore[arg-type]

    def _unknown(self, flight: Flight, token: str) -> None:
        self.possible, self.flight = [*self.possible, self._whole(flight)], None
        courses = ["resolve", "cut first", "write first", "kill first"]
        # Where the system has forgotten the frames of the failed commit, a restart before the next commit lets them
        # come to life, and what is committed on top of them is lost with them: SQLite has no answer to that.
        course = self.choice.choice(courses[:3] if self.machine.forgets else courses)
        if course == "kill first":
            self._reopen()
        elif course == "cut first":
            self.cut_and_restart(self.choice.randrange(100))
        elif course == "write first":
            self.machine.heal()
            self.write(put_episode("between"))
        self._resolve(token)

    def _resolve(self, token: str) -> None:
        parsed = CommitToken.parse(token)
        said: list[bool] = []

        def action(library: Library) -> None:
            answer = library.resolve(token)
            if not isinstance(answer, bool):
                raise Violation(f"`resolve` says {answer!r}")
            said.append(answer)

        while not said:
            CHANCE.tick()
            before = self.possible
            self.flight = Flight(action, self.library.connection.image(), CHANCE.state)
            try:
                action(self.library)
            except Killed:
                self._killed(self.flight)
                said.clear()
            except Exception as error:
                if not isinstance(translate(error), MemoryStoreError):
                    raise
                # A barrier that may come to life is one more state; where it does, it says no for good.
                self.possible, self.flight = [*before, self._whole_of_resolve()], None
                said.clear()
                self.machine.heal()
                self._recover_connection()
        answer = said[-1]
        now = dump(self.library.connection)
        self.answers[parsed.position, parsed.nonce] = answer
        self._check_history(now)
        self.possible, self.flight, self.history = [now], None, positions(now)

    def _whole_of_resolve(self) -> Dump:
        assert self.flight is not None
        return self._whole(self.flight)

    def cut_and_restart(self, seed: int) -> None:
        """Cut the power, damage what was not safe, switch on again, check, and go on."""
        allowed = self.allowed()
        self.machine.on = False
        self.end()
        self.machine.disk = self.machine.disk.after_power_cut(seed)
        self.machine.on, self.flight, self.possible = True, None, allowed
        self.machine.heal()
        self.library = powered_on(self.machine, allowed, self._check_history, self.synchronous)
        self.possible = [dump(self.library.connection)]

    # The scenario has no further use for it

    def end(self) -> None:
        """Leave nothing open."""
        if hasattr(self, "library"):
            self.library.die()

    def _without_effect(self, action: Action, *, reopen: bool = False) -> None:
        try:
            action(self.library)
        except Killed:
            self._reopen()
            return
        except Exception as error:
            if not isinstance(translate(error), MemoryStoreError) or not self.machine.failures:
                raise
        if reopen:
            self._reopen()
        else:
            self.look()
