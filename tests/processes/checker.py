"""Judges a history against the log: was everything that was read what the database held at some allowed commit?

The log gives the one order of all commits. So a history is right if each read can be given a commit such that

- what it returned is what the database held at that commit;
- it is at or after every commit that the read had to see: in linearizable mode whatever anybody had been answered
  before the read began, in bounded mode whatever anybody had been answered a staleness bound before that, and in both
  whatever its own process had been answered (its writes, and the commits its reads saw: none goes backwards);
- it is before every commit whose call began after the read had ended.

Giving each read the first commit that fits is enough: a later one only makes it harder for the rest. Two operations
that overlapped are in no order. A write is given its own commit, which must come after all that was answered before it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.processes.history import Operation
from tests.processes.states import States
from tests.processes.truth import Log, log_disagreements


@dataclass
class Verdict:
    """What came out.

    Args:
        violations: each begins with a word for what it is.
        checks: how many conditions were looked at, by name.
        behind_s: how far behind other processes each read was that missed something of theirs.
    """

    violations: list[str] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    behind_s: list[float] = field(default_factory=list)


class _Answered:
    """The newest commit anybody had been answered, as of a moment that only moves on."""

    def __init__(self) -> None:
        self._ended: list[tuple[int, int]] = []
        self.newest = 0

    def add(self, ended: int, position: int) -> None:
        heapq.heappush(self._ended, (ended, position))

    def before(self, moment: int) -> int:
        while self._ended and self._ended[0][0] < moment:
            self.newest = max(self.newest, heapq.heappop(self._ended)[1])
        return self.newest


def judge(
    log: Log, operations: Sequence[Operation], actors: Sequence[str], namespace: str, staleness_s: float
) -> Verdict:
    """Check a history.

    Args:
        log: of the database, after the end.
        operations: of all processes, by the time they began.
        actors: the processes as the log names them, by their numbers.
        namespace: the namespace that was used.
        staleness_s: the bound.
    """
    verdict = Verdict()
    verdict.violations += [f"log: {problem}" for problem in log_disagreements(log)]
    states = States(log, operations, actors, namespace)
    verdict.violations += states.problems
    _Sweep(states, operations, log.head, int(staleness_s * 1e9), verdict).run()
    return verdict


class _Sweep:
    """One pass over the operations in the order in which they began."""

    def __init__(
        self, states: States, operations: Sequence[Operation], head: int, staleness_ns: int, verdict: Verdict
    ) -> None:
        self._states, self._operations, self._verdict = states, operations, verdict
        self._staleness_ns = staleness_ns
        self._by_all, self._by_all_then = _Answered(), _Answered()
        self._by_own: defaultdict[int, _Answered] = defaultdict(_Answered)
        # The same as far as its own answers prove it, with no use made of the bound: tells what went wrong.
        self._by_own_alone: defaultdict[int, _Answered] = defaultdict(_Answered)
        writes = [(operation.began, self._position_of(operation)) for operation in operations]
        self._began = [began for began, _ in writes]
        # The first commit among the calls that began at or after each: a read that had ended cannot have seen it.
        self._first_after = [head + 1] * (len(writes) + 1)
        for index in range(len(writes) - 1, -1, -1):
            self._first_after[index] = min(self._first_after[index + 1], writes[index][1] or head + 1)
        self._answered_at = self._answers(head)

    def run(self) -> None:
        """Judge every operation."""
        for operation in self._operations:
            if operation.wrong:
                self._complain("wrong", operation, operation.wrong)
            position = self._judge(operation)
            for answered in (self._by_all, self._by_all_then, self._by_own[operation.process]):
                answered.add(operation.ended, position)

    def _position_of(self, operation: Operation) -> int:
        return operation.position or self._states.commit_of_delete.get(id(operation), 0)

    def _answers(self, head: int) -> list[int]:
        """Return for each position when the first call ended that proves it."""
        ended = [1 << 63] * (head + 2)
        for operation in self._operations:
            position = self._position_of(operation)
            ended[position] = min(ended[position], operation.ended)
        for position in range(head, -1, -1):
            ended[position] = min(ended[position], ended[position + 1])
        return ended

    def _judge(self, operation: Operation) -> int:
        known = self._by_all.before(operation.began)
        known_then = self._by_all_then.before(operation.began - self._staleness_ns)
        own = self._by_own[operation.process].before(operation.began)
        position = self._position_of(operation)
        checks = self._verdict.checks
        if position:
            checks["a commit comes after all that was answered before"] += 1
            if position <= known:
                self._complain("order", operation, f"its commit {position:,} is not after {known:,}, seen before")
            if operation.reads:
                checks["a transaction reads what its commit follows"] += 1
                if self._states.least(operation.reads, position - 1, position - 1) is None:
                    self._complain("torn", operation, f"not what the database held at {position - 1:,}")
            self._by_own_alone[operation.process].add(operation.ended, position)
            return position
        if operation.fresh == "bounded":
            low = max(known_then, own, operation.at_least)
        else:
            low = max(known, operation.at_least)
        if not operation.reads:
            return 0
        most = self._first_after[bisect_right(self._began, operation.ended)] - 1
        found = self._states.least(operation.reads, low, most)
        checks[f"{operation.fresh}: {operation.name}"] += 1
        if operation.at_least:
            checks["at_least"] += 1
        self._judge_alone(operation, most, found is None)
        if found is None:
            return 0
        if operation.fresh == "bounded":
            self._measure(operation, found)
        return found

    def _measure(self, operation: Operation, found: int) -> None:
        later = [self._states.superseded_at(read, found) for read in operation.reads]
        missed = [position for position in later if position is not None]
        if missed and (behind := operation.began - self._answered_at[min(missed)]) > 0:
            self._verdict.behind_s.append(behind / 1e9)

    def _judge_alone(self, operation: Operation, most: int, wrong: bool) -> None:
        """Give a read the first commit that fits what its own process was answered, and say what is wrong with it."""
        answered = self._by_own_alone[operation.process]
        own = answered.before(operation.began)
        found = self._states.least(operation.reads, own, most)
        if found is not None:
            answered.add(operation.ended, found)
        if not wrong:
            return
        earlier = self._states.least(operation.reads, 0, most)
        if found is not None and found < operation.at_least:
            self._complain("lost hand-over", operation, f"right at {found:,}, not from {operation.at_least:,} on")
        elif found is not None:
            self._complain("stale", operation, f"right at {found:,}, not at what others had been answered since")
        elif earlier is not None:
            self._complain("backwards", operation, f"right at {earlier:,}, but its process had been answered {own:,}")
        elif (later := self._states.least(operation.reads, 0, 1 << 62)) is not None:
            self._complain("future", operation, f"right at {later:,} only, whose call began after this one had ended")
        else:
            self._complain("torn", operation, "never what the database held")

    def _complain(self, word: str, operation: Operation, why: str) -> None:
        self._verdict.violations.append(f"{word}: {why}: {operation}")
