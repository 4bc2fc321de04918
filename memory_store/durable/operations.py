"""What a write does, without saying how it is run.

An operation is a generator that yields statements and is sent their rows back: the SQLite lane drives it inside one
call on the connection's thread; an asynchronous driver can drive the same generator with awaits. So each rule (what an
upsert does, how steps are numbered, what a delete takes with it) is written once for every database.

An operation refuses (raises a `RecordError`) only before its first write. What the database itself refuses halfway is
undone by whoever drives it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from memory_store.codec import CODECS, Row, pack_row
from memory_store.config import Limits
from memory_store.durable.changes import PUBLISH_LIMIT, Change
from memory_store.durable.statements import STATEMENTS, Statements, batch_size, pad
from memory_store.errors import ConflictError, InvalidRecordError, RecordNotFoundError
from memory_store.records import PARTS, RecordSpec

__all__ = ["Ask", "Delete", "Operation", "Put", "Update", "Work"]

REVISION, UPDATED_AT = 1, 3  # places in every row, see `record_table`


class Ask(NamedTuple):
    """One statement. Its rows come back; where it returns none, an empty tuple for each row it touched.

    With `many`, parameters are a list of tuples and nothing comes back.
    """

    sql: str
    parameters: Sequence[Any]
    many: bool = False


Work: TypeAlias = Generator[Ask, list[tuple[Any, ...]], Any]


class Context(NamedTuple):
    """What an operation is given: the commit's wall time in microseconds, and where it notes its changes."""

    now_us: int
    changes: list[Change]


class Put:
    """Insert rows, or replace the ones that exist, as a whole. Returns the rows as stored, in order."""

    def __init__(self, spec: RecordSpec[Any], namespace: str, rows: list[Row]) -> None:
        self.spec, self.namespace, self.rows = spec, namespace, rows
        self.size = len(rows)
        if len(rows) > 1:
            repeated = [id_ for id_, count in Counter(row[0] for row in rows).items() if count > 1]
            if repeated:
                raise InvalidRecordError(
                    f"{spec.kind} {repeated[0]!r} appears twice in one batch",
                    kind=spec.kind,
                    namespace=namespace,
                    key=repeated[0],
                    field="id",
                )

    def run(self, context: Context) -> Work:
        """Place parts, then write: a single row is tried as an insert at once, a batch reads what exists first."""
        spec, statements = self.spec, STATEMENTS[self.spec.kind]
        if spec.parent is None and len(self.rows) == 1:
            row = self._stamped(self.rows[0], 1, context)
            inserted = yield Ask(statements.insert, (self.namespace, *row))
            if inserted:
                context.changes.append(_change(spec, self.namespace, "insert", row, None))
                return [row]
        existing = yield from _existing(spec, statements, self.namespace, [row[0] for row in self.rows])
        follows: dict[str, bool | None] = {}
        rows = [list(row) for row in self.rows]
        if spec.parent is not None:
            follows = yield from _place(spec, statements, self.namespace, rows, existing)
        pack = len(rows) <= PUBLISH_LIMIT
        fresh: list[tuple[Any, ...]] = []
        for index, row in enumerate(rows):
            known = existing.get(row[0])
            rows[index] = row = self._stamped(row, 1 if known is None else known.revision + 1, context)
            if known is None:
                fresh.append((self.namespace, *row))
        if fresh:
            yield Ask(statements.insert, fresh, many=True)
        for row in rows:
            known = existing.get(row[0])
            if known is None:
                parent = _parent(spec, row)
                place = None if parent is None else follows[parent]
                context.changes.append(_change(spec, self.namespace, "insert", row, place, pack=pack))
                if parent is not None and place is False:
                    follows[parent] = True
            else:
                yield Ask(statements.replace, (*row[1:], self.namespace, row[0]))
                if known.parent != _parent(spec, row):
                    context.changes.append(
                        Change(spec.kind, self.namespace, row[0], known.parent, "move", row[REVISION])
                    )
                context.changes.append(_change(spec, self.namespace, "update", row, None, pack=pack))
        return rows

    def _stamped(self, row: Row, revision: int, context: Context) -> Row:
        row = list(row)
        row[REVISION], row[UPDATED_AT] = revision, context.now_us
        return row


class Update:
    """Change fields of one stored record. Returns its row as stored."""

    size = 1

    def __init__(
        self,
        spec: RecordSpec[Any],
        namespace: str,
        id_: str,
        values: Mapping[str, Any],
        expected_revision: int | None,
        limits: Limits,
    ) -> None:
        self.spec, self.namespace, self.id = spec, namespace, id_
        self.values, self.expected_revision, self.limits = values, expected_revision, limits

    def run(self, context: Context) -> Work:
        """Read, check the revision, let the record's own rules judge the result, write it whole."""
        spec, statements, codec = self.spec, STATEMENTS[self.spec.kind], CODECS[self.spec.kind]
        found = yield Ask(statements.get, (self.namespace, self.id))
        if not found:
            raise RecordNotFoundError(
                f"{spec.kind} {self.id!r:.300} does not exist in namespace {self.namespace!r}",
                kind=spec.kind,
                namespace=self.namespace,
                key=self.id,
            )
        record = codec.decode(list(found[0]))
        _expect(spec, self.namespace, self.id, self.expected_revision, record.revision)
        changed = codec.encode(dataclasses.replace(record, **self.values), self.limits)
        changed[REVISION], changed[UPDATED_AT] = record.revision + 1, context.now_us
        if spec.number is not None and spec.number in self.values:
            existing = {self.id: _Known(record.revision, _parent(spec, changed), None)}
            yield from _place(spec, statements, self.namespace, [changed], existing)
        yield Ask(statements.replace, (*changed[1:], self.namespace, self.id))
        context.changes.append(_change(spec, self.namespace, "update", changed, None))
        return changed


