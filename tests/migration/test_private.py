"""The databases of `:memory:` stores: the first of a process is migrated, the others are copies of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from memory_store import DurableUnavailableError, MemoryStore, SchemaMismatchError
from memory_store.durable import private, schema
from memory_store.durable.engine import Target
from tests.migration.conftest import query
from tests.unit.samples import make_episode

_CATALOGUE = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
_PRAGMAS = ("journal_mode", "page_size", "encoding", "auto_vacuum", "user_version", "application_id")


@pytest.fixture(autouse=True)
def _nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_IMAGES", {})


def made(folder: Path, name: str) -> str:
    path = folder / f"{name}.db"
    private.make_private(Target(str(path), True, {}), 30.0)
    return str(path)


def content(path: str) -> dict[str, Any]:
    """Everything in a file but what is each database's own."""
    catalogue = query(path, _CATALOGUE)
    tables = [name for kind, name, _, sql in catalogue if kind == "table" and "VIRTUAL" not in str(sql)]
    rows = {name: query(path, f"SELECT * FROM {name}") for name in tables if name not in ("head", "changes")}
    rows["head"] = query(path, "SELECT shard, position, epoch, writing FROM head")
    rows["changes"] = query(path, "SELECT shard, position, idx, kind, namespace, operation, actor, image FROM changes")
    settings = {name: query(path, f"PRAGMA {name}") for name in _PRAGMAS}
    return {"catalogue": catalogue, "rows": rows, "settings": settings, "whole": query(path, "PRAGMA integrity_check")}


def test_a_copy_holds_what_a_migrated_file_holds(tmp_path: Path) -> None:
    schema.upgrade(Target(str(tmp_path / "migrated.db"), False, {}), 30.0)
    expected = content(str(tmp_path / "migrated.db"))

    assert len(expected["catalogue"]) > 50
    for name in ("first", "second", "third"):
        assert content(made(tmp_path, name)) == expected


def test_each_is_another_database(tmp_path: Path) -> None:
    paths = [made(tmp_path, name) for name in "abc"]

    assert len({query(path, "SELECT store_id FROM head")[0] for path in paths}) == 3
    nonces = [query(path, "SELECT nonce FROM head") for path in paths]
    assert len({str(nonce) for nonce in nonces}) == 3
    assert [query(path, "SELECT nonce FROM changes") for path in paths] == nonces


def test_only_the_first_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgraded: list[str] = []
    upgrade = schema.upgrade
    monkeypatch.setattr(schema, "upgrade", lambda target, timeout_s: upgraded.append(upgrade(target, timeout_s)[1]))

    for name in "abc":
        made(tmp_path, name)
    assert upgraded == [schema.HEAD_REVISION]


def test_other_migrations_make_an_image_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "old")
    monkeypatch.setattr(schema, "HEAD_REVISION", "0001")

    assert query(made(tmp_path, "new"), "SELECT version_num FROM alembic_version") == [("0001",)]
    assert len(private._IMAGES) == 2


async def test_stores_opened_at_once_share_nothing() -> None:
    stores = [MemoryStore("sqlite:///:memory:") for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    try:
        await stores[3].episodes.put(make_episode("e"))
        assert [await store.episodes.count() for store in stores] == [0, 0, 0, 1, 0, 0, 0, 0]
    finally:
        await asyncio.gather(*(store.close() for store in stores))


async def test_who_only_checks_gets_none() -> None:
    async with MemoryStore("sqlite:///:memory:"):
        pass
    with pytest.raises(SchemaMismatchError, match="is empty"):
        await MemoryStore("sqlite:///:memory:", migrate="check").open()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    made(tmp_path, "first")
    with pytest.raises(DurableUnavailableError, match="cannot be written: No such file"):
        made(tmp_path / "absent", "second")
