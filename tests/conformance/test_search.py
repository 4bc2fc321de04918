"""Searching by text: what is found, what never is, how it is ordered and continued, and that it is up to date."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from memory_store import (
    ConfigurationError,
    Embedding,
    Episode,
    MemoryStore,
    Pattern,
    QuerySyntaxError,
    Step,
)
from memory_store.clock import utc_now
from tests.unit.samples import make_episode

LOG = "Traceback: ConnectionResetError in getUserName() after 3 retries"


async def found(store: MemoryStore, query: str, **options: object) -> list[str]:
    """The ids that a search by text finds, best first."""
    results = await store.search(query, mode="text", **options)  # type: ignore[arg-type]
    assert results.complete
    return [hit.id for hit in results]


@pytest.fixture
async def filled(store: MemoryStore) -> MemoryStore:
    """A record of each searched kind, and the same in another namespace."""
    for name in ("other", store.name):
        space = store.namespace(name) if name == "other" else store
        await space.episodes.put(
            make_episode(
                id="e",
                domain="web",
                task_type="debugging",
                context={"goal": "Fix the login page", "tags": ["Sitzung", 4711]},
                reflection="The session cookie had expired; 使用Python编写代码 helped",
            )
        )
        await space.steps.append("e", [Step(id="s", action="pytest -k login", result=LOG, tool_name="shell")])
        await space.patterns.put(
            Pattern(id="p", pattern_type="error_resolution", pattern_data={"error": "timeout", "fix": "back off"})
        )
        await space.embeddings.put(
            Embedding(id="v", episode_id="e", content="naïve café notes", embedding=[1.0], model_name="m", vector_dim=1)
        )
    return store


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("login", ["e", "s"]),
        ("LOGINS", ["e", "s"]),
        ("get user name", ["s"]),
        ("getUserName", ["s"]),
        ("get_user_name", ["s"]),
        ("connection reset", ["s"]),
        ("4711", ["e"]),
        ("编写", ["e"]),
        ("python", ["e"]),
        ("cafe NAIVE", ["v"]),
        ("expired", ["e"]),
        ("debugging", ["e"]),
        ("shell", ["s"]),
        ("timeouts backing", ["p"]),
        ("goal", []),  # the name of a field
        ("nothing of this", []),
        ("", []),
        ("?!", []),
        ("\0", []),
    ],
)
async def test_words_are_found_whatever_their_form(filled: MemoryStore, query: str, ids: list[str]) -> None:
    assert sorted(await found(filled, query)) == ids


@pytest.mark.parametrize(
    "query", ['"', "a AND", "(", "NOT", "login*", "goal:x", "NEAR(a b)", "^login", "'", "{", "a\\", "-"]
)
async def test_a_query_is_text_whatever_it_looks_like(filled: MemoryStore, query: str) -> None:
    await found(filled, query)
    await found(filled, f"login {query}")
    assert {"e", "s"} <= set(await found(filled, f"{query} login"))


async def test_a_hit_says_what_it_is_and_why(filled: MemoryStore) -> None:
    results = await filled.search("session login", mode="text", kinds=["episode"])
    [hit] = results
    assert (hit.kind, hit.id, len(results), results[0] == hit) == ("episode", "e", 1, True)
    assert hit.record == await filled.episodes.get("e")
    assert hit.score == hit.scores["text"] > 0
    marked = {one.field: one.marked("[", "]") for one in hit.highlights}
    assert marked == {
        "context": "Fix the [login] page\nSitzung\n4711",
        "reflection": "The [session] cookie had expired; 使用Python编写代码 helped",
    }


async def test_kinds_and_conditions(filled: MemoryStore) -> None:
    await filled.episodes.put(make_episode(id="f", domain="cli", context={"goal": "login"}))
    await filled.steps.append("f", [Step(id="t", action="login", success=True)])
    assert set(await found(filled, "login")) == {"e", "s", "f", "t"}
    assert await found(filled, "login", kinds="pattern") == []
    assert set(await found(filled, "login", kinds=["step"])) == {"s", "t"}
    assert await found(filled, "login", where=Episode.c.domain == "web", kinds="episode") == ["e"]
    assert set(await found(filled, "login", where=Episode.c.domain == "web")) == {"e", "s"}, "and what belongs to it"
    assert await found(filled, "login", where=[Episode.c.domain == "cli", Step.c.success.is_(True)]) == ["t"]
    assert await found(filled, "timeout", where=Pattern.c.usage_count > 0) == []
    assert set(await found(filled, "login", where=Episode.c.domain.in_(["web", "cli"]))) == {"e", "s", "f", "t"}
    with pytest.raises(ConfigurationError, match="of which a pattern is no part"):
        await filled.search("login", kinds=["pattern"], where=Episode.c.domain == "web")
    with pytest.raises(ConfigurationError, match="no kind has all of step, pattern"):
        await filled.search("login", where=[Step.c.success.is_(True), Pattern.c.usage_count > 0])


async def test_as_of_a_moment(filled: MemoryStore) -> None:
    then = utc_now()
    await filled.episodes.put(make_episode(id="late", context="login", created_at=then + timedelta(seconds=1)))
    assert "late" in await found(filled, "login")
    assert "late" not in await found(filled, "login", at=then)


async def test_words_are_found_whatever_their_case(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e", context="We use GitHub Actions for PostgreSQL, see HTTPServerError2"))
    for query in ("github", "GITHUB", "GitHub", "postgresql", "httpservererror2", "http server", "hub"):
        hits = await store.search(query, mode="text")
        assert [hit.id for hit in hits] == ["e"], query
        assert "**" in hits[0].highlights[0].marked()
    for query in (
        "github",
        '"use GitHub Actions"',
        "GitHub AND postgresql",
        "postgre*",
        "HTTPServerError2",
        "httpser*",
    ):
        assert await found(store, query, syntax="expert") == ["e"], query
    assert await found(store, '"GitHub PostgreSQL"', syntax="expert") == []


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("login AND page", ["e"]),
        ("login page", ["e"]),
        ("page OR pytest", ["e", "s"]),
        ("login NOT pytest", ["e"]),
        ('"login page"', ["e"]),
        ('"page login"', []),
        ("sess*", ["e"]),
        ('"login pa"*', ["e"]),
        ("(page OR pytest) AND getUserName", ["s"]),
        ("getUser*", ["s"]),
        ("编写代码", ["e"]),
    ],
)
async def test_expert_queries(filled: MemoryStore, query: str, ids: list[str]) -> None:
    assert sorted(await found(filled, query, syntax="expert")) == ids


@pytest.mark.parametrize(
    ("query", "at"),
    [
        ("", 0),
        ("a AND", 5),
        ("AND a", 0),
        ("(a", 0),
        ("a)", 1),
        ('"a', 0),
        ("a NOT", 5),
        ("!!", 0),
        ("( )", 2),
        ("a b" * 70, 210),
    ],
)
async def test_a_malformed_expert_query_is_told(filled: MemoryStore, query: str, at: int) -> None:
    with pytest.raises(QuerySyntaxError, match="the query") as error:
        await filled.search(query, syntax="expert")
    assert (error.value.query, error.value.at) == (query, at)


async def test_what_is_rare_counts_more_and_short_before_long(store: MemoryStore) -> None:
    for number in range(20):
        await store.episodes.put(make_episode(id=f"c{number:02}", context=f"the common word {number} " * 3))
    await store.episodes.put(make_episode(id="rare", context="a zebra among the common"))
    await store.episodes.put(make_episode(id="long", context="a zebra " + "and much else besides " * 30))
    assert (await found(store, "common zebra"))[:2] == ["rare", "long"]
    assert len(await found(store, "common", limit=100)) == 21
    assert len(await found(store, "the", limit=100)) == 21


async def test_pages_go_on_where_the_last_one_ended(store: MemoryStore) -> None:
    for number in range(23):
        await store.episodes.put(make_episode(id=f"e{number:02}", context="lantern " * (1 + number % 4)))
    await store.episodes.put_many(make_episode(id=f"x{number}", context="something else") for number in range(40))
    whole = await found(store, "lantern", limit=50)
    assert len(whole) == 23
    pages, cursor = [], None
    for _ in range(6):
        page = await store.search("lantern", mode="text", limit=5, cursor=cursor)
        pages += [hit.id for hit in page]
        cursor = page.cursor
        if cursor is None:
            break
    assert pages == whole
    first = await store.search("lantern", mode="text", limit=5)
    assert first.cursor is not None
    for query, cursor in (("other", first.cursor), ("lantern", "x"), ("lantern", first.cursor[:-3] + "abc")):
        with pytest.raises(ConfigurationError, match="cursor"):
            await store.search(query, mode="text", limit=5, cursor=cursor)


async def test_every_write_is_found_at_once(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e", context="first"))
    assert await found(store, "first") == ["e"]
    await store.episodes.update("e", context="second")
    assert (await found(store, "first"), await found(store, "second")) == ([], ["e"])
    await store.steps.append("e", [Step(id=f"s{number}", action="third") for number in range(100)])
    assert len(await found(store, "third", limit=200)) == 100, "a bulk load is indexed behind its commit"
    async with store.transaction() as tx:
        await tx.episodes.put(make_episode(id="f", context="fourth"))
        await tx.steps.delete("s0")
    assert await found(store, "fourth") == ["f"]
    assert len(await found(store, "third", limit=200)) == 99
    await store.episodes.delete("e")
    assert await found(store, "third second", limit=200) == []
    await store.episodes.put(make_episode(id="e", context="fifth"))
    assert await found(store, "fifth third") == ["e"]


async def test_another_stores_writes_are_found(url: str) -> None:
    if ":memory:" in url:  # which is each store's own
        async with MemoryStore(url) as one, MemoryStore(url) as two:
            await two.episodes.put(make_episode(id="e", context="shared words"))
            assert (await found(one, "shared"), await found(two, "shared")) == ([], ["e"])
        return
    async with MemoryStore(url, staleness_s=0) as one, MemoryStore(url, staleness_s=0) as two:
        assert await found(one, "shared") == []
        await two.episodes.put_many([make_episode(id=f"e{n}", context="shared words") for n in range(40)])
        assert len(await found(one, "shared", limit=100)) == 40
        await two.episodes.delete("e0")
        assert len(await found(one, "shared", limit=100)) == 39


async def test_an_answer_is_remembered_and_belongs_to_its_caller(filled: MemoryStore) -> None:
    first = await filled.search("login", mode="text", kinds="episode")
    first[0].record.context["goal"] = "spoilt"
    again = await filled.search("login", mode="text", kinds="episode")
    assert again == first
    assert again[0].record.context["goal"] == "Fix the login page"


async def test_a_namespace_never_sees_anothers(filled: MemoryStore) -> None:
    other = filled.namespace("other")
    await other.episodes.put(make_episode(id="secret", context="zanzibar"))
    assert await found(filled, "zanzibar") == []
    assert [hit.id for hit in await other.search("zanzibar")] == ["secret"]
    await filled.episodes.delete("e")
    assert await found(filled, "login") == []
    assert {hit.id for hit in await other.search("login")} == {"e", "s"}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"limit": 0}, ConfigurationError, "limit must be 1 to 1,000, got 0"),
        ({"limit": 1001}, ConfigurationError, "limit must be 1 to 1,000, got 1,001"),
        ({"limit": True}, TypeError, "limit must be an int"),
        ({"mode": "magic"}, ConfigurationError, "mode must be one of hybrid, text, vector"),
        ({"syntax": "sql"}, ConfigurationError, "syntax must be one of plain, expert"),
        ({"kinds": ["spatiotemporal"]}, ConfigurationError, "kinds must be of episode, step, pattern, embedding"),
        ({"kinds": []}, ConfigurationError, "kinds is empty"),
        ({"where": "domain = 'x'"}, TypeError, "where must be an expression"),
        ({"at": "today"}, TypeError, "at must be a datetime"),
        ({"at": utc_now().replace(tzinfo=None)}, ConfigurationError, "has no timezone"),
        ({"cursor": 1}, TypeError, "cursor must be the text"),
    ],
)
async def test_bad_arguments_are_told(
    store: MemoryStore, options: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        await store.search("x", **options)  # type: ignore[arg-type]


async def test_a_query_too_long_is_told_and_a_long_one_is_not(store: MemoryStore) -> None:
    with pytest.raises(TypeError, match="query must be a str"):
        await store.search(b"x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="query has 10,001 characters, the limit is 10,000"):
        await store.search("x" * 10_001)
    await store.episodes.put(make_episode(id="e", context="needle"))
    assert await found(store, "needle " + "hay stack " * 900) == ["e"]


async def test_many_searches_and_writes_at_once(store: MemoryStore) -> None:
    async def write(number: int) -> None:
        await store.episodes.put(make_episode(id=f"e{number}", context=f"parallel {number}"))
        assert f"e{number}" in await found(store, f"{number}", limit=1000)

    await asyncio.gather(*(write(number) for number in range(40)))
    assert len(await found(store, "parallel", limit=1000)) == 40


async def test_what_was_asked_before_is_known_by_its_arguments(url: str) -> None:
    async with MemoryStore(url) as store:
        await store.episodes.put_many(
            [make_episode(id=f"e{n}", domain="web" if n % 2 else "cli", context="lantern") for n in range(6)]
        )

        async def found(**asked: Any) -> set[str]:
            return {hit.id for hit in await store.search("lantern", mode="text", kinds=["episode"], **asked)}

        for domain, ids in (("web", {"e1", "e3", "e5"}), ("cli", {"e0", "e2", "e4"})) * 2:
            assert await found(where=Episode.c.domain == domain) == ids
            assert await found(where=[Episode.c.domain == domain, Episode.c.id.in_(["e0", "e1"])]) == ids & {"e0", "e1"}
            assert await found(where=(Episode.c.domain != domain,)) == {f"e{n}" for n in range(6)} - ids
        assert len(await found(limit=1)) == 1
        with pytest.raises(TypeError, match="limit"):
            await found(limit=True)  # which equals 1
        with pytest.raises(TypeError, match="where"):
            await found(where="domain = 'web'")
