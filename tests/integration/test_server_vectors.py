"""Graphs of a server with pgvector: built when a model has many vectors, used where that is right, and only there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import numpy as np
import pytest

from memory_store import Embedding, Episode, MemoryStore
from memory_store.config import Settings
from memory_store.durable import graphs, vitals
from memory_store.durable.dialects.postgresql_vectors import graph_name
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.durable.visiting import visit
from memory_store.recall import server_spaces
from memory_store.scaling import secure_role
from memory_store.transfer import copy_store
from tests.servers.databases import PostgresDatabases
from tests.unit.samples import make_episode

COUNT, SIZE = 12_000, 16
MODEL = "it's ? a \\model"  # what has to be quoted
GRAPH = graph_name(MODEL, SIZE)


def clustered(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Vectors of length 1 round 200 centres, which are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((200, SIZE))
    rng = np.random.default_rng(seed)
    made = centres[rng.integers(0, 200, count)] + 0.4 * rng.standard_normal((count, SIZE))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype("<f4")


VECTORS = clustered(1, COUNT)


def embedding(place: int, vector: Any = None) -> Embedding:
    """The embedding at a place: of one of 200 episodes."""
    values = VECTORS[place] if vector is None else vector
    return Embedding(
        id=f"v{place:05}", episode_id=f"e{place % 200}", content="", embedding=values, model_name=MODEL, vector_dim=SIZE
    )


@pytest.fixture(scope="module")
def many_template(postgres_server: PostgresDatabases, migrated_template: str) -> Iterator[str]:
    """A database with 12,000 embeddings in "n", 400 in "small", and the graph over them."""
    name = f"template_{uuid.uuid4().hex}"
    url = postgres_server.create_database(name, migrated_template)

    async def fill() -> None:
        for namespace, count in (("n", COUNT), ("small", 400)):
            async with MemoryStore(url, namespace=namespace, cache_max_bytes=0) as store:
                await store.episodes.put_many(
                    [make_episode(id=f"e{one}", domain=f"d{one % 100}") for one in range(200)]
                )
                await store.embeddings.put_many([embedding(place) for place in range(count)])
        async with MemoryStore(url) as store:
            told: list[tuple[str, int, int]] = []
            await store.reindex(on_progress=lambda *progress: told.append(progress))
            assert told[-1] == (f"building the graph of {MODEL}", 0, COUNT + 400)

    asyncio.run(fill())
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def many_url(postgres_server: PostgresDatabases, many_template: str) -> Iterator[str]:
    """The URL of a copy of it."""
    name = f"many_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name, many_template)
    postgres_server.drop_database(name)


async def ask(url: str, sql: str) -> Any:
    """One value."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def scans(url: str) -> tuple[int, int]:
    """How often the graph was searched and the table scanned, once every session has ended and told of it."""
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'memory_store'"
    )
    async with asyncio.timeout(20):
        while await ask(url, sessions):
            await asyncio.sleep(0.02)
    of_graph = f"SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{GRAPH}'"
    return await ask(url, of_graph), await ask(
        url, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'vectors'"
    )


def nearest(query: Any, among: Sequence[int] | None = None) -> set[str]:
    """The ids of the ten nearest, of these places."""
    places = np.arange(COUNT) if among is None else np.asarray(among)
    return {f"v{place:05}" for place in places[np.argsort(-(VECTORS[places] @ query))[:10]]}


async def find(store: MemoryStore, query: Any, **options: Any) -> list[str]:
    found = await store.search("", vector=query, model=MODEL, kinds="embedding", mode="vector", **options)
    assert found.complete
    return [hit.id for hit in found]


async def recall(url: str, among: Sequence[int] | None = None, **options: Any) -> float:
    """The share of the ten nearest that are found, on average over 50 queries."""
    queries = clustered(2, 50)
    async with MemoryStore(url, namespace="n") as store:
        met = [len(nearest(one, among) & {*await find(store, one, **options)}) for one in queries]
    return sum(met) / 500


async def test_many_are_found_by_the_graph(many_url: str) -> None:
    before = await scans(many_url)
    assert await recall(many_url) >= 0.99
    graph, table = await scans(many_url)
    assert (graph - before[0], table) == (50, before[1])


async def test_a_condition_that_leaves_few_is_exact(many_url: str) -> None:
    """One episode in a hundred is of the domain."""
    among = [place for place in range(COUNT) if place % 100 == 7]
    before = await scans(many_url)
    assert (
        await recall(many_url, among, where=Episode.c.domain == "d7") >= 0.998
    )  # half floats: the last may be another
    assert await scans(many_url) == before


async def test_a_condition_that_leaves_many_is_met_by_the_graph(many_url: str) -> None:
    among = [place for place in range(COUNT) if place % 100 != 7]
    before = await scans(many_url)
    assert await recall(many_url, among, where=Episode.c.domain != "d7") >= 0.99
    graph, table = await scans(many_url)
    assert graph > before[0]
    assert table == before[1]


