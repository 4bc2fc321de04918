"""How far a copy is, kept in the target: it begins, goes on page by page, and ends, each in one transaction.

While it is unfinished, the target's schema revision is `UNFINISHED`, which no version of this library opens, nor does
Alembic; a table `copy_state` says how far it is. Each page of rows is committed together with that, so a copy that
was killed goes on exactly behind the last page. The last transaction takes both away and begins a new epoch.
"""

# ruff: noqa: S608 - statements are made of our own names

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from memory_store.durable.changes import HeadState
from memory_store.durable.commits import rollback
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import is_refusal
from memory_store.durable.documents import leave_all_behind
from memory_store.durable.log import begin_epoch, read_heads
from memory_store.durable.schema import HEAD_REVISION, UNFINISHED_COPY
from memory_store.durable.streams import first_row
from memory_store.errors import ConfigurationError
from memory_store.transfer.ends import End

__all__ = ["UNFINISHED", "CopyState", "Ledger", "Place", "is_unfinished"]

T = TypeVar("T")

UNFINISHED = UNFINISHED_COPY
"""Stands for the revision of the schema; an older version of the library does not know it either."""


@dataclass(slots=True)
class Place:
    """Where the log of one head of the target ends: position and idx, and which commit of the source stands there.

    Args:
        position: of its last commit.
        idx: of its last change.
        source: shard and position that this commit has in the source.
    """

    position: int = 1
    idx: int = 0
    source: list[int] = field(default_factory=list)


@dataclass(slots=True)
class CopyState:
    """How far a copy is.

    Args:
        store_id: the database that is copied.
        heads: of the source, as of the snapshot that is copied.
        tails: the first position that each head's log held then.
        stale: whether rows of an older snapshot may be there that are no longer right.
        done: rows copied, by table.
        stream: which of the tables is being copied.
        after: key of its last row copied, None before the first.
        has_rows: whether rows may be there behind that key: those of an older snapshot that are still right.
        log: position and idx of the last change copied, by shard of the source.
        current: the shard of the source whose commit is being copied, None between two commits.
        places: where the target's logs end, by shard, when the log is numbered anew.
    """

    store_id: str
    heads: list[list[Any]]
    tails: list[int]
    stale: bool = False
    done: dict[str, int] = field(default_factory=dict)
    stream: int = 0
    after: list[str] | None = None
    has_rows: bool = False
    log: list[list[int]] = field(default_factory=list)
    current: int | None = None
    places: list[Place] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> CopyState:
        """Return the state of its text."""
        values = json.loads(text)
        values["places"] = [Place(**place) for place in values["places"]]
        return cls(**values)

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def is_unfinished(connection: Connection) -> bool:
    """Return whether a database is an unfinished copy."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" not in tables:
        return False
    return connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(UNFINISHED,)]


class Ledger:
    """The target's own account of the copy.

    Args:
        target: where.
        name: what it is called in messages.
        run: names this run; a run that another one has taken over from writes nothing more.
    """

    def __init__(self, target: End, name: str, run: str) -> None:
        self._target, self._name, self._run = target, name, run

    async def begin(self, state: CopyState) -> None:
        """Mark the target as unfinished.

        The new epoch tells stores that are open on it to look at the revision before they write.

        Raises:
            ConfigurationError: it is not empty; nothing was touched.
        """

        def mark(connection: Connection) -> None:
            found = first_row(connection)
            if found is not None:
                raise not_empty(self._name, found)
            connection.execute("CREATE TABLE copy_state (run VARCHAR(32) NOT NULL, state TEXT NOT NULL)")
            connection.execute("INSERT INTO copy_state (run, state) VALUES (?, ?)", (self._run, str(state)))
            for head in read_heads(connection):
                begin_epoch(connection.execute, "copy", shard=head.shard)
            # What is logged now says what was done with the empty database: its positions are the copy's.
            connection.execute("DELETE FROM changes")
            connection.execute(f"UPDATE alembic_version SET version_num = '{UNFINISHED}'")

        await self._commit(mark, all_heads=True)

    async def take_over(self) -> CopyState:
        """Return how far an earlier run came, which from here on writes nothing more."""

        def take(connection: Connection) -> CopyState:
            connection.execute("UPDATE copy_state SET run = ?", (self._run,))
            return CopyState.parse(connection.execute("SELECT state FROM copy_state").fetchone()[0])

        return await self._commit(take)

    async def page(self, work: Callable[[Connection], None], state: CopyState, rows: int) -> None:
        """Do some work and note how far the copy is then, both or neither."""

        def write(connection: Connection) -> None:
            self._require_ours(connection, str(state))
            work(connection)

        await self._commit(write, durable=False, rows=rows)

    async def accepts(self, work: Callable[[Connection], None]) -> bool:
        """Return whether the target would take some work, which is undone."""

        def probe(connection: Connection) -> bool:
            with self._target.writing():
                self._target.begin(connection, all_heads=False, durable=False)
                try:
                    work(connection)
                except Exception as error:
                    if not is_refusal(error):
                        raise
                    return False
                finally:
                    rollback(connection)
                return True

        return await self._target.run(probe)

    async def finish(self, positions: list[int], epoch: int) -> list[HeadState]:
        """Begin an epoch above some positions, take the marks away, and return the heads.

        Args:
            positions: no head goes on from less.
            epoch: nor from an epoch below this.
        """

        def end(connection: Connection) -> list[HeadState]:
            self._require_ours(connection, "")
            for shard, position in enumerate(positions):
                begin_epoch(connection.execute, "copy", position, epoch, shard)
            # Terms are kept in another form by each database.
            leave_all_behind(connection, len(positions))
            connection.execute("DROP TABLE copy_state")
            connection.execute(f"UPDATE alembic_version SET version_num = '{HEAD_REVISION}'")
            return read_heads(connection)

        return await self._commit(end, all_heads=True)

    def _require_ours(self, connection: Connection, state: str) -> None:
        noted = connection.execute("UPDATE copy_state SET state = ? WHERE run = ?", (state, self._run))
        if noted.rowcount != 1:
            raise ConfigurationError(f"another copy into {self._name} has taken over")

    async def _commit(
        self, work: Callable[[Connection], T], *, all_heads: bool = False, durable: bool = True, rows: int = 0
    ) -> T:
        target = self._target

        def transaction(connection: Connection) -> T:
            with target.writing():
                try:
                    target.begin(connection, all_heads=all_heads, durable=durable)
                    result = work(connection)
                    connection.execute("UPDATE head SET writing = 0 WHERE writing <> 0")
                    connection.execute("COMMIT")
                except BaseException:
                    rollback(connection)
                    raise
            target.after_commit(connection, rows)
            return result

        return await target.run(transaction)


def not_empty(name: str, table: str) -> ConfigurationError:
    """Return the refusal of a target that holds something."""
    return ConfigurationError(
        f"{name} is not empty, there are rows in {table}: a copy fills a new or empty database; nothing was touched"
    )