class Delete:
    """Delete one record and all that belongs to it. Returns whether it existed."""

    size = 1

    def __init__(self, spec: RecordSpec[Any], namespace: str, id_: str, expected_revision: int | None) -> None:
        self.spec, self.namespace, self.id, self.expected_revision = spec, namespace, id_, expected_revision

    def run(self, context: Context) -> Work:
        """Log the parts first (as one range a kind), then delete; the database cascades."""
        spec, statements = self.spec, STATEMENTS[self.spec.kind]
        known = (yield from _existing(spec, statements, self.namespace, [self.id])).get(self.id)
        if known is None:
            if self.expected_revision is not None:
                _expect(spec, self.namespace, self.id, self.expected_revision, None)
            return False
        _expect(spec, self.namespace, self.id, self.expected_revision, known.revision)
        changes = []
        if spec.kind == "episode":
            for part in PARTS:
                if (yield Ask(STATEMENTS[part.kind].has_parts, (self.namespace, self.id)))[0][0]:
                    changes.append(Change(part.kind, self.namespace, None, self.id, "delete", None))
        changes.append(Change(spec.kind, self.namespace, self.id, known.parent, "delete", known.revision))
        yield Ask(statements.delete, (self.namespace, self.id))
        context.changes.extend(changes)
        return True


Operation: TypeAlias = Put | Update | Delete


class _Known(NamedTuple):
    revision: int
    parent: str | None
    number: int | None


def _existing(
    spec: RecordSpec[Any], statements: Statements, namespace: str, ids: Sequence[str]
) -> Generator[Ask, list[tuple[Any, ...]], dict[str, _Known]]:
    parent = spec.index(spec.parent) if spec.parent else None
    number = spec.index(spec.number) if spec.number else None
    known: dict[str, _Known] = {}
    for chunk in _chunks(ids):
        places = batch_size(len(chunk))
        for row in (yield Ask(statements.get_by_id(places), (namespace, *pad(chunk, places)))):
            known[row[0]] = _Known(
                row[REVISION],
                None if parent is None else row[parent],
                None if number is None else row[number],
            )
    return known


def _chunks(ids: Sequence[str], size: int = 512) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _place(
    spec: RecordSpec[Any], statements: Statements, namespace: str, rows: list[Row], existing: Mapping[str, _Known]
) -> Generator[Ask, list[tuple[Any, ...]], dict[str, bool | None]]:
    """Check that each parent exists, number the rows without a number, say where each parent's rows will stand."""
    assert spec.parent is not None
    parent_index = spec.index(spec.parent)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[parent_index], []).append(row)
    follows: dict[str, bool | None] = {}
    for parent, members in groups.items():
        if not (yield Ask(statements.parent_exists, (namespace, parent))):
            raise RecordNotFoundError(
                f"{spec.kind} belongs to episode {parent!r:.300}, which does not exist in namespace {namespace!r}",
                kind="episode",
                namespace=namespace,
                key=parent,
            )
        if spec.number is None:
            follows[parent] = None
            continue
        last = (yield Ask(statements.last_number, (namespace, parent)))[0][0]
        follows[parent] = yield from _number(spec, statements, namespace, parent, members, existing, last)
    return follows


def _number(
    spec: RecordSpec[Any],
    statements: Statements,
    namespace: str,
    parent: str,
    rows: list[Row],
    existing: Mapping[str, _Known],
    last: int | None,
) -> Generator[Ask, list[tuple[Any, ...]], bool | None]:
    assert spec.number is not None
    index = spec.index(spec.number)
    for row in rows:
        known = existing.get(row[0])
        if row[index] is None and known is not None and known.parent == parent:
            row[index] = known.number
    highest = max([0 if last is None else last, *(row[index] for row in rows if row[index] is not None)])
    for row in rows:
        if row[index] is None:
            highest += 1
            row[index] = highest
    numbers = [row[index] for row in rows]
    in_order = all(before < after for before, after in pairwise(numbers))
    if last is None and in_order:
        return False
    if last is not None and in_order and numbers[0] > last:
        return True
    taken = {number: id_ for id_, number in (yield Ask(statements.numbers, (namespace, parent)))}
    for row in rows:  # rows that are about to be replaced give their numbers up first
        known = existing.get(row[0])
        if known is not None and taken.get(known.number or 0) == row[0]:
            del taken[known.number or 0]
    for row in rows:
        if taken.setdefault(row[index], row[0]) != row[0]:
            raise ConflictError(
                f"{spec.kind} number {row[index]} of episode {parent!r:.300} is taken",
                kind=spec.kind,
                namespace=namespace,
                key=row[0],
            )
    return None


def _change(
    spec: RecordSpec[Any], namespace: str, operation: str, row: Row, follows: bool | None, *, pack: bool = True
) -> Change:
    body = pack_row(row) if pack or spec.history else b""
    return Change(spec.kind, namespace, row[0], _parent(spec, row), operation, row[REVISION], body, follows)


def _parent(spec: RecordSpec[Any], row: Row) -> str | None:
    return row[spec.index(spec.parent)] if spec.parent else None


def _expect(spec: RecordSpec[Any], namespace: str, id_: str, expected: int | None, actual: int | None) -> None:
    if expected is not None and expected != actual:
        state = "does not exist" if actual is None else f"is at revision {actual}"
        raise ConflictError(
            f"{spec.kind} {id_!r:.300} {state}, expected revision {expected}",
            kind=spec.kind,
            namespace=namespace,
            key=id_,
            expected=expected,
            actual=actual,
        )
