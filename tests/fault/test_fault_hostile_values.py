"""Values, ids and namespaces chosen to break something, against the real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import or_, true

from memory_store import ConfigurationError, Embedding, Episode, InvalidRecordError, MemoryStore, Pattern, Step
from tests.fault.support import database, episode, integrity_problems, log_problems

TEXTS = {
    "empty": "",
    "NUL": "before\0after",
    "only NUL": "\0",
    "astral": "😀🏳️‍🌈\U0001d54f\U0010ffff",
    "control": "".join(map(chr, [*range(1, 32), 127, *range(128, 160)])),
    "line ends": "a\r\nb\rc\u2028d\u2029e\x85f",
    "combining": "e\u0301 \u202eright to left\u202c \ufeff",
    "not characters": "\ufffe\uffff\U0001fffe",
    "megabyte": "0123456789abcdef" * 65536,
    "JSON": '{"a": [1, null], "b": "\\u0000"}',
    "SQL": "'; DROP TABLE episodes;-- %s ? :x \\",
    "number": "1e2",
    "spaces": "  \t ",
}

IDS = [
    "a'b\"c`d",
    "../../etc/passwd",
    "/",
    "\\",
    "100%",
    "_",
    "%",
    "*",
    "?",
    ":id",
    "line\nend",
    "\t",
    " ",
    "ключ/鍵/🔑",
    "é",
    "e\u0301",
    "A",
    "a",
    "1",
    "01",
    "1.0",
    "null",
    "0/1/2",
    "'; DROP TABLE episodes;--",
    "x" * 256,
    "é" * 128,
]


async def read_again(url: str, namespace: str, id_: str) -> tuple[Episode, list[Step]]:
    """Open the store and read from the database, then from the cache; both must agree."""
    async with MemoryStore(url, namespace=namespace, cache_path="") as store:
        found, steps = await store.episodes.get(id_), await store.steps.of(id_)
        assert found is not None
        assert await store.episodes.get(id_) == found
        assert await store.steps.of(id_) == steps
        [listed] = (await store.episodes.list(Episode.c.id == id_)).items
        assert listed == found
    return found, steps


@pytest.mark.parametrize("name", TEXTS)
async def test_hostile_text_comes_back_as_it_was(name: str, file_url: str, tmp_path: Path) -> None:
    value = TEXTS[name]
    context = {"value": value, value[:100]: [value[:100]], "nested": {"a": [{"b": value[:100]}]}}
    async with MemoryStore(file_url) as store:
        put = await store.episodes.put(episode("e", context=context, reflection=value))
        steps = await store.steps.append("e", Step(action=value, result=value))
        vector = Embedding(id="v", episode_id="e", content=value, embedding=[0.0], model_name="own", vector_dim=1)
        await store.embeddings.append("e", vector)
        assert (await store.episodes.get("e")) == put
        assert put.context == context
        assert await store.episodes.count(Episode.c.reflection == value) == 1
    found, found_steps = await read_again(file_url, "default", "e")
    assert found == put
    assert (found.context, found.reflection) == (context, value)
    assert found_steps == steps
    assert (found_steps[0].action, found_steps[0].result) == (value, value)
    async with MemoryStore(file_url) as store:
        [read] = await store.embeddings.of("e")
        assert read.content == value
    assert integrity_problems(tmp_path / "agent.db") == []


@pytest.mark.parametrize("value", [1e2, 1e308, -0.0, 5e-324, 2**63, -(2**63), 2**1000, 0.1, True, None, [], {}, "", 0])
async def test_hostile_json_keeps_value_and_type(value: Any, file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("e", context=value, metadata=[value]))
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=value))
    async with MemoryStore(file_url, cache_path="") as store:
        found, pattern = await store.episodes.get("e"), await store.patterns.get("p")
        assert found is not None
        assert pattern is not None
        for read in (found.context, found.metadata[0], pattern.pattern_data):
            assert read == value
            assert type(read) is type(value)
            assert repr(read) == repr(value)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Step(action="a", result="r" * (1024 * 1024 + 1)), "result"),
        (lambda: Step(action="é" * (512 * 1024 + 1)), "action"),
        (lambda: Step(action="a", tool_name="t" * 257), "tool_name"),
        (lambda: Step(id="é" * 129, action="a"), "id"),
    ],
)
async def test_one_byte_too_many_is_refused_before_anything_is_written(
    make: Any, field: str, file_url: str, tmp_path: Path
) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("e"))
        with pytest.raises(InvalidRecordError) as raised:
            await store.steps.append("e", [Step(action="fine"), make()])
        assert raised.value.field == field
        assert raised.value.size is not None
        assert raised.value.limit is not None
        assert raised.value.size > raised.value.limit
        assert await store.steps.of("e") == []
    assert log_problems(tmp_path / "agent.db") == []


async def test_any_id_works_everywhere(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put_many([episode(id_, context={"id": id_}) for id_ in IDS])
        for id_ in IDS:
            await store.steps.append(id_, [Step(id=id_, action=id_), Step(action="second")])
        assert await store.episodes.count() == len(IDS)
        for id_ in IDS:
            found = await store.episodes.update(id_, expected_revision=1, status="completed")
            assert (found.id, found.context) == (id_, {"id": id_})
    async with MemoryStore(file_url, cache_path="") as store:
        found = await store.episodes.get_many(IDS)
        assert [record and record.context["id"] for record in found] == IDS
        streamed = [record.id async for record in store.episodes.stream()]
        assert streamed == sorted(IDS, key=lambda id_: id_.encode())
        for left, id_ in enumerate(IDS, 1):
            assert [step.action for step in await store.steps.of(id_)] == [id_, "second"]
            step = await store.steps.get(id_)
            assert step is not None
            assert step.episode_id == id_
            assert await store.episodes.delete(id_)
            assert await store.steps.of(id_) == []
            assert await store.episodes.count() == len(IDS) - left
    assert log_problems(tmp_path / "agent.db") == []


async def test_pages_end_at_the_right_place_whatever_the_ids(file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put_many([episode(id_) for id_ in IDS])
        for order in (None, Episode.c.id.desc(), Episode.c.domain, [Episode.c.reward_score.desc(), Episode.c.id]):
            seen: list[str] = []
            cursor = None
            while True:
                page = await store.episodes.list(order_by=order, limit=4, cursor=cursor)
                seen += [record.id for record in page.items]
                cursor = page.cursor
                if cursor is None:
                    break
            assert sorted(seen) == sorted(IDS)


@pytest.mark.parametrize(
    "namespace",
    [
        "",
        " ",
        "a b",
        "a'; DROP TABLE episodes;--",
        'a"b',
        "a%",
        "a*",
        "a?b",
        "a\\b",
        "a\0",
        "a\n",
        "\n",
        "é",
        "\uff41",
        "👤",
        "x" * 201,
        "a;b",
        "(a)",
        "a=b",
    ],
)
async def test_a_namespace_that_is_no_plain_name_is_refused(namespace: str, file_url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        MemoryStore(file_url, namespace=namespace)
    async with MemoryStore(file_url) as store:
        with pytest.raises(ConfigurationError):
            store.namespace(namespace)
        assert await store.episodes.count() == 0


@pytest.mark.parametrize(
    "namespace", ["../../etc", "/etc/passwd", "..", ".", "/", "-", "--", "a:b", "x" * 200, "sqlite:"]
)
async def test_a_namespace_that_looks_like_a_path_is_only_a_name(namespace: str, file_url: str, tmp_path: Path) -> None:
    before = {path for path in tmp_path.parent.rglob("*") if not path.is_relative_to(tmp_path)}
    async with MemoryStore(file_url, namespace=namespace) as store:
        await store.episodes.put(episode("e"))
        await store.steps.append("e", Step(action="a"))
        await store.cache.save()
    found, steps = await read_again(file_url, namespace, "e")
    assert (found.id, len(steps)) == ("e", 1)
    assert {path for path in tmp_path.parent.rglob("*") if not path.is_relative_to(tmp_path)} == before
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"agent.db", "agent.db.cache"}
    with database(tmp_path / "agent.db") as connection:
        assert connection.execute("SELECT DISTINCT namespace FROM episodes").fetchall() == [(namespace,)]


NEIGHBOURS = ["a", "a/b", "a/", "a//b", "ab", "a/b/c", "A", "a.b", "a:b", "0", "0/a", "1/a"]


@pytest.fixture
async def neighbours(file_url: str) -> AsyncIterator[MemoryStore]:
    """Namespaces that begin alike or hold the separators of cache keys, with the same ids in each."""
    async with MemoryStore(file_url, namespace=NEIGHBOURS[0]) as store:
        for name in NEIGHBOURS:
            space = store.namespace(name)
            for id_ in ("e", "b/e", f"only in {name}"):
                await space.episodes.put(episode(id_, domain=name))
                await space.steps.append(id_, Step(id=f"s {id_}", action=name))
            await space.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=name, domain=name))
        yield store


async def test_no_way_to_read_leads_into_another_namespace(neighbours: MemoryStore) -> None:
    for cached in (True, False):
        for name in NEIGHBOURS:
            space = neighbours.namespace(name)
            everything = or_(true(), Episode.c.namespace != name, Episode.c.id == "e")
            mine = {"e", "b/e", f"only in {name}"}
            for where in (None, everything, everything | everything):
                assert {(r.id, r.domain) for r in (await space.episodes.list(where)).items} == {(i, name) for i in mine}
                assert {r.id async for r in space.episodes.stream(where)} == mine
                assert await space.episodes.count(where) == 3
            for other in NEIGHBOURS:
                theirs = f"only in {other}"
                found = await space.episodes.get_many(["e", theirs])
                assert [r and r.domain for r in found] == [name, name if other == name else None]
                assert [step.action for step in await space.steps.of(theirs)] == [name] * (other == name)
                assert (await space.steps.get(f"s {theirs}") is None) == (other != name)
            pattern = await space.patterns.get("p")
            assert pattern is not None
            assert pattern.domain == name
        if cached:
            await neighbours.cache.clear()


async def test_a_cursor_of_another_namespace_shows_only_ones_own(neighbours: MemoryStore) -> None:
    foreign = await neighbours.namespace("a/b").episodes.list(order_by=Episode.c.domain, limit=1)
    assert foreign.cursor is not None
    for name in NEIGHBOURS:
        page = await neighbours.namespace(name).episodes.list(order_by=Episode.c.domain, cursor=foreign.cursor)
        assert {record.domain for record in page.items} <= {name}


async def test_no_way_to_write_leads_into_another_namespace(neighbours: MemoryStore, tmp_path: Path) -> None:
    writer = neighbours.namespace("a/b")
    await writer.episodes.update("e", status="failed")
    await writer.episodes.put(episode("b/e", status="failed", domain="a/b"))
    assert await writer.episodes.delete("only in a") is False
    assert await writer.episodes.delete("only in a/b") is True
    await writer.steps.append("e", Step(action="more"))
    async with neighbours.namespace("ab").transaction() as tx:
        await tx.episodes.update("e", status="completed")
        assert await tx.episodes.get("only in a") is None
        assert await tx.episodes.count() == 3
    for name in NEIGHBOURS:
        space = neighbours.namespace(name)
        found = await space.episodes.get("e")
        assert found is not None
        assert found.status == {"a/b": "failed", "ab": "completed"}.get(name, "active")
        assert await space.episodes.count() == (2 if name == "a/b" else 3)
        assert len(await space.steps.of("e")) == (2 if name == "a/b" else 1)
    assert log_problems(tmp_path / "agent.db") == []


@pytest.mark.parametrize(
    "cursor", ["", "x", "!!!", "é", "AAAA", "a" * 10_000, "kwA", "' OR 1=1 --", "\0"], ids=lambda c: repr(c)[:12]
)
async def test_a_forged_cursor_is_refused(cursor: str, neighbours: MemoryStore) -> None:
    with pytest.raises(ConfigurationError):
        await neighbours.episodes.list(cursor=cursor)
