"""Every way to write, and what a PostgreSQL server holds and keeps open, seen with nothing of ours in between."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from memory_store import MemoryStore, Step
from memory_store.durable.changes import CHANGES
from memory_store.records import RECORDS
from memory_store.transfer import import_lines
from tests.fault.support import _replay, episode
from tests.servers.wire import Message

PATIENCE_S = 20.0
# Small limits, so that what goes wrong is told within the time of a test. No hints: they would need a connection more,
# and the tests count those.
SETTINGS: dict[str, Any] = {
    "heads": 2,
    "cache_path": "",
    "pool_size": 4,
    "pool_timeout_s": 5.0,
    "timeout_s": 5.0,
    "hints": False,
}


def dsn_of(url: str) -> str:
    """Return a URL as asyncpg reads it."""
    return url.replace("postgresql+asyncpg:", "postgresql:")


State = dict[str, Any]
"""Of the episodes whose ids begin alike: (revision, mark) by id, the actions of their steps by id + "/steps"."""


class Truth:
    """A plain connection to the server itself, past every proxy."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self.connection = connection

    async def state(self, tag: str, namespace: str = "default") -> State:
        """Return what is stored of the episodes `tag-...`, their ids without the tag."""
        held: State = {}
        where = "WHERE namespace = $1 AND starts_with({}, $2)"
        rows = await self.connection.fetch(
            f"SELECT id, revision, context FROM episodes {where.format('id')}", namespace, f"{tag}-"
        )
        for id_, revision, context in rows:
            held[id_.removeprefix(f"{tag}-")] = (revision, json.loads(context).get("mark"))
        rows = await self.connection.fetch(
            f"SELECT episode_id, action FROM steps {where.format('episode_id')} ORDER BY episode_id, step_number",
            namespace,
            f"{tag}-",
        )
        for episode_id, action in rows:
            key = episode_id.removeprefix(f"{tag}-") + "/steps"
            held[key] = (*held.get(key, ()), action)
        return held

    async def log_problems(self) -> list[str]:
        """Replay the change log of every shard; return every gap, and where it and the tables disagree."""
        async with self.connection.transaction(isolation="repeatable_read", readonly=True):
            heads = await self.connection.fetch("SELECT shard, position, nonce FROM head ORDER BY shard")
            columns = "shard, position, idx, nonce, kind, namespace, key, parent, operation, revision"
            log = await self.connection.fetch(f"SELECT {columns} FROM {CHANGES.name} ORDER BY shard, position, idx")
            stored = {
                (kind, *row[:2]): row[2]
                for kind, spec in RECORDS.items()
                for row in await self.connection.fetch(f"SELECT namespace, id, revision FROM {spec.table.name}")
            }
        problems = []
        replayed: dict[Any, int] = {}
        for shard, head, nonce in heads:
            own = [tuple(row) for row in log if row[0] == shard]
            commits = list(dict.fromkeys((row[1], row[3]) for row in own))
            if [position for position, _ in commits] != list(range(1, head + 1)):
                problems.append(f"shard {shard}: positions are not 1 to {head}: {commits[-5:]}")
            if commits and commits[-1] != (head, nonce):
                problems.append(f"shard {shard}: the head is {(head, nonce)}, the log ends with {commits[-1]}")
            for position, group in itertools.groupby(own, key=lambda row: row[1]):
                numbers = [row[2] for row in group]
                if numbers != list(range(len(numbers))):
                    problems.append(f"shard {shard}, position {position}: numbers {numbers}")
            revisions, found = _replay([(row[1], row[2], *row[4:]) for row in own])
            replayed |= revisions
            problems += found
        if replayed != stored:
            problems.append(f"log and tables differ in {sorted(set(replayed.items()) ^ set(stored.items()))[:3]}")
        return problems

    async def leftovers(self) -> list[Any]:
        """Return transactions and locks that sessions of the library have open."""
        rows = await self.connection.fetch(
            "SELECT a.pid, a.state, a.query, array_agg(l.mode) "
            "FROM pg_stat_activity a LEFT JOIN pg_locks l USING (pid) "
            "WHERE a.application_name = 'memory_store' AND a.datname = current_database() "
            "AND (a.xact_start IS NOT NULL OR l.pid IS NOT NULL) GROUP BY 1, 2, 3"
        )
        return [tuple(row) for row in rows]

    async def sessions(self) -> int:
        """Return how many sessions the library has on this database."""
        found: int = await self.connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'memory_store' AND datname = "
            "current_database()"
        )
        return found

    async def quiet(self) -> None:
        """Wait until nothing of the library is open; a session whose client has gone needs a moment to notice."""
        await eventually(self.leftovers, [])


@asynccontextmanager
async def truth_of(url: str) -> AsyncIterator[Truth]:
    """Connect past the library."""
    connection = await asyncpg.connect(dsn_of(url))
    try:
        yield Truth(connection)
    finally:
        await connection.close()


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Any, seconds: float = PATIENCE_S) -> None:
    """Wait until an answer is as wanted."""
    deadline = time.monotonic() + seconds
    while (answer := await ask()) != wanted:
        assert time.monotonic() < deadline, f"still {answer!r}, not {wanted!r}"
        await asyncio.sleep(0.005)


async def in_use(store: MemoryStore) -> int:
    """Return how many connections of the pool are taken."""
    assert store._durable is not None
    used: int = store._durable.pool.in_use  # type: ignore[union-attr]
    return used


async def nothing_left(store: MemoryStore, truth: Truth, settings: dict[str, Any] = SETTINGS) -> None:
    """Check that neither side keeps anything open, and that the pool has not grown."""
    await eventually(lambda: in_use(store), 0)
    await truth.quiet()
    assert await truth.sessions() <= settings["pool_size"]


