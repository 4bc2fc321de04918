"""list, stream and count with filters and orders, on columns and inside JSON."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import and_, bindparam, exists, func, literal_column, not_, or_, select, text
from sqlalchemy.sql.elements import ColumnElement

from memory_store import (
    ConfigurationError,
    ConstraintError,
    DurableError,
    Embedding,
    Episode,
    InvalidRecordError,
    MemoryStore,
    Pattern,
    Step,
)
from memory_store.records import RECORDS
from tests.unit.samples import MAKE, make_episode, make_pattern, make_step

START = datetime(2026, 11, 21, tzinfo=UTC)
KINDS = list(RECORDS)


@pytest.fixture
async def filled(store: MemoryStore) -> list[Episode]:
    """Forty episodes, some alike in each field, some with nothing in it; and as many that nobody should see."""
    made = [
        make_episode(
            id=f"e{number:02}",
            domain=["web", "cli", "data"][number % 3],
            status=["active", "failed"][number % 2],
            reward_score=None if number % 5 == 0 else float(number % 7),
            completed_at=None if number % 4 else START + timedelta(hours=number),
            created_at=START + timedelta(minutes=number // 4),
            context={"goal": f"goal {number % 6}", "i": number, "deep": {"list": [number, {"x": number * 0.5}]}},
        )
        for number in range(40)
    ]
    await store.namespace("other").episodes.put_many(made)
    return await store.episodes.put_many(made)


c = Episode.c
FILTERS: list[tuple[ColumnElement[bool] | None, object]] = [
    (None, lambda e: True),
    (c.domain == "web", lambda e: e.domain == "web"),
    (c.domain.in_(["web", "cli"]), lambda e: e.domain in ("web", "cli")),
    (c.domain.in_([]), lambda e: False),
    (c.id.in_(["e01", "e02", "e03", "nothing"]), lambda e: e.id in ("e01", "e02", "e03")),
    (c.domain.not_in(["web"]), lambda e: e.domain != "web"),
    (c.reward_score > 3, lambda e: e.reward_score is not None and e.reward_score > 3),
    (c.reward_score.is_(None), lambda e: e.reward_score is None),
    (c.completed_at.is_not(None), lambda e: e.completed_at is not None),
    (c.created_at >= START + timedelta(minutes=5), lambda e: e.created_at >= START + timedelta(minutes=5)),
    (c.created_at.between(START, START + timedelta(minutes=2)), lambda e: e.created_at <= START + timedelta(minutes=2)),
    ((c.domain == "web") | (c.status == "failed"), lambda e: e.domain == "web" or e.status == "failed"),
    (or_(c.domain == "web", c.domain == "cli"), lambda e: e.domain in ("web", "cli")),
    (and_(c.domain == "web", not_(c.status == "failed")), lambda e: e.domain == "web" and e.status != "failed"),
    (c.id.like("e1%"), lambda e: e.id.startswith("e1")),
    (func.length(c.domain) == 4, lambda e: e.domain == "data"),
    (c.context["goal"].as_string() == "goal 2", lambda e: e.context["goal"] == "goal 2"),
    (c.context["i"].as_integer() < 9, lambda e: e.context["i"] < 9),
    (c.context[("deep", "list", 1, "x")].as_float() > 10.0, lambda e: e.context["i"] * 0.5 > 10),
    (c.context["nothing"].as_string().is_(None), lambda e: True),
    (c.context["goal"].as_string().in_(["goal 1", "goal 3"]), lambda e: e.context["goal"] in ("goal 1", "goal 3")),
    (c.domain == "x' OR '1'='1", lambda e: False),
    (c.domain == c.status, lambda e: False),
]


@pytest.mark.parametrize("number", range(len(FILTERS)))
async def test_filters(number: int, store: MemoryStore, filled: list[Episode]) -> None:
    where, holds = FILTERS[number]
    expected = [record for record in filled if holds(record)]  # type: ignore[operator]
    page = await store.episodes.list(where, limit=1000)
    assert page.items == expected
    assert page.cursor is None
    assert [record async for record in store.episodes.stream(where)] == expected
    assert await store.episodes.count(where) == len(expected)


async def test_the_same_filter_with_other_values(store: MemoryStore, filled: list[Episode]) -> None:
    """Statements are kept by their shape: a kept one must take its values from the new expression."""
    for _ in range(2):
        for domain in ("web", "cli", "data", "none"):
            for bound in (3, 17, 39):
                where = (c.domain == domain) & (c.context["i"].as_integer() <= bound)
                expected = [e for e in filled if e.domain == domain and e.context["i"] <= bound]
                assert (await store.episodes.list(where, limit=1000)).items == expected
                assert await store.episodes.count(where) == len(expected)
        for key in ("i", "goal", "nothing"):
            expected = [e for e in filled if key in e.context]
            where = c.context[key].as_string().is_not(None)
            assert (await store.episodes.list(where, limit=1000)).items == expected


async def test_a_nul_in_one_record_fails_no_filter_on_others(store: MemoryStore) -> None:
    """PostgreSQL's text holds none, and output of tools has some."""
    contexts = [{"n": 4, "out": "tool\0output"}, {"n": 4, "deep": {"list": [1, "\0"]}}, {"n": 5, "out": "plain"}]
    await store.episodes.put_many(make_episode(id=f"e{n}", context=value) for n, value in enumerate(contexts))
    n, last = c.context["n"].as_integer(), c.context[("deep", "list", 0)].as_integer()
    for where, ids in (
        (n == 4, {"e0", "e1"}),
        (last == 1, {"e1"}),
        (c.context["deep"]["none"].as_string() == "x", set()),
    ):
        assert {one.id async for one in store.episodes.stream(where)} == ids
        assert len((await store.episodes.list(where, order_by=n)).items) == len(ids)
        found = await store.search("tool output plain", mode="text", kinds="episode", where=where)
        assert {hit.id for hit in found} <= ids
    assert (await store.episodes.get("e0")).context == contexts[0]  # type: ignore[union-attr]
    out = c.context["out"].as_string()
    await store.episodes.put(make_episode(id="e3", context={"out": "a literal \\u0000 \\", "more": "\0"}))
    assert [one.id for one in (await store.episodes.list(out == "a literal \\u0000 \\")).items] == ["e3"]


