"""What some histories do more often than others: rare things are met where they come in numbers."""

from __future__ import annotations

from typing import Any

from tests.simulation.environment import Environment, brief
from tests.simulation.process import Process

__all__ = ["Scenes"]


class Scenes(Environment):
    """An environment whose processes go on step by step. Arguments as for `Environment`."""

    def __init__(self, seed: int, trace: list[str] | None, favourite: str | None, *, gaps: bool) -> None:
        super().__init__(seed, trace, favourite, gaps=gaps)
        self._saved = False
        """Whether a cache was saved a moment ago, in a history whose favourite are restarts."""

    def _do_favourite(self, process: Process) -> None:
        """Do what this history does more often than others: rare things are met where they come in numbers."""
        roll = self.rng.random()
        if self._favourite == "parts":
            self._call(process, *self.clients.an_append(process))
            self._call(process, *self.clients.a_read(process, again=True))
        elif self._favourite == "slow":
            if roll < 0.5:
                self._recovering = 3
            else:
                self._fuse = 1 + int(self.rng.random() * 6)
            self._call(process, *self.clients.a_read(process))
            self.clock.pass_(50)
        elif self._favourite == "far":
            self._do_far(process)
        elif self._favourite == "rewind":
            self._do_rewind(process, roll)
        elif self._saved and roll < 0.6:
            self._saved = False
            self._go_on(40)  # so that it is on the disk
            self._power_cut()
            self._start()
        else:
            # Saved while entries change, and while another process opens, which will read it.
            self._saved = True
            for _ in range(3):
                self._call(process, *self.clients.a_write(process))
            self._go_on_in(process, int(roll * 8))
            self._save(process)
            self._call(process, *self.clients.a_write(process, again=True))
            self._go_on_in(process, int(roll * 25))
            if roll > 0.8:
                for other in [one for one in self.processes if one is not process][:1]:
                    self._kill(other)
                self._start()

    def _do_far(self, process: Process) -> None:
        """Much happens while a key is read, looked for and written: the log cannot lead on to what was seen."""
        rng, clients = self.rng, self.clients
        self._call(process, *clients.a_write(process))
        self._call(process, *clients.a_read(process, again=True))
        self._go_on_in(process, 30)
        for what in rng.sample(("read", "write", "look", "others", "others", "others"), 5):
            if what == "read":
                self._call(process, *clients.a_read(process))
            elif what == "write":
                self._call(process, *clients.a_write(process, again=True))
            elif what == "look":
                self._call(process, *clients.a_read(process, again=True, freshness="linearizable"))
            elif self.database.locked_by is None:
                for _ in range(1 + int(rng.random() * 6)):
                    self._foreign()
            self._go_on_in(process, int(rng.random() * 6))
        for _ in range(3):
            self._call(process, *clients.a_read(process, again=True))
            self._go_on_in(process, int(rng.random() * 5))
        if rng.random() < 0.3:
            self.clock.pass_(70)
        if rng.random() < 0.1 and process.is_open:
            self._close(process)

    def _do_rewind(self, process: Process, roll: float) -> None:
        """The database is taken back, between a write and the reads that follow, or in the middle of a read."""
        clients = self.clients
        if roll < 0.3:
            if self.database.locked_by is None:
                self._rewind()
        elif roll < 0.6:
            self._call(process, *clients.a_write(process))
            self._call(process, *clients.a_read(process, again=True))
            self._go_on_in(process, 30)
            if self.database.locked_by is not None:
                return
            if roll < 0.45:
                for _ in range(4):
                    self._foreign()
                self._fuse, self._rewinds_next = 2 + int(roll * 100) % 8, True
            else:
                self._rewind()
            # Time goes by in small steps, so that whoever looks all the time is never without a fresh look.
            for _ in range(6):
                self._call(process, *clients.a_read(process, again=roll > 0.45))
                self._go_on_in(process, 12)
                self.clock.pass_(24)
        elif roll < 0.7:
            # While another process loads what this one has saved.
            self._save(process)
            self._go_on_in(process, 40)
            self._start()
            self._go_on_in(self.processes[-1], 10 + int(roll * 1000) % 40)
            if self.database.locked_by is None:
                self._rewind()
            for _ in range(2):
                if self.processes[-1].is_open:
                    self._call(self.processes[-1], *clients.a_read(self.processes[-1]))
                self._go_on_in(self.processes[-1], 15)
        else:
            self._call(process, *(clients.a_read if roll < 0.85 else clients.a_write)(process))

    def _call(self, process: Process, name: str, call: Any) -> None:
        self.note(f"process {process.number}: {name}")
        process.calls.append(process.loop.create_task(call))

    def _save(self, process: Process) -> None:
        assert process.keeper is not None
        self._call(process, "cache.save", process.keeper.save())

    def _close(self, process: Process) -> None:
        self.note(f"process {process.number} is closed")
        process.is_open = False
        process.loop.create_task(process.close(), name="close")

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

    def _go_on_in(self, process: Process, steps: int) -> None:
        for _ in range(steps):
            options = process.options()
            if not options or not process.alive:
                return
            self._step(process, options[int(self.rng.random() * len(options))])

    def _step(self, process: Process, what: Any) -> None:
        if self.trace is None:
            process.go_on(what)
        else:
            before = process.cache.head
            done = process.go_on(what)
            if done != "loop" or before != process.cache.head:
                self.note(f"  process {process.number}: {done}, at {brief(process.cache.head)}")
        if not process.alive and not process.loop.ready:
            self.processes.remove(process)
