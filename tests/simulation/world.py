"""One history: a seed decides everything that happens, and in which order."""

from __future__ import annotations

from typing import Any

from tests.simulation import statements
from tests.simulation.checker import Violation
from tests.simulation.process import Process
from tests.simulation.scenes import Scenes

__all__ = ["CURRENT", "History", "run"]

statements.install()


class History(Scenes):
    """One history: what its clients do, and in which order everything goes on. Arguments as for `Environment`."""

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
        if self._favourite and rng.random() < (0.6 if self._saved else 0.3):
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

    def _end(self, process: Process) -> None:
        if self.rng.random() < 0.35:
            self._close(process)
        else:
            self._kill(process)

    # The scheduler

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
        self._to_the_end()
        self.clock.pass_(256)
        self._faults, self._fuse, self._recovering = False, 1_000_000, 0
        for process in self.processes:
            process.calls = self._settle(process.calls)
            if process.is_open:
                if process.calls:
                    raise Violation(f"process {process.number} hangs: {process.calls}")
                assert process.on_server or process.coherence.look()
                process.calls = [process.loop.create_task(process.coherence.catch_up())]
        self._to_the_end()
        for process in self.processes:
            process.calls = self._settle(process.calls)
            if process.is_open:
                if process.calls:
                    raise Violation(f"process {process.number} hangs as it looks")
                if process.cache.head != self.database.current.head:
                    raise Violation(f"process {process.number} ends at {process.cache.head}")
            self.checker.invariant(process)

    def _to_the_end(self) -> None:
        for _ in range(400):
            self._go_on(20)
            if not any(process.options() for process in self.processes):
                break

    def end(self) -> None:
        """Let go of everything."""
        for process in self.processes:
            process.kill()


def run(seed: int, trace: list[str] | None = None, favourite: str | None = None, *, gaps: bool = False) -> History:
    """Run the history of a seed.

    Raises:
        Violation: a promise was broken.
    """
    history = History(seed, trace, favourite, gaps=gaps)
    CURRENT.history = history
    try:
        history.run()
    finally:
        history.end()
    return history


class _Current:
    history: History


CURRENT = _Current()
