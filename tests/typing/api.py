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
    Embeddings,
    Episode,
    EpisodeStatus,
    Highlight,
    Hit,
    InvalidRecordError,
    Kept,
    Limits,
    LoggedChange,
    MemoryStore,
    Namespace,
    Page,
    Parts,
    Pattern,
    PatternMerge,
    Patterns,
    PatternType,
    PositionLostError,
    SchemaMismatchError,
    SearchResults,
    SimilarPattern,
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
        assert_type(at.patterns, Patterns)
        assert_type(at.embeddings, Embeddings)
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


async def search(store: MemoryStore, inside: Namespace, embedder: Embedder, at: datetime) -> None:
    async def rerank(query: str, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    MemoryStore("sqlite:///agent.db", embed=embedder, rerank=rerank)
    MemoryStore("sqlite:///agent.db", embed=[embedder])
    results = await store.search("login", kinds=["episode"], where=Episode.c.domain == "web", mode="text", limit=5)
    assert_type(results, SearchResults)
    assert_type(
        await inside.search("a AND b", kinds="step", at=at, syntax="expert", cursor=results.cursor), SearchResults
    )
    assert_type(await inside.search("x", mode="vector", vector=[0.5], model="m", diversity=0.5), SearchResults)
    for hit in results:
        assert_type(hit, Hit)
        assert_type(hit.kind, str)
        assert_type(hit.id, str)
        assert_type(hit.score, float)
        assert_type(hit.record, Any)
        assert_type(hit.highlights, tuple[Highlight, ...])
        assert_type(hit.highlights[0].marked("<b>", "</b>"), str)
        assert_type(hit.highlights[0].spans, tuple[tuple[int, int], ...])
    recalled = await store.recall(
        "login", domain="web", task_type="testing", at=at, levels=["domain", "time"], explain=True
    )
    assert_type(recalled.hits, tuple[Hit, ...])
    assert_type(recalled.complete, bool)
    assert_type(recalled.diversity, float | None)
    assert_type(recalled.explanation, tuple[Kept, ...])
    assert_type(await store.embeddings.add("e", "a text"), list[Embedding])
    assert_type(await store.embeddings.add("e", ["a text", "another"]), list[Embedding])
    assert_type(await store.embeddings.reembed(on_progress=lambda done, total: None), int)
    assert_type(await store.reindex(), int)
    assert_type(await store.reindex(on_progress=lambda what, done, total: None), int)


async def patterns(store: MemoryStore, pattern: Pattern, episode: Episode, at: datetime) -> None:
    assert_type(await store.patterns.get("x"), Pattern | None)
    assert_type(await store.patterns.record_use("x", success=True), Pattern)
    assert_type(await store.patterns.record_use("x", success=False, at=at, idempotency_key="run 7"), Pattern)
    assert_type(await store.patterns.best(), list[Pattern])
    assert_type(await store.patterns.best(Pattern.c.domain == "web", limit=5, at_least_uses=3), list[Pattern])
    assert_type(await store.patterns.learn(), list[Pattern])
    assert_type(await store.patterns.learn("e", episode, min_support=2, min_length=2, max_length=4), list[Pattern])
    assert_type(await store.patterns.merge_duplicates(), list[PatternMerge])
    for merge in await store.patterns.merge_duplicates(Pattern.c.domain == "web", threshold=0.9):
        assert_type(merge.kept, Pattern)
        assert_type(merge.merged, dict[str, float])
    assert_type(await store.patterns.similar("read, then edit"), list[SimilarPattern])
    for found, similarity in await store.patterns.similar(pattern, limit=3, threshold=0.6):
        assert_type(found, Pattern)
        assert_type(similarity, float)
    assert_type(pattern.successes, int)
    assert_type(pattern.lower_bound, float)


async def transactions(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        assert_type(tx, Transaction)
        assert_type(await tx.episodes.get("x"), Episode | None)
        assert_type(await tx.steps.of("x"), list[Step])
        assert_type(await tx.patterns.record_use("x", success=True), Pattern)
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
