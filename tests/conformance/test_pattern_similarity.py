"""Near-duplicates of patterns, found and merged, the same on every backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import literal_column

from memory_store import ConfigurationError, MemoryStore, Pattern, SimilarPattern, access
from memory_store.patterns import collection
from memory_store.search.similarity import jaccard, shingles
from tests.integration.cli_support import plain_sql
from tests.unit.samples import make_pattern

START = datetime(2026, 11, 21, tzinfo=UTC)


def tools(id_: str, names: str, **values: Any) -> Pattern:
    """A pattern of tools, one a letter."""
    return make_pattern(id=id_, pattern_data={"tools": list(names)}, **values)


def found(similar: Sequence[SimilarPattern]) -> dict[str, float]:
    """Similarities by id, in their order."""
    return {pattern.id: similarity for pattern, similarity in similar}


def alike(first: Any, second: Any) -> float:
    """The Jaccard similarity of two contents."""
    return jaccard(shingles(first), shingles(second))


async def test_similar_patterns_come_the_most_similar_first(store: MemoryStore) -> None:
    stored = await store.patterns.put_many(
        [tools("a", "abcdef"), tools("b", "abcdefg"), tools("c", "abcd"), tools("d", "uvwxyz")]
    )
    similar = await store.patterns.similar(stored[0], threshold=0.4)
    assert similar == [
        (stored[1], alike(stored[0].pattern_data, stored[1].pattern_data)),
        (stored[2], alike(stored[0].pattern_data, stored[2].pattern_data)),
    ]
    assert found(await store.patterns.similar(stored[0], threshold=0.4, limit=1)).keys() == {"b"}
    assert found(await store.patterns.similar(stored[0], threshold=0.65)) == {"b": similar[0].similarity}
    assert found(await store.patterns.similar(tools("new", "abcdef"))) == {"a": 1.0, **found(similar)}
    assert await store.namespace("other").patterns.similar(stored[0], threshold=0.1) == []


async def test_similar_to_a_text(store: MemoryStore) -> None:
    await store.patterns.put_many(
        [
            make_pattern(id="en", pattern_data="Pin the clock when the login test is flaky"),
            make_pattern(
                id="zh", pattern_data={"提示": "登录测试不稳定时固定时钟"}, domain="web", pattern_type="other"
            ),
        ]
    )
    assert found(await store.patterns.similar("pin the CLOCK when the login test is flaky")) == {"en": 1.0}
    assert found(await store.patterns.similar("登录测试不稳定时固定时钟")) == {"zh": 11 / 13}
    for nothing in ("", "clock", "something else entirely"):
        assert await store.patterns.similar(nothing, threshold=0.1) == []


async def test_similar_sees_every_change_before_it(store: MemoryStore) -> None:
    similar = store.patterns.similar
    asked = tools("asked", "abcdef")
    assert await similar(asked) == []
    await store.patterns.put(tools("a", "abcdef"))
    assert found(await similar(asked)) == {"a": 1.0}
    await store.patterns.update("a", pattern_data={"tools": list("uvwxyz")})
    assert await similar(asked) == []
    async with store.transaction() as tx:
        await tx.patterns.put_many([tools("b", "abcdef"), tools("c", "abcdefg")])
        assert found(await tx.patterns.similar(asked)) == {"b": 1.0, "c": 6 / 9}
        assert await similar(asked) == []
    assert found(await similar(asked)) == {"b": 1.0, "c": 6 / 9}
    await store.patterns.delete("b")
    await store.patterns.record_use("c", success=True)
    [(kept, _)] = await similar(asked)
    assert (kept.id, kept.usage_count) == ("c", 1)


async def test_a_lower_threshold_finds_more_than_the_one_before(store: MemoryStore) -> None:
    await store.patterns.put_many([tools("a", "abcdef"), tools("b", "abcxyz")])
    asked = tools("asked", "abcdef")
    assert found(await store.patterns.similar(asked, threshold=1.0)) == {"a": 1.0}
    assert found(await store.patterns.similar(asked, threshold=0.2)) == {"a": 1.0, "b": 3 / 11}
    assert found(await store.patterns.similar(asked, threshold=0.9)) == {"a": 1.0}


async def test_many_patterns_and_many_changes(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are signed at once, and then more changes than the log is read for."""
    letters = "abcdefghij"
    await store.patterns.put_many(tools(f"p{i:03}", letters[: 10 - i % 4] + "xyz"[i % 3]) for i in range(300))
    asked = tools("asked", letters + "x")
    before = found(await store.patterns.similar(asked, threshold=0.7, limit=1000))
    assert len(before) > 20
    await store.patterns.put_many(tools(f"p{i:03}", "x" + letters) for i in range(100, 300))
    after = found(await store.patterns.similar(asked, threshold=0.7, limit=1000))
    compared = {
        pattern.id: alike(asked.pattern_data, pattern.pattern_data) async for pattern in store.patterns.stream()
    }
    assert after == {id_: similarity for id_, similarity in compared.items() if similarity >= 0.7}
    assert after.keys() < before.keys()
    monkeypatch.setattr(access, "_MOST_CHANGES", 10)
    await store.patterns.put_many(tools(f"p{i:03}", "uvw") for i in range(300))
    assert await store.patterns.similar(asked, threshold=0.7) == []


