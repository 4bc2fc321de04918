"""The table of vectors: made where pgvector can be had, also later; and what belongs to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy.engine import make_url

from memory_store import Embedding, MemoryStore
from memory_store.durable import schema
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.durable.row_security import secure
from memory_store.durable.text_index import Document
from memory_store.durable.vectors import VECTORS
from memory_store.text.documents import SEARCHED
from tests.migration.postgresql import Database, every_kind
from tests.servers.databases import PostgresDatabases
from tests.unit.samples import make_episode

IS_THERE = "SELECT to_regclass('vectors') IS NOT NULL"


@pytest.fixture
def plain(postgres_server: PostgresDatabases, postgres_url: str) -> Iterator[Database]:
    """An empty database whose owner may not add extensions, and connects to it."""
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    role = f"owner_{name[5:17]}"
    postgres_server.execute(f"CREATE ROLE {role} LOGIN; ALTER DATABASE {name} OWNER TO {role}")
    url = make_url(postgres_url).set(username=role).render_as_string(hide_password=False)
    yield Database(url, postgres_server.dsn(name))
    postgres_server.execute(f"DROP OWNED BY {role} CASCADE; ALTER DATABASE {name} OWNER TO postgres", name)
    postgres_server.execute(f"DROP ROLE {role}")


def target(database: Database) -> ServerTarget:
    made = parse_url(database.url)
    assert isinstance(made, ServerTarget)
    return made


def embedding(id_: str, vector: list[float]) -> Embedding:
    return Embedding(id=id_, episode_id="e", content="a text", embedding=vector, model_name="m", vector_dim=len(vector))


async def find(store: MemoryStore, vector: list[float]) -> list[str]:
    found = await store.search("", vector=vector, model="m", kinds="embedding", mode="vector")
    assert found.complete
    return [hit.id for hit in found]


async def test_where_it_is_not_permitted_all_is_as_without_it_until_it_is(plain: Database) -> None:
    """A store that is open meanwhile goes over to it, and so does what it writes from then on."""
    async with MemoryStore(plain.url, namespace="n") as store, plain.connect() as administrator:
        assert not await administrator.fetchval(IS_THERE)
        await store.episodes.put(make_episode(id="e"))
        await store.embeddings.put(embedding("before", [1.0, 0.0]))
        assert await find(store, [1.0, 0.1]) == ["before"]
        await asyncio.to_thread(schema.upgrade, target(plain), 30.0)
        assert not await administrator.fetchval(IS_THERE)

        await administrator.execute("CREATE EXTENSION vector")
        epochs = "SELECT DISTINCT epoch FROM head"
        [[epoch]] = await administrator.fetch(epochs)
        upgrades = [asyncio.to_thread(schema.upgrade, target(plain), 30.0) for _ in range(3)]
        assert set(await asyncio.gather(*upgrades)) == {(schema.HEAD_REVISION, schema.HEAD_REVISION)}
        assert await administrator.fetch(epochs) == [(epoch + 1,)], "one of them made it"

        await store.embeddings.put(embedding("after", [1.0, 0.2]))
        assert await find(store, [1.0, 0.0]) == ["before", "after"]
        assert await administrator.fetch("SELECT id FROM vectors ORDER BY id") == [("after",), ("before",)]
        await administrator.execute("DELETE FROM vectors")
        assert await find(store, [1.0, 0.1]) == [], "it is the server that is asked"
        await store.reindex()
        assert await find(store, [1.0, 0.05]) == ["before", "after"]


async def test_an_older_extension_is_left_alone(database: Database) -> None:
    async with database.connect() as connection:
        await connection.execute(
            "DROP TABLE vectors; UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'"
        )
        assert not await connection.fetchval("SELECT memory_store_make_vectors()")
        await connection.execute("UPDATE pg_extension SET extversion = '0.10.0' WHERE extname = 'vector'")
        assert await connection.fetchval("SELECT memory_store_make_vectors()")


async def test_an_extension_outside_of_the_search_path_is_left_alone(database: Database) -> None:
    async with database.connect() as connection:
        await connection.execute("DROP TABLE vectors; CREATE SCHEMA away; ALTER EXTENSION vector SET SCHEMA away")
        assert not await connection.fetchval("SELECT memory_store_make_vectors()")
    async with MemoryStore(database.url, namespace="n") as store:
        await store.episodes.put(make_episode(id="e"))
        await store.embeddings.put(embedding("v", [1.0]))
        assert await find(store, [1.0]) == ["v"]


async def test_embeddings_from_before_it_are_found(database: Database) -> None:
    await database.alembic("downgrade", "0003")
    async with database.connect() as connection:
        assert not await connection.fetchval(IS_THERE)
        await every_kind(connection, "n")
        await connection.execute("UPDATE embeddings SET embedding = '\\x0000803f'")
        await connection.execute("DELETE FROM backlog")
        await database.alembic("upgrade", "head")
        left = await connection.fetch("SELECT position, namespace, kind, key FROM backlog")
        assert [tuple(entry) for entry in left] == [(0, "n", SEARCHED[-1], "")], "nothing but them is indexed again"
        async with MemoryStore(database.url, namespace="n") as store:
            assert await find(store, [1.0]) == ["x"]


async def test_what_was_to_be_indexed_before_still_is(database: Database) -> None:
    """A namespace of which some records are left behind already, embeddings among them."""
    async with database.connect() as connection:
        await connection.execute("DROP TABLE vectors")
        for name, kind, key in (("a", "", ""), ("b", "step", "s"), ("c", "embedding", "y")):
            await every_kind(connection, name)
            await connection.execute("DELETE FROM backlog WHERE namespace = $1", name)
            entry = "INSERT INTO backlog VALUES (memory_store_shard($1), 0, $1, -1, $2, $3)"
            await connection.execute(entry, name, kind, key)
        assert await connection.fetchval("SELECT memory_store_make_vectors()")
        left = await connection.fetch("SELECT namespace, kind, key FROM backlog ORDER BY namespace")
    assert [tuple(entry) for entry in left] == [("a", "", ""), ("b", "step", "s"), ("c", "embedding", "")]


async def test_down_leaves_the_extension(database: Database) -> None:
    await database.alembic("downgrade", "0003")
    async with database.connect() as connection:
        assert not await connection.fetchval(IS_THERE)
        assert await connection.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'vector'") == 1
        assert await connection.fetchval("SELECT count(*) FROM pg_proc WHERE proname LIKE '%make_vectors'") == 0


async def test_without_the_table_down_and_up(database: Database) -> None:
    async with database.connect() as connection:
        await connection.execute("DROP TABLE vectors")
        await database.alembic("downgrade", "0003")
        await database.alembic("upgrade", "head")
        assert await connection.fetchval(IS_THERE)


async def test_who_sees_one_namespace_sees_one_here_too(database: Database) -> None:
    """Also in a table that is made after the others were secured."""
    role = "agent_" + database.dsn.partition("test_")[2][:12]
    policies = "SELECT policyname, permissive, cmd, roles::text, qual, with_check FROM pg_policies WHERE tablename = $1"
    rights = "SELECT privilege_type FROM information_schema.role_table_grants WHERE grantee = $1 AND table_name = $2"
    async with database.connect() as connection:
        await connection.execute(f"CREATE ROLE {role}")
        try:
            await connection.execute("DROP TABLE vectors")
            await database.run(secure, role)
            assert await connection.fetchval("SELECT memory_store_make_vectors()")
            assert await connection.fetchval("SELECT relrowsecurity FROM pg_class WHERE relname = 'vectors'")
            assert await connection.fetch(policies, "vectors") == await connection.fetch(policies, "documents") != []
            [granted, as_documents] = [
                {right for (right,) in await connection.fetch(rights, role, table)}
                for table in ("vectors", "documents")
            ]
            assert granted == as_documents == {"SELECT", "INSERT", "UPDATE", "DELETE"}
        finally:
            await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_an_extension_that_is_dropped_is_not_missed(database: Database) -> None:
    async with database.connect() as connection:
        await connection.execute("DROP EXTENSION vector CASCADE")
    async with MemoryStore(database.url, namespace="n") as store:
        await store.episodes.put(make_episode(id="e"))
        await store.embeddings.put(embedding("v", [1.0]))
        assert await find(store, [1.0]) == ["v"]


async def test_a_vector_stays_in_its_row(database: Database) -> None:
    """To compare all, each would be fetched from the TOAST table by itself."""
    async with MemoryStore(database.url, namespace="n") as store:
        await store.episodes.put(make_episode(id="e"))
        rng = np.random.default_rng(1)
        for size in (768, 1536, 3072):
            await store.embeddings.put(embedding(f"v{size}", rng.standard_normal(size).tolist()))
    async with database.connect() as connection:
        sizes = "SELECT pg_relation_size(oid), pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 'vectors'"
        [row] = await connection.fetch(sizes)
    assert tuple(row) == (2 * 8192, 0)


def test_it_is_not_among_the_models_that_every_database_has() -> None:
    assert VECTORS.name not in schema.METADATA.tables
    assert VECTORS in schema.SERVER_TABLES
    assert SEARCHED[-1] == "embedding", "migration 0004 leaves all that comes from there on behind"
    assert Document._fields[9:] == ("terms", "vector"), "what stands before that are the columns of a document"
