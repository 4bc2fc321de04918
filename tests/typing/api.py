"""The whole public API with the types a caller sees; checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, assert_type

from memory_store import (
    CacheStatus,
    Collection,
    CommitUnknownError,
    ConflictError,
    Embedding,
    Episode,
    EpisodeStatus,
    InvalidRecordError,
    Limits,
    LoggedChange,
    MemoryStore,
    Namespace,
    Page,
    Parts,
    Pattern,
    PatternType,
    PositionLostError,
    SchemaMismatchError,
    SpatiotemporalEntry,
    Step,
    StoreStats,
    TaskType,
    Transaction,
)
from memory_store.embedders import (
    CheckedEmbedder,
    CohereEmbedder,
    Embedder,
    FunctionEmbedder,
    OllamaEmbedder,
    OnnxEmbedder,
    OpenAIEmbedder,
    SentenceTransformerEmbedder,
    WordLlamaEmbedder,
)


async def opening() -> None:
    async with MemoryStore("sqlite:///agent.db", namespace="web-agent", limits=Limits(key_bytes=64)) as store:
        assert_type(store, MemoryStore)
        assert_type(store.name, str)
        assert_type(store.namespace("other"), Namespace)
        assert_type(store.stats(), StoreStats)
        assert_type(store.stats().cache["episode"].hits, int)
        assert_type(await store.cache.status(), CacheStatus)
        assert_type(await store.cache.rebuild(), None)
        assert_type(await store.cache.clear(), None)
        assert_type(await store.cache.save(), None)
        assert_type(await store.cache.wait(), None)
    assert_type(await MemoryStore("sqlite://").open(), MemoryStore)
    assert_type(await store.close(), None)


async def coherence(store: MemoryStore, unknown: CommitUnknownError) -> None:
    MemoryStore("sqlite:///agent.db", freshness="linearizable")
    MemoryStore("sqlite:///agent.db", freshness="bounded", staleness_s=0.5)
    assert_type(store.position, int)
    assert_type(await store.resolve(unknown.token), bool)
    assert_type(store.follow(), AsyncIterator[LoggedChange])
    assert_type(store.namespace("other").follow(after="start"), AsyncIterator[LoggedChange])
    assert_type(store.follow_all(after="end"), AsyncIterator[LoggedChange])
    async for change in store.follow():
        assert_type(change.cursor, str)
        assert_type(change.position, int)
        assert_type(change.kind, str)
        assert_type(change.namespace, str)
        assert_type(change.key, str | None)
        assert_type(change.parent, str | None)
        assert_type(change.operation, str)
        assert_type(change.revision, int | None)
        assert_type(change.actor, str)
        assert_type(change.at, datetime)
        store.follow(after=change.cursor)


async def collections(store: MemoryStore, inside: Namespace) -> None:
    for at in (store, inside):
        assert_type(at.episodes, Collection[Episode])
        assert_type(at.steps, Parts[Step])
        assert_type(at.patterns, Collection[Pattern])
        assert_type(at.embeddings, Parts[Embedding])
        assert_type(at.spatiotemporal, Parts[SpatiotemporalEntry])
        assert_type(at.collection("episode"), Collection[Any])


async def verbs(store: MemoryStore) -> None:
    episodes = store.episodes
    episode = Episode(task_type=TaskType.DEBUGGING, domain="web", context={"goal": "x"}, status=EpisodeStatus.ACTIVE)
    assert_type(await episodes.put(episode), Episode)
    assert_type(await episodes.put(episode, idempotency_key="run 7, goal"), Episode)
    assert_type(episode.position, int | None)
    assert_type(await episodes.put_many([episode]), list[Episode])
    assert_type(await episodes.put_many(item for item in [episode]), list[Episode])
    assert_type(await episodes.get("x"), Episode | None)
    assert_type(await episodes.get("x", freshness="linearizable"), Episode | None)
    assert_type(await episodes.get("x", freshness="bounded", at_least=episode.position), Episode | None)
    assert_type(await episodes.get_many(["x"]), list[Episode | None])
    assert_type(await episodes.get_many(["x"], freshness="linearizable", at_least=7), list[Episode | None])
    assert_type(await episodes.update("x", expected_revision=1, status="completed"), Episode)
    assert_type(await episodes.delete("x"), bool)
    assert_type(await episodes.delete("x", expected_revision=2), bool)
    page = await episodes.list(Episode.c.domain == "web", order_by=Episode.c.created_at.desc(), limit=50)
    assert_type(page, Page[Episode])
    assert_type(page.items, list[Episode])
    assert_type(page.cursor, str | None)
    await episodes.list(order_by=[Episode.c.domain, Episode.c.created_at.desc()], cursor=page.cursor)
    assert_type(episodes.stream(Episode.c.status == "failed"), AsyncIterator[Episode])
    async for item in episodes.stream():
        assert_type(item, Episode)
    assert_type(await episodes.count(), int)
    assert_type(await episodes.count(freshness="linearizable"), int)
    assert_type(await episodes.count(Episode.c.context["goal"].as_string() == "x"), int)


async def parts(store: MemoryStore) -> None:
    step = Step(action="pytest -x", tool_name="shell", result="1 failed", success=False, duration_ms=812)
    assert_type(await store.steps.append("e", step), list[Step])
    assert_type(await store.steps.append("e", [step, step]), list[Step])
    assert_type(await store.steps.of("e"), list[Step])
    assert_type(await store.steps.of("e", freshness="linearizable", at_least=7), list[Step])
    assert_type(await store.steps.get("s"), Step | None)
    assert_type(await store.steps.get("s", freshness="linearizable", at_least=7), Step | None)
    assert_type(await store.steps.get_many(["s"], at_least=7), list[Step | None])
    assert_type(await store.embeddings.of("e"), list[Embedding])
    assert_type(await store.spatiotemporal.of("e"), list[SpatiotemporalEntry])


async def transactions(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        assert_type(tx, Transaction)
        assert_type(await tx.episodes.get("x"), Episode | None)
        assert_type(await tx.steps.of("x"), list[Step])
    assert_type(tx.position, int | None)


def records(episode: Episode, step: Step, pattern: Pattern, embedding: Embedding, place: SpatiotemporalEntry) -> None:
    assert_type(episode.id, str)
    assert_type(episode.revision, int)
    assert_type(episode.created_at, datetime)
    assert_type(episode.completed_at, datetime | None)
    assert_type(episode.reward_score, float | None)
    assert_type(episode.status, str)
    assert_type(step.step_number, int | None)
    assert_type(step.success, bool | None)
    assert_type(step.timestamp, datetime | None)
    assert_type(pattern.confidence, float)
    assert_type(Pattern(pattern_type=PatternType.OPTIMIZATION, pattern_data={}).usage_count, int)
    assert_type(embedding.vector, memoryview[float])
    assert_type(embedding.vector_dim, int)
    assert_type(place.diversity_score, float | None)
    assert_type(Episode.kind, str)


def errors(
    conflict: ConflictError,
    invalid: InvalidRecordError,
    mismatch: SchemaMismatchError,
    unknown: CommitUnknownError,
    lost: PositionLostError,
) -> None:
    assert_type(conflict.expected, int | None)
    assert_type(invalid.field, str | None)
    assert_type(invalid.limit, int | None)
    assert_type(mismatch.found, str | None)
    assert_type(mismatch.retryable, bool)
    assert_type(conflict.key, str | None)
    assert_type(unknown.token, str)
    assert_type(lost.position, int)
    assert_type(lost.head, int)


async def embedders(texts: list[str]) -> None:
    async def lists(texts: list[str]) -> list[list[float]]:
        return [[0.5] for _ in texts]

    every: list[Embedder] = [
        WordLlamaEmbedder(),
        OnnxEmbedder("folder", max_tokens=256, normalize=False),
        SentenceTransformerEmbedder("all-MiniLM-L6-v2", device="cpu"),
        OpenAIEmbedder("text-embedding-3-small", base_url="http://localhost/v1", timeout_s=5),
        CohereEmbedder("embed-english-v3.0"),
        OllamaEmbedder("nomic-embed-text", model_name="nomic-embed-text-v1"),
        FunctionEmbedder(lists, "lists", queries=lists),
    ]
    checked = CheckedEmbedder(every[0], cache_bytes=0)
    every.append(checked)
    assert_type(checked.dimensions, int | None)
    assert_type((await checked(texts)).nbytes, int)
    assert_type((await checked.embed_queries(texts)).tolist(), Any)
    assert_type(await checked.aclose(), None)
