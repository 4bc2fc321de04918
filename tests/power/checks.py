"""What is checked of a database that has been opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memory_store.codec import pack_row
from memory_store.durable.batches import Applied
from memory_store.durable.operations import Operation, Put
from tests.power.disk import Disk
from tests.power.ledger import Dump, Violation, difference, dump, problems
from tests.power.library import Library
from tests.power.machine import Machine

__all__ = ["check_rows", "held", "powered_on"]


def held(disk: Disk) -> Dump:
    """Return what the database on a disk holds, as a machine without faults reads it."""
    library = Library(Machine(Disk.holding(disk.contents())))
    try:
        return dump(library.connection)
    finally:
        library.die()


def powered_on(
    machine: Machine, allowed: Sequence[Dump], check_history: Callable[[Dump], None], synchronous: str | None = None
) -> Library:
    """Open the database on a machine that was switched on again, and check it."""
    try:
        library = Library(machine, synchronous)
    except Exception as error:
        raise Violation(f"after the power cut it does not open: {error!r}") from error
    try:
        wrong = problems(library.connection)
        if wrong:
            raise Violation(f"after the power cut: {wrong[:5]}")
        now = dump(library.connection)
        if now not in allowed:
            raise Violation("after the power cut: " + difference(now, allowed))
        check_history(now)
    except Exception as error:
        library.die()
        if isinstance(error, Violation):
            raise
        raise Violation(f"after the power cut it cannot be read: {error!r}") from error
    except BaseException:
        library.die()
        raise
    return library


def check_rows(operations: Sequence[Operation], applied: Applied, now: Dump) -> None:
    """Check that the rows that puts returned as stored are stored like that, where nothing later changed them."""
    final = {(change.kind, change.key): change.body for change in applied.commit.changes}
    for operation, outcome in zip(operations, applied.outcomes, strict=True):
        if not isinstance(operation, Put) or isinstance(outcome, BaseException):
            continue
        table = now[operation.spec.table.name]
        for row in outcome:
            if final.get((operation.spec.kind, row[0])) == pack_row(row) and (operation.namespace, *row) not in table:
                raise Violation(f"acknowledged and not there: {operation.spec.kind} {row[0]!r}")
