"""Which tool sequences several episodes have in common, and what they add to a pattern's counters."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import ConfigurationError, InvalidRecordError
from memory_store.patterns.learning import Evidence, Mining, ToolSequence, Trace, closed_sequences, with_evidence
from tests.unit.samples import make_episode, make_pattern

START = datetime(2026, 11, 21, tzinfo=UTC)


def trace(tools: str, success: bool = True, day: int = 0, domain: str = "web") -> Trace:
    """The trace of an episode that called these tools, one a letter."""
    return Trace(domain, success, START + timedelta(days=day), list(tools))


def found(*traces: Trace, support: int = 2, shortest: int = 2, longest: int = 5) -> dict[str, Evidence]:
    """The closed sequences by their letters; of one domain."""
    sequences = closed_sequences(traces, Mining(support, shortest, longest))
    return {"".join(sequence.tools): evidence for sequence, evidence in sequences.items()}


def test_a_sequence_that_occurs_often_enough_is_found_with_what_came_of_it() -> None:
    assert found(trace("abc", True, 1), trace("xabc", False, 3), trace("abcx", True, 2)) == {
        "abc": Evidence(3, 2, START + timedelta(days=3))
    }


def test_a_shorter_sequence_is_left_out_unless_it_occurs_in_more_episodes() -> None:
    assert found(trace("abc"), trace("abc")).keys() == {"abc"}
    assert found(trace("abc"), trace("abc"), trace("ab")).keys() == {"abc", "ab"}


def test_repetitions_are_one_call_and_an_episode_counts_once() -> None:
    assert found(trace("aaabbb"), trace("ab")) == {"ab": Evidence(2, 2, START)}
    assert found(trace("abab"), trace("a"), support=1, longest=2)["ab"].episodes == 1


def test_what_stands_between_two_tools_parts_them() -> None:
    assert found(trace("axb"), trace("ayb")) == {}


def test_domains_are_kept_apart() -> None:
    traces = [trace("ab"), trace("ab", domain="cli"), trace("ab", domain="cli")]
    assert closed_sequences(traces, Mining(2, 2, 5)).keys() == {ToolSequence("cli", ("a", "b"))}


def test_lengths() -> None:
    traces = [trace("abcdefg")] * 2
    assert found(*traces, longest=3).keys() == {"abc", "bcd", "cde", "def", "efg"}
    assert found(*traces, longest=32).keys() == {"abcdefg"}
    assert found(trace("a"), trace("a"), shortest=1).keys() == {"a"}
    assert found(trace("a"), trace("a")) == {}
    assert found() == {}


few_traces = st.lists(
    st.builds(trace, st.text("abc", max_size=8), st.booleans(), st.integers(0, 9), st.sampled_from(["web", "cli"])),
    max_size=8,
)


@given(few_traces, st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_against_the_definition(traces: list[Trace], support: int, shortest: int, more: int) -> None:
    def occurs(tools: tuple[str, ...], inside: Any) -> bool:
        once = tuple(tool for tool, _ in groupby(inside))
        return any(once[start : start + len(tools)] == tools for start in range(len(once)))

    def evidence(sequence: ToolSequence) -> Evidence | None:
        theirs = [t for t in traces if t.domain == sequence.domain and occurs(sequence.tools, t.tools)]
        if len(theirs) < support:
            return None
        return Evidence(len(theirs), sum(t.success for t in theirs), max(t.at for t in theirs))

    longest = shortest + more
    letters = [("a",), ("b",), ("c",)]
    words: set[tuple[str, ...]] = {()}
    every: dict[ToolSequence, Evidence] = {}
    for length in range(1, longest + 1):
        words = {(*word, *letter) for word in words for letter in letters}
        for word in words if length >= shortest else ():
            for domain in ("web", "cli"):
                known = evidence(ToolSequence(domain, word))
                if known is not None:
                    every[ToolSequence(domain, word)] = known
    closed = {
        sequence: own
        for sequence, own in every.items()
        if not any(
            len(longer.tools) > len(sequence.tools)
            and longer.domain == sequence.domain
            and occurs(sequence.tools, longer.tools)
            and theirs.episodes == own.episodes
            for longer, theirs in every.items()
        )
    }
    assert closed_sequences(traces, Mining(support, shortest, longest)) == closed


@pytest.mark.parametrize(
    ("mining", "word"),
    [
        (Mining(0, 2, 5), "min_support"),
        (Mining(3, 0, 5), "min_length"),
        (Mining(3, 4, 3), "max_length"),
        (Mining(3, 2, 33), "max_length"),
        (Mining(True, 2, 5), "min_support"),
        (Mining(3, 2.0, 5), "min_length"),  # type: ignore[arg-type]
    ],
)
def test_numbers_out_of_range_are_refused(mining: Mining, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        mining.check()
    assert Mining(3, 2, 32).check() == Mining(3, 2, 32)


def test_only_episodes_with_a_verdict_have_a_trace() -> None:
    ended = START + timedelta(hours=1)
    assert Trace.of(make_episode(status="completed", created_at=START)) == Trace("web", True, START, [])
    assert Trace.of(make_episode(status="failed", completed_at=ended)) == Trace("web", False, ended, [])
    assert Trace.of(make_episode()) is None
    assert Trace.of(make_episode(status="archived")) is None


def test_what_was_learned_replaces_what_was_learned_before_and_nothing_else() -> None:
    used = make_pattern(metadata={"own": 1}).recounted(10, 5, START)
    learned = with_evidence(Evidence(4, 3, START + timedelta(days=1)), used)
    assert (learned.usage_count, learned.successes, learned.last_used) == (14, 8, START + timedelta(days=1))
    assert learned.metadata == {"own": 1, "learned": {"episodes": 4, "successes": 3}}
    assert learned.confidence == learned.lower_bound
    assert with_evidence(Evidence(4, 3, START), learned) is learned, "nothing is to be written"
    again = with_evidence(Evidence(6, 3, START), learned.recounted(15, 9, None))
    assert (again.usage_count, again.successes) == (11 + 6, 6 + 3)
    assert again.metadata == {"own": 1, "learned": {"episodes": 6, "successes": 3}}


@pytest.mark.parametrize("noted", [None, 5, {}, {"episodes": 3}, {"episodes": 2, "successes": 3}, {"episodes": "x"}])
def test_what_somebody_made_of_the_note_counts_as_nothing(noted: Any) -> None:
    pattern = make_pattern(metadata={"learned": noted}).recounted(3, 3, None)
    assert with_evidence(Evidence(2, 0, START), pattern).usage_count == 5


def test_counters_that_somebody_lowered_never_go_below_the_evidence() -> None:
    learned = with_evidence(Evidence(8, 8, START), make_pattern())
    lowered = replace(learned, usage_count=3, success_rate=0.0)
    again = with_evidence(Evidence(9, 7, START), lowered)
    assert (again.usage_count, again.successes) == (9, 7)


def test_metadata_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidRecordError, match="must be an object to learn the pattern, is a list") as caught:
        with_evidence(Evidence(1, 1, START), make_pattern(id="mine", metadata=[1]))
    assert (caught.value.field, caught.value.key) == ("metadata", "mine")
