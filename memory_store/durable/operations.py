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
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

from memory_store.codec import CODECS, Row, pack_row
from memory_store.config import Limits
from memory_store.durable.changes import PUBLISH_LIMIT, Change
from memory_store.durable.lookup import Ask, Work, find_existing, parent_of, place_parts
from memory_store.durable.statements import STATEMENTS
from memory_store.durable.text_index import Document, Gone
from memory_store.errors import ConflictError, InvalidRecordError, RecordNotFoundError
from memory_store.records import PARTS, RecordSpec

if TYPE_CHECKING:
    from memory_store.durable.computed import Merge
    from memory_store.durable.indexing import IndexBehind, LeaveBehind
    from memory_store.durable.outcomes import PutOnce, Resolve, UpdateOnce
    from memory_store.durable.restore import Restore

__all__ = [
    "Ask",
    "Collision",
    "Context",
    "Delete",
    "IndexWork",
    "Operation",
    "Put",
    "PutTogether",
    "Update",
    "Work",
    "absent",
]

REVISION, UPDATED_AT = 1, 3  # places in every row, see `record_table`


class IndexWork:
    """What a transaction brings into the full-text index of earlier commits.

    `is_due` says whether it has to be committed, though it may have no documents: what was left behind is noted too.
    `is_anew` says whether the index is to be made anew first.
    """

    __slots__ = ("documents", "gone", "is_anew", "is_due")

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.gone: list[Gone] = []
        self.is_anew = self.is_due = False


class Context(NamedTuple):
    """What an operation is given: the commit's wall time in microseconds, where it notes its changes, its position.

    And where it notes work on the full-text index, which is no change of a record.
    """

    now_us: int
    changes: list[Change]
    position: int
    text: IndexWork

    @classmethod
    def new(cls, now_us: int, position: int) -> Context:
        """Return a context in which nothing is noted yet."""
        return cls(now_us, [], position, IndexWork())


class Put:
    """Insert rows, or replace the ones that exist, as a whole. Returns the rows as stored, in order."""

    def __init__(self, spec: RecordSpec[Any], namespace: str, rows: list[Row]) -> None:
        self.spec, self.namespace, self.rows = spec, namespace, rows
        self.size = len(rows)
        self.is_simple = len(rows) == 1 and spec.parent is None
        """Whether it may well be one insert that depends on nothing."""
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
        if self.is_simple:
            row = self.stamped(self.rows[0], 1, context)
            inserted = yield Ask(statements.insert, (self.namespace, *row))
            if inserted:
                context.changes.append(_change(spec, self.namespace, row))
                return [row]
        existing = yield from find_existing(spec, self.namespace, [row[0] for row in self.rows])
        follows: dict[str, bool | None] = {}
        rows = [list(row) for row in self.rows]
        if spec.parent is not None:
            follows = yield from place_parts(spec, self.namespace, rows, existing)
        pack = len(rows) <= PUBLISH_LIMIT
        for row in rows:  # which are copies
            old = existing.get(row[0])
            row[REVISION], row[UPDATED_AT] = 1 if old is None else old[REVISION] + 1, context.now_us
        if spec.number is not None and existing:
            # Rows that give their number up do so first, so that others of the batch can take it.
            place = spec.index(spec.number)
            moved = [row[0] for row in rows if row[0] in existing and row[place] != existing[row[0]][place]]
            away = [(-1 - index, self.namespace, id_) for index, id_ in enumerate(moved)]
            yield Ask(statements.renumber, away, many=True)
        yield Ask(statements.insert, ((self.namespace, *row) for row in rows if row[0] not in existing), many=True)
        for row in rows:
            old, parent = existing.get(row[0]), parent_of(spec, row)
            if old is None:
                follow = None if parent is None else follows[parent]
                context.changes.append(_change(spec, self.namespace, row, follows=follow, pack=pack))
                if parent is not None and follow is False:
                    follows[parent] = True
                continue
            yield Ask(statements.replace, (*row[1:], self.namespace, row[0]))
            if parent_of(spec, old) != parent:
                context.changes.append(
                    Change(spec.kind, self.namespace, row[0], parent_of(spec, old), "move", row[REVISION])
                )
            context.changes.append(_change(spec, self.namespace, row, old=old, pack=pack))
        return rows

    def stamped(self, row: Row, revision: int, context: Context) -> Row:
        """Return a copy of a row with its revision and the commit's time."""
        row = list(row)
        row[REVISION], row[UPDATED_AT] = revision, context.now_us
        return row


class Collision(Exception):  # noqa: N818 - a signal between here and the writer
    """Some of the rows inserted together exist: run their operations one by one."""


