"""The reference names everything public, with the right defaults; the command line page names every command."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from typing import Any

import pytest

import memory_store
from memory_store import CacheStatus, Limits, Settings, StoreStats, errors
from memory_store.cache.entries import Counters
from memory_store.records import KNOWN_DIMENSIONS, RECORDS
from tests.docs.pages import REPOSITORY, blocks_of, rows_of

REFERENCE = (REPOSITORY / "docs" / "reference.md").read_text("utf-8")


def default_of(item: Any) -> str:
    value = item.default if item.default is not MISSING else item.default_factory()
    return "`Limits()`" if isinstance(value, Limits) else f"`{value!r}`".replace("'", '"')


@pytest.mark.parametrize("name", memory_store.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert re.search(rf"\b{name}\b", REFERENCE)


def test_every_setting_is_there_with_its_variable_and_default() -> None:
    rows = rows_of(REFERENCE, first_heading="keyword and URL parameter")

    assert [row[:3] for row in rows] == [
        [f"`{item.name}`", f"`MEMORY_STORE_{item.name.upper()}`", default_of(item)] for item in fields(Settings)
    ]


def test_every_limit_is_there_with_its_default() -> None:
    rows = rows_of(REFERENCE, first_heading="limit")

    assert [row[:2] for row in rows] == [[f"`{item.name}`", default_of(item)] for item in fields(Limits)]


@pytest.mark.parametrize("spec", RECORDS.values(), ids=RECORDS)
def test_every_field_of_a_record_is_there(spec: Any) -> None:
    name = spec.record.__name__
    section = re.search(rf"(?ms)^### {name}$(.*?)^##", REFERENCE)
    assert section, f"no section on {name}"
    common = {"id", "revision", "created_at", "updated_at"}

    listed = [row[0].strip("`") for row in rows_of(section[1], first_heading="field")]

    assert [field for field in listed if field not in common] == [f for f in spec.columns if f not in common]
    for item in fields(spec.record):
        required = item.default is MISSING and item.default_factory is MISSING
        for row in rows_of(section[1], first_heading="field"):
            if row[0] == f"`{item.name}`":
                assert (row[2] == "required") == required, item.name
    minutes = spec.ttl_s / 60
    assert f"{minutes / 60:g} hour" in section[1] if minutes >= 60 else f"{minutes:g} minutes" in section[1]


def test_the_tree_of_errors_is_the_code_s() -> None:
    [tree] = [block.text for block in blocks_of(REFERENCE) if block.language == "text"]
    parents: list[str] = []
    for line in tree.splitlines():
        found = re.match(r"([│├└─ ]*)(\w+Error)", line)
        assert found, line
        depth = len(found[1]) // 4
        parents[depth:] = [found[2]]
        if depth:
            base = getattr(errors, found[2]).__bases__[0].__name__
            assert base == parents[depth - 1], line

    assert set(re.findall(r"\w+Error\b", tree)) == set(errors.__all__)


@pytest.mark.parametrize("shown", [CacheStatus, StoreStats, Counters])
def test_every_status_field_is_there(shown: Any) -> None:
    section = REFERENCE.partition("\n## Cache\n")[2].partition("\n## ")[0]

    assert {item.name for item in fields(shown)} <= set(re.findall(r"`(\w+)`", section))


def test_every_known_model_is_there() -> None:
    for model, size in KNOWN_DIMENSIONS.items():
        assert f"{model} {size}" in REFERENCE.replace("\n", " ")