async def test_what_other_stores_and_plain_sql_change_is_seen_at_once(common_url: str) -> None:
    asked = tools("asked", "abcdef")
    async with MemoryStore(common_url, staleness_s=60) as store, MemoryStore(common_url) as other:
        await store.patterns.put(tools("a", "abcdef"))
        assert found(await store.patterns.similar(asked)) == {"a": 1.0}
        await other.patterns.update("a", pattern_data={"tools": list("uvwxyz")})
        await other.patterns.put(tools("b", "abcdef"))
        assert found(await store.patterns.similar(asked)) == {"b": 1.0}
        await plain_sql(common_url, "UPDATE patterns SET pattern_data = '\"nothing\"' WHERE id = 'b'")
        assert await store.patterns.similar(asked) == []


async def test_similar_asked_by_many_at_once(store: MemoryStore) -> None:
    await store.patterns.put_many(tools(f"p{i}", "abcdef" + "xyz"[i % 3]) for i in range(30))
    asked = [tools("asked", "abcdef" + "xyz"[i % 3]) for i in range(12)]
    every = await asyncio.gather(*(store.patterns.similar(one, threshold=1.0) for one in asked))
    assert [len(one) for one in every] == [10] * 12


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"threshold": 0.05}, "0.1 to 1"),
        ({"threshold": None}, "number"),
    ],
)
async def test_what_similar_refuses(options: dict[str, Any], word: str, store: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match=word):
        await store.patterns.similar("x", **options)
    with pytest.raises(TypeError, match="similar takes a Pattern or a str, got dict"):
        await store.patterns.similar({"tools": []})  # type: ignore[arg-type]


LONG = "abcdefghijklmnopqrst"


async def test_near_duplicates_are_merged_into_the_most_used(store: MemoryStore) -> None:
    await store.patterns.put_many(
        [
            tools("a", LONG, usage_count=4, success_rate=0.5, last_used=START),
            tools("b", LONG + "u", usage_count=10, success_rate=0.9, confidence=0.99, metadata={"own": 1}),
            tools("c", LONG[1:], usage_count=1, success_rate=1.0),
            tools("web", LONG, domain="web"),
            tools("else", "uvw"),
        ]
    )
    feed = store.follow()
    [merge] = await store.patterns.merge_duplicates(threshold=0.7)
    kept = await store.patterns.get("b")
    assert merge.kept == kept
    assert kept is not None
    content = {id_: {"tools": list(names)} for id_, names in [("a", LONG), ("b", LONG + "u"), ("c", LONG[1:])]}
    assert merge.merged == {id_: alike(content[id_], content["b"]) for id_ in "ac"}
    assert (kept.usage_count, kept.successes, kept.last_used, kept.revision) == (15, 12, START, 2)
    assert kept.confidence == kept.lower_bound
    assert kept.metadata == {"own": 1, "merged": ["a", "c"]}
    assert kept.position == merge.kept.position or kept.position is None
    logged = [await anext(feed) for _ in range(3)]
    await feed.aclose()  # type: ignore[attr-defined]
    assert {(change.operation, change.key) for change in logged} == {("update", "b"), ("delete", "a"), ("delete", "c")}
    assert len({change.position for change in logged}) == 1, "one commit"
    for _ in range(2):
        assert await store.patterns.get_many(["a", "c"]) == [None, None]
        assert await store.patterns.count() == 3
        await store.cache.clear()
    assert await store.patterns.merge_duplicates(threshold=0.7) == []