class PutTogether:
    """Simple puts of one kind whose inserts are made together. Returns the outcome of each."""

    def __init__(self, puts: Sequence[Put]) -> None:
        self.puts = puts

    def stamped(self, context: Context) -> list[Row]:
        """Return the rows as new ones."""
        return [put.stamped(put.rows[0], 1, context) for put in self.puts]

    def note(self, rows: Sequence[Row], context: Context) -> None:
        """Note that these rows were inserted."""
        for put, row in zip(self.puts, rows, strict=True):
            context.changes.append(_change(put.spec, put.namespace, row))

    def run(self, context: Context) -> Work:
        """Insert all as new.

        Raises:
            Collision: some exist; what was inserted must be rolled back.
        """
        rows = self.stamped(context)
        values = [(put.namespace, *row) for put, row in zip(self.puts, rows, strict=True)]
        if len((yield Ask(STATEMENTS[self.puts[0].spec.kind].insert, values, many=True))) != len(values):
            raise Collision
        self.note(rows, context)
        return [[row] for row in rows]


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
        """Read it, and write what is to be in its place."""
        found = yield Ask(STATEMENTS[self.spec.kind].get, (self.namespace, self.id))
        if not found:
            raise absent(self.spec, self.namespace, self.id)
        return (yield from self.replace(found[0], context))

    def replace(self, old: Sequence[Any], context: Context) -> Work:
        """Check the revision, let the record's own rules judge the result, write it whole."""
        spec, codec = self.spec, CODECS[self.spec.kind]
        record = codec.decode(list(old))
        _expect(spec, self.namespace, self.id, self.expected_revision, record.revision)
        wanted = self.changed(record)
        if wanted is record:  # nothing is to change
            return list(old)
        changed = codec.encode(wanted, self.limits)
        changed[REVISION], changed[UPDATED_AT] = record.revision + 1, context.now_us
        if spec.number is not None and spec.number in self.values:
            yield from place_parts(spec, self.namespace, [changed], {self.id: old})
        yield Ask(STATEMENTS[spec.kind].replace, (*changed[1:], self.namespace, self.id))
        context.changes.append(_change(spec, self.namespace, changed, old=old))
        return changed

    def changed(self, record: Any) -> Any:
        """Return the record as it is to be; itself where nothing is to change."""
        return dataclasses.replace(record, **self.values)


class Delete:
    """Delete one record and all that belongs to it. Returns whether it existed."""

    size = 1

    def __init__(self, spec: RecordSpec[Any], namespace: str, id_: str, expected_revision: int | None) -> None:
        self.spec, self.namespace, self.id, self.expected_revision = spec, namespace, id_, expected_revision

    def run(self, context: Context) -> Work:
        """Log the parts first (as one range a kind), then delete; the database cascades."""
        spec, statements = self.spec, STATEMENTS[self.spec.kind]
        old = (yield from find_existing(spec, self.namespace, [self.id])).get(self.id)
        if old is None:
            if self.expected_revision is not None:
                _expect(spec, self.namespace, self.id, self.expected_revision, None)
            return False
        _expect(spec, self.namespace, self.id, self.expected_revision, old[REVISION])
        changes = []
        if spec.kind == "episode":
            for part in PARTS:
                if (yield Ask(STATEMENTS[part.kind].has_parts, (self.namespace, self.id)))[0][0]:
                    changes.append(Change(part.kind, self.namespace, None, self.id, "delete", None))
        changes.append(
            Change(
                spec.kind,
                self.namespace,
                self.id,
                parent_of(spec, old),
                "delete",
                old[REVISION],
                image=_image(spec, old),
            )
        )
        yield Ask(statements.delete, (self.namespace, self.id))
        context.changes.extend(changes)
        return True


Operation: TypeAlias = Union[
    Put, Update, Delete, "Merge[Any]", "PutOnce", "Resolve", "Restore", "UpdateOnce", "IndexBehind", "LeaveBehind"
]


def _change(
    spec: RecordSpec[Any],
    namespace: str,
    row: Row,
    *,
    old: Sequence[Any] | None = None,
    follows: bool | None = None,
    pack: bool = True,
) -> Change:
    return Change(
        spec.kind,
        namespace,
        row[0],
        parent_of(spec, row),
        "insert" if old is None else "update",
        row[REVISION],
        pack_row(row) if pack else b"",
        follows,
        _image(spec, old),
    )


def _image(spec: RecordSpec[Any], old: Sequence[Any] | None) -> bytes | None:
    return pack_row(old) if old is not None and spec.history else None


def absent(spec: RecordSpec[Any], namespace: str, id_: str) -> RecordNotFoundError:
    """Return the error that says that a record does not exist."""
    return RecordNotFoundError(
        f"{spec.kind} {id_!r:.300} does not exist in namespace {namespace!r}",
        kind=spec.kind,
        namespace=namespace,
        key=id_,
    )


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
