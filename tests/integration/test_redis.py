"""The shared cache level on a real Redis: what is shared, what is refused, and what it never is: wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
import redis as redis_client

from memory_store import ConfigurationError, Episode, MemoryStore, StoreClosedError
from memory_store.cache.shared import Mark
from memory_store.cache.sharing import SharedShard
from memory_store.cache.tier import CacheTier
from tests.integration.redis_support import PATIENT, counters, forget, level, link, opened, settled
from tests.servers.fixtures import MakeRedis
from tests.simulation.mutation import Edit, Mutant, mutated
from tests.unit.conftest import HeldRead
from tests.unit.samples import make_episode, make_step

REPOSITORY = Path(__file__).parents[2]


def database_reads(store: MemoryStore) -> int:
    """Point reads of the database so far."""
    return store._access.shard.reader.read_keys.count


async def put(store: MemoryStore, id_: str = "x", **values: object) -> Episode:
    """Put an episode and wait until it is shared."""
    record = await store.episodes.put(make_episode(id=id_, **values))
    await settled(store)
    return record


def marks(client: redis_client.Redis) -> list[bytes]:
    return [key for key in client.scan_iter() if key.endswith(b"}")]


@pytest.fixture
def client(redis_url: str) -> redis_client.Redis:
    with redis_client.Redis.from_url(redis_url) as opened_client:
        yield opened_client


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, file_url: str) -> str:
    return file_url if request.param == "sqlite" else str(request.getfixturevalue("server_url"))


# What is shared


async def test_what_one_process_writes_another_reads_without_the_database(database: str, redis_url: str) -> None:
    async with opened(database, redis_url) as ours:
        stored = await put(ours)
        async with opened(database, redis_url) as theirs:
            before = database_reads(theirs)
            assert await theirs.episodes.get("x") == stored
            assert (counters(theirs).hits, database_reads(theirs)) == (1, before)
            assert await theirs.episodes.get("x") == stored
            assert counters(theirs).hits == 1, "the second time it is in the process's own cache"


async def test_what_one_process_reads_another_finds(database: str, redis_url: str) -> None:
    async with MemoryStore(database, namespace="test-agent", cache_path="") as plain:
        stored = await plain.episodes.put(make_episode(id="x"))
    async with opened(database, redis_url) as ours, opened(database, redis_url) as theirs:
        assert await ours.episodes.get("x") == stored
        await settled(ours)
        assert (counters(ours).misses, counters(ours).puts) == (1, 1)
        before = database_reads(theirs)
        assert await theirs.episodes.get("x") == stored
        assert (counters(theirs).hits, database_reads(theirs)) == (1, before)


async def test_known_absence_is_shared(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        await put(ours)
        await ours.episodes.delete("x")
        await settled(ours)
        assert await theirs.episodes.get("x", freshness="linearizable") is None
        assert await theirs.episodes.get("never", freshness="linearizable") is None
        await settled(theirs)
        forget(ours)
        assert await ours.episodes.get("never") is None
        assert counters(ours).hits == 1


async def test_steps_are_shared_by_episode(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        await put(ours, "e")
        one = await ours.steps.append("e", make_step(""))
        two = await ours.steps.append("e", [make_step(""), make_step("")])
        await settled(ours)
        assert await theirs.steps.of("e", freshness="linearizable") == [*one, *two]
        await settled(theirs)
        forget(theirs)
        assert await theirs.steps.of("e") == [*one, *two]
        assert counters(theirs).hits >= 1


async def test_what_a_process_writes_is_there_when_it_ends(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as short:
        stored = await short.episodes.put(make_episode(id="x"))
    async with opened(file_url, redis_url) as next_one:
        before = database_reads(next_one)
        assert await next_one.episodes.get("x") == stored
        assert (counters(next_one).hits, database_reads(next_one)) == (1, before)


async def test_many_are_asked_for_together(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        stored = await ours.episodes.put_many([make_episode(id=f"x{n}") for n in range(200)])
        await settled(ours)
        ids = [record.id for record in stored]
        assert await theirs.episodes.get_many(ids, freshness="linearizable") == stored
        forget(theirs)
        before = database_reads(theirs)
        assert await theirs.episodes.get_many(ids) == stored
        assert await asyncio.gather(*(theirs.episodes.get(id_) for id_ in ids)) == stored
        assert counters(theirs).hits >= 200
        assert database_reads(theirs) == before


async def test_namespaces_do_not_meet(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        await ours.namespace("a").episodes.put(make_episode(id="b/c", domain="one"))
        await settled(ours)
        assert await theirs.namespace("a/b").episodes.get("c", freshness="linearizable") is None
        forget(theirs)
        found = await theirs.namespace("a").episodes.get("b/c")
        assert found is not None
        assert found.domain == "one"


async def test_an_entry_lives_as_long_as_its_kind(file_url: str, redis_url: str, client: redis_client.Redis) -> None:
    async with opened(file_url, redis_url, ttl_s={"episode": 500}) as ours:
        await put(ours)
        [entry] = [key for key in client.scan_iter() if key.endswith(b" x")]
        assert 0 < client.pttl(entry) <= 500_000
        [mark] = marks(client)
        assert client.pttl(mark) > 500_000, "a store that nobody uses any more leaves nothing behind"


async def test_no_clock_of_a_process_is_shared(file_url: str, redis_url: str, client: redis_client.Redis) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        ours._shelf.age_offset_s = 1e9  # as after years of saved caches
        stored = await put(ours)
        assert await theirs.episodes.get("x", freshness="linearizable") == stored
        assert counters(theirs).hits == 1
        for shelf in (ours._shelf, theirs._shelf):
            [key] = shelf.keys()
            assert shelf.read(*shelf.space_of(key), shelf.age_s() - shelf.age_offset_s) is not None


# What is refused


async def test_a_worker_that_dies_before_it_has_told_leaves_nothing_stale(database: str, redis_url: str) -> None:
    async with opened(database, redis_url) as ours:
        await put(ours, domain="old")
        program = f"""
            import asyncio, os, signal
            from memory_store import MemoryStore
            from memory_store.cache.redis import RedisLink

            async def die(*_):
                os.kill(os.getpid(), signal.SIGKILL)

            RedisLink.replace = die

            async def main():
                async with MemoryStore({database!r}, namespace="test-agent", shared_cache={redis_url!r}, cache_path="",
                                       shared_cache_timeout_s=20) as store:
                    await store.episodes.update("x", domain="new")
                    await asyncio.sleep(60)

            asyncio.run(main())
        """
        worker = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(program), cwd=REPOSITORY)
        assert await asyncio.wait_for(worker.wait(), 60) == -9
        forget(ours)
        found = await ours.episodes.get("x", freshness="linearizable")
        assert found is not None
        assert found.domain == "new"
        await settled(ours)
        async with opened(database, redis_url) as theirs:
            assert await theirs.episodes.get("x") == found
            assert counters(theirs).hits == 1, "whoever noticed has moved the watermark on, and shared what it read"


async def test_who_has_just_started_moves_a_watermark_on_by_the_log(database: str, redis_url: str) -> None:
    async with opened(database, redis_url) as ours:
        kept = await put(ours, "kept")
        await put(ours, domain="old")
    async with MemoryStore(database, namespace="test-agent", cache_path="") as plain:
        new = await plain.episodes.update("x", domain="new")
    async with opened(database, redis_url) as theirs:
        assert await theirs.episodes.get("x") == new
        await settled(theirs)
        assert (counters(theirs).refused, counters(theirs).mends, counters(theirs).advances) == (1, 1, 1)
        forget(theirs)
        assert await theirs.episodes.get("kept") == kept
        assert counters(theirs).hits == 1, "what had not changed is still there"
        assert await theirs.episodes.get("x") == new


async def held_answers(file_url: str, redis_url: str) -> tuple[str, bool]:
    """What a second reader is told while the read that follows a refused answer is under way."""
    async with opened(file_url, redis_url) as ours:
        await put(ours, domain="old")
        async with MemoryStore(file_url, namespace="test-agent", cache_path="") as plain:
            await plain.episodes.update("x", domain="new")
        assert ours._access.coherence.look()  # it stands ahead of the watermark, which nobody moves on
        level(ours)._mended_at = float("inf")
        ours._access.cache.trail.restart(ours._access.cache.head)
        forget(ours)
        async with HeldRead(ours._access.shard.reader._lane) as held:
            first = asyncio.create_task(ours.episodes.get("x"))
            await held.reached.wait()
            second = asyncio.create_task(ours.episodes.get("x"))
            await asyncio.sleep(0)
            waited = not second.done()
            held.release()
            records = [await first, await second]
    return ",".join(record.domain for record in records if record is not None), waited


async def test_nobody_meets_a_refused_answer_in_the_cache(file_url: str, redis_url: str) -> None:
    assert await held_answers(file_url, redis_url) == ("new,new", True)


async def test_that_test_would_notice(file_url: str, redis_url: str) -> None:
    with mutated(Mutant("", (Edit(SharedShard, "_answer", "head.position < since or ", ""),))):
        assert await held_answers(file_url, redis_url) != ("new,new", True)


async def rewound(tmp_path: Path, redis_url: str) -> tuple[str | None, MemoryStore]:
    """Read a record after a foreign tool has taken the database back and another commit has the position."""
    path, saved = tmp_path / "agent.db", tmp_path / "saved.db"
    url = f"sqlite:///{path}"
    async with opened(url, redis_url) as ours:
        await put(ours, domain="old")
        await ours.cache.save()
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(saved)) as target:
            source.backup(target)
        await put(ours, domain="lost")
    with closing(sqlite3.connect(saved)) as source, closing(sqlite3.connect(path)) as target:
        source.backup(target)
    async with MemoryStore(url, namespace="test-agent", cache_path="") as plain:
        await plain.episodes.put(make_episode(id="other"))
    async with opened(url, redis_url) as theirs:
        found = await theirs.episodes.get("x")
        assert found is not None
        for _ in range(3):
            await settled(theirs)
            forget(theirs)
            assert await theirs.episodes.get("x") == found
        return found.domain, theirs


async def test_what_belongs_to_a_lost_past_is_refused_and_then_flushed(tmp_path: Path, redis_url: str) -> None:
    domain, store = await rewound(tmp_path, redis_url)
    assert domain == "old"
    assert counters(store).flushes == 1
    assert counters(store).hits >= 1


async def test_the_nonce_is_what_notices(tmp_path: Path, redis_url: str) -> None:
    position_only = "known = self.head; return head.position <= known.position"
    with mutated(Mutant("", (Edit(CacheTier, "knows", "known = self.head", position_only),))):
        domain, _ = await rewound(tmp_path, redis_url)
    assert domain == "lost"


@pytest.mark.parametrize("other", ["database", "epoch", "version"])
async def test_another_database_epoch_or_version_shares_nothing(
    other: str, tmp_path: Path, file_url: str, redis_url: str
) -> None:
    async with opened(file_url, redis_url) as ours:
        stored = await put(ours, domain="ours")
    settings: dict[str, object] = {}
    if other == "database":
        file_url = f"sqlite:///{tmp_path}/other.db"
    elif other == "epoch":
        with closing(sqlite3.connect(tmp_path / "agent.db")) as database, database:
            database.execute("UPDATE head SET epoch = epoch + 1")
    else:
        settings["cache_version"] = "next"
    async with opened(file_url, redis_url, **settings) as theirs:
        found = await theirs.episodes.get("x")
        assert found == (None if other == "database" else stored)
        assert (counters(theirs).hits, counters(theirs).misses) == (0, 1)


async def test_an_epoch_that_begins_meanwhile_is_followed(file_url: str, tmp_path: Path, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        stored = await put(ours)
        with closing(sqlite3.connect(tmp_path / "agent.db")) as database, database:
            database.execute("UPDATE head SET epoch = epoch + 1")
        assert await ours.episodes.get("x", freshness="linearizable") == stored
        await settled(ours)
        assert await theirs.episodes.get("x", freshness="linearizable") == stored
        assert (counters(ours).hits, counters(theirs).hits) == (0, 1)


# What is damaged or lost


GARBAGE = [b"", b"?", b"\0" * 40, b"7 a" * 100, b"1 1 " + b"0" * 32]


@pytest.mark.parametrize("which", ["entries", "watermark", "all"])
@pytest.mark.parametrize("how", ["garbage", "flipped", "another type", "cut", "swapped"])
async def test_damage_is_a_miss_and_heals(
    how: str, which: str, file_url: str, redis_url: str, client: redis_client.Redis
) -> None:
    ids = [f"x{n}" for n in range(5)]
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        stored = [await put(ours, id_, domain=id_) for id_ in ids]
        assert await theirs.episodes.get_many(ids, freshness="linearizable") == stored
        for round_ in range(3):
            await settled(ours, theirs)
            spoil(client, how, which)
            forget(theirs)
            assert await theirs.episodes.get_many(ids) == stored, round_
        if which == "entries":
            assert counters(theirs).damaged == (0 if how == "another type" else 15)
        assert link(theirs).failures == 0
        await settled(theirs)
        forget(theirs)
        before = counters(theirs).hits
        assert await theirs.episodes.get_many(ids) == stored
        assert counters(theirs).hits == before + 5, "it was put anew"


def spoil(client: redis_client.Redis, how: str, which: str) -> None:
    keys = sorted(client.keys())
    values = dict(zip(keys, client.mget(keys), strict=True))
    chosen = [key for key in keys if which == "all" or (key in marks(client)) == (which == "watermark")]
    assert chosen
    for number, key in enumerate(chosen):
        value = values[key]
        assert value is not None
        if how == "garbage":
            client.set(key, GARBAGE[number % len(GARBAGE)])
        elif how == "flipped":
            client.set(key, bytes([value[0] ^ 1]) + value[1:])
        elif how == "another type":
            client.delete(key)
            client.rpush(key, value)
        elif how == "cut":
            client.set(key, value[:-1])
        else:
            client.set(key, values[keys[(keys.index(key) + 1) % len(keys)]])


async def test_when_all_is_lost_it_begins_anew(file_url: str, redis_url: str, client: redis_client.Redis) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        stored = await put(ours)
        client.flushall()
        assert await theirs.episodes.get("x", freshness="linearizable") == stored
        await settled(theirs)
        assert counters(theirs).flushes == 1
        forget(ours)
        assert await ours.episodes.get("x") == stored
        assert counters(ours).hits == 1


async def test_a_lost_watermark_takes_its_entries_with_it(
    file_url: str, redis_url: str, client: redis_client.Redis
) -> None:
    async with opened(file_url, redis_url) as ours:
        await put(ours, domain="old")
        client.delete(*marks(client))
    async with MemoryStore(file_url, namespace="test-agent", cache_path="") as plain:
        new = await plain.episodes.update("x", domain="new")
    async with opened(file_url, redis_url) as theirs:
        await put(theirs, "other")  # a watermark again, at the head
        forget(theirs)
        assert await theirs.episodes.get("x") == new
        assert counters(theirs).hits == 0


async def test_a_large_commit_begins_a_new_generation(
    file_url: str, redis_url: str, client: redis_client.Redis
) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        await put(ours)
        [mark] = marks(client)
        first = Mark.parse(client.get(mark))
        many = await ours.episodes.put_many(
            [make_episode(id=f"n{n}") for n in range(1001)] + [make_episode(id="x", domain="new")]
        )
        await settled(ours)
        second = Mark.parse(client.get(mark))
        assert first is not None
        assert second is not None
        assert (second.position, second.generation != first.generation) == (many[0].position, True)
        found = await theirs.episodes.get("x", freshness="linearizable")
        assert found is not None
        assert found.domain == "new"


@pytest.mark.parametrize("policy", ["allkeys-random", "volatile-lru", "noeviction"])
async def test_a_server_that_is_short_of_memory(policy: str, file_url: str, make_redis: MakeRedis) -> None:
    server = make_redis(settings={"maxmemory": "2mb", "maxmemory-policy": policy})
    async with opened(file_url, server.url()) as ours, opened(file_url, server.url()) as theirs:
        for round_ in range(4):
            stored = await ours.episodes.put_many(
                [make_episode(id=f"x{n}", context={"text": f"{round_} " * 2000}) for n in range(300)]
            )
            await settled(ours)
            forget(theirs)
            ids = [record.id for record in stored]
            assert await theirs.episodes.get_many(ids, freshness="linearizable") == stored
            assert await theirs.episodes.get_many(ids[::-1], freshness="linearizable") == stored[::-1]


async def test_it_works_on_a_node_of_a_cluster(file_url: str, make_redis: MakeRedis) -> None:
    server = make_redis(settings={"cluster-enabled": "yes", "databases": "1"})
    with redis_client.Redis(port=server.port) as client:
        for start in range(0, 16384, 2048):
            client.execute_command("CLUSTER", "ADDSLOTS", *range(start, start + 2048))
        async with asyncio.timeout(30):
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                await asyncio.sleep(0.05)
    async with opened(file_url, server.tcp_url()) as ours, opened(file_url, server.tcp_url()) as theirs:
        stored = [await put(ours, f"x{n}") for n in range(20)]
        assert await theirs.episodes.get_many([r.id for r in stored], freshness="linearizable") == stored
        assert counters(theirs).hits == 20
        assert link(ours).failures == link(theirs).failures == 0


# Budgets and settings


async def test_entries_over_a_quarter_of_a_mebibyte_are_not_shared(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        large = await put(ours, "large", context={"text": "x" * 300_000})
        await put(ours, "small")
        assert await theirs.episodes.get("large", freshness="linearizable") == large
        assert (counters(ours).puts, counters(theirs).hits) == (1, 0)


async def test_a_process_without_a_cache_of_its_own_reads_what_others_share(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url, cache_max_bytes=0) as theirs:
        stored = await put(ours)
        for _ in range(3):
            assert await theirs.episodes.get("x", freshness="linearizable") == stored
        assert counters(theirs).hits == 3


async def test_without_it_nothing_of_it_is_there(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""
        import asyncio, sys
        from memory_store import Episode, MemoryStore

        async def main():
            async with MemoryStore({file_url!r}, cache_path="") as store:
                await store.episodes.put(Episode(task_type="t", domain="d"))
                assert store._access.shard.through.shared is None
                assert type(store._access.cache).__name__ == "CacheTier"

        asyncio.run(main())
        print([name for name in sys.modules if name.split(".")[0] == "redis" or name == "memory_store.cache.redis"])
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert ran.stdout == "[]\n"


async def test_a_missing_client_is_named(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"memory-store\[redis\]"):
        await MemoryStore(file_url, shared_cache="redis://localhost").open()


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "redis://", 7])
def test_what_is_no_url_of_a_server_is_refused(url: object, file_url: str) -> None:
    with pytest.raises(ConfigurationError, match="shared_cache"):
        MemoryStore(file_url, shared_cache=url)


async def test_a_url_the_client_cannot_read_is_refused_without_its_password(file_url: str) -> None:
    with pytest.raises(ConfigurationError, match="shared_cache") as raised:
        await MemoryStore(file_url, shared_cache="redis://:secret@localhost:port/0").open()
    assert "secret" not in str(raised.value)


async def test_it_can_be_set_by_the_environment_and_by_the_url(
    file_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_STORE_SHARED_CACHE", redis_url)
    async with MemoryStore(file_url, cache_path="", shared_cache_timeout_s=20) as store:
        assert link(store).up
    monkeypatch.delenv("MEMORY_STORE_SHARED_CACHE")
    from urllib.parse import quote

    async with MemoryStore(f"{file_url}?shared_cache={quote(redis_url, safe='')}&shared_cache_timeout_s=20") as store:
        assert link(store).up


@pytest.mark.parametrize("options", ["", "decode_responses=True&socket_timeout=0.0001", "protocol=3", "protocol=2"])
async def test_options_of_the_url_do_not_change_what_is_read(
    options: str, file_url: str, make_redis: MakeRedis
) -> None:
    server = make_redis()
    url = f"{server.tcp_url()}?{options}"
    async with opened(file_url, url) as ours, opened(file_url, url) as theirs:
        stored = await put(ours)
        assert await theirs.episodes.get("x", freshness="linearizable") == stored
        assert counters(theirs).hits == 1


# Ends


async def test_a_read_asked_for_before_the_end_is_answered(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours:
        stored = await put(ours)
        forget(ours)
        asking = [asyncio.create_task(ours.episodes.get(id_)) for id_ in ("x", "y")]
        await asyncio.sleep(0)
    assert await asyncio.gather(*asking) == [stored, None]
    with pytest.raises(StoreClosedError):
        await ours.episodes.get("x")


async def test_cancelled_anywhere_nothing_is_stale_and_nothing_is_left(file_url: str, redis_url: str) -> None:
    async with opened(file_url, redis_url) as ours, opened(file_url, redis_url) as theirs:
        for turns in range(24):
            written = await ours.episodes.put(make_episode(id="x", reward_score=float(turns)))
            asking = [asyncio.create_task(theirs.episodes.get("x", freshness="linearizable")) for _ in range(2)]
            for _ in range(turns):
                await asyncio.sleep(0)
            asking[0].cancel()
            writing = asyncio.create_task(theirs.episodes.put(make_episode(id="y", reward_score=float(turns))))
            for _ in range(turns):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(asking[0], writing, return_exceptions=True)
            assert await asking[1] == written
            await theirs._access.shard.writer.drain()  # what had begun is written all the same
            forget(ours)
            seen = await theirs.episodes.get("y", freshness="linearizable")
            assert await ours.episodes.get("y", freshness="linearizable") == seen
        await settled(ours, theirs)
        assert not theirs._access.shard.through._flights
        assert level(theirs)._reading is None


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_an_opening_or_closing_that_is_cancelled_leaves_nothing_open(
    turns: int, file_url: str, redis_url: str, client: redis_client.Redis
) -> None:
    before = len(client.client_list())
    store = MemoryStore(file_url, shared_cache=redis_url, **PATIENT)
    opening = asyncio.create_task(store.open())
    for _ in range(turns):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    if not opening.cancelled():
        closing_ = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        closing_.cancel()
        await asyncio.gather(closing_, return_exceptions=True)
    assert not [task for task in asyncio.all_tasks() if "memory_store" in task.get_name()]
    assert store._shards is None or store._shards.link is None or not store._shards.link.up
    async with asyncio.timeout(20):
        while len(client.client_list()) > before:
            await asyncio.sleep(0.01)