@pytest.mark.parametrize("most", [10, 10_000])
async def test_without_a_graph_a_condition_is_exact_whether_it_leaves_few_or_many(
    many_url: str, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(server_spaces, "_MOST_GIVEN", most)
    await ask(many_url, f"DROP INDEX {GRAPH}")
    among = [place for place in range(COUNT) if place % 100 == 7]
    assert await recall(many_url, among, where=Episode.c.domain == "d7") >= 0.998
    async with MemoryStore(many_url, namespace="n") as store:
        assert await find(store, VECTORS[0], where=Episode.c.domain == "nowhere") == []


async def test_a_namespace_with_few_is_exact_and_by_itself(many_url: str) -> None:
    before = await scans(many_url)
    async with MemoryStore(many_url, namespace="small") as store:
        for query in clustered(3, 5):
            assert {*await find(store, query)} == nearest(query, range(400))
        assert await find(store, np.zeros(SIZE)) == [f"v{place:05}" for place in range(10)]
    assert await scans(many_url) == before


async def test_changes_are_in_the_graph_at_once(many_url: str) -> None:
    [query] = clustered(4, 1)
    async with MemoryStore(many_url, namespace="n") as store:
        best = await find(store, query)
        await store.embeddings.put(embedding(COUNT, query))
        assert (await find(store, query))[:2] == [f"v{COUNT}", best[0]]
        await store.embeddings.delete(f"v{COUNT}")
        await store.embeddings.delete(best[0])
        assert (await find(store, query))[:9] == best[1:]


async def test_more_of_the_same_than_a_graph_gives_are_told_apart_by_id(many_url: str) -> None:
    [query] = clustered(5, 1)
    async with MemoryStore(many_url, namespace="n") as store:
        await store.embeddings.put_many([embedding(place, query) for place in range(COUNT, COUNT + 600)])
        assert await find(store, query) == [f"v{place}" for place in range(COUNT, COUNT + 10)]


def target(url: str) -> ServerTarget:
    made = parse_url(url)
    assert isinstance(made, ServerTarget)
    return made


async def build(url: str) -> int:
    return await graphs.build_graphs(target(url), Settings(), lambda model, count: None)


async def test_a_build_that_was_interrupted_is_made_again(many_url: str) -> None:
    assert await build(many_url) == 0, "it is there"
    await ask(many_url, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{GRAPH}'::regclass")
    before = await scans(many_url)
    assert await recall(many_url) >= 0.998
    assert await scans(many_url) == before, "until then all are compared"
    assert await build(many_url) == 1
    assert await ask(many_url, f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{GRAPH}'::regclass")


async def test_only_the_owner_builds(many_url: str, postgres_server: PostgresDatabases) -> None:
    role = f"reader_{uuid.uuid4().hex[:12]}"
    name = many_url.rpartition("/")[2].partition("?")[0]
    postgres_server.execute(f"DROP INDEX {GRAPH}; CREATE ROLE {role} LOGIN; GRANT SELECT ON vectors TO {role}", name)
    try:
        theirs = target(many_url)
        theirs = ServerTarget(theirs.url.set(username=role), theirs.parameters)
        assert await graphs.build_graphs(theirs, Settings(), lambda model, count: None) == 0
    finally:
        postgres_server.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", name)


async def test_a_copy_of_a_file_is_searched_by_the_server(file_url: str, postgres_url: str) -> None:
    async with MemoryStore(file_url, namespace="n") as store:
        await store.episodes.put_many([make_episode(id=f"e{one}") for one in range(200)])
        await store.embeddings.put_many([embedding(place) for place in range(300)])
        queries = clustered(6, 5)
        in_process = [await find(store, query) for query in queries]
    await copy_store(file_url, postgres_url)
    async with MemoryStore(postgres_url, namespace="n") as store:
        assert [await find(store, query) for query in queries] == in_process
    assert await ask(postgres_url, "SELECT count(*) FROM vectors") == 300


async def test_a_role_that_sees_one_namespace_finds_and_puts_there(
    server_url: str, postgres_server: PostgresDatabases
) -> None:
    role = f"agent_{uuid.uuid4().hex[:12]}"
    name = server_url.rpartition("/")[2].partition("?")[0]
    for namespace in ("ours", "theirs"):
        async with MemoryStore(server_url, namespace=namespace) as store:
            await store.episodes.put(make_episode(id="e0"))
            await store.embeddings.put(embedding(0))
    postgres_server.execute(f"CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET memory_store.namespace = 'ours'")
    try:
        await secure_role(server_url, role)
        agent = target(server_url).url.set(username=role).render_as_string(hide_password=False)
        async with MemoryStore(agent, namespace="ours") as store:
            assert await find(store, VECTORS[0]) == ["v00000"]
            await store.embeddings.put(embedding(200))
            assert {*await find(store, VECTORS[0])} == {"v00000", "v00200"}
            await store.episodes.delete("e0")
            assert await find(store, VECTORS[0]) == []
        async with MemoryStore(agent, namespace="theirs") as store:
            assert await find(store, VECTORS[0]) == []
        async with MemoryStore(server_url, namespace="theirs") as store:
            assert await find(store, VECTORS[0]) == ["v00000"]
    finally:
        postgres_server.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", name)


async def test_doctor_says_how_vectors_are_found(many_url: str) -> None:
    async def told() -> tuple[Any, str]:
        [found] = [
            found
            for found in await visit(target(many_url), 30.0, lambda connection: [*vitals.examine_store(connection)])
            if found.name == "vectors"
        ]
        return found.value, found.hint

    await ask(many_url, "ANALYZE vectors")
    assert await told() == ({"found_by": "server", "rows": COUNT + 400, "graphs": 1}, "")
    await ask(many_url, f"DROP INDEX {GRAPH}")
    assert "memory-store reindex" in (await told())[1]
    await ask(many_url, "DROP TABLE vectors")
    value, hint = await told()
    assert value == "found in the processes"
    assert "memory-store upgrade" in hint
