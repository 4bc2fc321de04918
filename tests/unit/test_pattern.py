"""Patterns are named by what they say, so that the same pattern found twice is one record."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

from hypothesis import given

from memory_store import Pattern, PatternType
from tests.unit.samples import json_values, make_pattern


def test_the_id_is_the_type_and_a_hash_of_domain_and_data() -> None:
    record = make_pattern()
    kind, _, digest = record.id.partition(":")
    assert kind == "tool_sequence"
    assert len(digest) == 32
    assert int(digest, 16) >= 0


@given(json_values)
def test_the_same_content_has_the_same_id(data: object) -> None:
    first = make_pattern(pattern_data=data, domain="web")
    second = make_pattern(pattern_data=data, domain="web", confidence=0.9, usage_count=3, metadata={"n": 1})
    assert first.id == second.id


def test_the_order_of_keys_does_not_matter() -> None:
    assert make_pattern(pattern_data={"a": 1, "b": 2}).id == make_pattern(pattern_data={"b": 2, "a": 1}).id


def test_type_domain_and_data_each_make_another_pattern() -> None:
    records = [
        make_pattern(),
        make_pattern(pattern_type="other"),
        make_pattern(domain="web"),
        make_pattern(domain=""),
        make_pattern(pattern_data={"tools": ["edit", "read"]}),
        make_pattern(pattern_data=None),
        make_pattern(pattern_data=1),
        make_pattern(pattern_data="1"),
    ]
    assert len({record.id for record in records}) == len(records)


def test_an_enum_and_its_word_are_one_type() -> None:
    by_enum = Pattern(pattern_type=PatternType.TOOL_SEQUENCE, pattern_data={"tools": ["read", "edit"]})
    assert by_enum.id == make_pattern().id


def test_the_id_is_the_same_in_another_process() -> None:
    source = (
        "from memory_store import Pattern;"
        "print(Pattern(pattern_type='tool_sequence', pattern_data={'tools': ['read', 'edit']}).id)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == make_pattern().id


def test_an_id_of_the_callers_own_is_kept() -> None:
    record = make_pattern(id="mine")
    assert record.id == "mine"
    assert dataclasses.replace(record, pattern_data=[1]).id == "mine"
