"""What a write has to know before its first change: what exists, and where the parts of an episode go.

Generators like the operations that use them (see `operations`).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from memory_store.codec import Row
from memory_store.durable.statements import STATEMENTS, in_batches
from memory_store.errors import ConflictError, InvalidRecordError, RecordNotFoundError
from memory_store.records import RecordSpec

__all__ = ["Ask", "Work", "find_existing", "parent_of", "place_parts"]


class Ask(NamedTuple):
    """One statement. Its rows come back; where it returns none, an empty tuple for each row it touched.

    With `many`, it is run once for each member of `parameters`.
    """

    sql: str
    parameters: Any
    many: bool = False


Work: TypeAlias = Generator[Ask, list[tuple[Any, ...]], Any]


def find_existing(
    spec: RecordSpec[Any], namespace: str, ids: Sequence[str]
) -> Generator[Ask, list[tuple[Any, ...]], dict[str, Sequence[Any]]]:
    """Return the stored rows of those ids that exist."""
    statements = STATEMENTS[spec.kind]
    rows: dict[str, Sequence[Any]] = {}
    for batch in in_batches(ids):
        for row in (yield Ask(statements.get_by_id(len(batch)), (namespace, *batch))):
            rows[row[0]] = row
    return rows


def parent_of(spec: RecordSpec[Any], row: Sequence[Any]) -> str | None:
    """Return the episode a row belongs to, None for a kind that belongs to none."""
    return None if spec.parent_index is None else row[spec.parent_index]


def place_parts(
    spec: RecordSpec[Any], namespace: str, rows: list[Row], existing: Mapping[str, Sequence[Any]]
) -> Generator[Ask, list[tuple[Any, ...]], dict[str, bool | None]]:
    """Check that each parent exists, number the rows without a number, say where each parent's rows will stand.

    Raises:
        RecordNotFoundError: an episode does not exist.
        ConflictError: a number is taken.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(parent_of(spec, row) or "", []).append(row)
    last = yield from _last_numbers(spec, namespace, list(groups))
    follows: dict[str, bool | None] = {}
    for parent, members in groups.items():
        if parent not in last:
            raise RecordNotFoundError(
                f"{spec.kind} belongs to episode {parent!r:.300}, which does not exist in namespace {namespace!r}",
                kind="episode",
                namespace=namespace,
                key=parent,
            )
        follows[parent] = None
        if spec.number is not None:
            follows[parent] = yield from _number(spec, namespace, parent, members, existing, last[parent])
    return follows


def _last_numbers(
    spec: RecordSpec[Any], namespace: str, parents: Sequence[str]
) -> Generator[Ask, list[tuple[Any, ...]], dict[str, int | None]]:
    """Return the highest number of each parent that exists, None for one without parts or a kind without numbers."""
    last: dict[str, int | None] = {}
    for batch in in_batches(parents):
        last.update((yield Ask(STATEMENTS[spec.kind].last_numbers(len(batch)), (namespace, *batch))))
    return last


def _number(
    spec: RecordSpec[Any],
    namespace: str,
    parent: str,
    rows: list[Row],
    existing: Mapping[str, Sequence[Any]],
    last: int | None,
) -> Generator[Ask, list[tuple[Any, ...]], bool | None]:
    assert spec.number is not None
    index = spec.index(spec.number)
    for row in rows:
        known = existing.get(row[0])
        if row[index] is None and known is not None and parent_of(spec, known) == parent:
            row[index] = known[index]
    highest = max([0 if last is None else last, *(row[index] for row in rows if row[index] is not None)])
    for row in rows:
        if row[index] is None:
            highest += 1
            row[index] = highest
    if highest >= 1 << 63:
        raise InvalidRecordError(
            f"{spec.kind}.{spec.number} of episode {parent!r:.300}: there is no number after {(1 << 63) - 1}",
            kind=spec.kind,
            namespace=namespace,
            key=parent,
            field=spec.number,
        )
    numbers = [row[index] for row in rows]
    in_order = all(before < after for before, after in pairwise(numbers))
    if last is None and in_order:
        return False
    if last is not None and in_order and numbers[0] > last:
        return True
    taken = {number: id_ for id_, number in (yield Ask(STATEMENTS[spec.kind].numbers, (namespace, parent)))}
    for row in rows:  # rows that are about to be replaced give their numbers up first
        known = existing.get(row[0])
        if known is not None and taken.get(known[index]) == row[0]:
            del taken[known[index]]
    for row in rows:
        if taken.setdefault(row[index], row[0]) != row[0]:
            raise ConflictError(
                f"{spec.kind} number {row[index]} of episode {parent!r:.300} is taken",
                kind=spec.kind,
                namespace=namespace,
                key=row[0],
            )
    return None
