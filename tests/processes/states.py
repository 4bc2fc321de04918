"""What every register held at every position, from the log and from what the writers say they wrote."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tests.processes.history import DOMAINS, Operation, Seen, domain_of
from tests.processes.truth import STORE, Log, Logged


class States:
    """The states of the registers of one namespace.

    Args:
        log: the whole log.
        operations: of all processes.
        actors: the processes as the log names them; what others wrote is not attributed.
    """

    def __init__(self, log: Log, operations: Sequence[Operation], actors: Sequence[str], namespace: str) -> None:
        self.problems: list[str] = []
        self.commit_of_delete: dict[int, int] = {}
        """Of each delete that did not tell: `id(operation)` to position."""
        self._positions: defaultdict[str, list[int]] = defaultdict(lambda: [0])
        self._states: dict[str, list[Any]] = {}
        self._episodes: dict[str, tuple[str, int]] = {}
        self._steps: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._tokens = self._attribute(log, operations, actors, namespace)
        for position, rows in log.commits():
            self._replay(position, [row for row in rows if row.namespace == namespace and row.kind != STORE])

    def least(self, reads: Iterable[Seen], low: int, most: int) -> int | None:
        """Return the first position from `low` to `most` at which all of these were right, None if there is none."""
        position = low
        settled = False
        while not settled:
            settled = True
            for register, seen in reads:
                found = self._least(register, seen, position, most)
                if found is None:
                    return None
                if found > position:
                    position, settled = found, False
        return position

    def superseded_at(self, read: Seen, position: int) -> int | None:
        """Return the position at which what was right at `position` was no longer so, None if it still is."""
        positions = self._positions[read[0]]
        after = bisect_right(positions, position)
        return positions[after] if after < len(positions) else None

    def _least(self, register: str, seen: Any, low: int, most: int) -> int | None:
        positions = self._positions[register]
        states = self._states.setdefault(register, [_nothing(register)])
        for index in range(bisect_right(positions, low) - 1, len(positions)):
            position = max(low, positions[index])
            if position > most:
                return None
            if states[index] == seen:
                return position
        return None

    def _attribute(
        self, log: Log, operations: Sequence[Operation], actors: Sequence[str], namespace: str
    ) -> dict[tuple[int, str, int], str]:
        """Hold what was acknowledged against the log, both ways; return the tokens of the episodes' versions."""
        logged: dict[tuple[int, str, str, int | None], str] = {}
        deletes: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
        for row in log.rows:
            if row.namespace == namespace and row.key is not None and row.actor in actors:
                # Of several changes of one record in one commit, deletes have no revision that tells them apart.
                revision = None if row.operation == "delete" else row.revision
                logged[row.position, row.kind, row.key, revision] = row.actor
                if row.operation == "delete":
                    deletes[row.actor, row.kind, row.key].append(row.position)
        told = {
            (operation.process, kind, key, operation.position)
            for operation in operations
            for kind, key, revision, _ in operation.wrote
            if revision is None and operation.position is not None
        }
        tokens: dict[tuple[int, str, int], str] = {}
        for operation in operations:
            actor = actors[operation.process]
            for kind, key, revision, token in operation.wrote:
                position = operation.position
                if position is None:
                    waiting = deletes[actor, kind, key]
                    while waiting and (operation.process, kind, key, waiting[0]) in told:
                        waiting.pop(0)
                    if not waiting:
                        self.problems.append(f"lost: the delete of {kind} {key} in {operation} is not in the log")
                        continue
                    position = self.commit_of_delete[id(operation)] = waiting.pop(0)
                if logged.pop((position, kind, key, revision), None) != actor:
                    self.problems.append(f"lost: {kind} {key} at revision {revision} of {operation} is not in the log")
                if kind == "episode" and revision is not None:
                    tokens[position, key, revision] = token
        for (position, kind, key, revision), actor in logged.items():
            self.problems.append(
                f"unasked: {actor} wrote {kind} {key} at revision {revision} at position {position:,} and never said so"
            )
        return tokens

    def _replay(self, position: int, rows: Sequence[Logged]) -> None:
        episodes, parents, domains = set(), set(), set()
        count = len(self._episodes)
        for row in rows:
            if row.kind == "episode":
                assert row.key is not None
                if row.key in self._episodes:
                    domains.add(domain_of(self._episodes[row.key][0]))
                if row.operation == "delete":
                    self._episodes.pop(row.key, None)
                else:
                    revision = row.revision or 0
                    token = self._tokens.get((position, row.key, revision), "unknown.0")
                    self._episodes[row.key] = (token, revision)
                    domains.add(domain_of(token))
                episodes.add(row.key)
            elif row.kind == "step":
                assert row.parent is not None
                parents.add(row.parent)
                self._replay_step(position, row, self._steps[row.parent])
        for id_ in episodes:
            self._held(f"episode/{id_}", position, self._episodes.get(id_))
        for id_ in parents:
            self._held(f"steps/{id_}", position, tuple(self._steps[id_].items()))
        if len(self._episodes) != count:
            self._held("count/", position, len(self._episodes))
        for domain in domains:
            listed = sorted((id_, *state) for id_, state in self._episodes.items() if domain_of(state[0]) == domain)
            self._held(f"list/{domain}", position, tuple(listed))
            self._held(f"count/{domain}", position, len(listed))

    def _replay_step(self, position: int, row: Logged, steps: dict[str, int]) -> None:
        if row.key is None:
            for id_ in steps:
                self._held(f"step/{id_}", position, None)
            steps.clear()
        elif row.operation == "delete":
            steps.pop(row.key, None)
            self._held(f"step/{row.key}", position, None)
        else:
            steps[row.key] = row.revision or 0
            self._held(f"step/{row.key}", position, row.revision)

    def _held(self, register: str, position: int, state: Any) -> None:
        states = self._states.setdefault(register, [_nothing(register)])
        positions = self._positions[register]
        if positions[-1] == position:
            states[-1] = state
        else:
            positions.append(position)
            states.append(state)


def _nothing(register: str) -> Any:
    name = register.partition("/")[0]
    return {"count": 0, "steps": (), "list": ()}.get(name)


assert len(set(DOMAINS)) == len(DOMAINS)
