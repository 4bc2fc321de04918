"""What `diagnose` says of a server: what loses data, refuses writes or slows the store down, and what is well."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from memory_store import Episode, MemoryStore, inspection
from memory_store.durable import vitals
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.durable.partitions import partition
from memory_store.durable.row_security import secure
from memory_store.inspection import Finding, diagnose
from memory_store.records import RECORDS
from tests.integration.cli_support import fill_two_namespaces, memory_store, plain_sql
from tests.migration.postgresql import Database
from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres, MakeStandby

SERVER = ["database", "server", "asyncpg", "transport", "server clock ahead", "encoding", "fsync", "full_page_writes"]
SERVER += ["synchronous_commit", "data checksums", "connections", "idle_in_transaction_session_timeout"]
SERVER += ["transaction id age", "replication", "pgvector", "schema"]
STORE = [
    "head",
    "heads",
    "partitions",
    "role",
    "head rows",
    "invalid indexes",
    "vectors",
    "rows",
    "sizes",
    "saved cache",
]
UNSYNCED = {"fsync", "full_page_writes"}
"""What is wrong with the server that the tests share."""


async def examined(url: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in await asyncio.to_thread(diagnose, url)}


def wrong(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if not finding.ok}


async def test_a_sound_server(make_postgres: MakePostgres, tmp_path: Path) -> None:
    server = make_postgres()
    await fill_two_namespaces(server.url())
    server.execute("VACUUM ANALYZE")

    done = await asyncio.to_thread(memory_store, tmp_path, "doctor", "--json", MEMORY_STORE_URL=server.tcp_url())

    found: dict[str, Any] = {item["name"]: item for item in done.json["findings"]}
    assert (done.code, done.json["ok"], done.err) == (0, True, "")
    assert list(found) == ["memory-store", "python", "sqlalchemy", *SERVER, *STORE]
    assert found["database"]["value"] == f"postgresql://postgres@127.0.0.1:{server.port}/postgres"
    assert found["server"]["value"] == server.execute("SHOW server_version")[0][0]
    assert found["transport"] == {"name": "transport", "value": "plain", "ok": True, "hint": ""}, (
        "it stays on the machine"
    )
    assert [found[name]["value"] for name in ("encoding", "fsync", "full_page_writes", "synchronous_commit")] == [
        *("UTF8", "on", "on", "on")
    ]
    assert found["connections"]["value"] == {"for_programs": 97, "in_use": 1, "pool_size": 10}
    assert "9 processes" in found["connections"]["hint"]
    assert found["rows"]["value"] == {
        "changes": int(server.execute("SELECT count(*) FROM changes")[0][0]),
        **{spec.table.name: count for spec, count in zip(RECORDS.values(), [3, 9, 3, 3, 3], strict=True)},
    }
    assert found["heads"]["value"] == 16
    assert found["partitions"]["value"] == "none"
    assert found["sizes"]["value"]["database_bytes"] > found["sizes"]["value"]["changes_bytes"] > 0
    assert "superuser" in found["role"]["hint"]
    text = (await asyncio.to_thread(memory_store, tmp_path, "doctor", MEMORY_STORE_URL=server.url())).out
    assert "WRONG" not in text


async def test_settings_that_lose_writes_are_wrong(postgres_url: str, make_postgres: MakePostgres) -> None:
    async with MemoryStore(postgres_url):
        pass
    found = await examined(postgres_url)
    assert wrong(found) == UNSYNCED, "the tests' own server does not sync"
    assert "loses acknowledged writes" in found["fsync"].hint

    server = make_postgres(settings={"synchronous_commit": "off", "idle_in_transaction_session_timeout": "1min"})
    found = await examined(server.url())
    assert wrong(found) == {"schema"}, "of the empty database"
    # It is switched on for the library's own commits; see the test below.
    assert "other programs" in found["synchronous_commit"].hint
    assert found["idle_in_transaction_session_timeout"].value == "1min"
    server.configure(synchronous_commit="local", synchronous_standby_names="nobody")
    found = await examined(server.url())
    assert wrong(found) == {"schema", "synchronous_commit", "replication"}
    assert "a failover can lose" in found["synchronous_commit"].hint
    assert "commits wait for ever" in found["replication"].hint


async def test_the_librarys_commits_wait_for_the_disk_whatever_the_server_says(make_postgres: MakePostgres) -> None:
    # Left to itself, this server syncs its log every 10 s, and puts nothing into it of its own.
    lazy = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_level": "minimal", "max_wal_senders": "0"}
    server = make_postgres(settings=lazy)
    synced = "SELECT pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()"
    # A hint is sent by a commit of its own, which nobody has to wait for.
    async with MemoryStore(server.url(), cache_max_bytes=0, hints=False) as store:
        for work in (
            lambda: plain_sql(server.url(), "CREATE TABLE theirs (x integer)"),
            lambda: store.episodes.put(Episode(id="e", task_type="t", domain="d")),
            lambda: store.episodes.put_many([Episode(id=f"e{n}", task_type="t", domain="d") for n in range(100)]),
            lambda: store.episodes.update("e", domain="x"),
            lambda: store.episodes.delete("e"),
        ):
            await work()
            theirs = server.execute(synced) == [["f"]]
            assert theirs == ("plain_sql" in work.__code__.co_names)


async def test_standbys_and_slots(make_postgres: MakePostgres, make_standby: MakeStandby) -> None:
    primary = make_postgres(durable=False)
    async with MemoryStore(primary.url()):
        pass
    standby = make_standby(primary)
    primary.execute("SELECT pg_create_physical_replication_slot('forgotten', true)")

    found, behind = await examined(primary.url()), await examined(standby.url())

    assert wrong(found) == UNSYNCED
    [replica] = found["replication"].value
    assert (replica["name"], replica["state"], replica["sync"]) == (f"standby_{standby.port}", "streaming", "sync")
    assert "until the disk is full" in found["replication slots"].hint
    assert wrong(behind) == {*UNSYNCED, "replication"}
    assert "it only reads" in behind["replication"].hint
    assert behind["head"].value == "ok"


async def test_limits_of_connections(postgres_url: str, database: Database, postgres_server: PostgresDatabases) -> None:
    joined = f"{database.url}{'&' if '?' in database.url else '?'}"
    assert (await examined(f"{joined}pool_size=97"))["connections"].ok
    found = await examined(f"{joined}pool_size=98")
    assert (wrong(found), found["connections"].value["for_programs"]) == ({*UNSYNCED, "connections"}, 97)
    name = make_url(database.url).database
    postgres_server.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 7')
    assert (await examined(database.url))["connections"].value["for_programs"] == 7


async def test_what_is_wrong_with_the_store(database: Database) -> None:
    await plain_sql(
        database.url,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_patterns_namespace_domain'::regclass",
        "DROP TRIGGER log_steps ON steps",
        "UPDATE head SET nonce = 1 WHERE shard = 2",
    )
    found = await examined(database.url)
    assert wrong(found) == {*UNSYNCED, "schema", "head", "invalid indexes"}
    assert found["invalid indexes"].value == ["ix_patterns_namespace_domain"]
    assert found["schema"].value == [
        "index ix_patterns_namespace_domain is not valid",
        "trigger log_steps is missing",
    ]


async def test_an_old_transaction_is_told_and_a_hot_head(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "_LONG_TRANSACTION_S", 0)
    monkeypatch.setattr(vitals, "_DEAD_HEADS", 0)
    connection = await asyncpg.connect(database.dsn)
    async with connection.transaction(isolation="repeatable_read"):
        await connection.execute("SELECT 1")
        for _ in range(3):
            await plain_sql(database.url, "UPDATE head SET writing = 0")
        await plain_sql(database.url, "SELECT pg_stat_force_next_flush()")
        found = await examined(database.url)
    await connection.close()
    assert "dead rows" in found["idle_in_transaction_session_timeout"].hint
    assert "fillfactor" in found["head rows"].hint
    assert found["head rows"].value["updates"] >= 48


async def test_partitions_roles_and_row_security(database: Database) -> None:
    role = f"agent_{make_url(database.url).database}"
    await plain_sql(database.url, f'CREATE ROLE "{role}" LOGIN')
    theirs = make_url(database.url).set(username=role).render_as_string(hide_password=False)
    try:
        await database.run(partition, 3)
        await database.run(secure, role)
        found = await examined(database.url)
        assert (found["partitions"].value, found["role"].value["row_security"]) == (3, "on")
        assert "does not apply to it" in found["role"].hint
        found = await examined(theirs)
        assert found["role"].value == {"name": role, "row_security": "on"}
        assert found["role"].hint == "sees no namespace"
        await plain_sql(database.url, f"ALTER ROLE \"{role}\" SET memory_store.namespace = 'mine'")
        assert (await examined(theirs))["role"].hint == "sees the namespace 'mine' only"
    finally:
        await plain_sql(database.url, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


async def test_another_encoding_is_wrong(make_postgres: MakePostgres) -> None:
    server = make_postgres(durable=False)
    server.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    found = await examined(server.url("latin"))
    assert (found["encoding"].value, found["encoding"].ok) == ("LATIN1", False)


@pytest.mark.parametrize(
    ("version", "ok", "words"),
    [(140_012, False, "too old"), (150_000, True, ""), (180_006, True, ""), (190_000, True, "newer than what")],
)
def test_which_servers_are_supported(version: int, ok: bool, words: str) -> None:
    found = vitals._version("x", version)
    assert (found.ok, words in found.hint, bool(words) == bool(found.hint)) == (ok, True, True)


@pytest.mark.parametrize(("age", "ok"), [(1_599_999_999, True), (1_600_000_000, False)])
def test_transaction_ids_that_run_out_are_wrong(age: int, ok: bool) -> None:
    found = vitals._transaction_age(lambda _: (age,))
    assert (found.ok, "FREEZE" in found.hint) == (ok, not ok)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("db.example", False),
        ("/var/run", True),
        ("localhost,db.example", False),
    ],
)
def test_what_goes_over_the_network_in_clear_is_told(host: str, near: bool) -> None:
    target = parse_url(f"postgresql://u@/d?host={host}")
    assert isinstance(target, ServerTarget)
    found = vitals._transport((False, None), target)
    assert (found.value, found.ok, "not encrypted" in found.hint) == ("plain", True, not near)
    assert vitals._transport((True, "TLSv1.3"), target) == Finding("transport", "TLSv1.3")


async def test_stats_counts_all_namespaces_and_shards(shared_url: str) -> None:
    await fill_two_namespaces(shared_url)
    async with MemoryStore(shared_url, namespace="empty") as store:
        found = await inspection.stats(store)
        one = await inspection.stats(store.namespace("default"))
    counts = dict(zip(RECORDS, [1, 3, 1, 1, 1], strict=True))
    assert found.rows == {"default": counts, "other/agent": {kind: 2 * count for kind, count in counts.items()}}
    assert list(found.rows) == sorted(found.rows)
    assert (found, found.cache_bytes) == (one, one.cache_bytes)
    assert found.changes > found.position > 0
