"""Vectors through the store: the nearest are exact, filters hold, a space follows whatever happens to the records."""

from __future__ import annotations

import asyncio
import math
import random
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import (
    ConfigurationError,
    DimensionMismatchError,
    EmbedderError,
    Embedding,
    Episode,
    Hit,
    MemoryStore,
    MemoryStoreError,
    SearchError,
    upkeep,
)
from memory_store.embedders import FunctionEmbedder
from memory_store.recall import spaces, vectors
from memory_store.recall.search import Search
from memory_store.search.asked import Mode
from memory_store.text.terms import terms_of
from tests.fault.support import database
from tests.integration.upkeep_support import url_of
from tests.unit.samples import make_episode

WORDS = ["lantern", "harbour", "meadow", "granite", "willow", "copper"]
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def vector_of(text: str, turn: int = 0) -> list[float]:
    """How often each word is in a text, and a little of everything."""
    terms = terms_of(text)
    counted = [0.1 + terms.count(terms_of(word)[0]) for word in WORDS]
    return counted[turn:] + counted[:turn]


async def words(texts: list[str]) -> list[list[float]]:
    """The vectors of texts."""
    return [vector_of(text) for text in texts]


async def turned(texts: list[str]) -> list[list[float]]:
    """The same by another model: what was first is last."""
    return [vector_of(text, 2) for text in texts]


