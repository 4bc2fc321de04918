"""Older and newer databases: upgraded with a copy, refused with the command, never left halfway."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from memory_store import DurableError, Episode, MemoryStore, SchemaMismatchError, Step
from memory_store.durable import schema
from memory_store.durable.engine import Target
from tests.migration.conftest import ADDS_A_COLUMN, FAILS_HALFWAY, NEXT, OLD, SCRIPT, dump, query, revision_of, script
from tests.unit.samples import make_episode, make_step

Extended = Callable[..., Path]


@pytest.fixture
async def stored(path: str) -> tuple[Episode, Step]:
    """A database of the older revision with an episode and a step, and these two."""
    async with MemoryStore(f"sqlite:///{path}") as store:
        episode = await store.episodes.put(make_episode(id="e"))
        [step] = await store.steps.append("e", make_step(""))
    return episode, step


async def test_opening_upgrades_with_the_data_intact_and_a_copy_beside(
    path: str, stored: tuple[Episode, Step], extended: Extended
) -> None:
    before = dump(path)
    [(position, epoch)] = query(path, "SELECT position, epoch FROM head")
    extended()
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.cache.wait()
        assert query(path, "SELECT position, epoch FROM head") == [(position + 1, epoch + 1)]
        assert query(path, "SELECT kind, operation FROM changes ORDER BY position")[-1] == ("store", "upgrade")
        assert (await store.cache.status()).reason == "the version key has changed"
        assert await store.episodes.get("e") == stored[0]
        assert await store.steps.of("e") == [stored[1]]
        assert (await store.episodes.update("e", domain="changed")).revision == 2
    assert revision_of(path) == NEXT
    assert query(path, "SELECT added FROM episodes") == [("filled in",)]
    copy = f"{path}.{OLD}.bak"
    assert dump(copy) == before
    assert query(copy, "PRAGMA integrity_check") == [("ok",)]


async def test_an_empty_database_is_upgraded_without_a_copy(path: str, extended: Extended) -> None:
    await asyncio.to_thread(schema.upgrade, Target(path, False, {}), 30.0)
    extended()
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.episodes.put(make_episode())
    assert revision_of(path) == NEXT
    assert not list(Path(path).parent.glob("*.bak"))


async def test_a_new_database_gets_all_revisions(path: str, extended: Extended) -> None:
    extended()
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.episodes.put(make_episode())
    assert revision_of(path) == NEXT
    assert query(path, "SELECT added FROM episodes") == [("filled in",)]


def test_upgrading_tells_what_it_did(path: str, extended: Extended) -> None:
    target = Target(path, False, {})
    copies: list[str] = []
    assert schema.upgrade(target, 30.0, on_copy=copies.append) == (None, OLD)
    assert schema.upgrade(target, 30.0, on_copy=copies.append) == (OLD, OLD)
    with closing(sqlite3.connect(path)) as connection:
        columns = "namespace, id, revision, created_at, updated_at, task_type, domain, context, status, metadata"
        connection.execute(
            f"INSERT INTO episodes ({columns}) VALUES ('n', 'e', 1, 0, 0, 't', 'd', '{{}}', 'active', '{{}}')"
        )
        connection.commit()
    extended()
    listed = schema.history(OLD)
    assert [item.revision for item in listed][-2:] == [OLD, NEXT]
    assert [item.applied for item in listed] == [True] * (len(listed) - 1) + [False]
    assert schema.upgrade(target, 30.0, on_copy=copies.append) == (OLD, NEXT)
    assert copies == [f"{path}.{OLD}.bak"]
    assert [item.applied for item in schema.history(NEXT)] == [True] * len(listed)


async def test_check_refuses_an_older_database_and_says_the_command(
    path: str, stored: tuple[Episode, Step], extended: Extended
) -> None:
    before = dump(path)
    extended()
    with pytest.raises(SchemaMismatchError) as caught:
        await MemoryStore(f"sqlite:///{path}", migrate="check").open()
    message = str(caught.value)
    assert f"is at revision {OLD}, this library needs {NEXT}" in message
    assert f"memory-store upgrade --url sqlite:///{path}" in message
    assert (caught.value.found, caught.value.expected) == (OLD, NEXT)
    assert dump(path) == before
    assert not list(Path(path).parent.glob("*.bak"))


@pytest.mark.parametrize("migrate", ["auto", "check"])
async def test_a_newer_database_is_refused_untouched(
    migrate: str, path: str, stored: tuple[Episode, Step], extended: Extended, monkeypatch: pytest.MonkeyPatch
) -> None:
    extended()
    await asyncio.to_thread(schema.upgrade, Target(path, False, {}), 30.0)
    monkeypatch.undo()
    before = Path(path).read_bytes()
    with pytest.raises(SchemaMismatchError, match=r"upgrade the library\. Nothing was touched") as caught:
        await MemoryStore(f"sqlite:///{path}", migrate=migrate).open()
    assert f"at revision {NEXT}, which this library (at {OLD}) does not know" in str(caught.value)
    assert (caught.value.found, caught.value.expected) == (NEXT, OLD)
    assert Path(path).read_bytes() == before
    assert [copy.name for copy in Path(path).parent.glob("*.bak")] == [f"agent.db.{OLD}.bak"]


async def test_a_migration_that_fails_halfway_leaves_the_old_schema_and_data(
    path: str, stored: tuple[Episode, Step], extended: Extended
) -> None:
    before = dump(path)
    extended(FAILS_HALFWAY)
    with pytest.raises(DurableError, match="no_such_function"):
        await MemoryStore(f"sqlite:///{path}").open()
    assert dump(path) == before
    assert revision_of(path) == OLD
    # Once the migration is right, the same file is upgraded.
    extended()
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert await store.steps.of("e") == [stored[1]]
    assert revision_of(path) == NEXT


WAITS = """    print("migrating", flush=True)
    sys.stdin.readline()
    op.add_column('episodes', sa.Column('added', sa.Text(), server_default='filled in'))"""

UPGRADES = """
import sys
from pathlib import Path
from memory_store.durable import schema
from memory_store.durable.engine import Target
schema.migrations_folder = lambda: Path(sys.argv[2])
schema.HEAD_REVISION = sys.argv[3]
print(schema.upgrade(Target(sys.argv[1], False, {}), 30.0))
"""


async def test_opening_waits_for_another_process_that_upgrades(
    path: str, stored: tuple[Episode, Step], extended: Extended
) -> None:
    folder = extended(WAITS)
    command = [sys.executable, "-c", UPGRADES, path, str(folder), NEXT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "migrating\n"
        (folder / "versions" / SCRIPT).write_text(script("    raise AssertionError('ran twice')"))
        store = MemoryStore(f"sqlite:///{path}", namespace="default")
        opening = asyncio.create_task(store.open())
        done, _ = await asyncio.wait({opening}, timeout=0.2)
        assert not done
        child.stdin.write("go\n")
        child.stdin.flush()
        await opening
        assert child.stdout.readline() == f"('{OLD}', '{NEXT}')\n"
        assert child.wait(30) == 0
    assert await store.episodes.get("e") == stored[0]
    await store.close()
    assert query(path, "SELECT version_num FROM alembic_version") == [(NEXT,)]


REBUILDS = """    with rebuilt("episodes") as batch:
        batch.add_column(sa.Column("added", sa.Text(), server_default="filled in"))
        batch.alter_column("domain", type_=sa.Text())"""


async def test_rebuilding_a_table_keeps_everything_that_refers_to_it(
    path: str, stored: tuple[Episode, Step], extended: Extended
) -> None:
    """SQLite changes most things by making a table anew; dropping the old one must not cascade."""
    extended(REBUILDS)
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert await store.episodes.get("e") == stored[0]
        assert await store.steps.of("e") == [stored[1]]
    assert query(path, "PRAGMA foreign_key_check") == []
    # Without the triggers plain SQL would change rows behind every cache's back.
    [(position,)] = query(path, "SELECT position FROM head")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE episodes SET domain = 'by plain SQL'")
        connection.commit()
    logged = query(path, f"SELECT kind, key, operation FROM changes WHERE position > {position}")
    assert logged == [("episode", "e", "update")]


async def test_going_down_one_revision_and_up_again_keeps_the_data(
    path: str, stored: tuple[Episode, Step], extended: Extended
) -> None:
    from alembic import command

    extended()
    target = Target(path, False, {})
    await asyncio.to_thread(schema.upgrade, target, 30.0)
    before = query(path, "SELECT * FROM steps")
    [(position, epoch)] = query(path, "SELECT position, epoch FROM head")
    await asyncio.to_thread(command.downgrade, schema._config(target), OLD)
    assert revision_of(path) == OLD
    assert query(path, "SELECT * FROM steps") == before
    assert query(path, "SELECT position, epoch FROM head") == [(position + 1, epoch + 1)], "down is a change as well"
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert await store.episodes.get("e") == stored[0]
        assert await store.steps.of("e") == [stored[1]]


async def test_a_database_of_the_first_release_opens_with_everything_in_it(path: str) -> None:
    """Its log had no triggers; what the library logged itself is still there and goes on."""
    from alembic import command

    target = Target(path, False, {})
    await asyncio.to_thread(command.upgrade, schema._config(target), "0001")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO episodes SELECT 'n', 'e', 3, 1, 2, 't', 'd', '{}', 'active', 0, 0, 0, '', '{}'")
        connection.execute("INSERT INTO steps SELECT 'n', 's', 1, 1, 1, 'e', 1, 'pytest', '', 1, 1, 1, 'shell'")
        connection.execute("INSERT INTO changes SELECT 0, 7, 0, 'step', 'n', 's', 'e', 'insert', 1, '', 0, 77, NULL")
        connection.execute("UPDATE head SET position = 7, nonce = 77")
        connection.commit()
    assert revision_of(path) == "0001"
    before = {table: query(path, f"SELECT * FROM {table}") for table in ("episodes", "steps", "changes")}
    [(store_id, epoch)] = query(path, "SELECT store_id, epoch FROM head")
    async with MemoryStore(f"sqlite:///{path}", namespace="n") as store:
        assert {table: query(path, f"SELECT * FROM {table}") for table in ("episodes", "steps")} == {
            table: before[table] for table in ("episodes", "steps")
        }
        assert query(path, "SELECT * FROM changes")[:-1] == before["changes"]
        assert query(path, "SELECT position, store_id, epoch, writing FROM head") == [(8, store_id, epoch + 1, 0)]
        found = await store.episodes.get("e")
        assert found is not None
        assert (found.revision, [step.id for step in await store.steps.of("e")]) == (3, ["s"])
        assert (await store.episodes.update("e", domain="x", expected_revision=3)).position == 9
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DELETE FROM steps")
            connection.commit()
        assert await store.steps.of("e", freshness="linearizable") == []
    assert revision_of(f"{path}.0001.bak") == "0001"


async def test_every_revision_goes_up_down_and_up_again_with_data(path: str, stored: tuple[Episode, Step]) -> None:
    from alembic import command

    config = schema._config(Target(path, False, {}))
    before = {table: query(path, f"SELECT * FROM {table}") for table in ("episodes", "steps")}
    for revision in [item.revision for item in schema.history(None)][-2::-1]:
        await asyncio.to_thread(command.downgrade, config, revision)
        assert revision_of(path) == revision
        assert {table: query(path, f"SELECT * FROM {table}") for table in before} == before
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert await store.episodes.get("e") == stored[0]
        assert await store.steps.of("e") == [stored[1]]
    assert revision_of(path) == OLD


async def test_a_store_that_is_open_during_an_upgrade_stops_writing(
    path: str, extended: Extended, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = extended(ADDS_A_COLUMN)
    monkeypatch.undo()  # this process is the older library again
    async with MemoryStore(f"sqlite:///{path}") as store:
        kept = await store.episodes.put(make_episode(id="e"))
        entries = (await store.cache.status()).entries
        assert entries > 0
        command = [sys.executable, "-c", UPGRADES, path, str(folder), NEXT]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for write in (
            lambda: store.episodes.put(make_episode(id="f")),
            lambda: store.episodes.update("e", domain="x"),
            lambda: store.episodes.delete("e"),
        ):
            with pytest.raises(SchemaMismatchError, match="it can no longer write; restart it with the new") as caught:
                await write()
            assert (caught.value.found, caught.value.expected) == (NEXT, OLD)
        with pytest.raises(SchemaMismatchError):
            async with store.transaction() as tx:
                await tx.episodes.put(make_episode(id="f"))
        misses = store.stats().cache["episode"].misses
        assert await store.episodes.get("e", freshness="linearizable") == kept
        assert store.stats().cache["episode"].misses == misses + 1, "what was cached before the upgrade is not believed"
    assert query(path, "SELECT id FROM episodes") == [("e",)]
    assert query(path, "SELECT writing FROM head") == [(0,)]
