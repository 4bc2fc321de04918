"""Vectors are found alike wherever that is done: in the process, or by a server with pgvector."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from memory_store import ConfigurationError, DimensionMismatchError, Embedding, Episode, Limits, MemoryStore
from tests.servers.databases import PostgresDatabases
from tests.unit.samples import make_episode

SIZE = 48
EPISODES, EACH = 60, 5


@pytest.fixture(params=["file", "server", "server without pgvector"])
def vector_url(request: pytest.FixtureRequest, postgres_server: PostgresDatabases) -> str:
    """A URL of a database without records: its vectors are found in the process, by the server, in the process."""
    if request.param == "file":
        return str(request.getfixturevalue("file_url"))
    url = str(request.getfixturevalue("server_url"))
    if request.param == "server without pgvector":
        postgres_server.execute("DROP TABLE vectors", url.rpartition("/")[2].partition("?")[0])
    return url


@pytest.fixture
async def vector_store(vector_url: str) -> AsyncIterator[MemoryStore]:
    """An open store on it."""
    async with MemoryStore(vector_url, namespace="n") as opened:
        yield opened


async def run_sql(url: str, *statements: str) -> None:
    """Run plain SQL, in one transaction."""
    engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))
    try:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()


def numbers(seed: int, count: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Vectors that point anywhere, of any length."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, SIZE)) * rng.uniform(0.01, 100, (count, 1))).astype(np.float32)


def embedding(id_: str, parent: str, vector: Sequence[float] | np.ndarray[Any, Any], model: str = "m") -> Embedding:
    """An embedding of a model."""
    return Embedding(
        id=id_, episode_id=parent, content=f"text of {id_}", embedding=vector, model_name=model, vector_dim=len(vector)
    )


def nearest(vectors: dict[str, Any], query: np.ndarray[Any, Any], limit: int = 10) -> tuple[list[str], list[float]]:
    """The ids of the nearest by comparing all, and their similarities."""
    ids = sorted(vectors)
    rows = np.array([vectors[id_] for id_ in ids], np.float64)
    lengths = np.linalg.norm(rows, axis=1) * max(np.linalg.norm(query), 1e-30)
    scores = np.divide(rows @ query.astype(np.float64), lengths, out=np.zeros(len(ids)), where=lengths > 0)
    best = sorted(range(len(ids)), key=lambda place: (-scores[place], ids[place]))[:limit]
    return [ids[place] for place in best], [float(scores[place]) for place in best]


async def find(store: MemoryStore, query: Any, **options: Any) -> tuple[list[str], list[float]]:
    """What a search by vector finds."""
    given = {"kinds": "embedding", "mode": "vector", "model": "m", **options}
    results = await store.search("", vector=query, **given)
    assert results.complete
    return [hit.id for hit in results], [hit.score for hit in results]


async def require_same(store: MemoryStore, vectors: dict[str, Any], **options: Any) -> None:
    """Check that queries find what comparing all of these vectors finds."""
    for seed in range(900, 904):
        [query] = numbers(seed)
        ids, scores = await find(store, query, **options)
        expected_ids, expected_scores = nearest(vectors, query)
        assert ids == expected_ids
        assert scores == pytest.approx(expected_scores, abs=1e-3)


@pytest.fixture
async def vectors(vector_store: MemoryStore) -> dict[str, Any]:
    """Vectors of a namespace, by id; beside them those of another model, and another namespace."""
    made = numbers(1, EPISODES * EACH)
    by_id = {f"e{place // EACH}-{place % EACH}": vector for place, vector in enumerate(made)}
    for name in ("n", "other"):
        space = vector_store.namespace(name)
        await space.episodes.put_many(
            [make_episode(id=f"e{number}", domain=f"d{number % 3}") for number in range(EPISODES)]
        )
        own = made if name == "n" else numbers(2, len(made))
        ids = list(by_id)
        await space.embeddings.put_many(
            [embedding(id_, id_.partition("-")[0], vector) for id_, vector in zip(ids, own, strict=True)]
        )
    await vector_store.embeddings.put_many(
        [embedding(f"x{number}", f"e{number}", vector, "another") for number, vector in enumerate(numbers(900, 4))]
    )
    return by_id


async def test_the_nearest_of_one_model_in_one_namespace(vector_store: MemoryStore, vectors: dict[str, Any]) -> None:
    await require_same(vector_store, vectors)
    ids, scores = await find(vector_store, numbers(900)[0], model="another")
    assert (set(ids), scores[0]) == ({"x0", "x1", "x2", "x3"}, pytest.approx(1.0))
    assert await find(vector_store, numbers(900)[0], model="nobody") == ([], [])


async def test_an_episode_is_as_near_as_its_nearest_vector(vector_store: MemoryStore, vectors: dict[str, Any]) -> None:
    [query] = numbers(901)
    found = await vector_store.search("", vector=query, model="m", kinds="episode", mode="vector", limit=5)
    parents = list(dict.fromkeys(id_.partition("-")[0] for id_ in nearest(vectors, query, 100)[0]))
    assert [hit.id for hit in found] == parents[:5]


Change = Callable[[MemoryStore, dict[str, Any]], Awaitable[None]]


async def put_one(store: MemoryStore, vectors: dict[str, Any]) -> None:
    [vectors["e7-0"]] = numbers(901)
    await store.embeddings.put(embedding("e7-0", "e7", vectors["e7-0"]))


async def put_many(store: MemoryStore, vectors: dict[str, Any]) -> None:
    for place, vector in enumerate(numbers(3, 300)):
        vectors[f"m{place}"] = vector
    await store.embeddings.put_many(
        [embedding(id_, "e1", vector) for id_, vector in vectors.items() if id_.startswith("m")]
    )


async def update_one(store: MemoryStore, vectors: dict[str, Any]) -> None:
    [vectors["e3-3"]] = numbers(902)
    await store.embeddings.update("e3-3", embedding=vectors["e3-3"])


async def to_another_model(store: MemoryStore, vectors: dict[str, Any]) -> None:
    del vectors["e4-4"]
    await store.embeddings.update("e4-4", model_name="another")


async def delete_one(store: MemoryStore, vectors: dict[str, Any]) -> None:
    del vectors["e5-1"]
    await store.embeddings.delete("e5-1")


async def delete_episode(store: MemoryStore, vectors: dict[str, Any]) -> None:
    for place in range(EACH):
        del vectors[f"e2-{place}"]
    await store.episodes.delete("e2")


async def in_transaction(store: MemoryStore, vectors: dict[str, Any]) -> None:
    [vectors["t"]] = numbers(903)
    async with store.transaction() as tx:
        await tx.episodes.put(make_episode(id="t"))
        await tx.embeddings.put(embedding("t", "t", vectors["t"]))
        await tx.embeddings.delete("e9-0")
    del vectors["e9-0"]


async def move(store: MemoryStore, vectors: dict[str, Any]) -> None:
    await store.embeddings.put(embedding("e8-0", "e1", vectors["e8-0"]))
    await store.episodes.delete("e8")
    for place in range(1, EACH):
        del vectors[f"e8-{place}"]


@pytest.mark.parametrize(
    "change",
    [put_one, put_many, update_one, to_another_model, delete_one, delete_episode, in_transaction, move],
    ids=lambda change: change.__name__,
)
async def test_found_as_they_are_now(change: Change, vector_store: MemoryStore, vectors: dict[str, Any]) -> None:
    await require_same(vector_store, vectors)
    await change(vector_store, vectors)
    await require_same(vector_store, vectors)
    await vector_store.reindex()
    await require_same(vector_store, vectors)


async def test_plain_sql_is_followed(vector_url: str, vector_store: MemoryStore, vectors: dict[str, Any]) -> None:
    hexed = np.asarray(vectors["e0-0"], "<f4").tobytes().hex()
    written = f"X'{hexed}'" if vector_url.startswith("sqlite") else f"'\\x{hexed}'"
    await run_sql(
        vector_url,
        "DELETE FROM episodes WHERE namespace = 'n' AND id IN ('e10', 'e11')",
        "DELETE FROM embeddings WHERE namespace = 'n' AND id = 'e12-0'",
        f"UPDATE embeddings SET embedding = {written} WHERE namespace = 'n' AND id = 'e13-0'",
    )
    for gone in ("e12-0", *(f"e{parent}-{place}" for parent in (10, 11) for place in range(EACH))):
        del vectors[gone]
    vectors["e13-0"] = vectors["e0-0"]
    async with MemoryStore(vector_url, namespace="n") as opened:
        await require_same(opened, vectors)


async def test_conditions_hold(vector_store: MemoryStore, vectors: dict[str, Any]) -> None:
    kept = {id_: vector for id_, vector in vectors.items() if int(id_[1:].partition("-")[0]) % 3 == 1}
    await require_same(vector_store, kept, where=Episode.c.domain == "d1")
    few = {id_: vector for id_, vector in kept.items() if id_.endswith("-2")}
    await require_same(vector_store, few, where=[Episode.c.domain == "d1", Embedding.c.id.like("%-2")])
    assert await find(vector_store, numbers(900)[0], where=Episode.c.domain == "none") == ([], [])


async def test_zeros_are_similar_to_nothing(vector_store: MemoryStore, vectors: dict[str, Any]) -> None:
    await vector_store.embeddings.put(embedding("e0-0", "e0", np.zeros(SIZE)))
    await require_same(vector_store, {**vectors, "e0-0": np.zeros(SIZE)})
    ids, scores = await find(vector_store, np.zeros(SIZE))
    assert (ids, scores) == (sorted(vectors)[:10], [0.0] * 10)
    ids, scores = await find(vector_store, numbers(900)[0], where=Embedding.c.id == "e0-0")
    assert (ids, scores) == (["e0-0"], [0.0])


async def test_very_large_and_very_small_numbers_keep_their_direction(vector_store: MemoryStore) -> None:
    await vector_store.episodes.put(make_episode(id="e"))
    made = dict(zip(("large", "small", "plain"), numbers(4, 3), strict=True))
    scales = {"large": 1e36, "small": 1e-36, "plain": 1}
    for id_, vector in made.items():
        made[id_] = (vector / np.linalg.norm(vector) * scales[id_]).astype(np.float32)
        await vector_store.embeddings.put(embedding(id_, "e", made[id_]))
    await require_same(vector_store, made)


async def test_another_size_is_refused_as_such(vector_store: MemoryStore, vectors: dict[str, Any]) -> None:
    with pytest.raises(DimensionMismatchError) as refused:
        await find(vector_store, [1.0, 2.0])
    assert (refused.value.expected, refused.value.actual) == (SIZE, 2)
    with pytest.raises(ConfigurationError, match="finite"):
        await find(vector_store, [float("nan"), *[1.0] * (SIZE - 1)])


async def test_long_vectors(vector_url: str) -> None:
    """Longer ones than pgvector keeps (16,000) are found in the process."""
    async with MemoryStore(vector_url, namespace="n", limits=Limits(embedding_dimensions=20_000)) as store:
        await store.episodes.put(make_episode(id="e"))
        for size in (2_001, 4_001, 16_000, 16_001):
            await store.embeddings.put(embedding(f"v{size}", "e", [*[0.0] * (size - 1), 2.0], f"m{size}"))
            ids, scores = await find(store, np.ones(size), model=f"m{size}")
            assert (ids, scores) == ([f"v{size}"], pytest.approx([size**-0.5], abs=1e-3))


async def test_diversity_has_the_vectors(vector_store: MemoryStore, vectors: dict[str, Any]) -> None:
    [query] = numbers(905)
    twins = {f"twin{number}": query * (number + 1) for number in range(5)}
    await vector_store.embeddings.put_many([embedding(id_, "e0", vector) for id_, vector in twins.items()])
    alike = await find(vector_store, query, limit=5)
    assert set(alike[0]) == twins.keys()
    found = await vector_store.search(
        "", vector=query, model="m", kinds="embedding", mode="vector", limit=5, diversity=0.5
    )
    assert len({hit.id for hit in found} & twins.keys()) == 1
    assert found.diversity is not None
    assert found.diversity >= 0.5


async def test_what_the_server_keeps_is_what_is_stored(server_url: str) -> None:
    """Also where the values are none: plain SQL can write anything."""
    async with MemoryStore(server_url, namespace="n") as store:
        await store.episodes.put(make_episode(id="e"))
        await store.embeddings.put_many([embedding(f"v{place}", "e", one) for place, one in enumerate(numbers(5, 4))])
        await run_sql(
            server_url,
            "UPDATE embeddings SET embedding = '\\x00' WHERE id = 'v0'",
            "UPDATE embeddings SET vector_dim = 3 WHERE id = 'v1'",
            f"UPDATE embeddings SET embedding = decode(repeat('0000c07f', {SIZE}), 'hex') WHERE id = 'v2'",
        )
    async with MemoryStore(server_url, namespace="n") as store:
        assert (await find(store, numbers(5, 4)[3]))[0] == ["v3"]
    connection = await asyncpg.connect(server_url.replace("+asyncpg", ""))
    try:
        rows = await connection.fetch("SELECT namespace, id, episode_id, model_name, vector_dim FROM vectors")
        assert [tuple(row) for row in rows] == [("n", "v3", "e", "m", SIZE)]
    finally:
        await connection.close()
