"""Ranking by BM25: what the bounded reading of postings returns is what ranking every document does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.durable.text_index import Condition, Posting
from memory_store.search import fulltext
from memory_store.search.fulltext import Corpus, rank_documents

EVERY = Condition("d.namespace = ? AND d.kind = ?", ["n", "episode"], None)


class Shelf:
    """A full-text index of documents in memory, key by key, as simple as it can be."""

    def __init__(self, documents: Sequence[Sequence[str]], meets: Sequence[int] | None = None) -> None:
        self.documents = {key: list(terms) for key, terms in enumerate(documents, 1)}
        self.met = set(self.documents if meets is None else meets)
        self.read = 0

    @property
    def corpus(self) -> Corpus:
        lengths = [len(terms) for terms in self.documents.values()]
        return Corpus("corpus", "n", len(lengths), sum(lengths) / max(1, len(lengths)), {})

    def frequencies(self, corpus: str, terms: Sequence[str], namespace: str, documents: int) -> list[int]:
        return [sum(term in held for held in self.documents.values()) for term in terms]

    def postings(self, corpus: str, term: str, condition: Condition, limit: int) -> list[Posting]:
        found = [
            (key, held.count(term), len(held))
            for key, held in self.documents.items()
            if term in held and (key in self.met or condition.ids is None)
        ][:limit]
        self.read += len(found)
        return found

    def matching(self, corpus: str, terms: Sequence[str], condition: Condition, limit: int) -> list[int]:
        newest = sorted(self.met, reverse=True)
        return [key for key in newest if not set(terms).isdisjoint(self.documents[key])][:limit]

    def meeting(self, condition: Condition, limit: int) -> list[int]:
        return sorted(self.met)[:limit]

    def counts(
        self, namespace: str, keys: Sequence[int], corpus: str, terms: Sequence[str]
    ) -> list[tuple[int, int, list[int]]]:
        return [(key, len(self.documents[key]), [self.documents[key].count(term) for term in terms]) for key in keys]


def every_score(shelf: Shelf, terms: Sequence[str]) -> dict[int, float]:
    """BM25 with k1 = 1.2 and b = 0.9 of every document that has one of the terms, by its formula."""
    total, average = len(shelf.documents), shelf.corpus.average
    having = Counter(term for held in shelf.documents.values() for term in set(held))
    scores: dict[int, float] = {}
    for key in shelf.met:
        held = shelf.documents[key]
        for term in set(terms) & set(held):
            count = held.count(term)
            rarity = max(1e-6, math.log((total - having[term] + 0.5) / (having[term] + 0.5)))
            gain = rarity * count * 2.2 / (count + 1.2 * (0.1 + 0.9 * len(held) / average))
            scores[key] = scores.get(key, 0.0) + gain
    return scores


def without_common(shelf: Shelf, terms: Sequence[str]) -> dict[int, float]:
    """The scores without those of nothing but what half of the documents have, or more, unless that is all there is.

    Whether a document is found does not depend on the way it is looked for.
    """
    scores = every_score(shelf, terms)
    rare = {term for term in terms if 2 * sum(term in held for held in shelf.documents.values()) < len(shelf.documents)}
    return {key: score for key, score in scores.items() if rare & set(shelf.documents[key])} or scores


def ranked(shelf: Any, terms: Sequence[str], limit: int) -> list[tuple[int, float]]:
    """What is tested, with scores rounded: sums are made in another order."""
    return [(key, round(score, 9)) for key, score in rank_documents(shelf, shelf.corpus, terms, EVERY, limit)]


def expected(shelf: Shelf, terms: Sequence[str], limit: int) -> list[tuple[int, float]]:
    """What ranking every document gives: best first, the oldest first of equal ones."""
    scores = {key: round(score, 9) for key, score in every_score(shelf, terms).items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:limit]


# What the words that more than half of the documents have add to a score, at most: it is not looked at.
COMMON = 1e-5

WORDS = st.sampled_from([f"w{number}" for number in range(12)])
CORPORA = st.lists(st.lists(WORDS, min_size=1, max_size=8), min_size=1, max_size=60)


@given(documents=CORPORA, terms=st.lists(WORDS, min_size=1, max_size=4, unique=True), limit=st.integers(1, 20))
def test_the_best_are_those_of_ranking_every_document(documents: list[list[str]], terms: list[str], limit: int) -> None:
    shelf = Shelf(documents)
    scores = every_score(shelf, terms)
    found = rank_documents(shelf, shelf.corpus, terms, EVERY, limit)  # type: ignore[arg-type]
    best = sorted((score for score in scores.values() if score > COMMON), reverse=True)[:limit]
    assert [match.score for match in found][: len(best)] == pytest.approx(best, abs=COMMON)
    for match in found:
        assert match.score == pytest.approx(scores[match.key], abs=COMMON)
    assert len({match.key for match in found}) == len(found)


def test_documents_with_two_terms_come_before_more_documents_with_one_than_are_completed() -> None:
    """The second term is never read: whichever of the 1,000 documents also has it must be completed with it."""
    rare, common = ["rare"] * 6, ["x", "y"]
    documents = [[*common, *rare] for _ in range(1000)]
    for place in range(900, 920):
        documents[place] = [*rare, "second", "y"]
    documents += [["second", *common] for _ in range(8000)]
    documents += [["filler", *common] for _ in range(20_000)]
    shelf = Shelf(documents)
    assert ranked(shelf, ["rare", "second"], 20) == expected(shelf, ["rare", "second"], 20)


def test_a_less_rare_word_is_read_while_it_can_still_lift_another_document() -> None:
    documents = [["rare", *["filler"] * 40] for _ in range(20)]
    documents += [["second"] * 8 for _ in range(25)] + [["other", "words"] for _ in range(100)]
    shelf = Shelf(documents)
    assert ranked(shelf, ["rare", "second"], 10) == expected(shelf, ["rare", "second"], 10)
    assert ranked(shelf, ["rare", "second"], 10)[0][0] > 20


def test_of_many_equal_documents_the_oldest_come_first() -> None:
    shelf = Shelf([*[["same", "text"]] * 900, *[["other", "words"]] * 1000])
    assert [key for key, _ in ranked(shelf, ["same"], 5)] == [1, 2, 3, 4, 5]
    assert ranked(shelf, ["same", "text"], 300) == expected(shelf, ["same", "text"], 300)


def test_a_page_is_filled_although_one_rare_word_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too common to be read is looked for among the newest, where the rare words did not find enough."""
    monkeypatch.setattr(fulltext, "_MOST_POSTINGS", 200)
    documents = [["often", "x"] for _ in range(300)] + [["never", "x"] for _ in range(700)]
    documents[150] = ["zebra", "x"]
    shelf = Shelf(documents)
    found = [key for key, _ in ranked(shelf, ["zebra", "often"], 10)]
    assert found == [151, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_common_word_finds_nothing_else_beside_a_rare_one_whether_or_not_few_documents_count() -> None:
    documents = [["the", "x"] for _ in range(10)] + [["zebra", "y"], ["other", "y"]]
    restricted = EVERY._replace(ids=("SELECT id ...", []))  # type: ignore[arg-type]
    cases = [
        (None, EVERY, [11]),
        (None, restricted, [11]),
        ([1, 2, 11], restricted, [11]),
        ([1, 2, 12], restricted, [1, 2]),
    ]
    for meets, condition, keys in cases:
        shelf = Shelf(documents, meets)
        found = rank_documents(shelf, shelf.corpus, ["the", "zebra"], condition, 100)  # type: ignore[arg-type]
        assert [match.key for match in found] == keys


@given(documents=CORPORA, data=st.data())
def test_what_meets_a_condition_is_ranked_and_nothing_else(documents: list[list[str]], data: st.DataObject) -> None:
    met = data.draw(st.lists(st.integers(1, len(documents)), unique=True))
    terms = data.draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))
    shelf = Shelf(documents, met)
    condition = EVERY._replace(ids=("SELECT id ...", []))  # type: ignore[arg-type]
    # By looking at each document, by picking from the postings, by asking each posting, and whichever is least.
    ways = [(0, 0, 500), (0, 10**6, 500), (10**6, 0, 500), (100, 5, 500), (0, 1, 0)]
    for asked, picked, few in ways:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fulltext, "_FEW_POSTINGS", asked)
            patch.setattr(fulltext, "_POSTINGS_A_LOOK", picked)
            patch.setattr(fulltext, "_FEW", few)
            found = rank_documents(shelf, shelf.corpus, terms, condition, 100)  # type: ignore[arg-type]
        scores = without_common(shelf, terms)
        assert {match.key: match.score for match in found} == pytest.approx(scores, abs=COMMON)


@given(documents=CORPORA, terms=st.lists(WORDS, max_size=4))
def test_every_document_with_a_common_word_is_found_where_nothing_is_rare(
    documents: list[list[str]], terms: list[str]
) -> None:
    shelf = Shelf([[*terms, "the"] for terms in documents])
    found = rank_documents(shelf, shelf.corpus, ["the"], EVERY, 1000)  # type: ignore[arg-type]
    assert [match.key for match in found if match.score <= 0] == []
    assert {match.key for match in found} == set(shelf.documents)
    assert rank_documents(shelf, shelf.corpus, [], EVERY, 10) == []  # type: ignore[arg-type]
    assert rank_documents(shelf, shelf.corpus, ["absent"], EVERY, 10) == []  # type: ignore[arg-type]


def test_little_is_read_of_a_word_that_cannot_lift_another_document() -> None:
    documents = [["zebra", "zebra", "zebra", "x"] for _ in range(30)]
    documents += [["often", "x"] for _ in range(4000)] + [["x", "y"] for _ in range(6000)]
    shelf = Shelf(documents)
    assert ranked(shelf, ["zebra", "often"], 10) == expected(shelf, ["zebra", "often"], 10)
    assert shelf.read == 30
