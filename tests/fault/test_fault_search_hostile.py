"""Queries, vectors and rows that nobody expects: told in words or answered, and never in the way of all else."""

from __future__ import annotations

import contextlib
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memory_store import ConfigurationError, Embedding, MemoryStore, QuerySyntaxError, Step
from memory_store.embedders import FunctionEmbedder
from memory_store.text.queries import Expression, parse_query
from tests.fault.support import database
from tests.unit.samples import make_embedding, make_episode

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


@pytest.mark.parametrize("syntax", ["plain", "expert"])
@pytest.mark.parametrize("query", ["\ud800 login", "login\udfff", "login \0", "login '; DROP TABLE documents; --"])
async def test_a_query_is_text_even_where_it_is_none(store: MemoryStore, query: str, syntax: Any) -> None:
    await store.episodes.put(make_episode(id="e", context="login drop table documents"))
    for mode in ("text", "hybrid"):
        for _ in range(2):  # searched, then remembered
            found = await store.search(query.replace("\0", "x"), mode=mode)  # type: ignore[arg-type]
            assert [hit.id for hit in found] == ["e"]
    if syntax == "expert":
        with contextlib.suppress(QuerySyntaxError):
            await store.search(query, syntax=syntax, mode="text")
    else:
        assert [hit.id for hit in await store.search(query, mode="text")] == ["e"]


async def test_expert_queries_say_what_they_say_however_deep(store: MemoryStore) -> None:
    """Random expressions against one that is evaluated by hand, up to the deepest and longest there are."""
    seeded = random.Random(11)
    documents = {f"e{number:02}": [seeded.choice(WORDS) for _ in range(seeded.randrange(1, 6))] for number in range(40)}
    await store.episodes.put_many(make_episode(id=id_, context=" ".join(words)) for id_, words in documents.items())
    for _ in range(60):
        query = random_query(seeded, seeded.randrange(1, 12))
        found = await store.search(query, syntax="expert", mode="text", kinds="episode", limit=100)
        expression = parse_query(query)
        expected = {id_ for id_, words in documents.items() if is_met(expression, ["web", "debug", *words])}
        assert {hit.id for hit in found} <= expected, query
        assert expected == {hit.id for hit in found}, query
    deepest = "".join("alpha OR beta AND gamma NOT (" for _ in range(12)) + "alpha beta" + ")" * 12
    longest = " OR ".join(["alpha"] * 64)
    for query in (deepest, longest, "(" * 12 + longest + ")" * 12, " NOT ".join(["alpha"] * 64)):
        await store.search(query, syntax="expert", mode="text")


def random_query(seeded: random.Random, terms: int, depth: int = 0) -> str:
    """An expression of so many words, and phrases of them, with parentheses."""
    if terms == 1:
        word = seeded.choice(WORDS)
        return seeded.choice([word, word, f'"{word} {seeded.choice(WORDS)}"', f"{word[:2]}*"])
    left = seeded.randrange(1, terms)
    operator = seeded.choice([" AND ", " OR ", " NOT ", " "])
    said = operator.join(random_query(seeded, n, depth + 1) for n in (left, terms - left))
    return f"({said})" if depth < 11 and seeded.random() < 0.6 else said


