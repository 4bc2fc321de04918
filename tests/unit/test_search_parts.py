"""The parts of a search, each alone: excerpts, fusion, diversity, pages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import ConfigurationError
from memory_store.records import RECORDS
from memory_store.search.diversity import choose_diverse, diversity_of
from memory_store.search.fusion import fuse, vector_weight
from memory_store.search.highlights import highlight
from memory_store.search.results import Place, continued, ordered, read_cursor, write_cursor
from memory_store.text.documents import searched_text
from memory_store.text.terms import terms_of

WORDS = st.sampled_from(["lantern", "Harbour", "getUserName", "naïve", "编写代码", "x", "-", "\n", "0", "connections"])
TEXTS = st.lists(WORDS, max_size=200).map(" ".join) | st.text(max_size=300)


def row_of(reflection: str) -> list[object]:
    """The stored row of an episode that says this and nothing else."""
    row: list[object] = [None] * len(RECORDS["episode"].columns)
    row[RECORDS["episode"].index("reflection")] = reflection
    return row


@given(text=TEXTS, query=st.lists(WORDS, min_size=1, max_size=4).map(" ".join))
def test_an_excerpt_is_of_the_text_and_its_spans_are_words_of_the_query(text: str, query: str) -> None:
    terms = frozenset(terms_of(query))
    found = highlight("episode", row_of(text), terms)
    assert bool(found) == (not terms.isdisjoint(terms_of(searched_text(text))))
    for one in found:
        assert one.field == "reflection"
        assert one.text in searched_text(text)
        assert one.spans, "an excerpt is where something was found"
        ends = [0]
        for start, end in one.spans:
            assert ends[-1] <= start < end <= len(one.text)
            assert not terms.isdisjoint(terms_of(one.text[start:end]))
            ends.append(end)
        assert one.marked("", "") == one.text


@given(text=TEXTS)
def test_a_prefix_marks_what_begins_with_it(text: str) -> None:
    for one in highlight("episode", row_of(text), frozenset({"lan*"})):
        assert {one.text[start:end] for start, end in one.spans} == {"lantern"}


def test_the_excerpt_is_where_most_words_stand_close_together() -> None:
    text = "lantern " + "nothing here " * 60 + "the harbour lantern and the lantern of the harbour " + "again " * 100
    [one] = highlight("episode", row_of(text), frozenset(terms_of("lantern harbour")))
    assert one.marked("[", "]").count("[") == 4
    assert len(one.text) <= 200


@pytest.mark.parametrize("word", ["a" * 500, "编" * 500])
def test_a_word_longer_than_an_excerpt_is_shown_whole(word: str) -> None:
    [one] = highlight("episode", row_of(f"some {word} more"), frozenset(terms_of(word)))
    [(start, end)] = one.spans
    assert one.text[start:end] == word


RANKED = st.lists(st.integers(0, 30), unique=True, max_size=20)


@given(by_text=RANKED, by_vector=RANKED, weight=st.floats(0, 1))
def test_fusion_ranks_what_either_part_found(by_text: list[int], by_vector: list[int], weight: float) -> None:
    scores = fuse(by_text, by_vector, weight)
    assert set(scores) == {*by_text, *by_vector}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert all(0 <= score <= 1 + 1e-12 for score in scores.values())
    if by_text and by_vector and by_text[0] == by_vector[0]:
        assert scores[by_text[0]] == pytest.approx(1)
    for better, worse in itertools.pairwise(by_text):
        if better not in by_vector and worse not in by_vector:
            assert scores[better] >= scores[worse]


@given(weight=st.floats(0, 1), terms=st.integers(0, 64))
def test_the_share_of_vectors_grows_with_the_query(weight: float, terms: int) -> None:
    share = vector_weight(weight, terms)
    assert 0 <= share <= 1
    assert share >= weight - 1e-12
    assert vector_weight(weight, terms + 1) >= share - 1e-12
    assert vector_weight(weight, 8) == pytest.approx(weight)


@given(seed=st.integers(0, 1000), count=st.integers(1, 30), limit=st.integers(1, 40), goal=st.floats(0, 1))
def test_diversity_chooses_so_many_and_tells_what_it_reached(seed: int, count: int, limit: int, goal: float) -> None:
    numbers = np.random.default_rng(seed)
    vectors = numbers.random((count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = np.clip(vectors @ vectors.T, 0, 1)
    relevance = sorted(numbers.random(count).tolist(), reverse=True)
    chosen, reached = choose_diverse(relevance, similarity, limit, goal)
    assert len(chosen) == len(set(chosen)) == min(limit, count)
    assert set(chosen) <= set(range(count))
    assert -1e-6 <= reached <= 1
    assert reached == diversity_of(similarity, chosen)
    pairs = [(a, b) for place, a in enumerate(chosen) for b in chosen[place + 1 :]]
    if pairs:
        mean = sum(float(similarity[a, b]) for a, b in pairs) / len(pairs)
        assert reached == pytest.approx(1 - mean, abs=1e-5)
    if goal == 0:
        assert chosen[0] == 0, "the most relevant"


def test_of_things_that_are_alike_one_is_chosen_first() -> None:
    similarity = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=np.float32)
    assert choose_diverse([1.0, 0.9, 0.1], similarity, 2, 0.5) == ([0, 2], 1.0)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 10))
def test_where_all_are_taken_they_stay_in_the_order_of_the_first_lambda(seed: int, count: int) -> None:
    """Their diversity is the same for every lambda, but for what is rounded."""
    numbers = np.random.default_rng(seed)
    vectors = numbers.random((count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = np.clip(vectors @ vectors.T, 0, 1)
    relevance = sorted(numbers.random(count).tolist(), reverse=True)
    wanted, _ = choose_diverse(relevance, similarity, count, 0.0)
    assert choose_diverse(relevance, similarity, count, 1.0)[0] == wanted


HITS = st.lists(st.tuples(st.sampled_from([1.0, 0.5, 0.25]), st.just("episode"), st.text(max_size=3)), max_size=30)


@given(hits=HITS, size=st.integers(1, 7))
def test_pages_lead_through_all_hits_in_order(hits: list[tuple[float, str, str]], size: int) -> None:
    ranked = ordered(list({hit[2]: hit for hit in hits}.values()))
    assert [hit[0] for hit in ranked] == sorted((hit[0] for hit in ranked), reverse=True)
    shown: list[tuple[float, str, str]] = []
    start = 0
    while start < len(ranked):
        page = ranked[start : start + size]
        shown += page
        start = continued(ranked, Place(start + len(page), *page[-1][1:]))
    assert shown == ranked


@given(hits=HITS, gone=st.sets(st.integers(0, 29)), size=st.integers(1, 10))
def test_a_hit_is_rather_shown_twice_than_not_at_all(
    hits: list[tuple[float, str, str]], gone: set[int], size: int
) -> None:
    """Whatever of the first page has gone meanwhile, and one more behind it at most."""
    ranked = ordered(list({hit[2]: hit for hit in hits}.values()))
    page = ranked[:size]
    if not page:
        return
    place = Place(len(page), *page[-1][1:])
    kept = [hit for number, hit in enumerate(ranked) if number not in gone or number >= size - 1]
    assert set(kept) - set(page) <= set(kept[continued(kept, place) :])
    without_last = [hit for hit in ranked if hit != page[-1]]
    assert set(ranked) - set(page) <= set(without_last[continued(without_last, place) :])


@given(place=st.builds(Place, st.integers(1, 10**6), st.sampled_from(["episode", "step"]), st.text(max_size=20)))
def test_a_cursor_is_read_as_it_was_written(place: Place) -> None:
    if not place.id.isprintable():
        return
    assert read_cursor(b"query", write_cursor(b"query", place)) == place
    with pytest.raises(ConfigurationError, match="another search"):
        read_cursor(b"another", write_cursor(b"query", place))


@given(cursor=st.text(max_size=60))
def test_what_is_no_cursor_is_told(cursor: str) -> None:
    with pytest.raises(ConfigurationError, match="cursor"):
        read_cursor(b"query", cursor)