async def test_only_what_meets_the_conditions_and_the_threshold_is_merged(store: MemoryStore) -> None:
    for domain in ("web", "cli"):
        await store.patterns.put_many([tools(f"{domain}{i}", LONG[: 20 - i], domain=domain) for i in range(2)])
    assert await store.patterns.merge_duplicates(threshold=0.99) == []
    [merge] = await store.patterns.merge_duplicates(Pattern.c.domain == "web")
    assert (merge.kept.id, list(merge.merged)) == ("web0", ["web1"])
    with pytest.raises(ConfigurationError, match=r"threshold must be 0\.1 to 1"):
        await store.patterns.merge_duplicates(threshold=0)
    with pytest.raises(ConfigurationError, match="SQL text"):
        await store.patterns.merge_duplicates(literal_column("1 = 1"))
    async with store.transaction() as tx:
        [merge] = await tx.patterns.merge_duplicates()
        assert await tx.patterns.count() == 2
    assert await store.patterns.get("cli0") == merge.kept


def meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]) -> None:
    """Make a change after the patterns were compared and before they are merged."""
    loop, group = asyncio.get_running_loop(), collection.group

    def compared(patterns: Any, threshold: float) -> Any:
        groups = group(patterns, threshold)
        asyncio.run_coroutine_threadsafe(change(), loop).result(30)
        return groups

    monkeypatch.setattr(collection, "group", compared)


async def test_uses_recorded_meanwhile_are_merged_too(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.patterns.put_many([tools("a", LONG), tools("b", LONG + "u")])

    async def use_both() -> None:
        for id_ in "aab":
            await store.patterns.record_use(id_, success=True)

    meanwhile(monkeypatch, use_both)
    [merge] = await store.patterns.merge_duplicates()
    assert (merge.kept.id, merge.kept.usage_count, merge.kept.successes) == ("a", 3, 3)


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("how", ["changed", "deleted"])
async def test_a_merge_with_what_was_changed_meanwhile_is_left_out(
    which: str, how: str, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.patterns.put_many([tools("a", LONG), tools("b", LONG + "u")])
    await store.patterns.put_many([tools("x", LONG, domain="web"), tools("y", LONG + "u", domain="web")])

    async def change() -> None:
        if how == "changed":
            await store.patterns.update(which, pattern_data={"tools": ["else"]})
        else:
            await store.patterns.delete(which)

    meanwhile(monkeypatch, change)
    [merge] = await store.patterns.merge_duplicates()
    assert (merge.kept.id, list(merge.merged)) == ("x", ["y"]), "the others are merged all the same"
    kept = await store.patterns.get_many(["a", "b"])
    assert [None if one is None else one.revision for one in kept] == [
        (2 if how == "changed" else None) if id_ == which else 1 for id_ in "ab"
    ]


async def test_two_stores_that_merge_at_once_merge_each_once(common_url: str) -> None:
    async with MemoryStore(common_url) as first, MemoryStore(common_url) as second:
        for number in range(10):
            await first.patterns.put_many(
                [tools(f"{number}{id_}", LONG + id_, domain=f"d{number}", usage_count=1) for id_ in "xyz"]
            )
        done = await asyncio.gather(first.patterns.merge_duplicates(), second.patterns.merge_duplicates())
        assert sum(len(merges) for merges in done) == 10
        async for kept in first.patterns.stream():
            assert (kept.usage_count, len(kept.metadata["merged"])) == (3, 2)
        assert await first.patterns.count() == 10