class Timed:
    """How long a block took."""

    def __enter__(self) -> Timed:
        self.began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.began


@dataclass(frozen=True)
class WritePath:
    """A way to write: what must be there first, and the write itself; both on episodes `tag-...` only."""

    name: str
    write: Callable[[MemoryStore, str], Awaitable[Any]]
    prepare: Callable[[MemoryStore, str], Awaitable[Any]] | None = None
    in_block: bool = False
    """Whether the caller's own code runs between its statements, so that the library cannot run it again."""
    commit: str | None = "COMMIT"
    """How the statement begins that commits it; None where it is several commits."""

    def __str__(self) -> str:
        return self.name


async def _existing(store: MemoryStore, tag: str) -> None:
    await store.episodes.put(episode(f"{tag}-old", context={"mark": 1}))


async def _existing_with_steps(store: MemoryStore, tag: str) -> None:
    await _existing(store, tag)
    await store.steps.append(f"{tag}-old", [Step(action="first"), Step(action="second")])


async def _put(store: MemoryStore, tag: str) -> None:
    await store.episodes.put(episode(f"{tag}-new", context={"mark": 1}))


async def _put_again(store: MemoryStore, tag: str) -> None:
    await store.episodes.put(episode(f"{tag}-old", context={"mark": 2}))


async def _put_together(store: MemoryStore, tag: str) -> None:
    puts = [store.episodes.put(episode(f"{tag}-{i}", context={"mark": i})) for i in range(5)]
    await asyncio.gather(*puts)


async def _put_many(store: MemoryStore, tag: str) -> None:
    ids = ["old", *map(str, range(4))]
    await store.episodes.put_many([episode(f"{tag}-{id_}", context={"mark": 2}) for id_ in ids])


async def _put_many_by_copy(store: MemoryStore, tag: str) -> None:
    await store.episodes.put_many([episode(f"{tag}-{i}", context={"mark": i}) for i in range(100)])


async def _update(store: MemoryStore, tag: str) -> None:
    await store.episodes.update(f"{tag}-old", expected_revision=1, context={"mark": 2})


async def _delete(store: MemoryStore, tag: str) -> None:
    assert await store.episodes.delete(f"{tag}-old")


async def _append(store: MemoryStore, tag: str) -> None:
    await store.steps.append(f"{tag}-old", [Step(action="third"), Step(action="fourth")])


async def _put_once(store: MemoryStore, tag: str) -> None:
    await store.episodes.put(episode(f"{tag}-new", context={"mark": 1}), idempotency_key=tag)


async def _transaction(store: MemoryStore, tag: str) -> None:
    async with store.transaction() as tx:
        await tx.episodes.put(episode(f"{tag}-new", context={"mark": 1}))
        await tx.episodes.update(f"{tag}-old", context={"mark": 2})
        await tx.steps.append(f"{tag}-new", Step(action="first"))


async def _import(store: MemoryStore, tag: str) -> None:
    lines = [
        json.dumps({"id": f"{tag}-{name}", "task_type": "t", "domain": "d", "context": {"mark": 3}, "steps": steps})
        for name, steps in (("old", []), ("new", [{"action": "first", "step_number": 1}]))
    ]
    report = await import_lines(store, lines, on_conflict="replace")
    assert not report.rejected, report


PUT = WritePath("put", _put, commit="WITH new")
UPDATE = WritePath("update", _update, _existing)
TRANSACTION = WritePath("transaction", _transaction, _existing, in_block=True)
WRITE_PATHS = [
    PUT,
    WritePath("put of what exists", _put_again, _existing),
    WritePath("puts of several callers", _put_together, commit=None),
    WritePath("put_many", _put_many, _existing),
    WritePath("put_many by COPY", _put_many_by_copy),
    UPDATE,
    WritePath("delete", _delete, _existing_with_steps),
    WritePath("append", _append, _existing_with_steps),
    WritePath("put with an idempotency key", _put_once),
    TRANSACTION,
    WritePath("import", _import, _existing_with_steps),
]


class Nth:
    """Finds the n-th message that a client sends from now on; as the predicate of a proxy's rule.

    Args:
        number: which, from 1.
        requests: count only those that the server answers by a whole reply.
    """

    def __init__(self, number: int, *, requests: bool = False) -> None:
        self.left, self.requests = number, requests
        self.sql = ""

    def __call__(self, sent: Message, sql: str) -> bool:
        self.sql = sql or self.sql
        # The reply to COPY comes in two parts, between which the rows are sent: they are cut off before they arrive.
        if self.requests and (sent.kind not in (b"Q", b"S") or sql.startswith("COPY")):
            return False
        self.left -= 1
        return self.left == 0


async def is_cached_right(store: MemoryStore, tag: str, before: State, after: State, held: State) -> bool:
    """Return whether a store answers what is held, from its cache where it has it; of a hundred records, for a few."""
    ids = sorted({key.removesuffix("/steps") for key in (*before, *after)})[:6]
    right = {key: value for key, value in held.items() if key.removesuffix("/steps") in ids}
    return await cached_state(store, tag, ids) == right


async def cached_state(store: MemoryStore, tag: str, ids: Iterable[str]) -> State:
    """Return what a store answers, as `Truth.state` does."""
    held: State = {}
    for id_ in ids:
        found = await store.episodes.get(f"{tag}-{id_}")
        if found is not None:
            held[id_] = (found.revision, found.context["mark"])
        if steps := await store.steps.of(f"{tag}-{id_}"):
            held[f"{id_}/steps"] = tuple(step.action for step in steps)
    return held
