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
from tests.migration.conftest import FAILS_HALFWAY, NEXT, OLD, dump, query, script
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
    extended()
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.cache.wait()
        assert (await store.cache.status()).reason == "the version key has changed"
        assert await store.episodes.get("e") == stored[0]
        assert await store.steps.of("e") == [stored[1]]
        assert (await store.episodes.update("e", domain="changed")).revision == 2
    assert schema.current_revision(path) == NEXT
    assert query(path, "SELECT added FROM episodes") == [("filled in",)]
    copy = f"{path}.{OLD}.bak"
    assert dump(copy) == before
    assert query(copy, "PRAGMA integrity_check") == [("ok",)]


async def test_an_empty_database_is_upgraded_without_a_copy(path: str, extended: Extended) -> None:
    await asyncio.to_thread(schema.upgrade, Target(path, False, {}), 30.0)
    extended()
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.episodes.put(make_episode())
    assert schema.current_revision(path) == NEXT
    assert not list(Path(path).parent.glob("*.bak"))


async def test_a_new_database_gets_all_revisions(path: str, extended: Extended) -> None:
    extended()
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.episodes.put(make_episode())
    assert schema.current_revision(path) == NEXT
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
    assert [item.applied for item in schema.history(OLD)] == [True, False]
    assert schema.upgrade(target, 30.0, on_copy=copies.append) == (OLD, NEXT)
    assert copies == [f"{path}.{OLD}.bak"]
    assert [item.applied for item in schema.history(NEXT)] == [True, True]


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
    assert schema.current_revision(path) == OLD
    # Once the migration is right, the same file is upgraded.
    extended()
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert await store.steps.of("e") == [stored[1]]
    assert schema.current_revision(path) == NEXT


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
        (folder / "versions" / "9999_01_01_0002_test.py").write_text(script("    raise AssertionError('ran twice')"))
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


REBUILDS = """    with op.batch_alter_table("episodes") as batch:
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


async def test_going_down_one_revision_and_up_again_keeps_the_data(
    path: str, stored: tuple[Episode, Step], extended: Extended
) -> None:
    from alembic import command

    extended()
    target = Target(path, False, {})
    await asyncio.to_thread(schema.upgrade, target, 30.0)
    before = query(path, "SELECT * FROM steps")
    await asyncio.to_thread(command.downgrade, schema._config(target), OLD)
    assert schema.current_revision(path) == OLD
    assert query(path, "SELECT * FROM steps") == before
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert await store.episodes.get("e") == stored[0]
        assert await store.steps.of("e") == [stored[1]]
