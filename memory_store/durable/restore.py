"""Writing rows as they once were: what import does.

Unlike a put, a restored row keeps its own revision and times, and a row that is there already is compared instead of
replaced. Rows come in units (one line of a file): a unit is written whole or not at all, and one that cannot be written
takes no other with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from memory_store.codec import Row
from memory_store.durable.changes import PUBLISH_LIMIT, Change
from memory_store.durable.lookup import Ask, Work, find_existing, parent_of
from memory_store.durable.operations import REVISION, UPDATED_AT, Context, _change, _image
from memory_store.durable.statements import STATEMENTS
from memory_store.records import RECORDS, RecordSpec

__all__ = ["Item", "Outcome", "Restore", "Unit"]

_CREATED_AT = 2  # its place in every row

Status: TypeAlias = Literal["inserted", "unchanged", "replaced", "conflict", "refused"]
_Table: TypeAlias = tuple[str, str]  # kind, namespace
_Asking: TypeAlias = Generator[Ask, list[tuple[Any, ...]], Any]


class Item(NamedTuple):
    """One row to restore.

    Args:
        spec: its kind.
        namespace: whose it is.
        row: its values.
        open: places of the columns whose source said nothing: they are not compared, an existing row keeps its
            `created_at`, and revision and `updated_at` are set as by a put.
    """

    spec: RecordSpec[Any]
    namespace: str
    row: Row
    open: frozenset[int]


class Unit(NamedTuple):
    """Rows that are written together or not at all.

    Args:
        items: the rows, an episode before its parts; no id twice.
        complete: kinds of which the unit holds all records of its first item, an episode: others that are stored are
            a difference, and are deleted where the unit replaces.
    """

    items: list[Item]
    complete: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What became of a unit.

    Args:
        statuses: of each item: inserted, unchanged or replaced; of all alike: conflict (it exists with other content)
            or refused (it cannot stand there).
        deleted: stored parts that the unit did not have and that were deleted.
        field: the field at fault, where statuses are conflict or refused.
        reason: what is wrong with it.
    """

    statuses: tuple[Status, ...]
    deleted: int = 0
    field: str | None = None
    reason: str = ""


class Restore:
    """Insert units, compare the ones that exist. Returns the outcome of each, in order.

    Args:
        units: no two may hold the same record.
        replace: replace what exists with other content.
    """

    is_simple = False

    def __init__(self, units: Sequence[Unit], *, replace: bool) -> None:
        self.units, self.replace = units, replace
        self.size = sum(len(unit.items) for unit in units)
        if len({(i.spec.kind, i.namespace, i.row[0]) for unit in units for i in unit.items}) != self.size:
            raise ValueError("a record appears twice in one batch")

    def run(self, context: Context) -> Work:
        """Read all that the decisions need, decide every unit, then write what was decided."""
        plan = _Plan(self.replace)
        yield from plan.read(self.units)
        outcomes = [plan.decide(unit) for unit in self.units]
        yield from plan.write(context)
        return outcomes


