"""Reads of a replica: only where its replay position suffices, and never as a look at the head."""

from __future__ import annotations

import pytest

from memory_store import ConfigurationError, Episode, MemoryStore
from tests.servers.fixtures import MakePostgres, MakeStandby
from tests.servers.postgres import PostgresServer
from tests.unit.samples import make_episode, make_step


@pytest.fixture
def pair(make_postgres: MakePostgres, make_standby: MakeStandby) -> tuple[PostgresServer, PostgresServer]:
    """A primary and a standby that it does not wait for."""
    primary = make_postgres(durable=False)
    return primary, make_standby(primary, synchronous=False)


def caught_up(primary: PostgresServer, standby: PostgresServer) -> None:
    """Wait until the standby has replayed all that the primary has written."""
    written = primary.execute("SELECT pg_current_wal_lsn()")[0][0]
    standby.wait_for(f"SELECT pg_last_wal_replay_lsn() >= '{written}'")


def answered(store: MemoryStore) -> tuple[int, int]:
    """How many batches the replica answered, and how many it could not."""
    reader = store._access.shard.reader
    return reader.replica_reads, reader.replica_refusals


async def test_a_replica_that_has_come_far_enough_answers(pair: tuple[PostgresServer, PostgresServer]) -> None:
    primary, standby = pair
    async with MemoryStore(primary.url(), replica_url=standby.url(), cache_max_bytes=0) as store:
        await store.episodes.put(make_episode(id="e", domain="web"))
        await store.steps.append("e", [make_step("e")])
        caught_up(primary, standby)
        found = await store.episodes.get("e")
        assert found is not None
        assert len(await store.steps.of("e")) == 1
        assert answered(store) == (2, 0)
        assert [e.id for e in (await store.episodes.list(Episode.c.domain == "web")).items] == ["e"]
        assert await store.episodes.get("nobody") is None
        assert answered(store) == (3, 0)


async def test_a_replica_that_is_behind_is_never_believed(pair: tuple[PostgresServer, PostgresServer]) -> None:
    """Neither for what this process wrote, nor for what it has seen of others; lists included."""
    primary, standby = pair
    async with (
        MemoryStore(primary.url(), replica_url=standby.url(), cache_max_bytes=0) as ours,
        MemoryStore(primary.url()) as theirs,
    ):
        await ours.episodes.put(make_episode(id="e", status="active"))
        caught_up(primary, standby)
        standby.execute("SELECT pg_wal_replay_pause()")
        await ours.episodes.update("e", status="failed")
        found = await ours.episodes.get("e")
        assert found is not None
        assert found.status == "failed"
        assert [e.status for e in (await ours.episodes.list()).items] == ["failed"]
        written = await theirs.episodes.update("e", status="archived")
        found = await ours.episodes.get("e", at_least=written.position)
        assert found is not None
        assert found.status == "archived"
        found = await ours.episodes.get("e", freshness="linearizable")
        assert found is not None
        assert found.status == "archived"
        assert answered(ours)[0] == 0
        standby.execute("SELECT pg_wal_replay_resume()")
        caught_up(primary, standby)
        assert await ours.episodes.get("e") is not None
        assert answered(ours)[0] == 1


async def test_without_its_replica_a_store_asks_the_primary(pair: tuple[PostgresServer, PostgresServer]) -> None:
    primary, standby = pair
    async with MemoryStore(primary.url(), replica_url=standby.url(), cache_max_bytes=0) as store:
        await store.episodes.put(make_episode(id="e"))
        standby.kill()
        assert await store.episodes.get("e") is not None
        assert len((await store.episodes.list()).items) == 1
        assert answered(store)[0] == 0


async def test_a_replica_of_another_database_is_never_believed(
    pair: tuple[PostgresServer, PostgresServer], make_postgres: MakePostgres
) -> None:
    primary, _ = pair
    other = make_postgres(durable=False)
    async with MemoryStore(other.url()) as store:
        for _ in range(5):
            await store.episodes.put(make_episode())
        await store.episodes.put(make_episode(id="e", status="failed"))
    async with MemoryStore(primary.url(), replica_url=other.url(), cache_max_bytes=0) as store:
        await store.episodes.put(make_episode(id="e", status="active"))
        found = await store.episodes.get("e")
        assert found is not None
        assert found.status == "active"
        assert [e.status for e in (await store.episodes.list()).items] == ["active"]
        assert answered(store)[0] == 0


async def test_a_replica_is_a_server(server_url: str) -> None:
    with pytest.raises(ConfigurationError, match="no database on a server"):
        await MemoryStore(server_url, replica_url="sqlite:///agent.db").open()
