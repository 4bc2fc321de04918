"""Reading the change log as a follower does: what leads from its watermark to the newest commit.

A follower (a cache, an index, a projection) is anything derived that stays true by applying the log. It remembers the
commit it stands at, its watermark, and is brought on by runs; where no run leads on, because the log was trimmed, the
database was restored, or it is simply too far behind, it starts again from nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from memory_store.clock import now_us
from memory_store.durable.changes import PUBLISH_LIMIT, SHARD, Change, HeadState, new_nonce
from memory_store.durable.connection import Connection
from memory_store.durable.statements import head_select, heads_select, log_insert, nonce_select, tail_select
from memory_store.errors import ConfigurationError

__all__ = [
    "NOTHING",
    "STORE",
    "Commit",
    "CommitToken",
    "Follower",
    "Listener",
    "Logged",
    "Run",
    "advance",
    "begin_epoch",
    "is_rewind",
    "leads_on",
    "look",
    "nonce_at",
    "one_state",
    "read_head",
    "read_heads",
    "read_run",
]

STORE = "store"
"""Stands in the log for a kind where the database as a whole is meant: an upgrade, a restore, a barrier."""


class Logged(NamedTuple):
    """What a follower is told of one change: enough to drop what it derived from it.

    `key` is None where every record of `parent` changed; where both are None, every record of the kind.
    """

    position: int
    nonce: int
    kind: str
    namespace: str
    key: str | None
    parent: str | None


class Run(NamedTuple):
    """What leads from one commit to another.

    Args:
        after: where it starts: the watermark it was read for.
        head: where it ends: the newest commit of the snapshot it was read in.
        changes: what lies between, in order; None where the log cannot say, so that anything may have changed.
    """

    after: HeadState
    head: HeadState
    changes: Sequence[Logged] | None


class CommitToken(NamedTuple):
    """Names a commit before it has happened: the database, the position it would get, its random number, its shard."""

    store_id: str
    position: int
    nonce: int
    shard: int = SHARD

    def __str__(self) -> str:
        return f"{self.store_id}.{self.position}.{self.nonce:x}.{self.shard}"

    @classmethod
    def parse(cls, text: str) -> CommitToken:
        """Return the token of its text.

        Raises:
            ConfigurationError: it is none.
        """
        if not isinstance(text, str):
            raise TypeError(f"token must be a str, got {type(text).__name__}")
        found = re.fullmatch(r"([0-9a-f]{1,32})\.([0-9]{1,19})\.([0-9a-f]{1,16})\.([0-9]{1,3})", text)
        if found is None:
            raise ConfigurationError(f"not the token of a CommitUnknownError: {text[:80]!r}")
        return cls(found[1], int(found[2]), int(found[3], 16), int(found[4]))


NOTHING = HeadState(0, 0, "", 0)
"""Before the first commit of any database."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction of this process changed.

    Args:
        position: its place in the log; 0 when nothing was changed.
        nonce: its random number.
        changes: in the order they were made.
        follows: the commit before it.
        before: what others had committed since the watermark known when it began; None for nothing.
        indexed: how many documents of earlier commits it brought into the full-text index.
        leaves_behind: whether it has changes that are not indexed yet.
    """

    position: int = 0
    nonce: int = 0
    changes: Sequence[Change] = field(default=())
    follows: HeadState = NOTHING
    before: Run | None = None
    indexed: int = 0
    leaves_behind: bool = False

    @property
    def head(self) -> HeadState:
        """The newest commit, once this one was made."""
        return self.follows._replace(position=self.position, nonce=self.nonce)


class Listener(Protocol):
    """Who is told, on the event loop, what the lanes see of the log."""

    @property
    def head(self) -> HeadState:
        """The watermark runs are to start from."""
        ...

    def deliver(self, run: Run, began: float | None = None) -> None:
        """Take what a read that began then, on the boot clock, saw; runs may come late and in any order."""
        ...

    def publish(self, commit: Commit) -> None:
        """Take a commit of this process, before its callers are answered."""
        ...

    def doubt(self) -> None:
        """Take nothing for fresh before the head has been read again: the outcome of a commit is unknown."""
        ...


class Follower(Protocol):
    """Anything derived that stays true by applying the log."""

    head: HeadState
    """Its watermark: the commit it equals."""

    def apply(self, changes: Sequence[Logged], head: HeadState) -> None:
        """Take changes that lead from its watermark to `head`, without an await inside."""
        ...

    def restart(self, head: HeadState) -> None:
        """Drop everything that was derived: at `head`, any of it may be wrong."""
        ...


def advance(follower: Follower, run: Run) -> bool:
    """Bring a follower on by a run that may come late and in any order; return False where the two do not agree.

    A run that ends at or before the watermark tells nothing new: positions only rise. But a foreign tool can take a
    database back under running processes: then either the run or the watermark belongs to a past that is none any
    more. The follower is left alone then, and the caller has to look at the head to find out which.
    """
    known, head, changes = follower.head, run.head, run.changes
    if is_rewind(run):
        return False
    if head.position <= known.position:
        return head.position < known.position or head == known
    if run.after == known:
        if changes is None:
            follower.restart(head)
        else:
            follower.apply(changes, head)
        return True
    # Read for an older watermark: this one must be one of the commits on its way.
    if changes is None or not any(c.position == known.position and c.nonce == known.nonce for c in changes):
        return False
    follower.apply([change for change in changes if change.position > known.position], head)
    return True


def is_rewind(run: Run) -> bool:
    """Return whether a run proves that the database was taken back: it ends before it starts."""
    after, head = run.after, run.head
    return head.position < after.position or (head.position == after.position and head != after)


def leads_on(run: Run) -> bool:
    """Return whether a run of a replica ends at its start or after it, in the same life of the same database."""
    return run.changes is not None and run.head[2:] == run.after[2:] and run.head.position >= run.after.position


def read_head(connection: Connection, shard: int = SHARD) -> HeadState:
    """Return the newest commit of a shard that the connection's snapshot can see."""
    return HeadState(*connection.execute(head_select(), (shard,)).fetchone())


