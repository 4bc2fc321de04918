"""Commits whose reply was lost while nobody could be asked: unknown, then resolved, and the answer is final."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import pytest

from memory_store import CommitUnknownError, DurableError, DurableUnavailableError, MemoryStore
from tests.fault.servers_support import (
    PUT,
    SETTINGS,
    TRANSACTION,
    WRITE_PATHS,
    Truth,
    WritePath,
    dsn_of,
    nothing_left,
    truth_of,
)
from tests.fault.support import episode
from tests.fault.test_server_cuts import states_of, through_proxy
from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres, MakeStandby
from tests.servers.proxy import Cut, Predicate, Proxy, Rule, runs
from tests.servers.wire import Message

# Nobody there to ask: refused at once, and asked again as often as anybody likes.
_ALONE = {"pool_size": 1, "breaker_failures": 1_000_000, "breaker_pause_s": 0, "heads": 1}
_NOBODY = ("127.0.0.1", 1)


class Behind:
    """Finds the message behind one that commits: without it the server does not end the transaction either."""

    def __init__(self, commit: str) -> None:
        self._commits, self._begun = runs(commit), False

    def __call__(self, sent: Message, sql: str) -> bool:
        begun, self._begun = self._begun, self._begun or self._commits(sent, sql)
        return begun


MOMENTS: list[tuple[Callable[[str], Predicate], Cut]] = [
    (runs, Cut.BEFORE_REQUEST),
    (Behind, Cut.BEFORE_REQUEST),
    (runs, Cut.BEFORE_REPLY),
    (runs, Cut.IN_REPLY),
]


@pytest.mark.parametrize("path", [path for path in WRITE_PATHS if path.commit], ids=str)
async def test_an_unknown_commit_is_resolved_when_the_server_can_be_asked_again(
    path: WritePath, postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    """By the process that made it and by another; the answer is the truth and stays it."""
    assert path.commit is not None
    answers = set()
    async with (
        through_proxy(postgres_server, postgres_url, **_ALONE) as (store, proxy, truth),
        MemoryStore(postgres_url, **SETTINGS) as other,
    ):
        before, after = await states_of(path, store, truth)
        for number, (make, cut) in enumerate(MOMENTS):
            if make is Behind and path.commit == "COMMIT":
                continue  # that is one message
            tag = f"doubt{number}"
            if path.prepare is not None:
                await path.prepare(store, tag)
            with unreachable(proxy, make(path.commit), cut), pytest.raises(CommitUnknownError) as unknown:
                await path.write(store, tag)
            await truth.quiet()
            first, second = (store, other) if number % 2 else (other, store)
            happened = await first.resolve(unknown.value.token)
            assert await truth.state(tag) == (after if happened else before)
            assert await second.resolve(unknown.value.token) == happened
            answers.add(happened)
        assert answers == {True, False}
        assert await truth.log_problems() == []
        await nothing_left(store, truth)


@contextmanager
def unreachable(proxy: Proxy, predicate: Predicate, cut: Cut) -> Iterator[Rule]:
    """Cut the connection at a message, and let nobody connect again."""
    upstream, proxy.upstream = proxy.upstream, _NOBODY
    rule = proxy.on_message(predicate, cut)
    yield rule
    proxy.rules.remove(rule)
    proxy.upstream = upstream


async def test_a_commit_that_waits_for_the_lock_while_it_is_asked_about_is_made_once(
    postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    """Its connection is cut while the server still waits to begin it; whoever asks stands behind it, or before it."""
    async with through_proxy(postgres_server, postgres_url, heads=1) as (store, proxy, truth):
        await store.episodes.put(episode("first"))
        for number, moves in itertools.product(range(3), (False, True)):
            ids = f"{number}{moves}"
            holder = await asyncpg.connect(dsn_of(postgres_url))
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT * FROM head FOR UPDATE")
            writing = asyncio.create_task(store.episodes.put(episode(ids)))
            await _waiting(truth, 1)
            proxy.drop_all()
            await _waiting(truth, 2)  # the commit whose client has gone, and who asks about it
            if moves:
                await holder.execute("UPDATE episodes SET reflection = 'plain' WHERE id = 'first'")
            await transaction.commit()
            await holder.close()
            async with asyncio.timeout(10):
                assert (await writing).revision == 1
            assert await truth.connection.fetchval("SELECT revision FROM episodes WHERE id = $1", ids) == 1
            await nothing_left(store, truth)
        assert await truth.log_problems() == []


async def _waiting(truth: Truth, count: int) -> None:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while await truth.connection.fetchval(sql) < count:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def stopped(truth: Truth, of_whom: str) -> AsyncIterator[None]:
    """SIGSTOP the server's processes for some sessions, and let them go on at the end."""
    pids = [pid for (pid,) in await truth.connection.fetch(f"SELECT pid FROM pg_stat_activity WHERE {of_whom}")]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


_LIBRARY = "application_name = 'memory_store' AND datname = current_database()"