def is_met(expression: Expression, words: list[str]) -> bool:
    """Whether a document of these words, in this order, is what an expression describes."""
    if expression.operator == "phrase":
        said = expression.terms
        return any(
            all(
                held.startswith(term[:-1]) if term.endswith("*") else held == term
                for held, term in zip(words[start : start + len(said)], said, strict=True)
            )
            for start in range(len(words) - len(said) + 1)
        )
    left, right = (is_met(side, words) for side in expression.sides)
    return {"and": left and right, "or": left or right, "not": left and not right}[expression.operator]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"vector": ["a"]}, TypeError, "vector must hold numbers"),
        ({"vector": 5}, TypeError, "vector must hold numbers"),
        ({"vector": [10**400]}, TypeError, "vector must hold numbers"),
        ({"vector": [0.0, float("nan")]}, ConfigurationError, "finite numbers of 32 bits, that at 1 is nan"),
        ({"vector": [1e39]}, ConfigurationError, r"finite numbers of 32 bits, that at 0 is 1e\+39"),
        ({"vector": [1.0]}, ConfigurationError, "the store has no model"),
        ({"model": "m"}, ConfigurationError, "give a vector with it"),
        ({"mode": "vector"}, ConfigurationError, "needs a model"),
    ],
)
async def test_vectors_that_are_none_are_told(
    file_store: MemoryStore, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    await file_store.episodes.put(make_episode(id="e"))
    await file_store.embeddings.put(make_embedding("e"))
    with pytest.raises(error, match=match):
        await file_store.search("x", **options)
    with pytest.raises(error, match=match):
        await file_store.recall("x", **options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"at": "today"}, TypeError, "at must be a datetime"),
        ({"at": datetime(2026, 1, 1)}, ConfigurationError, "has no timezone"),
        ({"limit": "x"}, TypeError, "limit must be an int"),
        ({"limit": -1}, ConfigurationError, "limit must be 1 to 1,000"),
        ({"where": Step.c.success.is_(True)}, ConfigurationError, "where says something of step"),
        ({"where": "x"}, TypeError, "where must be an expression"),
        ({"diversity": 2}, ConfigurationError, "diversity must lie between 0 and 1"),
        ({"mode": "magic"}, ConfigurationError, "mode must be one of"),
    ],
)
async def test_a_recall_checks_all_before_it_makes_use_of_any(
    file_store: MemoryStore, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    await file_store.episodes.put(make_episode(id="e"))
    with pytest.raises(error, match=match):
        await file_store.recall("x", **options)


@pytest.mark.parametrize("at", [datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
async def test_the_first_and_the_last_moment(store: MemoryStore, at: datetime) -> None:
    await store.episodes.put(make_episode(id="e", context="login", created_at=at))
    assert [hit.id for hit in await store.search("login", at=at)] == ["e"]
    assert [hit.id for hit in await store.recall("login", at=at, explain=True)] == ["e"]
    assert [hit.id for hit in await store.recall("login", domain="web", task_type="debugging", at=at)] == ["e"]


DAMAGED = {
    "no JSON": "context = 'not json login'",
    "JSON too deep": "context = replace(hex(zeroblob(1000)), '0', '[') || replace(hex(zeroblob(1000)), '0', ']')",
    "a number too long": "context = '[' || replace(hex(zeroblob(3000)), '0', '1') || ']'",
    "bytes for JSON": "context = x'ff00'",
    "bytes for text": "reflection = x'ff00'",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
async def test_a_damaged_row_is_not_in_the_way_of_others(file_url: str, tmp_path: Path, damage: str) -> None:
    async with MemoryStore(file_url, staleness_s=0) as store:
        await store.episodes.put_many([make_episode(id=id_, context="login") for id_ in ("a", "b", "c")])
        assert len(await store.search("login", mode="text")) == 3
        with database(tmp_path / "agent.db") as connection:
            connection.execute(f"UPDATE episodes SET {damage} WHERE id = 'b'")
        assert {"a", "c"} <= {hit.id for hit in await store.search("login", mode="text")} <= {"a", "b", "c"}
        assert (await store.search("login", mode="text")).complete
        await store.reindex()
        await store.episodes.put(make_episode(id="d", context="login"))
        assert {"a", "c", "d"} <= {hit.id for hit in await store.search("login", mode="text")}
        with database(tmp_path / "agent.db") as connection:
            connection.execute("UPDATE episodes SET context = '\"login\"', reflection = NULL WHERE id = 'b'")
        assert {hit.id for hit in await store.search("login", mode="text")} == {"a", "b", "c", "d"}


@pytest.mark.parametrize("damage", ["x'00'", "x''", "'text'", "x'0000807f0000807f'", "x'0000c07f0000803f'"])
@pytest.mark.parametrize("when", ["before it is first searched", "while it is followed"])
async def test_a_damaged_vector_is_not_in_the_way_of_others(
    file_url: str, tmp_path: Path, damage: str, when: str
) -> None:
    async with MemoryStore(file_url, staleness_s=0) as store:
        await store.episodes.put(make_episode(id="e"))
        vectors = {"a": [1.0, 0.0], "b": [0.9, 0.1], "c": [0.0, 1.0]}
        for id_, vector in vectors.items():
            await store.embeddings.put(
                Embedding(id=id_, episode_id="e", content=id_, embedding=vector, model_name="m", vector_dim=2)
            )

        async def nearest() -> list[str]:
            found = await store.search("x", mode="vector", kinds="embedding", vector=[1.0, 0.0], model="m")
            return [hit.id for hit in found]

        if when.startswith("while"):
            assert await nearest() == ["a", "b", "c"]
        with database(tmp_path / "agent.db") as connection:
            connection.execute(f"UPDATE embeddings SET embedding = {damage} WHERE id = 'b'")
        assert await nearest() == ["a", "c"]
        with database(tmp_path / "agent.db") as connection:
            connection.execute("UPDATE embeddings SET embedding = x'0000803f0000803f' WHERE id = 'b'")
        assert await nearest() == ["a", "b", "c"]


@pytest.mark.parametrize("query", ["\ud800 login", "log\udfffin login", "login\udfff"])
@pytest.mark.parametrize("mode", ["text", "hybrid", "vector"])
async def test_a_query_that_no_model_can_be_sent_is_answered_as_by_text(url: str, query: str, mode: Any) -> None:
    """Half a surrogate pair, as cut-off text has: no part of a word, and no reason to fail with a model."""
    given: list[str] = []

    async def embed(texts: list[str]) -> list[list[float]]:
        given.extend(text.encode().decode() for text in texts)
        return [[1.0, float("login" in text)] for text in texts]

    async def rerank(asked: str, texts: list[str]) -> list[float]:
        given.append(asked.encode().decode())
        return [1.0 for _ in texts]

    async with MemoryStore(url, embed=FunctionEmbedder(embed, "toy"), rerank=rerank) as store:
        await store.episodes.put(make_episode(id="e", context="login"))
        await store.embeddings.add("e", "login")
        found = await store.search(query, mode=mode, kinds="episode")
        assert [hit.id for hit in found] == ["e"]
        assert [hit.id for hit in await store.recall(query, mode=mode)] == ["e"]
    assert query.replace("\ud800", " ").replace("\udfff", " ") in given