def read_heads(connection: Connection) -> list[HeadState]:
    """Return the newest commit of every shard, in their order."""
    return [HeadState(*row) for row in connection.execute(heads_select())]


@contextmanager
def one_state(connection: Connection) -> Iterator[None]:
    """Let every read inside see the database as one commit left it."""
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")  # a server takes no COMMIT of what has failed
        raise
    connection.execute("COMMIT")


def look(connection: Connection, known: HeadState) -> Run:
    """Read what leads from `known` to the newest commit."""
    # Nothing does, most of the time, which one statement says: a server is spared two others.
    if read_head(connection, known.shard) == known:
        return Run(known, known, [])
    with one_state(connection):
        return read_run(connection, known, read_head(connection, known.shard))


def read_run(connection: Connection, known: HeadState, head: HeadState, limit: int = PUBLISH_LIMIT) -> Run:
    """Read what leads from `known` to `head`, in the snapshot in which `head` was read or after it.

    The log cannot say where more than `limit` changes lie between, where it has been trimmed, and where its commit at
    `known` is another one than was seen there: the history is not the same.
    """
    if head == known:
        return Run(known, head, [])
    if head[2:] != known[2:] or head.position <= known.position:
        return Run(known, head, None)
    if nonce_at(connection, known.position, head) != known.nonce:
        return Run(known, head, None)
    rows = connection.execute(tail_select(), (head.shard, known.position, head.position, limit + 1)).fetchall()
    if len(rows) > limit or not rows or rows[0][0] != known.position + 1 or rows[-1][:2] != head[:2]:
        return Run(known, head, None)
    return Run(known, head, [Logged(*row) for row in rows])


def nonce_at(connection: Connection, position: int, head: HeadState) -> int | None:
    """Return the nonce of the commit at a position, None where the log does not hold it."""
    if position == head.position:
        return head.nonce
    if position == 0:
        return 0
    found = connection.execute(nonce_select(), (head.shard, position)).fetchone()
    return None if found is None else int(found[0])


def begin_epoch(
    execute: Callable[..., Any], operation: str, position: int = 0, epoch: int = 0, shard: int = SHARD
) -> HeadState:
    """Begin a new epoch of a shard, in the caller's transaction: every follower, running or saved, drops what it has.

    Args:
        execute: runs a statement in a write transaction, as `sqlite3.Connection.execute` does.
        operation: why, for the log: "upgrade", "restore", "repair".
        position: go on from here where the database itself is behind: positions never come again.
        epoch: as `position`, for the epoch.
        shard: which; a new epoch is begun in all of them.
    """
    old = HeadState(*execute(head_select(), (shard,)).fetchone())
    head = HeadState(max(old.position, position) + 1, new_nonce(), old.store_id, max(old.epoch, epoch) + 1, shard)
    execute(
        "UPDATE head SET position = ?, nonce = ?, epoch = ? WHERE shard = ?",
        (head.position, head.nonce, head.epoch, shard),
    )
    execute(
        log_insert(),
        (shard, head.position, 0, STORE, "", None, None, operation, None, "", now_us(), head.nonce, None),
    )
    return head
