"""Writes whose new values follow from what is stored: read, computed and written in one transaction, so none is lost.

What computes is a pure function of records. It runs where the transaction runs, on SQLite on the connection's own
thread, and again when a batch is run again. It may refuse with a `RecordError`, before anything is written; any other
error would fail the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic

from memory_store.codec import CODECS
from memory_store.config import Limits
from memory_store.durable.lookup import Ask, Work, find_existing
from memory_store.durable.operations import Context, Delete, Put, Update, absent
from memory_store.durable.statements import STATEMENTS
from memory_store.records import RecordSpec
from memory_store.records.spec import R

__all__ = ["Compute", "Merge"]


class Compute(Update, Generic[R]):
    """Change one record to what follows from it. Returns its row as stored.

    Args:
        spec: its kind.
        namespace: whose it is.
        id_: which.
        compute: takes the record as stored and returns it as it is to be; the same object where nothing is to change.
        limits: the largest values accepted.
        initial: stands in for a record that does not exist, and what follows from it is inserted; None refuses.
    """

    def __init__(
        self,
        spec: RecordSpec[R],
        namespace: str,
        id_: str,
        compute: Callable[[R], R],
        limits: Limits,
        *,
        initial: R | None = None,
    ) -> None:
        super().__init__(spec, namespace, id_, {}, None, limits)
        self._compute, self._initial = compute, initial

    def run(self, context: Context) -> Work:
        """Read it, and write what follows."""
        found = yield Ask(STATEMENTS[self.spec.kind].get, (self.namespace, self.id))
        if found:
            return (yield from self.replace(found[0], context))
        if self._initial is None:
            raise absent(self.spec, self.namespace, self.id)
        row = CODECS[self.spec.kind].encode(self._compute(self._initial), self.limits)
        [stored] = yield from Put(self.spec, self.namespace, [row]).run(context)
        return stored

    def changed(self, record: R) -> R:
        """Return what follows from the record."""
        return self._compute(record)


class Merge(Generic[R]):
    """Put what follows from several records in the place of the first and delete the others. Returns its row as stored.

    Args:
        spec: their kind, which has no parts.
        namespace: whose they are.
        kept: the one that stays.
        merged: the others.
        combine: takes the one that stays and the others, as stored, and returns what it is to be.
        limits: the largest values accepted.
    """

    def __init__(
        self,
        spec: RecordSpec[R],
        namespace: str,
        kept: str,
        merged: Sequence[str],
        combine: Callable[[R, Sequence[R]], R],
        limits: Limits,
    ) -> None:
        self.spec, self.namespace, self.kept, self.merged = spec, namespace, kept, merged
        self._combine, self._limits = combine, limits
        self.size = 1 + len(merged)

    def run(self, context: Context) -> Work:
        """Read all of them before anything is written: what is refused is refused as a whole."""
        rows: dict[str, Sequence[Any]] = yield from find_existing(self.spec, self.namespace, self.merged)
        for id_ in self.merged:
            if id_ not in rows:
                raise absent(self.spec, self.namespace, id_)
        others: list[R] = [CODECS[self.spec.kind].decode(list(rows[id_])) for id_ in self.merged]
        compute = Compute(
            self.spec, self.namespace, self.kept, lambda record: self._combine(record, others), self._limits
        )
        row = yield from compute.run(context)
        for id_ in self.merged:
            yield from Delete(self.spec, self.namespace, id_, None).run(context)
        return row