async def test_an_expression_in_filter_and_order_at_once(url: str, store: MemoryStore, filled: list[Episode]) -> None:
    """First one object in both places, then two that only look alike and hold other values."""
    both = c.context["i"].as_integer()
    page = await store.episodes.list(both > 5, order_by=both.desc(), limit=100)
    assert page.items == [e for e in filled[::-1] if e.context["i"] > 5]
    goal = c.context["goal"].as_integer()
    if url.startswith("postgresql"):
        with pytest.raises(ConstraintError, match="invalid input syntax for type integer"):
            await store.episodes.list(goal > 5)
        return
    # SQLite takes text that is no number for 0.
    page = await store.episodes.list(both > 5, order_by=goal.desc(), limit=100)
    assert page.items == [e for e in filled[::-1] if e.context["i"] > 5]
    none = await store.episodes.list(goal > 5, order_by=both.desc(), limit=100)
    assert none.items == []


async def test_a_count_is_cached_until_the_kind_changes(store: MemoryStore, filled: list[Episode]) -> None:
    where = c.domain == "web"
    assert await store.episodes.count(where) == 14
    hits = store.stats().cache["query_result"].hits
    assert await store.episodes.count(c.domain == "web") == 14
    assert store.stats().cache["query_result"].hits == hits + 1
    assert await store.namespace("other").episodes.count(where) == 14
    await store.episodes.put(make_episode(domain="web"))
    assert await store.episodes.count(where) == 15
    await store.episodes.delete("e00")
    assert await store.episodes.count(where) == 14
    await store.episodes.update("e03", domain="cli")
    assert await store.episodes.count(where) == 13
    assert await store.namespace("other").episodes.count(where) == 14
    await store.episodes.put_many([make_episode(domain="web") for _ in range(1200)])
    assert await store.episodes.count(where) == 1213
    await store.steps.append("e03", [make_step("e03"), make_step("e03")])
    assert await store.steps.count() == 2
    await store.episodes.delete("e03")  # takes its steps along
    assert await store.steps.count() == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_is_listed_streamed_and_counted(kind: str, store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e"))
    await store.namespace("other").episodes.put(make_episode(id="e"))
    await store.namespace("other").collection(kind).put(MAKE[kind]("e", id="theirs"))
    made = await store.collection(kind).put_many([MAKE[kind]("e", id=f"x{number:03}") for number in range(300)])
    expected = ([await store.episodes.get("e")] if kind == "episode" else []) + made
    where = RECORDS[kind].table.c.id != "x007"
    assert [record async for record in store.collection(kind).stream()] == expected
    assert [r async for r in store.collection(kind).stream(where)] == [r for r in expected if r.id != "x007"]
    assert await store.collection(kind).count() == len(expected)
    page = await store.collection(kind).list(order_by=RECORDS[kind].table.c.id.desc(), limit=10)
    assert page.items == expected[::-1][:10]


async def test_kinds_filter_on_their_own_columns(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e"))
    await store.steps.append("e", [make_step("e", tool_name=tool, success=tool == "a") for tool in "ab"])
    patterns = [make_pattern(id=f"p{n}", success_rate=n / 4, pattern_data={"n": n}) for n in range(4)]
    await store.patterns.put_many(patterns)
    assert [s.tool_name for s in (await store.steps.list(Step.c.success.is_(True))).items] == ["a"]
    assert [s.tool_name for s in (await store.steps.list(Step.c.success == False)).items] == ["b"]  # noqa: E712
    best = await store.patterns.list(Pattern.c.success_rate >= 0.5, order_by=Pattern.c.success_rate.desc())
    assert [p.id for p in best.items] == ["p3", "p2"]
    assert await store.patterns.count(Pattern.c.pattern_data["n"].as_integer() == 1) == 1


async def test_a_stream_goes_on_while_records_come_and_go(store: MemoryStore) -> None:
    await store.episodes.put_many([make_episode(id=f"e{number:04}") for number in range(600)])
    seen = []
    async for record in store.episodes.stream():
        seen.append(record.id)
        if len(seen) == 100:
            await store.episodes.delete("e0000")  # behind
            await store.episodes.delete("e0500")  # ahead, on a later page
            await store.episodes.put(make_episode(id="e0599x"))
    assert seen == [f"e{number:04}" for number in range(600) if number != 500] + ["e0599x"]


@pytest.mark.parametrize("limit", [0, -1, 1001, 2.5, "10", None])
async def test_a_bad_limit_is_refused(limit: object, store: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match=r"limit must be 1 to 1,000, got .*; use stream\(\) for more"):
        await store.episodes.list(limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("cursor", ["", "x", "!!", "gA", "a" * 500, "ü", "kcQA", 5, b"x", ["x"]])
async def test_a_bad_cursor_is_refused(cursor: object, store: MemoryStore, filled: list[Episode]) -> None:
    with pytest.raises((ConfigurationError, TypeError), match="cursor"):
        await store.episodes.list(cursor=cursor)  # type: ignore[arg-type]


async def test_a_cursor_belongs_to_its_order(store: MemoryStore, filled: list[Episode]) -> None:
    page = await store.episodes.list(order_by=c.created_at.desc(), limit=5)
    assert page.cursor is not None
    for other in (None, c.created_at, c.updated_at.desc(), [c.created_at.desc(), c.id]):
        with pytest.raises(ConfigurationError, match="the cursor belongs to another kind or order"):
            await store.episodes.list(order_by=other, cursor=page.cursor)


OUTSIDE = [
    Step.c.action == "x",
    Step.c.episode_id == c.id,
    c.id.in_(select(Step.c.episode_id)),
    exists(select(Step.c.id)),
    exists().where(Step.c.episode_id == c.id),
    c.id == select(Embedding.c.episode_id).limit(1).scalar_subquery(),
]


@pytest.mark.parametrize("number", range(len(OUTSIDE)))
async def test_an_expression_over_another_table_is_refused(number: int, store: MemoryStore) -> None:
    where = OUTSIDE[number]
    with pytest.raises(ConfigurationError, match="it may only read episodes"):
        await store.episodes.list(where)
    with pytest.raises(ConfigurationError, match="it may only read episodes"):
        await store.episodes.count(where)
    with pytest.raises(ConfigurationError, match="it may only read episodes"):
        await store.episodes.list(order_by=where)


@pytest.mark.parametrize("wrong", [text("1 = 1"), "domain = 'web'", True, {"domain": "web"}, lambda: True])
async def test_text_is_no_expression(wrong: object, store: MemoryStore) -> None:
    with pytest.raises(TypeError, match=r"must be an expression over Episode\.c"):
        await store.episodes.list(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be an expression over Episode\.c"):
        await store.episodes.count(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"order_by must be an expression over Episode\.c"):
        await store.episodes.list(order_by=wrong)


ESCAPES = [
    and_(c.id != "", text("1 = 1) OR (1 = 1")),
    and_(c.id != "", text("1 = 1)) OR ((1 = 1")),
    and_(c.id != "", literal_column("1) OR (1")),
    literal_column("1) OR (1"),
    c.id.op(") OR 1 = 1 OR (id = ")("x"),
    c.id.op("IS NOT NULL OR")(1),
    c.id.op("= 'x') OR 1 = 1 --")(1),
    c.id.op("/*")("*/ 1) OR (1"),
    func.abs(literal_column("1) OR (1")),
    getattr(func, "abs(1)) OR (abs")(1),
    c.domain == bindparam("namespace_", "web"),
    c.namespace == "other",
    or_(c.namespace == "other", c.id != ""),
]


@pytest.mark.parametrize("number", range(len(ESCAPES)))
async def test_no_expression_reaches_another_namespace(number: int, store: MemoryStore) -> None:
    """Refusing is fine, showing a foreign record is not."""
    await store.namespace("other").episodes.put(make_episode(id="theirs"))
    await store.namespace("web").episodes.put(make_episode(id="theirs", domain="web"))
    await store.episodes.put(make_episode(id="ours"))
    for asked in ({"where": ESCAPES[number]}, {"order_by": ESCAPES[number]}):
        seen: list[str] = []
        with contextlib.suppress(ConfigurationError, TypeError, DurableError):
            seen = [record.id for record in (await store.episodes.list(**asked)).items]
        assert "theirs" not in seen


async def test_a_naive_time_in_a_filter_is_refused(store: MemoryStore) -> None:
    with pytest.raises(InvalidRecordError, match="has no timezone"):
        await store.episodes.list(c.created_at > datetime(2026, 11, 21))
