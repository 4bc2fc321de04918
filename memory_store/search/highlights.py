"""Where the words of a query stand in a record: an excerpt of each field that has some."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from memory_store.codec import Row
from memory_store.text.documents import field_texts
from memory_store.text.terms import words_of

__all__ = ["Highlight", "highlight"]

_EXCERPT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Highlight:
    """An excerpt of a field.

    Args:
        field: name of the field.
        text: the excerpt, about 200 characters: where most of the words stand close together.
        spans: where the words begin and end in it, as indexes of `text`.
    """

    field: str
    text: str
    spans: tuple[tuple[int, int], ...]

    def marked(self, before: str = "**", after: str = "**") -> str:
        """Return the excerpt with each word between two marks."""
        parts, end = [], 0
        for start, stop in self.spans:
            parts += [self.text[end:start], before, self.text[start:stop], after]
            end = stop
        return "".join([*parts, self.text[end:]])


def highlight(kind: str, row: Row, terms: Set[str]) -> tuple[Highlight, ...]:
    """Return an excerpt of each field of a stored row that has one of the terms; a term may end with `*`."""
    prefixes = tuple(term[:-1] for term in terms if term.endswith("*"))
    found = []
    for name, text in field_texts(kind, row):
        spans = [
            (start, stop)
            for start, stop, words in words_of(text)
            if not terms.isdisjoint(words) or (prefixes and any(word.startswith(prefixes) for word in words))
        ]
        if spans:
            found.append(_excerpt(name, text, spans))
    return tuple(found)


def _excerpt(name: str, text: str, spans: list[tuple[int, int]]) -> Highlight:
    """Cut out the stretch with the most words, and begin a little before the first of them."""
    most, place, last = 0, 0, 0
    for first, (start, _) in enumerate(spans):
        while last < len(spans) and spans[last][1] - start <= _EXCERPT_CHARACTERS:
            last += 1
        if last - first > most:
            most, place = last - first, first
    begin = max(0, spans[place][0] - _EXCERPT_CHARACTERS // 5)
    end = min(len(text), max(begin + _EXCERPT_CHARACTERS, spans[place][1]))
    inside = [(start - begin, stop - begin) for start, stop in spans if begin <= start and stop <= end]
    return Highlight(name, text[begin:end], tuple(inside))
