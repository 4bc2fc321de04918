"""Shingles, Jaccard similarity and the MinHash index, by themselves."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import ConfigurationError
from memory_store.search.similarity import NearDuplicates, Shingles, banding, jaccard, shingles
from tests.unit.samples import json_values, texts

THRESHOLDS = [0.1, 0.25, 0.5, 0.7, 0.8, 0.95, 1.0]


def pairs(*found: str) -> Shingles:
    """Shingles, written out."""
    return frozenset(found)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Fix the flaky test", pairs("fix the", "the flaky", "flaky test")),
        ("  word ", pairs("word")),
        ("", pairs()),
        (" \t\n", pairs()),
        ({}, pairs()),
        ([], pairs()),
        ("a < b", pairs("a <", "< b")),
        ("a>b", pairs("a >", "> b")),
        ("\uff26\uff29\uff38\u3000\uff49\uff54", pairs("fix it")),
        ("Straße", pairs("strasse")),
        ("修复测试", pairs("修 复", "复 测", "测 试")),
        ("修复 the テスト", pairs("修 复", "复 the", "the テ", "テ ス", "ス ト")),
        ("ﾃｽﾄ", pairs("テ ス", "ス ト")),
        ("ทดสอบ", pairs("ท ด", "ด ส", "ส อ", "อ บ")),
        ("시험 고치기", pairs("시험 고치기")),
        ("\U00020000\U00020001", pairs("\U00020000 \U00020001")),
        ("a b a b a", pairs("a b", "b a", "a b 2", "b a 2")),
        ({"tools": ["read", "edit"]}, pairs("tools read", "read edit", "edit ]")),
        ({"b": 1, "a": {"c": None}}, pairs("a c", "c null", "null b", "b 1")),
        (True, pairs("true")),
        (-1.5, pairs("- 1", "1 .", ". 5")),
        ("\0", pairs("\0")),
    ],
)
def test_shingles(content: Any, expected: Shingles) -> None:
    assert shingles(content) == expected


@given(json_values)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert shingles(turned(value)) == shingles(value)


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8), st.lists(st.sampled_from("abcde"), min_size=1))
def test_only_the_same_sequence_of_few_tools_is_wholly_alike(first: list[str], second: list[str]) -> None:
    """Sets of pairs are not the sequence itself, but what they confuse has the same pairs as often."""
    alike = jaccard(shingles(first), shingles(second))
    assert (alike == 1) >= (first == second)
    if alike == 1:
        assert (first[0], first[-1], sorted(first)) == (second[0], second[-1], sorted(second))


def test_a_sequence_and_its_continuation_or_second_round_differ() -> None:
    short = shingles(["read", "edit", "test"])
    assert jaccard(short, shingles(["read", "edit", "test", "commit"])) == 2 / 5
    assert jaccard(short, shingles(["read", "edit", "test"] * 2)) == 3 / 6
    assert jaccard(short, shingles(["test", "edit", "read"])) == 0


@given(texts, texts)
def test_jaccard_is_symmetric_a_share_and_1_for_the_same(first: str, second: str) -> None:
    one, other = shingles(first), shingles(second)
    assert jaccard(one, other) == jaccard(other, one)
    assert 0 <= jaccard(one, other) <= 1
    assert jaccard(one, one) == (1 if one else 0)


def test_what_has_no_shingles_is_alike_to_nothing() -> None:
    assert jaccard(shingles(""), shingles({})) == 0
    near = NearDuplicates(0.5)
    near.put("empty", near.sign(shingles("")))
    assert near.candidates(near.sign(shingles(""))) == []
    assert near.candidates(near.sign(shingles("a b c"))) == []


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_bands_find_99_of_100_at_the_threshold(threshold: float) -> None:
    bands, rows = banding(threshold)
    assert bands >= 2
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    if rows < 64:  # with one row more, either the promise or the number of permutations is broken
        assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.99


@pytest.mark.parametrize("threshold", [0.0, 0.09, 1.01, -1, float("nan"), True, "0.5", None])
def test_a_threshold_that_is_none_is_refused(threshold: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"threshold must be"):
        NearDuplicates(threshold)


def sets_alike(seeded: random.Random, similarity: float, size: int = 60) -> tuple[Shingles, Shingles]:
    """Two sets of this Jaccard similarity or a little more."""
    common = -(-round(2 * size * similarity * 1000) // round(1000 * (1 + similarity)))
    words = [f"{seeded.random()}" for _ in range(2 * size - common)]
    return frozenset(words[:size]), frozenset(words[size - common :])


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_pairs_at_the_threshold_are_found_and_others_seldom_compared(threshold: float) -> None:
    """Drawn from a fixed seed, and MinHash is seeded too: this counts the same on every machine."""
    seeded = random.Random(7)
    near = NearDuplicates(threshold)
    couples = [sets_alike(seeded, threshold) for _ in range(400)]
    for number, (first, _) in enumerate(couples):
        near.put(str(number), near.sign(first))
    found = compared = 0
    for number, (_, second) in enumerate(couples):
        candidates = near.candidates(near.sign(second))
        found += str(number) in candidates
        compared += len(candidates)
    assert found >= 0.98 * len(couples)
    assert compared <= 2 * len(couples)


def test_a_key_is_replaced_and_taken_out() -> None:
    near = NearDuplicates(0.5)
    first, second = (near.sign(shingles(text)) for text in ("read edit test", "chat undo diff"))
    near.put("x", first)
    near.put("y", first)
    assert near.candidates(first) == ["x", "y"]
    near.put("x", second)
    assert (near.candidates(first), near.candidates(second)) == (["y"], ["x"])
    near.put("y", None)
    near.put("nothing", None)
    assert near.candidates(first) == []


def test_the_signature_of_many_shingles_is_that_of_its_parts_together() -> None:
    near = NearDuplicates(0.5)
    many = [str(number) for number in range(20_000)]
    whole, *parts = [near.sign(frozenset(some)) for some in (many, many[:7000], many[7000:])]
    assert whole is not None
    values = [part.hashvalues for part in parts if part is not None]
    assert list(whole.hashvalues) == [min(one, other) for one, other in zip(*values, strict=True)]


def test_a_text_with_half_a_surrogate_pair_can_be_asked_for() -> None:
    near = NearDuplicates(0.5)
    assert near.candidates(near.sign(shingles("broken \ud800 text"))) == []


def test_a_signature_is_the_same_in_another_process() -> None:
    source = (
        "from memory_store.search.similarity import NearDuplicates, shingles;"
        "near = NearDuplicates(0.5);"
        "print(near.sign(shingles('fix the flaky 测试')).hashvalues.tobytes().hex())"
    )
    run = [sys.executable, "-c", source]
    done = [subprocess.run(run, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True) for seed in "12"]
    signature = NearDuplicates(0.5).sign(shingles("fix the flaky 测试"))
    assert signature is not None
    assert [run.stdout.decode().strip() for run in done] == [signature.hashvalues.tobytes().hex()] * 2


def test_importing_the_library_imports_neither_datasketch_nor_numpy() -> None:
    source = "import sys, memory_store; print({'datasketch', 'numpy', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