def model(name: str = "words", function: Any = words) -> FunctionEmbedder:
    """A small model."""
    return FunctionEmbedder(function, name)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine similarity, by its formula."""
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


@pytest.fixture
async def store(url: str) -> AsyncIterator[MemoryStore]:
    """A store with a model, and embeddings of 40 episodes."""
    async with MemoryStore(url, namespace="test-agent", embed=model()) as store:
        await fill(store)
        yield store


async def fill(store: MemoryStore) -> None:
    """Put 40 episodes with one to three embeddings each, and the same in another namespace."""
    seeded = random.Random(3)
    for name in (store.name, "other"):
        space = store.namespace(name)
        await space.episodes.put_many(
            make_episode(
                id=f"e{n:02}", domain=seeded.choice(["web", "cli"]), context="x", created_at=NOW - timedelta(days=n)
            )
            for n in range(40)
        )
        for n in range(40):
            await space.embeddings.append(
                f"e{n:02}",
                [
                    Embedding(
                        id=f"v{n:02}-{m}",
                        episode_id=f"e{n:02}",
                        content=(content := " ".join(seeded.choices(WORDS, k=4))),
                        embedding=vector_of(content),
                        model_name="words",
                        vector_dim=len(WORDS),
                        created_at=NOW - timedelta(days=n),
                    )
                    for m in range(1 + n % 3)
                ],
            )


async def nearest(store: Any, query: str, **options: Any) -> list[tuple[str, float]]:
    """Ids and similarities, best first."""
    results = await store.search(query, mode="vector", **{"kinds": "embedding", "limit": 1000} | options)
    return [(hit.id, hit.scores["vector"]) for hit in results]


async def expected(store: Any, query: str, keep: Callable[[Embedding], bool] = lambda one: True) -> dict[str, float]:
    """The similarity of every embedding that is kept, compared one by one."""
    stored = [one async for one in store.embeddings.stream()]
    return {one.id: cosine(vector_of(query), list(np.frombuffer(one.embedding, "<f4"))) for one in stored if keep(one)}


async def agrees(store: Any, query: str, keep: Callable[[Embedding], bool] = lambda one: True, **options: Any) -> None:
    """Check that all are found, each with its similarity, in order."""
    found = await nearest(store, query, **options)
    wanted = await expected(store, query, keep)
    assert dict(found) == pytest.approx(wanted, abs=1e-5)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)


async def test_the_nearest_are_those_of_comparing_all(store: MemoryStore) -> None:
    for query in ("lantern", "harbour meadow", "copper copper granite"):
        await agrees(store, query)
        await agrees(store.namespace("other"), query)
        some = await nearest(store, query, limit=7)
        assert some == (await nearest(store, query))[:7]


async def test_filters_are_exact(store: MemoryStore) -> None:
    web = {one.id async for one in store.episodes.stream(Episode.c.domain == "web")}
    await agrees(store, "lantern", lambda one: one.episode_id in web, where=Episode.c.domain == "web")
    await agrees(store, "lantern", lambda one: one.id < "v10", where=Embedding.c.id < "v10")
    moment = NOW - timedelta(days=20)
    await agrees(store, "lantern", lambda one: one.created_at <= moment, at=moment)
    both = [Episode.c.domain == "web", Embedding.c.id > "v20"]
    await agrees(store, "lantern", lambda one: one.episode_id in web and one.id > "v20", where=both)
    assert await nearest(store, "lantern", where=Episode.c.domain == "nowhere") == []
    none = store.namespace("empty")
    assert await nearest(none, "lantern") == []


async def test_what_meets_a_condition_is_remembered_while_nothing_changes(
    file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's writes and plain SQL are seen at once."""
    asked: list[Any] = []
    read = vectors._read_ids

    def noted(*given: Any) -> list[str]:
        asked.append(given)
        return read(*given)

    monkeypatch.setattr(vectors, "_read_ids", noted)
    web = Episode.c.domain == "web"
    async with (
        MemoryStore(file_url, embed=model(), staleness_s=0) as store,
        MemoryStore(file_url, embed=model(), staleness_s=0) as other,
    ):

        async def found() -> set[str]:
            return {id_.partition("-")[0].replace("v", "e") for id_, _ in await nearest(store, "lantern", where=web)}

        async def there() -> set[str]:
            return {one.id async for one in other.episodes.stream(web)}

        await fill(store)
        assert await found() == await there()
        before = len(asked)
        for query in ("harbour", "meadow"):
            assert await nearest(store, query, where=web)
        assert len(asked) == before
        assert await nearest(store, "lantern", where=Episode.c.domain == "cli")
        assert len(asked) == before + 1, "another condition"
        first, *_ = sorted(await there())
        with database(tmp_path / "agent.db") as now, database(tmp_path / "copy.db") as older:
            now.backup(older)
        for change in (
            other.episodes.update(first, domain="cli"),
            other.episodes.delete(sorted(await there())[-1]),
            other.embeddings.delete("v01-0"),  # e01 has another one
        ):
            await change
            assert await found() == await there()
        with database(tmp_path / "agent.db") as connection:
            connection.execute("UPDATE episodes SET domain = 'web'")
        assert await found() == await there()
        with database(tmp_path / "agent.db") as now, database(tmp_path / "copy.db") as older:
            older.backup(now)
        assert await found() == await there() != set()


@pytest.mark.parametrize("mode", ["text", "vector", "hybrid"])
async def test_a_value_that_is_refused_leaves_the_next_search_alone(store: MemoryStore, mode: Mode) -> None:
    for refused in (Episode.c.id == "\ud800", Episode.c.success_rate == 10**30):
        with pytest.raises(MemoryStoreError):
            await store.search("lantern", mode=mode, where=refused)
        assert len(await store.search("lantern", mode="text", where=Episode.c.id != "", at=NOW)) > 0
        with pytest.raises(MemoryStoreError):
            await store.episodes.list(refused)
        assert len(await store.recall("lantern", at=NOW, explain=True)) > 0


