"""`copy_store`: everything of one database into another, empty one, of the same kind or another.

What is promised, and how:

- **One state of the source.** All is read in one transaction of the source, which may be in use meanwhile; what is
  committed after the copy began is not in it, and the report says up to which positions it goes. A SQLite source keeps
  its write-ahead log for that time, a PostgreSQL source its dead rows: both shrink again afterwards.
- **Whole or marked.** Until the last transaction the target is marked as unfinished and nothing opens it. See
  `copy_state`.
- **Resumable.** Run it again after a kill, a cancellation or an error, and it goes on behind the last page. The
  snapshot is gone then: if the source has changed since, each row copied is compared with the source's (which needs
  no trust in any log, and no order in which both databases would have to agree), those that differ are taken out,
  and what is missing is filled in.
- **Verified.** Before the last transaction everything is read back and compared, by namespace, with the source.
- **The log.** Between databases with the same number of heads positions are kept, so cursors of followers stay good.
  Else each head of the target numbers its commits anew, from 2 on (only a log that holds everything begins at 1) and
  without gaps: the changes of a namespace keep their order, those of several heads are merged by their times, and
  what the log says of the old database as a whole (upgrades, restores) is left out, for it spoke to followers of
  heads that are no more. Idempotency keys have position 1 then: before all that the log holds.
- **Another database.** The target keeps the identity it was made with: saved caches and commit tokens of the source
  are not taken for its own while both exist. It goes on in a new epoch, above every position that the source had, so
  `at_least` positions noted before are covered and none comes again with another meaning.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from memory_store.config import Settings, resolve_settings
from memory_store.durable import schema
from memory_store.durable.changes import CHANGES
from memory_store.durable.connection import Connection
from memory_store.durable.engine import ServerTarget, Target, parse_url
from memory_store.durable.examine import require_file
from memory_store.durable.log import read_heads
from memory_store.durable.streams import STREAMS, count_rows, first_log_positions
from memory_store.errors import ConfigurationError, DurableError, SchemaMismatchError
from memory_store.records import RECORDS
from memory_store.transfer.copy_check import Compared, CopyDiffersError, compare_all
from memory_store.transfer.copy_state import UNFINISHED, CopyState, Ledger, is_unfinished
from memory_store.transfer.copy_steps import CopySteps
from memory_store.transfer.ends import End, in_thread, opened_source, opened_target

__all__ = ["CopyProgress", "CopyReport", "copy_store"]


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a copy is.

    Args:
        what: what is being done: "copying episode", "comparing step", ...
        done: rows of all tables and of the log done so far in this part of the work.
        total: rows there are.
    """

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class CopyReport:
    """A copy that was made and verified.

    Args:
        source: what was copied, without its password.
        target: where to.
        records: number of records by kind.
        namespaces: number of namespaces.
        changes: length of the log that was copied.
        idempotency: number of idempotency keys.
        resumed: whether an earlier run had begun it.
        positions_kept: whether changes have the positions that they had in the source.
        source_positions: the newest position of each head of the source that is in the copy.
        target_positions: where each head of the target goes on from.
        seconds: how long it took: "records", "log", "verify", and "total", which is more than these.
    """

    source: str
    target: str
    records: dict[str, int]
    namespaces: int
    changes: int
    idempotency: int
    resumed: bool
    positions_kept: bool
    source_positions: list[int]
    target_positions: list[int]
    seconds: dict[str, float] = field(default_factory=dict)


async def copy_store(
    source: str, target: str, *, on_progress: Callable[[CopyProgress], None] | None = None
) -> CopyReport:
    """Copy everything of a database into an empty one: records, log, idempotency keys, revisions and times.

    The source may be in use. The target cannot be opened before the copy is complete and verified. Interrupted at any
    instant, it goes on where it was when it is called again with the same two.

    Args:
        source: the URL of a database.
        target: the URL of one that is empty, or is made here: of a SQLite file or of an existing PostgreSQL database. A
            PostgreSQL database gets as many heads as the source has, unless `heads` says otherwise.
        on_progress: told how far it is, after each page.

    Raises:
        ConfigurationError: the target is not empty, is the source itself, is a copy of another database, or is being
            filled by another copy. Nothing was touched.
        SchemaMismatchError: one of them is at another revision: upgrade it first. Nothing was touched.
        CodecError: a row holds what only SQLite can store.
        ConstraintError: the target refuses a row.
        DurableError: one of them failed, or what was copied is not what the source has. Call it again.
    """
    began = time.monotonic()
    origin, place = _database(source), _database(target)
    settings = resolve_settings(origin.parameters, {}), resolve_settings(place.parameters, {})
    require_file(origin)
    _require_different(origin, place)
    async with AsyncExitStack() as opened:
        reading = await opened.enter_async_context(opened_source(origin, settings[0]))
        await reading.run(reading.begin_reading)
        state = await reading.run(partial(_look, origin=origin))
        await _prepare(place, settings[1], origin, len(state.heads))
        writing = await opened.enter_async_context(opened_target(place, settings[1]))
        run = _Copy(origin, place, reading, writing, state, on_progress)
        return await run.run(began)