class _Plan:
    """What is stored, and what will be written to it."""

    def __init__(self, replace: bool) -> None:
        self._replace = replace
        self._stored: dict[_Table, dict[str, Sequence[Any]]] = {}
        self._episodes: set[tuple[str, str | None]] = set()
        """Namespace and id of the episodes that are there when the parts are written."""
        self._owners: defaultdict[tuple[str, str, str], dict[int, str]] = defaultdict(dict)
        """For kind, namespace and episode: the id that holds each number."""
        self._inserts: defaultdict[_Table, list[Row]] = defaultdict(list)
        self._replacements: defaultdict[_Table, list[Row]] = defaultdict(list)
        self._deletes: defaultdict[_Table, list[str]] = defaultdict(list)

    def read(self, units: Sequence[Unit]) -> _Asking:
        """Read the rows that exist, the episodes they belong to, and the numbers that are taken there."""
        ids: defaultdict[_Table, list[str]] = defaultdict(list)
        parents: defaultdict[_Table, set[str]] = defaultdict(set)
        for unit in units:
            for item in unit.items:
                table = (item.spec.kind, item.namespace)
                ids[table].append(item.row[0])
                parent = parent_of(item.spec, item.row)
                if parent is not None:
                    parents[table].add(parent)
            for kind in unit.complete:
                parents[kind, unit.items[0].namespace].add(unit.items[0].row[0])
        for (kind, namespace), wanted in ids.items():
            self._stored[kind, namespace] = yield from find_existing(RECORDS[kind], namespace, wanted)
        for (kind, namespace), wanted_parents in parents.items():
            yield from self._read_parents(RECORDS[kind], namespace, wanted_parents, set(ids["episode", namespace]))

    def _read_parents(self, spec: RecordSpec[Any], namespace: str, parents: set[str], asked: set[str]) -> _Asking:
        statements, stored = STATEMENTS[spec.kind], self._stored.get(("episode", namespace), {})
        for parent in parents:
            known = parent in stored or (namespace, parent) in self._episodes
            if not known and (parent in asked or not (yield Ask(statements.last_numbers(1), (namespace, parent)))):
                continue
            self._episodes.add((namespace, parent))
            if spec.number is not None:
                rows = yield Ask(statements.numbers, (namespace, parent))
                self._owners[spec.kind, namespace, parent] = {number: id_ for id_, number in rows}

    def decide(self, unit: Unit) -> Outcome:
        """Say what becomes of a unit, and plan it if it can be written."""
        first = unit.items[0]
        own = (first.namespace, first.row[0]) if first.spec.kind == "episode" else None
        statuses: list[Status] = []
        difference: tuple[str, str] | None = None
        for item in unit.items:
            place = (item.namespace, parent_of(item.spec, item.row))
            if place[1] is not None and place not in self._episodes and place != own:
                reason = f"episode {place[1]!r:.120} does not exist in namespace {item.namespace!r}"
                return _all(unit, "refused", item.spec.parent, reason)
            found = self._compare(item)
            difference = difference or found
            old = self._old(item)
            statuses.append("inserted" if old is None else "replaced" if found else "unchanged")
        surplus = self._surplus(unit)
        for kind, ids in surplus.items():
            if ids:
                words = f"{len(ids)} more {kind}{'s' if len(ids) > 1 else ''} of this episode exist"
                difference = difference or (f"{kind}s", words)
        if first.spec.kind == "episode" and statuses[0] == "unchanged" and "inserted" in statuses:
            missing = statuses.count("inserted")
            difference = difference or ("steps", f"{missing} of its {len(statuses) - 1} parts are not stored")
        if difference is not None and not self._replace:
            return _all(unit, "conflict", difference[0], f"exists with other content: {difference[1]}")
        return self._place(unit, own, statuses, surplus)

    def _old(self, item: Item) -> Sequence[Any] | None:
        return self._stored[item.spec.kind, item.namespace].get(item.row[0])

    def _compare(self, item: Item) -> tuple[str, str] | None:
        old = self._old(item)
        if old is None:
            return None
        for place, (theirs, ours) in enumerate(zip(item.row, old, strict=True)):
            if theirs != ours and place not in item.open:
                name = item.spec.columns[place]
                return name, f"{item.spec.kind}.{name} differs"
        return None

    def _surplus(self, unit: Unit) -> dict[str, list[str]]:
        first = unit.items[0]
        surplus: dict[str, list[str]] = {}
        for kind in unit.complete:
            ours = {item.row[0] for item in unit.items if item.spec.kind == kind}
            stored = self._owners.get((kind, first.namespace, first.row[0]), {})
            surplus[kind] = [id_ for id_ in stored.values() if id_ not in ours]
        return surplus

    def _place(
        self, unit: Unit, own: tuple[str, str] | None, statuses: list[Status], surplus: dict[str, list[str]]
    ) -> Outcome:
        """Give each part its number, then take the unit into the plan."""
        gone = {id_ for ids in surplus.values() for id_ in ids}
        moving = {item.row[0] for item, status in zip(unit.items, statuses, strict=True) if status == "replaced"}
        taken: dict[tuple[tuple[str, str, str], int], str] = {}
        for item in unit.items:
            if item.spec.number is None:
                continue
            parent, number = parent_of(item.spec, item.row) or "", item.row[item.spec.index(item.spec.number)]
            place = (item.spec.kind, item.namespace, parent)
            holder = self._owners[place].get(number)
            free = holder is None or holder in gone or holder in moving or holder == item.row[0]
            if not free or taken.setdefault((place, number), item.row[0]) != item.row[0]:
                reason = f"{number} is taken in episode {parent!r:.120}"
                return _all(unit, "refused", item.spec.number, reason)
        for owners in {place: self._owners[place] for place, _ in taken}.values():
            for number in [number for number, id_ in owners.items() if id_ in gone or id_ in moving]:
                del owners[number]
        for (place, number), id_ in taken.items():
            self._owners[place][number] = id_
        if own is not None:
            self._episodes.add(own)
        for item, status in zip(unit.items, statuses, strict=True):
            if status == "inserted":
                self._inserts[item.spec.kind, item.namespace].append(self._filled(item, None))
            elif status == "replaced":
                self._replacements[item.spec.kind, item.namespace].append(self._filled(item, self._old(item)))
        for kind, ids in surplus.items():
            self._deletes[kind, unit.items[0].namespace].extend(ids)
        return Outcome(tuple(statuses), len(gone))

    def _filled(self, item: Item, old: Sequence[Any] | None) -> Row:
        """Return the row with its open columns filled; None stands for the commit's time, which is not known yet."""
        row = list(item.row)
        if UPDATED_AT in item.open:
            row[UPDATED_AT] = None
        if REVISION in item.open:
            row[REVISION] = 1 if old is None else old[REVISION] + 1
        if old is not None and _CREATED_AT in item.open:
            row[_CREATED_AT] = old[_CREATED_AT]
        return row

    def write(self, context: Context) -> _Asking:
        """Write the plan: kinds in their order, so that episodes stand before their parts."""
        deleted: dict[_Table, Mapping[str, Sequence[Any]]] = {}
        for (kind, namespace), ids in self._deletes.items():
            deleted[kind, namespace] = yield from find_existing(RECORDS[kind], namespace, ids)
        written = sum(map(len, [*self._inserts.values(), *self._replacements.values()]))
        pack = written <= PUBLISH_LIMIT
        tables = {*self._inserts, *self._replacements, *self._deletes}
        order = list(RECORDS)
        for table in sorted(tables, key=lambda table: (order.index(table[0]), table[1])):
            yield from self._delete(table, deleted.get(table, {}), context)
            yield from self._write_rows(table, context, pack)

    def _delete(self, table: _Table, rows: Mapping[str, Sequence[Any]], context: Context) -> _Asking:
        spec, namespace = RECORDS[table[0]], table[1]
        for id_, row in rows.items():
            yield Ask(STATEMENTS[spec.kind].delete, (namespace, id_))
            context.changes.append(
                Change(
                    spec.kind, namespace, id_, parent_of(spec, row), "delete", row[REVISION], image=_image(spec, row)
                )
            )

    def _write_rows(self, table: _Table, context: Context, pack: bool) -> _Asking:
        spec, namespace, statements = RECORDS[table[0]], table[1], STATEMENTS[table[0]]
        changed, fresh = self._replacements.get(table, []), self._inserts.get(table, [])
        for row in [*changed, *fresh]:
            row[UPDATED_AT] = context.now_us if row[UPDATED_AT] is None else row[UPDATED_AT]
        for row in changed:  # before the inserts, which may take a number that a replaced row gives up
            old = self._stored[table][row[0]]
            yield Ask(statements.replace, (*row[1:], namespace, row[0]))
            if parent_of(spec, old) != parent_of(spec, row):
                context.changes.append(
                    Change(spec.kind, namespace, row[0], parent_of(spec, old), "move", row[REVISION])
                )
            context.changes.append(_change(spec, namespace, row, old=old, pack=pack))
        if fresh:
            yield Ask(statements.insert, [(namespace, *row) for row in fresh], many=True)
        context.changes.extend(_change(spec, namespace, row, pack=pack) for row in fresh)


def _all(unit: Unit, status: Status, field: str | None, reason: str) -> Outcome:
    return Outcome((status,) * len(unit.items), field=field, reason=reason)
