"""From empty to head and back, by the library and by `alembic`; and that tables and models say the same."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect

from memory_store import MemoryStore, SchemaMismatchError
from memory_store.durable import schema
from memory_store.durable.engine import Target
from memory_store.records import METADATA, RECORDS
from tests.migration.conftest import REPOSITORY, dump, query, revision_of
from tests.unit.samples import make_episode, make_step

Alembic = Callable[..., subprocess.CompletedProcess[str]]
TABLES = {"alembic_version", *METADATA.tables}
# What the full-text index keeps for itself.
INDEX = {"documents_postings", "documents_vocabulary", "documents_text"}
INDEX |= {f"documents_text_{part}" for part in ("config", "data", "docsize", "idx")}

TRIGGERS = {
    f"log_{spec.table.name}_{event}" for spec in RECORDS.values() for event in ("insert", "delete", "move", "update")
}


def tables(path: str) -> set[str]:
    """The tables of a database file."""
    found = {name for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert not found & INDEX or found >= INDEX
    return found - INDEX


def triggers(path: str) -> set[str]:
    """The triggers of a database file."""
    return {name for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type = 'trigger'")}


def described(engine: Engine) -> dict[str, Any]:
    """Columns and constraints of every table of ours, names included."""
    inspector = inspect(engine)
    found = {}
    for name in sorted(TABLES - {"alembic_version"}):
        columns = [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(name)]
        keys = [(k["name"], *_all(k)) for k in inspector.get_foreign_keys(name)]
        unique = [(u["name"], tuple(u["column_names"])) for u in inspector.get_unique_constraints(name)]
        indexes = [(i["name"], tuple(i["column_names"]), i["unique"]) for i in inspector.get_indexes(name)]
        found[name] = (columns, inspector.get_pk_constraint(name), sorted(keys), sorted(unique), sorted(indexes))
    return found


def _all(key: Any) -> tuple[Any, ...]:
    return tuple(key["constrained_columns"]), key["referred_table"], tuple(key["referred_columns"]), str(key["options"])


def test_the_newest_script_is_the_librarys_revision() -> None:
    listed = schema.history(None)
    assert listed[-1].revision == schema.HEAD_REVISION
    assert [item.down_revision for item in listed] == [None, *(item.revision for item in listed[:-1])]
    assert not any(item.applied for item in listed)
    assert all(item.applied for item in schema.history(schema.HEAD_REVISION))
    assert all(item.message for item in listed)
    files = sorted(path.name for path in (REPOSITORY / "migrations" / "versions").glob("*.py"))
    assert [name.split("_")[3] for name in files] == [item.revision for item in listed]


async def test_opening_an_empty_database_creates_it(path: str) -> None:
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert await store.episodes.count() == 0
    assert tables(path) == TABLES
    assert revision_of(path) == schema.HEAD_REVISION
    [(shard, position, nonce, store_id, epoch, writing)] = query(path, "SELECT * FROM head")
    # Making the tables was an upgrade as every other: a commit of its own, and a new epoch.
    assert (shard, position, epoch, writing) == (0, 1, 2, 0)
    assert nonce > 0
    assert len(store_id) == 32
    columns = "position, idx, kind, namespace, key, parent, operation, nonce"
    assert query(path, f"SELECT {columns} FROM changes") == [(1, 0, "store", "", None, None, "upgrade", nonce)]
    assert triggers(path) == TRIGGERS
    assert query(path, "PRAGMA journal_mode") == [("wal",)]


def test_every_database_has_an_identity_of_its_own(tmp_path: Path) -> None:
    ids = set()
    for number in range(2):
        path = str(tmp_path / f"{number}.db")
        schema.upgrade(Target(path, False, {}), 30.0)
        ids.add(query(path, "SELECT store_id FROM head")[0])
    assert len(ids) == 2


async def test_a_file_of_no_bytes_counts_as_empty(path: str) -> None:
    Path(path).touch()
    assert revision_of(path) is None
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert (await store.episodes.put(make_episode())).revision == 1


def test_alembic_goes_up_down_and_up_again(path: str, alembic: Alembic, tmp_path: Path) -> None:
    alembic("upgrade", "head")
    assert tables(path) == TABLES
    assert schema.HEAD_REVISION in alembic("current").stdout
    alembic("downgrade", "base")
    assert tables(path) == {"alembic_version"}
    assert triggers(path) == set()
    assert revision_of(path) is None
    alembic("upgrade", "head")
    other = str(tmp_path / "other.db")
    schema.upgrade(Target(other, False, {}), 30.0)
    own = ('INTO "head"', 'INTO "changes"')  # with random numbers and the time
    ours, theirs = ([line for line in dump(one) if not any(name in line for name in own)] for one in (path, other))
    assert ours == theirs, "by alembic and by the library: the same"
    for one in (path, other):
        assert query(one, "SELECT position, epoch FROM head") == [(1, 2)]
        assert query(one, "SELECT position, kind, operation FROM changes") == [(1, "store", "upgrade")]
        assert triggers(one) == TRIGGERS
    assert "No new upgrade operations detected" in alembic("check").stdout


async def test_going_down_leaves_what_is_not_ours(path: str, alembic: Alembic) -> None:
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.episodes.put(make_episode(id="e"))
        await store.steps.append("e", make_step(""))
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE notes (text); INSERT INTO notes VALUES ('mine')")
    connection.close()
    alembic("downgrade", "base")
    assert tables(path) == {"alembic_version", "notes"}
    alembic("upgrade", "head")
    assert query(path, "SELECT text FROM notes") == [("mine",)]
    async with MemoryStore(f"sqlite:///{path}", cache_path="") as store:
        assert await store.episodes.count() == 0
        await store.episodes.put(make_episode(id="e"))


def test_alembic_takes_the_url_from_the_environment(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_STORE_URL", f"sqlite:///{path}")
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert tables(path) == TABLES


def test_alembic_can_print_the_statements(path: str, alembic: Alembic) -> None:
    printed = alembic("upgrade", "head", "--sql").stdout
    assert "CREATE TABLE episodes" in printed
    assert not Path(path).exists()


def test_the_migrated_schema_is_the_models(path: str) -> None:
    schema.upgrade(Target(path, False, {}), 30.0)
    migrated, modelled = create_engine(f"sqlite:///{path}"), create_engine("sqlite://")
    METADATA.create_all(modelled)
    ours, theirs = described(migrated), described(modelled)
    assert list(ours) == list(theirs)
    for name, description in ours.items():
        # A file's documents have their number for a key, and not the indexes that are a server's alone.
        assert description == theirs[name] or name == "documents", name
    assert ours["documents"][1]["constrained_columns"] == ["key"]
    assert ours["documents"][3] == [("uq_documents_namespace_kind_id", ("namespace", "kind", "id"))]
    assert {index for index in theirs["documents"][4] if index not in ours["documents"][4]} == {
        ("ix_documents_namespace_key", ("namespace", "key"), 0),
        ("ix_documents_terms", ("terms",), 0),
    }
    for engine in (migrated, modelled):
        engine.dispose()


def test_every_constraint_has_its_conventional_name(path: str) -> None:
    schema.upgrade(Target(path, False, {}), 30.0)
    engine = create_engine(f"sqlite:///{path}")
    for name, (_, primary, foreign, unique, indexes) in described(engine).items():
        assert primary["name"] == f"pk_{name}"
        assert all(key[0] == f"fk_{name}_namespace_episode_id_episodes" for key in foreign)
        assert all(key[0] == f"uq_{name}_{'_'.join(key[1])}" for key in unique)
        assert all(index[0] == f"ix_{name}_{'_'.join(index[1])}" for index in indexes)
    engine.dispose()


def test_several_processes_open_an_empty_file_at_once(path: str) -> None:
    source = (
        "import asyncio, sys\n"
        "from memory_store import Episode, MemoryStore\n"
        "async def main():\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    async with MemoryStore(sys.argv[1]) as store:\n"
        "        await store.episodes.put(Episode(task_type='t', domain='d'))\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", source, f"sqlite:///{path}"]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
    # One of them made the tables, which is a commit of its own; then each wrote once.
    assert query(path, "SELECT (SELECT count(*) FROM episodes), (SELECT position FROM head)") == [(3, 4)]
    assert query(path, "SELECT kind FROM changes ORDER BY position") == [("store",)] + [("episode",)] * 3


@pytest.mark.parametrize("migrate", ["auto", "check"])
async def test_another_programs_database_is_refused_untouched(migrate: str, path: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE customers (name); INSERT INTO customers VALUES ('x')")
    connection.close()
    before = Path(path).read_bytes()
    with pytest.raises(SchemaMismatchError, match=r"tables that are not a memory store's \(customers\)") as caught:
        await MemoryStore(f"sqlite:///{path}", migrate=migrate).open()
    assert (caught.value.found, caught.value.expected) == (None, schema.HEAD_REVISION)
    assert Path(path).read_bytes() == before


async def test_check_refuses_an_empty_database(path: str) -> None:
    message = f"the database is empty, this library needs {schema.HEAD_REVISION}: run `memory-store"
    with pytest.raises(SchemaMismatchError, match=message):
        await MemoryStore(f"sqlite:///{path}", migrate="check").open()
    assert not Path(path).exists()
