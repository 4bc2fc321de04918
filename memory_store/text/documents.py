"""What of a record is searched: the text of its searched fields, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import JSON

from memory_store.records import RECORDS
from memory_store.text.terms import all_terms_of

__all__ = ["SEARCHED", "document_terms", "field_texts", "searched_text"]

SEARCHED: tuple[str, ...] = tuple(kind for kind, spec in RECORDS.items() if spec.searched)
"""The kinds that have text to search."""

# Of one field. The output of a command may have a megabyte, of which its beginning and its end say what happened.
_HEAD_CHARACTERS, _TAIL_CHARACTERS = 6_144, 2_048
_MOST_CHARACTERS = _HEAD_CHARACTERS + _TAIL_CHARACTERS

_FIELDS: dict[str, tuple[tuple[str, int, bool], ...]] = {
    kind: tuple((name, spec.index(name), isinstance(spec.table.c[name].type, JSON)) for name in spec.searched)
    for kind, spec in RECORDS.items()
}


def document_terms(kind: str, row: Sequence[Any]) -> list[str]:
    """Return the terms of a stored row, field after field; behind them the words that are several, as one each.

    These once, however often they are there: their parts say that. As often they find less (MiniLM and text on CoSQA:
    Recall@10 .962 instead of .965).
    """
    terms: list[str] = []
    whole: dict[str, None] = {}
    for _, text in field_texts(kind, row):
        found, as_one = all_terms_of(text)
        terms += found
        whole |= dict.fromkeys(as_one)
    return [*terms, *whole]


def field_texts(kind: str, row: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield the searched fields of a stored row that hold text, and that text."""
    for name, index, is_json in _FIELDS[kind]:
        value = row[index]
        if value:
            text = searched_text(_json_text(value) if is_json else value if isinstance(value, str) else "")
            if text:
                yield name, text


def searched_text(text: str) -> str:
    """Return what of a field's text is searched: all of it, or the beginning and the end of a long one."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_HEAD_CHARACTERS]}\n{text[-_TAIL_CHARACTERS:]}"


def _json_text(value: Any) -> str:
    """Return what a JSON text says: nothing where it is damaged, which `verify` tells; all others are to be found."""
    try:
        return "\n".join(_strings(json.loads(value)))
    except (TypeError, ValueError, RecursionError):
        return ""


def _strings(value: Any) -> Iterator[str]:
    """Yield what a JSON value says: its texts and numbers, not the names of its fields, which all records share."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