class _Copy:
    """One run of a copy, both ends open."""

    def __init__(
        self,
        origin: Target | ServerTarget,
        place: Target | ServerTarget,
        source: End,
        target: End,
        state: CopyState,
        on_progress: Callable[[CopyProgress], None] | None,
    ) -> None:
        self._origin, self._place = origin, place
        self._source, self._target, self._state = source, target, state
        self._on_progress = on_progress
        self._seconds: dict[str, float] = {}

    async def run(self, began: float) -> CopyReport:
        """Copy, verify and finish; `began` is on the monotonic clock."""
        ledger = Ledger(self._target, self._place.name, uuid.uuid4().hex)
        heads = self._state.heads
        shards, store_ids, resumed = await self._target.run(_target_now)
        if self._state.store_id in store_ids:
            raise ConfigurationError(
                f"source and target are the same database, {self._origin.name}, or one is a file copied from the other"
            )
        totals = await self._source.run(_totals)
        steps = CopySteps(self._source, self._target, ledger, (len(heads), shards), partial(self._tell, totals))
        if resumed:
            await steps.resume(await self._earlier(ledger), self._state)
        else:
            await ledger.begin(steps.start(self._state))
        await self._timed("records", steps.copy_records)
        await self._timed("log", steps.copy_log)
        compared = await self._timed("verify", lambda: self._verify(steps))
        positions = [head[0] for head in heads]
        if not steps.positions_kept:
            most = max(*positions, *(place.position for place in steps.state.places))
            positions = [most] * shards
        finished = await ledger.finish(positions, max(head[3] for head in heads))
        self._seconds["total"] = time.monotonic() - began
        return CopyReport(
            source=self._origin.name,
            target=self._place.name,
            records={kind: compared.rows[kind] for kind in RECORDS},
            namespaces=len(compared.names),
            changes=compared.rows["changes"],
            idempotency=compared.rows["idempotency"],
            resumed=resumed,
            positions_kept=steps.positions_kept,
            source_positions=[head[0] for head in heads],
            target_positions=[head.position for head in finished],
            seconds=self._seconds,
        )

    async def _earlier(self, ledger: Ledger) -> CopyState:
        earlier = await ledger.take_over()
        if earlier.store_id != self._state.store_id:
            raise ConfigurationError(
                f"{self._place.name} is the unfinished copy of another database (its id is {earlier.store_id}, that of "
                f"{self._origin.name} {self._state.store_id}): go on with that one, or discard it (delete the file, or "
                "drop the database)"
            )
        return earlier

    async def _verify(self, steps: CopySteps) -> Compared:
        await self._target.run(self._target.analyse)
        try:
            return await compare_all(steps)
        except CopyDiffersError as error:
            await steps.distrust()
            raise DurableError(
                f"the copy is not what {self._origin.name} holds: {error}. Copy again: every row will be compared",
                kind=error.kind,
                namespace=error.namespace,
            ) from error

    async def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = await work()
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began
        return result

    def _tell(self, total: int, what: str, done: int) -> None:
        if self._on_progress is not None:
            self._on_progress(CopyProgress(what, done, total))


def _database(url: str) -> Target | ServerTarget:
    target = parse_url(url)
    if target.memory:
        raise ConfigurationError("a :memory: database belongs to one store alone: name a file, e.g. sqlite:///agent.db")
    return target


def _require_different(origin: Target | ServerTarget, place: Target | ServerTarget) -> None:
    same = origin.url == place.url
    if isinstance(origin, Target) and isinstance(place, Target):
        same = same or (Path(place.path).exists() and Path(place.path).samefile(origin.path))
    if same:
        raise ConfigurationError(f"source and target are the same database, {origin.name}")


def _look(connection: Connection, origin: Target | ServerTarget) -> CopyState:
    """Return what is to be copied."""
    if is_unfinished(connection):
        raise SchemaMismatchError(
            f"{origin.name} is itself an unfinished copy: finish it first",
            found=UNFINISHED,
            expected=schema.HEAD_REVISION,
        )
    schema.check(schema.read_revision(connection), origin)
    heads = read_heads(connection)
    tails = first_log_positions(connection, len(heads))
    return CopyState(heads[0].store_id, [list(head) for head in heads], tails, log=[[0, -1] for _ in heads])


async def _prepare(place: Target | ServerTarget, settings: Settings, origin: Target | ServerTarget, heads: int) -> None:
    """Make the target's tables where it has none.

    Raises:
        SchemaMismatchError: it is at another revision, or is something else.
    """
    if isinstance(place, Target):
        place.require_folder()
    found = await in_thread(partial(schema.current_revision, place))
    if found is None:
        said = "heads" in place.parameters or "MEMORY_STORE_HEADS" in os.environ
        same = isinstance(origin, ServerTarget) and not said
        number = heads if same else settings.heads
        try:
            await in_thread(partial(schema.upgrade, place, settings.timeout_s, heads=number))
        except Exception:  # of Alembic as well, which does not know a revision that another copy has set meanwhile
            if await in_thread(partial(schema.current_revision, place)) != UNFINISHED:
                raise
    elif found != UNFINISHED:
        schema.check(found, place)


def _target_now(connection: Connection) -> tuple[int, set[str], bool]:
    heads = read_heads(connection)
    return len(heads), {head.store_id for head in heads}, is_unfinished(connection)


def _totals(connection: Connection) -> int:
    return sum(count_rows(connection, name) for name in (*(stream.table.name for stream in STREAMS), CHANGES.name))
