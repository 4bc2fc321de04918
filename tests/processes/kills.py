"""kill -9, again and again, with three processes on one file: `python -m tests.processes.kills --kills 200`.

One process at a time, or all three at once, so that whoever opens next has the log to recover; at any instant, or at
one that was chosen (see `instants`). What a process told of is in a ledger; whoever takes its place reads everything
first, through a store with the saved cache, and is compared with the ledger and with the rows as the plain driver reads
them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from memory_store import MemoryStore
from tests.fault.support import Child
from tests.processes.instants import Stop
from tests.processes.killed import NAMESPACE, SHARED, Life, live
from tests.processes.ledger import Ledger, LostError, contents
from tests.processes.truth import integrity_problems, log_disagreements, read_log

SLOTS = 3
_CHECK_EVERY = 50
# Where processes are killed on purpose, a line a place, all equally often: label, last number drawn, whether to stay.
_PURPOSES: dict[str, list[list[tuple[str, int, bool]]]] = {
    "opening": [[("", 45, True), ("", 45, True), ("sql", 30, False)]],
    "writing": [
        [("sql BEGIN IMMEDIATE", 6, True)],
        [("sql INSERT INTO changes", 6, True)],
        [("sql COMMIT", 20, True), ("sql COMMIT", 20, False)],
        [("unlock", 6, True)],
        [("sql PRAGMA wal_checkpoint", 1, True), ("sql PRAGMA wal_checkpoint", 1, False)],
        [("open .tmp", 2, True), ("open .tmp", 2, False), ("sync", 3, True), ("synced", 3, True), ("rename", 2, True)],
        [("", 200, True)],
    ],
    "closing": [[("", 8, True), ("", 8, False), ("open .tmp", 1, False), ("rename", 1, True)]],
}
# What the labels are called in the figures.
_PLACES = {
    "sql BEGIN IMMEDIATE": "the beginning of a transaction",
    "sql INSERT INTO changes": "writing the log",
    "sql COMMIT": "commit",
    "unlock": "after the commit, before the answer",
    "sql PRAGMA wal_checkpoint": "checkpoint",
    "open .tmp": "saving the cache",
    "sync": "saving the cache",
    "rename": "saving the cache",
}


@dataclass
class Figures:
    """What the kills met and cost."""

    kills: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    recovered_s: dict[str, list[float]] = field(default_factory=lambda: {"one died": [], "all died": []})

    def lines(self) -> list[str]:
        """Return what to print."""
        lines = [
            f"{self.kills:,} kills, {self.acknowledged:,} acknowledged writes, 0 lost, 0 wrong",
            "killed while " + ", ".join(f"{phase} {count:,}" for phase, count in self.phases.most_common()),
            "killed on purpose in " + ", ".join(f"{place} {count:,}" for place, count in self.stops.most_common()),
        ]
        for when, seconds in self.recovered_s.items():
            seconds.sort()
            if seconds:
                p50, p99 = (seconds[int(len(seconds) * share)] * 1000 for share in (0.5, 0.99))
                lines.append(f"{when}: {len(seconds):,} times open to first answer, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        return lines


class Slot:
    """The processes that follow each other as the only writer of some keys."""

    def __init__(self, number: int, path: Path, figures: Figures) -> None:
        self.number, self.ledger = number, Ledger()
        self._path, self._figures = path, figures
        self.child: Child | None = None
        self.phase = self.stopped_at = ""
        self.logged: list[tuple[str, str, int, int]] = []
        self.shared: dict[str, int] = {}
        self._least_shared: dict[str, int] = {}
        self._after = ""

    def begin(self, life: Life, after: str, shared: dict[str, int]) -> None:
        """Start a process; `shared` are the revisions it must find at least."""
        self.phase, self.stopped_at, self._after, self._least_shared = "opening", "", after, dict(shared)
        self.child = Child(live, f"sqlite:///{self._path}", life)

    def kill(self) -> None:
        """Kill the process, and take what it had told of."""
        assert self.child is not None
        self.child.kill()
        # Killed with our answer unread, its end of the pipe is reset behind its last message, not closed.
        with suppress(ConnectionResetError):
            for message in self.child.messages_left():
                self.take(message, answer=False)
        self.child.__exit__(None, None, None)
        self.child = None
        self._figures.kills += 1
        self._figures.phases[self.phase] += 1
        if self.stopped_at and self.phase == "writing":
            places = [place for label, place in _PLACES.items() if self.stopped_at.startswith(label)]
            self._figures.stops[places[0] if places else "elsewhere"] += 1
        elif self.stopped_at:
            self._figures.stops[self.phase] += 1

    def take(self, message: tuple[Any, ...] | None, *, answer: bool) -> None:
        """Take a message of the process; `answer` says whether it lives to be answered."""
        if message is None:  # its end
            return
        word, *values = message
        if word == "at":
            self.stopped_at = values[0]
        elif word == "opened":
            self._figures.recovered_s[self._after].append(values[0])
        elif word == "found":
            self._found(*values)
            self.phase = "writing"
            if answer and self.child is not None:
                self.child.send("go on")
        elif word == "may":
            self.ledger.may = values[0]
        elif word == "did":
            self._did(*values)
        else:
            self.phase = word

    def _found(self, found: dict[str, Any], shared: dict[str, int]) -> None:
        self.ledger.settle(found)
        # Only now: whoever opens first after all have died is to recover the log itself.
        held = contents(self._path, self.number)
        if held != found:
            raise LostError(f"the store and the file differ in {dict(found.items() ^ held.items())}")
        behind = {id_: (revision, self._least_shared.get(id_, 0)) for id_, revision in shared.items()}
        if any(revision < least for revision, least in behind.values()):
            raise LostError(f"shared records are at (found, acknowledged): {behind}")

    def _did(self, did: dict[str, Any], logged: list[tuple[str, str, int, int]]) -> None:
        self.ledger.may = {}
        for key, value in did.items():
            self.ledger.sure[key] = value
        self.ledger.acknowledged += 1
        self._figures.acknowledged += 1
        self.logged += logged
        for _, id_, revision, _ in logged:
            if id_ in SHARED:
                self.shared[id_] = max(self.shared.get(id_, 0), revision)


class Run:
    """Three slots on one file, and who is killed when."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._random = path, random.Random(seed)
        self.figures = Figures()
        self._slots = [Slot(number, path, self.figures) for number in range(SLOTS)]
        self._lives = 0

    def kill_until(self, kills: int, most: int, enough: Callable[[Figures], bool]) -> None:
        """Kill until there were that many kills and they were enough, and check everything."""
        checked = 0
        try:
            for slot in self._slots:
                self._begin(slot, "one died")
            while self.figures.kills < kills or (self.figures.kills < most and not enough(self.figures)):
                victim = self._wait_for_the_instant()
                everybody = self._random.random() < 0.15
                for slot in self._slots if everybody else [victim]:
                    slot.kill()
                for slot in self._slots if everybody else [victim]:
                    self._begin(slot, "all died" if everybody else "one died")
                if self.figures.kills >= checked + _CHECK_EVERY:
                    self._check()
                    checked = self.figures.kills
        finally:
            for slot in self._slots:
                if slot.child is not None:
                    slot.kill()
        asyncio.run(self._check_at_the_end())

    def _begin(self, slot: Slot, after: str) -> None:
        self._lives += 1
        stop, writes = None, 0
        phase = self._random.choices(["opening", "writing", "closing", ""], [2, 14, 3, 3])[0]
        if phase:
            label, last, stay = self._random.choice(self._random.choice(_PURPOSES[phase]))
            stop = Stop(phase, label, self._random.randint(1, last), stay)
            writes = 4 if phase == "closing" else 0
        shared = {id_: max(other.shared.get(id_, 0) for other in self._slots) for id_ in SHARED}
        slot.begin(Life(slot.number, self._lives, self._random.randrange(1 << 30), stop, writes), after, shared)

    def _wait_for_the_instant(self) -> Slot:
        """Let all live until one has stopped or ended, or for a while; return who is to be killed."""
        until = time.monotonic() + self._random.choice([0.01, 0.2, 1.5, 1.5])
        while (left := until - time.monotonic()) > 0:
            connection.wait([slot.child._connection for slot in self._slots if slot.child is not None], left)
            for slot in self._slots:
                while slot.child is not None and slot.phase != "closed" and slot.child.arrived_within(0):
                    slot.take(self._next(slot), answer=True)
            stopped = [slot for slot in self._slots if slot.stopped_at or slot.phase == "closed"]
            if stopped:
                time.sleep(self._random.choice([0, self._random.uniform(0, 0.001)]))
                return stopped[0]
        return self._random.choice(self._slots)

    def _next(self, slot: Slot) -> tuple[Any, ...] | None:
        assert slot.child is not None
        try:
            return slot.child.receive()
        except (EOFError, ConnectionResetError):  # it has closed its store and ended
            slot.phase = "closed"
            return None

    def _check(self) -> None:
        """Check the file as a whole while processes write to it."""
        problems = [*integrity_problems(self._path), *log_disagreements(log := read_log(self._path))]
        if problems:
            raise LostError(str(problems))
        held = {(row.kind, row.key, row.revision, row.position): row.actor for row in log.rows}
        for slot in self._slots:
            missing = [row for row in slot.logged if held.get(row) != f"slot {slot.number}"]
            if missing:
                raise LostError(f"not in the log: {missing}")
            slot.logged.clear()

    async def _check_at_the_end(self) -> None:
        """Check everything after the last kill, through a store and without one."""
        async with MemoryStore(f"sqlite:///{self._path}", namespace=NAMESPACE, cache_save_interval_s=0) as store:
            await store.cache.wait()
            for slot in self._slots:
                held = contents(self._path, slot.number)
                slot.ledger.settle(held)
                for key, value in held.items():
                    if not key.endswith("/steps"):
                        record = await store.episodes.get(key)
                        assert (record and (record.revision, record.context["mark"])) == value
                    else:
                        steps = await store.steps.of(key.removesuffix("/steps"))
                        assert (tuple(step.action for step in steps) or None) == value
            for id_ in SHARED:
                record = await store.episodes.get(id_)
                assert (record.revision if record else 0) >= max(slot.shared.get(id_, 0) for slot in self._slots)
        self._check()


def kill_again_and_again(
    path: Path, kills: int, seed: int, most: int = 0, enough: Callable[[Figures], bool] = lambda _: True
) -> Figures:
    """Kill processes that use a database until there were so many kills; return the figures, or raise what is wrong.

    Where they were not `enough`, it goes on until they are, or until there were `most`.
    """
    run = Run(path, seed)
    run.kill_until(kills, most, enough)
    return run.figures


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memory_store-kills-") as folder:
        figures = kill_again_and_again(Path(folder) / "agent.db", arguments.kills, arguments.seed)
    print("\n".join([*figures.lines(), f"{time.monotonic() - began:.1f} s"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