async def test_a_commit_that_the_server_gets_to_after_it_was_said_not_to_have_happened_does_nothing(
    make_postgres: MakePostgres,
) -> None:
    """The server's process has the statement in its socket and is held up; another one makes the caller's write."""
    server = make_postgres(durable=False)
    url = server.create_database("held")
    async with through_proxy(server, url, heads=1) as (store, proxy, truth):
        await store.episodes.put(episode("first"))
        async with stopped(truth, _LIBRARY):
            writing = asyncio.create_task(store.episodes.put(episode("a", context={"mark": 1})))
            await asyncio.sleep(0.05)  # the statement is in the server's socket
            proxy.drop_all()
            async with asyncio.timeout(10):
                assert (await writing).revision == 1
            head = await truth.connection.fetchrow("SELECT position, nonce FROM head")
        await nothing_left(store, truth)
        assert await truth.connection.fetchrow("SELECT position, nonce FROM head") == head
        assert await truth.log_problems() == []


async def test_a_transaction_that_the_server_gets_to_late_is_unknown_until_it_is_over(
    make_postgres: MakePostgres,
) -> None:
    """It holds the head, so nobody can say; the answer comes when the lock is free, and is the truth."""
    server = make_postgres(durable=False)
    url = server.create_database("held")
    async with through_proxy(server, url, heads=1, timeout_s=0.3, pool_size=2) as (store, proxy, truth):
        for number, waits in enumerate((False, True)):
            tag = f"t{number}"
            await TRANSACTION.prepare(store, tag)  # type: ignore[misc]
            held: list[Any] = []

            async def hold(held: list[Any] = held) -> None:
                context = stopped(truth, f"{_LIBRARY} AND state = 'idle in transaction'")
                await context.__aenter__()
                held.append(context)

            rule = proxy.on_message(lambda _, sql: sql == "COMMIT", hold)
            writing = asyncio.create_task(TRANSACTION.write(store, tag))
            await rule.happened.wait()
            await asyncio.sleep(0.05)  # the COMMIT is in the server's socket
            if waits:  # then it is over before anybody asks
                await held[0].__aexit__(None, None, None)
                proxy.drop_all()
                await asyncio.wait_for(asyncio.shield(writing), 10)
                continue
            proxy.drop_all()
            with pytest.raises(CommitUnknownError) as unknown:
                async with asyncio.timeout(10):
                    await writing
            with pytest.raises(DurableError):
                await store.resolve(unknown.value.token)
            await held[0].__aexit__(None, None, None)
            assert await store.resolve(unknown.value.token)
            assert await truth.state(tag) == {"old": (2, 2), "new": (1, 1), "new/steps": ("first",)}
        await nothing_left(store, truth)
        assert await truth.log_problems() == []


async def test_resolving_is_itself_cut_off_and_asked_again(
    postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    """Its "no" is a commit as well, whose reply can be lost."""
    async with through_proxy(postgres_server, postgres_url, **_ALONE) as (store, proxy, truth):
        await PUT.write(store, "first")
        for number, cut in enumerate(Cut):
            for happens in (True, False):
                tag = f"{number}{happens}"
                lost = Cut.BEFORE_REPLY if happens else Cut.BEFORE_REQUEST
                with unreachable(proxy, runs("WITH new"), lost), pytest.raises(CommitUnknownError) as unknown:
                    await PUT.write(store, tag)
                rule = proxy.on_message(runs("COMMIT"), cut)
                assert await store.resolve(unknown.value.token) == happens
                proxy.rules.remove(rule)
                assert bool(await truth.state(tag)) == happens
                assert await store.resolve(unknown.value.token) == happens
        assert await truth.log_problems() == []


async def test_what_is_said_to_have_happened_survives_a_failover(
    make_postgres: MakePostgres, make_standby: MakeStandby
) -> None:
    """A commit that waited for the standby in vain is visible on the primary, not yet safe: nobody vouches for it."""
    primary = make_postgres(durable=False)
    url = primary.create_database("pair")
    async with Proxy(primary.upstream, postgres=False) as link:
        standby = await asyncio.to_thread(make_standby, primary, through=link.port)
        async with through_proxy(primary, url, **_ALONE) as (store, proxy, truth):
            await store.episodes.put(episode("first"))
            link.pause()
            writing = asyncio.create_task(store.episodes.put(episode("a")))
            async with asyncio.timeout(10):
                while not await truth.connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                ):
                    await asyncio.sleep(0.005)
            proxy.upstream = _NOBODY
            proxy.drop_all()
            with pytest.raises(CommitUnknownError) as unknown:
                await writing
            # As the driver does when an answer takes too long, and as a restart of the primary does.
            await truth.connection.execute(f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {_LIBRARY}")
            proxy.upstream = primary.upstream
            resolving = asyncio.create_task(store.resolve(unknown.value.token))
            said = None
            done, _ = await asyncio.wait([resolving], timeout=1)
            if done:
                said = resolving.result()
            primary.kill()
            link.drop_all()
            standby.promote()
            proxy.upstream = standby.upstream
            if said is None:
                try:
                    said = await resolving
                except DurableUnavailableError:
                    said = await store.resolve(unknown.value.token)
            async with truth_of(standby.url("pair")) as new:
                assert bool(await new.connection.fetchval("SELECT count(*) FROM episodes WHERE id = 'a'")) == said
