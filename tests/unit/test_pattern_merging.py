"""Which patterns are near-duplicates of which, and what becomes of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import ConflictError, Pattern
from memory_store.patterns.merging import combine, group, merged_into
from memory_store.search.similarity import jaccard, shingles
from tests.unit.samples import make_pattern

START = datetime(2026, 11, 21, tzinfo=UTC)
WORDS = re.findall(
    r"\w+", "when the login test fails look at the clock of the container first and only then at the code"
)


def said(*words: str, **values: Any) -> Pattern:
    """A pattern that says some words."""
    return make_pattern(pattern_data={"hint": " ".join(words)}, **values)


def changed(number: int, word: str = "other", **values: Any) -> Pattern:
    """A pattern with one word of WORDS replaced: 17 of 21 pairs in common, 0.81."""
    return said(*WORDS[:number], word, *WORDS[number + 1 :], **values)


def groups(*patterns: Pattern, threshold: float = 0.8) -> dict[str, set[str]]:
    """Who stays, and who goes with it."""
    return {found.kept.id: set(found.others) for found in group(patterns, threshold)}


def test_the_most_used_one_stays() -> None:
    a, b, c = said(*WORDS, id="a"), changed(5, id="b", usage_count=3), changed(5, "!", id="c", usage_count=1)
    [found] = group([a, b, c, said("something", "else", id="d")], 0.6)
    assert (found.kept, set(found.others)) == (b, {"a", "c"})
    for other, similarity in found.others.values():
        assert similarity == jaccard(shingles(other.pattern_data), shingles(b.pattern_data))


def test_each_is_compared_with_the_one_that_stays() -> None:
    """A chain: the ends have less in common than the threshold, though each has enough with the middle."""
    middle = said(*WORDS, id="middle")
    ends = [changed(3, id="one"), changed(12, id="two")]
    assert jaccard(*(shingles(end.pattern_data) for end in ends)) < 0.8
    assert groups(*ends, middle.recounted(9, 9, None)) == {"middle": {"one", "two"}}
    assert groups(ends[0].recounted(9, 9, None), ends[1], middle) == {"one": {"middle"}}


def test_what_could_go_with_two_goes_with_the_more_similar() -> None:
    text = " ".join(WORDS)
    far = said(text, "one two three four", id="far", usage_count=9)
    near = said(text, "one", id="near", usage_count=8)
    assert groups(far, near, said(text, "one two", id="x"), threshold=0.9) == {"near": {"x"}}
    assert groups(far, near, said(text, "one two three", id="x"), threshold=0.9) == {"far": {"x"}}


def test_types_and_domains_are_kept_apart() -> None:
    assert groups(said("a", "b", id="x"), said("a", "b", id="y", pattern_type="other")) == {}
    assert groups(said("a", "b", id="x"), said("a", "b", id="y", domain="web")) == {}
    assert groups(said("a", "b", id="x", domain="web"), said("a", "B", id="y", domain="web")) == {"x": {"y"}}


def test_what_says_nothing_or_has_no_place_for_a_note_is_left_alone() -> None:
    assert groups(make_pattern(id="x", pattern_data={}), make_pattern(id="y", pattern_data=[])) == {}
    assert groups(said("a", "b", id="x", metadata=[]), said("a", "b", id="y"), said("a", "b", id="z")) == {"y": {"z"}}


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=5), max_size=12), st.randoms())
def test_no_group_depends_on_the_order_or_holds_what_is_less_similar(contents: list[list[str]], seeded: Any) -> None:
    patterns = [
        make_pattern(id=str(number), pattern_data=content, usage_count=number % 3)
        for number, content in enumerate(contents)
    ]
    found = group(patterns, 0.5)
    for one in found:
        for other, similarity in one.others.values():
            assert similarity == jaccard(shingles(one.kept.pattern_data), shingles(other.pattern_data)) >= 0.5
            assert other.usage_count <= one.kept.usage_count
    members = [id_ for one in found for id_ in (one.kept.id, *one.others)]
    assert len(members) == len(set(members))
    shuffled = list(patterns)
    seeded.shuffle(shuffled)
    assert groups(*shuffled, threshold=0.5) == groups(*patterns, threshold=0.5)


def together(kept: Pattern, *others: Pattern) -> Pattern:
    """What becomes of them, none of them changed."""
    return combine({pattern.id: pattern for pattern in (kept, *others)}, kept, others)


def test_counters_are_added_and_the_others_remembered() -> None:
    kept = said("a", "b", id="x", domain=None, metadata={"own": 1}).recounted(10, 9, START)
    first = said("a", "b", id="y").recounted(4, 1, START + timedelta(days=2))
    second = said("a", "b", id="z", metadata={"merged": ["older", "y"]})
    merged = together(kept, first, second)
    assert (merged.usage_count, merged.successes, merged.last_used) == (14, 10, first.last_used)
    assert (merged.success_rate, merged.confidence) == (10 / 14, merged.lower_bound)
    assert merged.metadata == {"own": 1, "merged": ["y", "z", "older"]}
    assert merged_into(merged) == ["y", "z", "older"]
    assert (merged.id, merged.pattern_data) == (kept.id, kept.pattern_data)
    assert together(kept, second).last_used == START


def test_what_was_learned_is_added_as_well() -> None:
    kept = said("a", "b", id="x", metadata={"learned": {"episodes": 3, "successes": 2}}).recounted(5, 3, START)
    other = said("a", "b", id="y", metadata={"learned": {"episodes": 2, "successes": 2}}).recounted(2, 2, START)
    assert together(kept, other).metadata["learned"] == {"episodes": 5, "successes": 4}
    assert together(kept, said("a", "b", id="z")).metadata["learned"] == {"episodes": 3, "successes": 2}


@pytest.mark.parametrize(
    "change", [{"pattern_data": {"hint": "a c"}}, {"domain": "web"}, {"pattern_type": "other"}, {"metadata": []}]
)
@pytest.mark.parametrize("which", [0, 1])
def test_one_that_says_something_else_by_then_is_not_merged(change: dict[str, Any], which: int) -> None:
    seen = [said("a", "b", id="x"), said("a", "b", id="y")]
    stored = list(seen)
    stored[which] = make_pattern(**{"id": seen[which].id, "pattern_data": seen[which].pattern_data} | change)
    with pytest.raises(ConflictError, match=f"pattern '{seen[which].id}' has been changed since"):
        combine({pattern.id: pattern for pattern in seen}, stored[0], stored[1:])


def test_what_was_counted_meanwhile_counts() -> None:
    seen = [said("a", "b", id="x"), said("a", "b", id="y")]
    by_id = {pattern.id: pattern for pattern in seen}
    assert combine(by_id, seen[0].recounted(2, 1, START), [seen[1].recounted(3, 3, START)]).successes == 4


@pytest.mark.parametrize("noted", [None, "x", {"x": 1}, 5])
def test_a_note_that_is_none_names_nobody(noted: Any) -> None:
    assert merged_into(make_pattern(metadata={"merged": noted})) == []
    assert merged_into(make_pattern(metadata={"merged": ["a", 5, None]})) == ["a"]
    assert merged_into(make_pattern(metadata=["merged"])) == []