@pytest.mark.parametrize("mode", ["text", "vector", "hybrid"])
async def test_what_no_database_stores_is_told_as_the_callers_fault(store: MemoryStore, mode: Mode) -> None:
    for where, told in (
        (Episode.c.id == "\ud800", "lone surrogate at character 0"),
        (Episode.c.success_rate == 10**30, "an integer of 100 bits, the limit is 64"),
        (Episode.c.domain.in_(["web", "x\ud800"]), "lone surrogate at character 1"),
        (Episode.c.context == {"goal": "x"}, "compares with a dict"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            await store.search("lantern", mode=mode, where=where)
        with pytest.raises(ConfigurationError, match=told):
            await store.episodes.list(where)
    with pytest.raises(ConfigurationError, match="lone surrogate"):
        await store.recall("lantern", domain="\ud800")
    with pytest.raises(ConfigurationError, match="has a lone surrogate, which no database"):
        await store.search("lantern", vector=[1.0], model="\ud800")
    with pytest.raises(ConfigurationError, match="vector holds no numbers"):
        await store.search("lantern", vector=[], model="words")


async def test_a_recall_at_the_ends_of_time(store: MemoryStore) -> None:
    """In another timezone these lie outside of the years that there are."""
    west, east = timezone(timedelta(hours=-10)), timezone(timedelta(hours=10))
    last, first = datetime.max.replace(tzinfo=west), datetime.min.replace(tzinfo=east)
    assert len(await store.recall("lantern", at=last, limit=5)) == 5
    assert len(await store.recall("lantern", at=first, domain="web", limit=5)) == 0


async def test_an_answer_about_episodes_is_void_when_an_embedding_changes(store: MemoryStore) -> None:
    vector = vector_of("lantern harbour")

    async def first() -> str:
        return (await store.search("", mode="vector", kinds="episode", vector=vector, limit=1))[0].id

    before = await first()
    other = "e07" if before != "e07" else "e08"
    made = Embedding(id="a", episode_id=other, content="", embedding=vector, model_name="words", vector_dim=len(WORDS))
    for one in [one async for one in store.embeddings.stream(Embedding.c.episode_id == before)]:
        await store.embeddings.delete(one.id)
    await store.embeddings.put(made)
    assert await first() == other
    await store.embeddings.delete("a")
    assert await first() != before


@pytest.mark.parametrize("mode", ["vector", "hybrid"])
@pytest.mark.parametrize("kind", ["episode", "embedding"])
async def test_what_changes_while_its_vector_is_found_is_not_given(
    store: MemoryStore, url: str, monkeypatch: pytest.MonkeyPatch, mode: Mode, kind: str
) -> None:
    """The records are read last, and of those that no longer meet the conditions none is given."""
    web = Episode.c.domain == "web"
    read = Search._hits
    *some, gone = sorted([one.id async for one in store.episodes.stream(web)])

    async def late(self: Search, *given: Any) -> list[Hit]:
        await store.episodes.update(some[0], domain="cli")
        await store.episodes.delete(gone)
        return await read(self, *given)

    monkeypatch.setattr(Search, "_hits", late)
    found = await store.search("lantern", mode=mode, kinds=kind, where=web, limit=1000)
    assert {hit.id if kind == "episode" else hit.record.episode_id for hit in found} == {*some[1:]}


@pytest.mark.parametrize("days", [0, 20])
@pytest.mark.parametrize("mode", ["vector", "hybrid"])
async def test_what_is_recalled_by_vectors_is_of_the_place_and_the_time(
    store: MemoryStore, mode: Mode, days: int
) -> None:
    at = NOW - timedelta(days=days)
    [one, *_] = [one async for one in store.episodes.stream(Episode.c.domain == "web")]
    place = {"domain": "web", "task_type": one.task_type}
    there = [one async for one in store.episodes.stream(Episode.c.domain == "web")]
    found = await store.recall("lantern", at=at, mode=mode, limit=1000, levels=["domain", "task_type", "time"], **place)
    assert {hit.id for hit in found} == {one.id for one in there if one.created_at <= at} != set()


async def test_nearer_ones_elsewhere_do_not_hide_what_is_at_the_place(store: MemoryStore) -> None:
    """A search asks for a hundred vectors: of the place, not of all."""
    for domain, name, text in (("web", "near", "lantern"), ("far", "far", "harbour lantern")):
        count = 5 if domain == "far" else 150
        await store.episodes.put_many(
            make_episode(id=f"{name}{n}", domain=domain, task_type="testing", created_at=NOW) for n in range(count)
        )
        await store.embeddings.put_many(
            Embedding(
                id=f"{name}{n}",
                episode_id=f"{name}{n}",
                content="",
                embedding=vector_of(text),
                model_name="words",
                vector_dim=len(WORDS),
            )
            for n in range(count)
        )
    wanted = {f"far{n}" for n in range(5)}
    found = await store.recall("lantern", domain="far", task_type="testing", at=NOW, mode="vector", diversity=0.0)
    assert {hit.id for hit in found} == wanted
    for where in (Episode.c.domain == "far", [Episode.c.domain == "far", Episode.c.task_type == "testing"]):
        assert {id_ for id_, _ in await nearest(store, "lantern", kinds="episode", where=where)} == wanted


async def test_an_episode_was_there_before_its_vectors(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="old", created_at=NOW - timedelta(days=90)))
    made = Embedding(
        id="new",
        episode_id="old",
        content="",
        embedding=vector_of("copper"),
        model_name="words",
        vector_dim=len(WORDS),
        created_at=NOW,
    )
    await store.embeddings.put(made)
    then = NOW - timedelta(days=80)
    assert [id_ for id_, _ in await nearest(store, "copper", kinds="episode", at=then)] == ["old"]
    assert await nearest(store, "copper", at=then) == []


async def test_episodes_are_as_near_as_the_nearest_of_their_vectors(store: MemoryStore) -> None:
    found = await nearest(store, "lantern", kinds="episode")
    best: dict[str, float] = {}
    by_id = {one.id: one.episode_id async for one in store.embeddings.stream()}
    for id_, score in (await expected(store, "lantern")).items():
        best[by_id[id_]] = max(best.get(by_id[id_], -1.0), score)
    assert dict(found) == pytest.approx(best, abs=1e-5)
    web = {one.id async for one in store.episodes.stream(Episode.c.domain == "web")}
    found = await nearest(store, "lantern", kinds="episode", where=Episode.c.domain == "web")
    assert {id_ for id_, _ in found} == web
    moment = NOW - timedelta(days=20)
    found = await nearest(store, "lantern", kinds="episode", at=moment)
    assert {id_ for id_, _ in found} == {f"e{n}" for n in range(20, 40)}
    assert await nearest(store, "lantern", kinds=["step", "pattern"]) == []


async def test_a_space_follows_every_change(store: MemoryStore) -> None:
    await agrees(store, "lantern")
    await store.embeddings.add("e05", ["lantern lantern", "willow"])
    await agrees(store, "lantern")
    await store.embeddings.update("v00-0", embedding=vector_of("lantern"))
    await agrees(store, "lantern")
    await store.embeddings.delete("v01-0")
    await agrees(store, "lantern")
    await store.episodes.delete("e02")
    await agrees(store, "lantern")
    async with store.transaction() as tx:
        await tx.episodes.delete("e05")
        await tx.embeddings.update("v03-0", embedding=vector_of("copper"))
        await tx.episodes.put(make_episode(id="e05"))
        one = Embedding(episode_id="e05", content="c", embedding=vector_of("meadow"), model_name="words", vector_dim=6)
        await tx.embeddings.put(one)
    await agrees(store, "lantern")
    async with asyncio.TaskGroup() as tasks:
        for n in range(10, 20):
            tasks.create_task(store.episodes.delete(f"e{n}"))
            tasks.create_task(store.embeddings.add(f"e{n + 10}", f"lantern {n}"))
            tasks.create_task(nearest(store, "lantern"))
    await agrees(store, "lantern")
    await agrees(store.namespace("other"), "lantern")


async def test_another_store_and_a_restored_backup_are_followed(file_url: str, tmp_path: Path) -> None:
    options: Any = {"namespace": "test-agent", "embed": model(), "staleness_s": 0}
    async with (
        MemoryStore(file_url, **options) as store,
        MemoryStore(file_url, **options | {"embed": model()}) as other,
    ):
        await fill(store)
        await agrees(store, "lantern")
        await agrees(other, "lantern")
        await upkeep.backup(store, tmp_path / "backup.db")
        before = await nearest(store, "lantern")
        await other.embeddings.add("e01", "lantern lantern lantern")
        await other.episodes.delete("e03")
        await agrees(store, "lantern")
        await store.embeddings.add("e04", "lantern granite")
        assert await nearest(store, "lantern") != before
        remembered = await store.search("lantern", kinds="embedding")
        await upkeep.restore(tmp_path / "backup.db", url_of(tmp_path / "agent.db"))
        assert await nearest(store, "lantern") == before
        assert await nearest(other, "lantern") == before
        assert await store.search("lantern", kinds="embedding") != remembered
        await other.embeddings.add("e01", "lantern harbour")
        await agrees(store, "lantern")


async def test_many_changes_are_read_anew(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "_MOST_FOLLOWED", 5)
    monkeypatch.setattr(spaces, "_PAGE", 7)
    monkeypatch.setattr(spaces, "_AT_ONCE", 3)
    await agrees(store, "lantern")
    for n in range(8):
        await store.embeddings.add(f"e{n:02}", f"lantern {n}")
    await agrees(store, "lantern")
    await store.embeddings.delete("v08-0")
    await agrees(store, "lantern")


async def test_plain_sql_is_followed(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url, namespace="test-agent", embed=model(), staleness_s=0) as store:
        await fill(store)
        await agrees(store, "lantern")
        for statement in (
            "UPDATE embeddings SET episode_id = 'e01' WHERE episode_id = 'e02'",
            "UPDATE embeddings SET id = 'renamed' WHERE id = 'v03-0' AND namespace = 'test-agent'",
            "UPDATE embeddings SET model_name = 'another' WHERE id = 'v04-0'",
            "DELETE FROM embeddings WHERE id LIKE 'v05%'",
            "UPDATE embeddings SET namespace = 'nobody' WHERE id = 'v06-0' AND namespace = 'test-agent'",
        ):
            with database(tmp_path / "agent.db") as connection:
                connection.execute("PRAGMA foreign_keys = OFF")
                connection.execute(statement)
            await agrees(store, "lantern", lambda one: one.model_name == "words")
        found = await nearest(store, "lantern", kinds="episode")
        assert "e02" not in dict(found)


async def opened_again(url: str) -> list[tuple[str, float]]:
    """Open a store, search, close it, and so save its index."""
    async with MemoryStore(url, namespace="test-agent", embed=model()) as store:
        await agrees(store, "lantern")
        return await nearest(store, "lantern")


def saved_files(folder: Path) -> list[Path]:
    """The files of saved vector indexes."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and "cache.msgpack" not in file.name]


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "remove one", "remove all", "of another database"])
async def test_a_saved_index_is_used_or_made_anew(
    damage: str, file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "_LEAST_SAVED", 1)
    async with MemoryStore(file_url, namespace="test-agent", embed=model()) as store:
        await fill(store)
    first = await opened_again(file_url)
    folder = tmp_path / "agent.db.cache"
    files = [file for file in saved_files(folder) if file.stat().st_size]
    assert files
    if damage == "of another database":
        other = tmp_path / "other.db"
        async with MemoryStore(f"sqlite:///{other}", namespace="test-agent", embed=model()) as store:
            await store.episodes.put(make_episode(id="e"))
            for n in range(60):
                await store.embeddings.add("e", f"willow {n}")
            await agrees(store, "lantern")
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "other.db.cache", folder)
    for file in files if damage != "of another database" else []:
        held = file.read_bytes()
        if damage == "truncate":
            file.write_bytes(held[: len(held) // 2])
        elif damage == "empty":
            file.write_bytes(b"")
        elif damage == "garbage":
            file.write_bytes(bytes(byte ^ 0x5A for byte in held))
        elif damage == "remove all" or file == files[0]:
            file.unlink()
    assert await opened_again(file_url) == first
    async with MemoryStore(file_url, namespace="test-agent") as store:
        await store.episodes.delete("e00")
        await store.embeddings.update("v01-0", embedding=vector_of("lantern lantern"))
    await opened_again(file_url)


async def test_a_saved_index_is_followed_from_where_it_was(
    file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup from before the index was saved is put in its place while no store is open."""
    monkeypatch.setattr(spaces, "_LEAST_SAVED", 1)
    async with MemoryStore(file_url, namespace="test-agent", embed=model()) as store:
        await fill(store)
        await upkeep.backup(store, tmp_path / "backup.db")
        await store.episodes.delete("e07")
    await opened_again(file_url)
    await upkeep.restore(tmp_path / "backup.db", url_of(tmp_path / "agent.db"))
    assert "v07-0" in dict(await opened_again(file_url))


@pytest.mark.parametrize("url", ["sqlite-file", "postgresql"], indirect=True)
async def test_two_models_and_a_change_from_one_to_the_other(url: str) -> None:
    async with MemoryStore(url, namespace="test-agent", embed=model()) as store:
        await fill(store)
        every = {id_ for id_, _ in await nearest(store, "lantern")}
    models = [model("turned", turned), model()]
    async with MemoryStore(url, namespace="test-agent", embed=models) as store:
        await store.embeddings.add("e01", "lantern of the new")
        found = await nearest(store, "lantern")
        assert len(found) == len(every) + 1
        assert every < {id_ for id_, _ in found}
        told: list[tuple[int, int]] = []
        assert await store.embeddings.reembed(on_progress=lambda *now: told.append(now)) == len(every)
        assert told[-1] == (len(every), len(every))
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        after = await nearest(store, "lantern")
        assert {id_ for id_, _ in after} == {id_ for id_, _ in found}
        stored = [one async for one in store.embeddings.stream()]
        assert {one.model_name for one in stored} == {"turned"}
        for one in stored:
            assert list(np.frombuffer(one.embedding, "<f4")) == pytest.approx(vector_of(one.content, 2))
        assert await store.embeddings.reembed() == 0
        of_other = await store.namespace("other").search("lantern", mode="vector", kinds="embedding", limit=1000)
        assert {hit.id for hit in of_other} == every, "another namespace is another space"
    async with MemoryStore(url, namespace="test-agent", embed=model()) as store:
        assert await nearest(store, "lantern") == [], "none of that model's is left"


@pytest.mark.parametrize("limit", [10, 1000])
@pytest.mark.parametrize("kind", ["episode", "embedding"])
async def test_what_changes_over_while_it_is_sought_is_found_once(
    url: str, monkeypatch: pytest.MonkeyPatch, kind: str, limit: int
) -> None:
    """Whichever model is asked first, all records change over before the other one is: none takes another's place."""
    nearest, asked = vectors.VectorSpaces.nearest, []
    async with MemoryStore(url, namespace="test-agent", embed=[model("turned", turned), model()]) as store:
        await fill(store)
        wanted = {one.id async for one in (store.episodes if kind == "episode" else store.embeddings).stream()}

        async def then_change_over(self: Any, access: Any, name: str, *given: Any) -> Any:
            found = await nearest(self, access, name, *given)
            if not asked:
                assert await store.embeddings.reembed() > 0
            asked.append(name)
            return found

        monkeypatch.setattr(vectors.VectorSpaces, "nearest", then_change_over)
        found = await store.search("lantern", mode="vector", kinds=kind, limit=limit)
    ids = [hit.id for hit in found]
    assert len(ids) == len({*ids}) == min(limit, len(wanted))
    assert {*ids} <= wanted
    assert {*asked} == {"turned", "words"}


async def test_a_query_of_another_size_is_told(store: MemoryStore) -> None:
    with pytest.raises(DimensionMismatchError, match="the query has 2 numbers, the vectors of 'words' have 6") as error:
        await store.search("x", vector=[1.0, 2.0])
    assert (error.value.expected, error.value.actual) == (6, 2)
    assert len(await store.search("x", vector=vector_of("lantern"), limit=5)) == 5
    assert await nearest(store, "x", vector=[1.0], model="nobody's") == []


async def test_hybrid_finds_what_either_part_does(store: MemoryStore) -> None:
    await store.embeddings.add("e01", "an unheard-of zebra")
    await store.embeddings.put(
        Embedding(
            id="mute", episode_id="e02", content="silence", embedding=vector_of("lantern lantern lantern"),
            model_name="words", vector_dim=6,
        )
    )  # fmt: skip
    zebra = await store.search("zebra", kinds="embedding", limit=5)
    assert zebra[0].record.content == "an unheard-of zebra"
    assert set(zebra[0].scores) == {"text", "vector"}
    results = await store.search("lantern lantern lantern", kinds="embedding", limit=200)
    assert "mute" in {hit.id for hit in results}, "by its vector alone"
    for hit in results:
        assert set(hit.scores) <= {"text", "vector"}
        assert 0 <= hit.score <= 1
    text = await store.search("lantern", mode="text", kinds="embedding", limit=200)
    assert "mute" not in {hit.id for hit in text}


async def test_diversity_is_reached_or_told(store: MemoryStore) -> None:
    for n in range(12):
        await store.embeddings.add(f"e{n:02}", "lantern lantern lantern")
    alike = await store.search("lantern", kinds="embedding", mode="vector", limit=6)
    unlike = await store.search("lantern", kinds="embedding", mode="vector", limit=6, diversity=0.3)
    assert {hit.record.content for hit in alike} == {"lantern lantern lantern"}
    assert len({hit.record.content for hit in unlike}) == 6
    vectors = np.array([np.frombuffer(hit.record.embedding, "<f4") for hit in unlike])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    among = vectors @ vectors.T
    assert unlike.diversity == pytest.approx(1 - (among.sum() - 6) / 30, abs=1e-4)
    episodes = await store.recall("lantern", diversity=0.3, limit=5, at=NOW)
    assert len(episodes) == 5
    assert episodes.diversity is not None


async def test_a_text_search_asks_no_model(file_url: str) -> None:
    async def failing(texts: list[str]) -> list[list[float]]:
        raise ConnectionError("no model there")

    async with MemoryStore(file_url, embed=model("failing", failing)) as store:
        await store.episodes.put_many([make_episode(id=f"e{n}", context=f"lantern {n}") for n in range(5)])
        assert len(await store.search("lantern", mode="text")) == 5
        assert len(await store.search("lantern", mode="text", diversity=0.5)) == 5
        assert len(await store.recall("lantern", mode="text")) == 5
        for mode in ("hybrid", "vector"):
            with pytest.raises(EmbedderError, match="no model there") as error:
                await store.search("lantern", mode=mode)  # type: ignore[arg-type]
            assert error.value.retryable
        with pytest.raises(EmbedderError):
            await store.embeddings.add("e1", "x")
        assert await store.embeddings.count() == 0
        assert len(await store.search("lantern", mode="text")) == 5


async def test_a_reranker_puts_hits_in_order(file_url: str) -> None:
    asked: list[tuple[str, int]] = []

    async def by_number(query: str, texts: list[str]) -> list[float]:
        asked.append((query, len(texts)))
        return [float(text.split()[-1]) for text in texts]

    async with MemoryStore(file_url, rerank=by_number) as store:
        await store.episodes.put_many([make_episode(id=f"e{n}", context=f"lantern {n}") for n in range(30)])
        results = await store.search("lantern", limit=3)
        assert [hit.id for hit in results] == ["e29", "e28", "e27"]
        assert [hit.scores["rerank"] for hit in results] == [29.0, 28.0, 27.0]
        assert asked == [("lantern", 30)]
        assert len(await store.search("nothing")) == 0
        assert len(asked) == 1


BAD_SCORES: dict[str, Any] = {
    "too few": lambda texts: [1.0],
    "none": lambda texts: [],
    "not finite": lambda texts: [float("nan")] * len(texts),
    "infinite": lambda texts: [float("inf")] * len(texts),
    "words": lambda texts: ["high"] * len(texts),
    "nothing": lambda texts: [None] * len(texts),
}


@pytest.mark.parametrize("scores", BAD_SCORES.values(), ids=BAD_SCORES)
async def test_a_reranker_that_returns_no_scores_is_told(scores: Any, file_url: str) -> None:
    async def rerank(query: str, texts: list[str]) -> Any:
        return scores(texts)

    async with MemoryStore(file_url, rerank=rerank) as store:
        await store.episodes.put_many([make_episode(id=f"e{n}", context="lantern") for n in range(3)])
        with pytest.raises(SearchError, match="the reranker must return a finite number for each of 3 texts"):
            await store.search("lantern")


async def test_a_reranker_that_fails_fails_the_search_alone(file_url: str) -> None:
    fail = True

    async def rerank(query: str, texts: list[str]) -> list[float]:
        if fail:
            raise ZeroDivisionError
        return [1.0] * len(texts)

    async with MemoryStore(file_url, rerank=rerank) as store:
        await store.episodes.put(make_episode(id="e", context="lantern"))
        with pytest.raises(ZeroDivisionError):
            await store.search("lantern")
        fail = False
        assert [hit.id for hit in await store.search("lantern")] == ["e"]


async def test_a_store_is_closed_while_a_graph_is_built(file_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More vectors than are compared one by one: their graph is built behind a search, and nobody waits for it."""
    seeded = np.random.default_rng(5)
    vectors = seeded.normal(size=(2_000, 24)).astype(np.float32)

    from memory_store.search.vectors.index import VectorIndex

    small = VectorIndex.__init__
    monkeypatch.setattr(VectorIndex, "__init__", lambda self, size, exact_up_to=0: small(self, size, exact_up_to=100))
    for wait in (False, True):
        async with MemoryStore(file_url, namespace="test-agent") as store:
            if not wait:
                await store.episodes.put(make_episode(id="e"))
                await store.embeddings.append(
                    "e",
                    [
                        Embedding(episode_id="e", content="c", embedding=one, model_name="m", vector_dim=24)
                        for one in vectors
                    ],
                )
            found = await store.search("x", mode="vector", vector=vectors[7], model="m", kinds="embedding", limit=3)
            if wait:
                for space in store._models.spaces._spaces.values():
                    await space.wait()
                again = await store.search("y", mode="vector", vector=vectors[7], model="m", kinds="embedding", limit=3)
                assert [hit.id for hit in again] == [hit.id for hit in found]
            assert found[0].score == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kinds", ["embedding", "episode", ["embedding", "episode", "step"]])
async def test_pages_of_a_hybrid_search_show_every_hit_once(
    kinds: Any, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the depth that a page needs, what comes before it stays where it was."""
    monkeypatch.setattr("memory_store.recall.search._DEPTH", 4)
    whole = await store.search("lantern harbour", kinds=kinds, limit=1000)
    assert len(whole) >= 40
    assert whole.cursor is None
    for limit in (1, 7, 40):
        page = await store.search("lantern harbour", kinds=kinds, limit=limit)
        hits = list(page)
        while page.cursor is not None:
            page = await store.search("lantern harbour", kinds=kinds, limit=limit, cursor=page.cursor)
            assert page.hits
            hits += page
        assert hits == list(whole)
    scores = [hit.score for hit in whole]
    assert scores == sorted(scores, reverse=True)
