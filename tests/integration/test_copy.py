"""Copying a store between databases: everything arrives as it was, or nothing is touched."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from memory_store import (
    ConfigurationError,
    ConstraintError,
    DurableUnavailableError,
    Episode,
    MemoryStore,
    PositionLostError,
    SchemaMismatchError,
)
from memory_store.durable import schema
from memory_store.durable.dialects.postgresql import Connection, connect
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.durable.partitions import partition
from memory_store.durable.row_security import secure
from memory_store.errors import CodecError
from memory_store.transfer import CopyProgress, copy_store
from tests.integration.cli_support import memory_store, one_line
from tests.integration.copy_support import (
    KEY,
    NAMESPACES,
    MakePlace,
    contents,
    exported,
    fill_source,
    require_copied,
)
from tests.servers.databases import PostgresDatabases
from tests.servers.pooler import Pooler

WAYS = [
    ("sqlite", "sqlite"),
    ("sqlite", "postgresql-16"),
    ("postgresql-16", "sqlite"),
    ("postgresql-16", "postgresql-16"),
    ("postgresql-4", "postgresql-7"),
    ("postgresql-1", "sqlite"),
]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakePlace]:
    """Make empty databases."""
    names = (f"copy_{uuid.uuid4().hex[:12]}_{number}" for number in itertools.count())
    made: list[str] = []

    def make(backend: str) -> str:
        name = next(names)
        if backend == "sqlite":
            return f"sqlite:///{tmp_path}/{name}.db"
        server: PostgresDatabases = request.getfixturevalue("postgres_server")
        made.append(name)
        return f"{server.create_database(name)}&heads={backend.removeprefix('postgresql-')}"

    yield make
    for name in made:
        request.getfixturevalue("postgres_server").drop_database(name)


@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_everything_arrives_as_it_was(source: str, target: str, place: MakePlace) -> None:
    here, there = place(source), place(target)
    await fill_source(here)
    progress: list[CopyProgress] = []
    report = await copy_store(here, there, on_progress=progress.append)
    await require_copied(here, there, report)

    assert not report.resumed
    assert (report.namespaces, report.idempotency) == (len(NAMESPACES), len(NAMESPACES))
    assert report.records["episode"] == len(NAMESPACES) * 61
    assert {now.what for now in progress} >= {"copying episode", "copying step", "copying the log", "verifying step"}
    for what in ("copying", "verifying"):
        done = [now.done for now in progress if now.what.startswith(what)]
        assert done == sorted(done)
        assert done[-1] <= progress[-1].total
    assert len({now.total for now in progress}) == 1


@pytest.mark.parametrize(("source", "target"), WAYS[:4])
async def test_the_copy_is_a_store_that_goes_on(source: str, target: str, place: MakePlace) -> None:
    here, there = place(source), place(target)
    await fill_source(here, episodes=10)
    async with MemoryStore(here) as store:
        noted = (await store.episodes.update("e0", status="failed")).position
    report = await copy_store(here, there)
    async with MemoryStore(there) as store:
        assert noted is not None
        found = await store.episodes.get("e0", at_least=noted)
        assert found is not None
        assert found.status == "failed"
        again = await store.episodes.put(Episode(task_type="once", domain="d"), idempotency_key=KEY)
        assert again.revision == 1
        assert (await store.episodes.count()) == 11
        new = await store.episodes.put(Episode(id="new", task_type="t", domain="d"))
        assert new.position == report.target_positions[store._access.shard.number] + 1
        follower = store.follow(after="start")
        seen = [change async for change in _until(follower, "new")]
        assert [change.operation for change in seen[:1]] == ["insert"]
        assert [change.position for change in seen] == sorted(change.position for change in seen)


async def _until(changes: AsyncIterator[Any], key: str) -> AsyncIterator[Any]:
    async for change in changes:
        yield change
        if change.key == key:
            break
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_follower_of_the_source_goes_on_in_a_copy_that_keeps_positions(place: MakePlace) -> None:
    here, there, elsewhere = place("sqlite"), place("sqlite"), place("postgresql-16")
    await fill_source(here, episodes=3)
    async with MemoryStore(here, namespace=NAMESPACES[-1]) as store:
        cursor = [change.cursor async for change in _until(store.follow(after="start"), "e1")][-1]
    await copy_store(here, there)
    await copy_store(here, elsewhere)
    async with MemoryStore(there, namespace=NAMESPACES[-1]) as store:
        await store.episodes.put(Episode(id="new", task_type="t", domain="d"))
        keys = [change.key async for change in _until(store.follow(after=cursor), "new")]
        assert keys[0] == "e2"
    async with MemoryStore(elsewhere, namespace=NAMESPACES[-1]) as store:
        with pytest.raises(PositionLostError):
            [change async for change in _until(store.follow(after=cursor), "new")]


async def test_an_empty_database_is_copied(place: MakePlace) -> None:
    here, there = place("sqlite"), place("sqlite")
    async with MemoryStore(here):
        pass
    report = await copy_store(here, there)
    assert (report.namespaces, sum(report.records.values())) == (0, 0)
    async with MemoryStore(there) as store:
        await store.episodes.put(Episode(task_type="t", domain="d"))


async def test_a_negative_zero_becomes_what_sqlite_stores(place: MakePlace) -> None:
    here, there, back = place("postgresql-2"), place("postgresql-2"), place("sqlite")
    async with MemoryStore(here) as store:
        await store.episodes.put(Episode(id="zero", task_type="t", domain="d", reward_score=-0.0))
    for target, expected in ((there, "-0.0"), (back, "0.0")):
        await copy_store(here, target)
        async with MemoryStore(target) as store:
            found = await store.episodes.get("zero")
            assert found is not None
            assert repr(found.reward_score) == expected


async def test_what_plain_sql_wrote_is_copied_too(place: MakePlace, tmp_path: Path) -> None:
    here, there = place("sqlite"), place("postgresql-16")
    await fill_source(here, episodes=3)
    with sqlite3.connect(here.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE episodes SET domain = 'sql' WHERE id = 'e1'")
        connection.execute("UPDATE steps SET id = 'moved' WHERE action = 'e1 0' AND namespace = 'default'")
        connection.execute("UPDATE episodes SET reflection = 'a' || char(0) || char(26) || '0' WHERE id = 'e0'")
    connection.close()
    await require_copied(here, there, await copy_store(here, there))


@pytest.mark.parametrize(("source", "target"), WAYS[:4])
async def test_the_source_is_written_meanwhile(source: str, target: str, place: MakePlace) -> None:
    """The copy is one state: pairs that are always written together are never torn."""
    here, there = place(source), place(target)
    await fill_source(here)
    wrote = asyncio.Event()

    async def write() -> None:
        async with MemoryStore(here, cache_path="") as store:
            for round_ in itertools.count():
                async with store.transaction() as tx:
                    for half in "az":
                        await tx.episodes.put(
                            Episode(id=f"{half}-pair", task_type="t", domain="d", context={"round": round_})
                        )
                wrote.set()
                await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    await wrote.wait()
    report = await copy_store(here, there)
    writer.cancel()
    with suppress(asyncio.CancelledError):
        await writer
    async with MemoryStore(there, cache_path="") as store:
        rounds = [record and record.context["round"] for record in await store.episodes.get_many(["a-pair", "z-pair"])]
    assert rounds[0] is not None
    assert rounds[0] == rounds[1]
    now = [head.position for head in (await contents(here)).heads]
    assert all(known <= position for known, position in zip(report.source_positions, now, strict=True))


@pytest.mark.parametrize("target", ["sqlite", "postgresql-16"])
async def test_a_target_that_holds_something_is_refused_and_not_touched(target: str, place: MakePlace) -> None:
    here, there = place("sqlite"), place(target)
    await fill_source(here, episodes=3)
    async with MemoryStore(there) as store:
        await store.episodes.put(Episode(id="mine", task_type="t", domain="d"))
    before = await contents(there)
    with pytest.raises(ConfigurationError, match="is not empty"):
        await copy_store(here, there)
    assert await contents(there) == before
    async with MemoryStore(there) as store:
        await store.episodes.delete("mine")
    with pytest.raises(ConfigurationError, match="rows in changes"):
        await copy_store(here, there)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql-16"])
async def test_a_database_is_not_copied_onto_itself(backend: str, place: MakePlace, tmp_path: Path) -> None:
    here = place(backend)
    await fill_source(here, episodes=1)
    before = await contents(here)
    others = [here]
    if backend == "sqlite":
        path = Path(here.removeprefix("sqlite:///"))
        (tmp_path / "link.db").symlink_to(path)
        (tmp_path / "hard.db").hardlink_to(path)
        others += [f"sqlite:///{tmp_path}/link.db", f"sqlite:///{tmp_path}/hard.db"]
    else:
        others.append(here.replace("postgresql+asyncpg", "postgresql"))
    for other in others:
        with pytest.raises(ConfigurationError, match="same database"):
            await copy_store(here, other)
    assert await contents(here) == before


async def test_databases_that_cannot_be_copied_are_refused_by_name(place: MakePlace, tmp_path: Path) -> None:
    here, there = place("sqlite"), place("sqlite")
    with pytest.raises(DurableUnavailableError, match="there is no database"):
        await copy_store(here, there)
    await fill_source(here, episodes=1)
    for pair in [("sqlite:///:memory:", there), (here, "sqlite:///:memory:")]:
        with pytest.raises(ConfigurationError, match=":memory:"):
            await copy_store(*pair)
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(DurableUnavailableError):
        await copy_store(here, f"sqlite:///{tmp_path}/text")
    with pytest.raises(DurableUnavailableError):
        await copy_store(f"sqlite:///{tmp_path}/text", there)
    with sqlite3.connect(tmp_path / "foreign.db") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(SchemaMismatchError, match="not a memory store"):
        await copy_store(here, f"sqlite:///{tmp_path}/foreign.db")
    assert not Path(there.removeprefix("sqlite:///")).exists()


async def test_another_schema_is_refused_and_says_what_to_do(place: MakePlace) -> None:
    here, there = place("sqlite"), place("sqlite")
    await fill_source(here, episodes=1)
    path = here.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    for pair in [(here, there), (there, here)]:
        if pair[0] == there:
            await fill_source(there, episodes=1)
        with pytest.raises(SchemaMismatchError, match="memory-store upgrade"):
            await copy_store(*pair)


async def test_a_value_that_only_sqlite_can_store_is_named(place: MakePlace) -> None:
    here = place("sqlite")
    await fill_source(here, episodes=3)
    path = here.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE episodes SET success_rate = 'most' WHERE id = 'e1' AND namespace = 'default'")
    connection.close()
    with pytest.raises(CodecError, match=r"episode 'e1' in namespace 'default'.*success_rate"):
        await copy_store(here, place("postgresql-16"))


async def test_a_row_that_the_target_refuses_is_named_and_can_be_mended(place: MakePlace) -> None:
    here, there = place("sqlite"), place("postgresql-16")
    await fill_source(here, episodes=200)
    path = here.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE episodes SET context = '{no json' WHERE id = 'e77' AND namespace = 'agent-3'")
    connection.close()
    with pytest.raises(ConstraintError, match="episode 'e77' in namespace 'agent-3'") as caught:
        await copy_store(here, there)
    assert (caught.value.kind, caught.value.namespace, caught.value.key) == ("episode", "agent-3", "e77")
    with sqlite3.connect(path) as connection:
        connection.execute("""UPDATE episodes SET context = '{"no": "json"}' WHERE id = 'e77'""")
    connection.close()
    report = await copy_store(here, there)
    assert report.resumed
    await require_copied(here, there, report)


async def test_heads_of_a_new_database_are_the_sources_or_as_asked_for(place: MakePlace) -> None:
    here, same, other = place("postgresql-3"), place("postgresql-0"), place("postgresql-5")
    await fill_source(here, episodes=2)
    assert (await copy_store(here, same.removesuffix("&heads=0"))).positions_kept
    assert len((await copy_store(here, other)).target_positions) == 5


async def test_a_partitioned_empty_database_is_filled(place: MakePlace) -> None:
    here, there = place("postgresql-16"), place("postgresql-16")
    await fill_source(here, episodes=5)
    target = parse_url(there)
    assert isinstance(target, ServerTarget)
    await asyncio.to_thread(schema.upgrade, target, 30.0)
    await _in_transaction(target, lambda execute: partition(execute, 4))
    await require_copied(here, there, await copy_store(here, there))


async def test_a_role_that_sees_one_namespace_cannot_copy_it_for_the_whole(
    place: MakePlace, postgres_server: PostgresDatabases
) -> None:
    here, there = place("postgresql-4"), place("sqlite")
    await fill_source(here, episodes=2)
    name, role = str(make_url(here).database), f"agent_{uuid.uuid4().hex[:8]}"
    postgres_server.execute(f"CREATE ROLE {role} LOGIN")
    try:
        target = parse_url(here)
        assert isinstance(target, ServerTarget)
        await _in_transaction(target, lambda execute: secure(execute, role))
        postgres_server.execute(f"ALTER ROLE {role} SET memory_store.namespace = 'default'")
        with pytest.raises(DurableUnavailableError, match="row-level security"):
            await copy_store(here.replace("postgres@", f"{role}@"), there)
        await require_copied(here, there, await copy_store(here, there))
    finally:
        postgres_server.execute(f"DROP OWNED BY {role}", name)
        postgres_server.execute(f"DROP ROLE {role}")


async def _in_transaction(target: ServerTarget, work: Callable[[Any], Any]) -> None:
    connection = Connection(await connect(target.dsn, 30.0, {}))

    def run(connection: Any) -> None:
        connection.execute("BEGIN IMMEDIATE")
        work(connection.execute)
        connection.execute("COMMIT")

    await connection.runner.call(run, connection)
    connection.close()


async def test_through_a_pooler(place: MakePlace, postgres_server: PostgresDatabases) -> None:
    here, there, back = place("sqlite"), place("postgresql-4"), place("sqlite")
    await fill_source(here, episodes=30)
    async with Pooler(postgres_server.upstream, size=2) as pooler:
        pooled = f"{postgres_server.url_through(pooler.port, str(make_url(there).database))}?heads=4&pooler=true"
        await require_copied(here, there, await copy_store(here, pooled))
        await require_copied(there, back, await copy_store(pooled, back))


async def test_the_command(place: MakePlace, tmp_path: Path) -> None:
    here, there = place("sqlite"), place("postgresql-16")
    await fill_source(here, episodes=3)
    done = await asyncio.to_thread(memory_store, tmp_path, "copy", here, there, "--json")
    assert done.code == 0, done.err
    assert done.json["records"]["episode"] == len(NAMESPACES) * 4
    assert done.json["positions_kept"] is False
    again = await asyncio.to_thread(memory_store, tmp_path, "copy", here, there)
    assert again.code == 2
    assert "is not empty" in one_line(again)
    back = await asyncio.to_thread(memory_store, tmp_path, "copy", there, "sqlite:///back.db")
    assert back.code == 0, back.err
    assert "verified, every row" in back.out
    assert await exported(f"sqlite:///{tmp_path}/back.db") == await exported(here)
    missing = await asyncio.to_thread(memory_store, tmp_path, "copy", "sqlite:///missing.db", "sqlite:///x.db")
    assert (missing.code, (tmp_path / "x.db").exists()) == (3, False)
    assert "there is no database" in one_line(missing)
