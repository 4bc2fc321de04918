"""From text to terms: the one tokenizer, of documents and of queries, on every database.

A term is a run of letters and digits, in lower case, without accents, English words without their endings:

- An identifier is its words: `getUserName`, `get_user_name` and `get user name` have the same terms. A document and a
  plain query also have it as one word, behind the others, where no phrase meets it: `github` finds GitHub.
- Scripts written without spaces (Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese) become pairs of neighbouring
  characters, since nothing says where a word ends; a lone character is itself.
- Everything else between words separates them.

Databases bring tokenizers of their own, each another one, and none that does both. Measured by Recall@10 / nDCG@10 with
the same BM25, on CoSQA (code) and BEAM (conversations):

| terms                                  | CoSQA       | BEAM        |
| -------------------------------------- | ----------- | ----------- |
| words as they are                      | .741 / .582 | .492 / .375 |
| trigrams                               | .757 / .594 | .434 / .337 |
| words without endings (Porter)         | .779 / .613 | .529 / .378 |
| the same, identifiers split (this one) | .789 / .626 | .514 / .362 |
| the same with b = 0.9 (see `search`)   | .792 / .620 | .534 / .395 |

Stop words are no terms less: what more than half of all documents have counts for nothing anyway.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

__all__ = ["MOST_CHARACTERS", "Word", "all_terms_of", "terms_of", "words_of"]

MOST_CHARACTERS = 40
"""Of a term; longer ones (encoded files, hashes) are cut there."""

# Blocks of the scripts without spaces: Thai and Lao, Burmese, Hangul Jamo, Khmer, kana, Han, Hangul, Han beyond.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs are marks, which `\w` leaves out: they would cut Indian words, and accents apart from their letters.
_MARKS = "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0981-\u0983"
_MARKS += (
    "\u09bc-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b57\u0b82\u0bbe-\u0bcd"
)
_MARKS += "\u0c00-\u0c04\u0c3c-\u0c56\u0c81-\u0c83\u0cbc-\u0cd6\u0d00-\u0d03\u0d3b-\u0d4d\u0d81-\u0d83\u0dca-\u0ddf"
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_WORD = re.compile(f"[{_UNSPACED}]+|(?:[^\\W_{_UNSPACED}]|[{_MARKS}])+")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
# HTTPServer2 -> HTTP Server2; digits stay with what they follow, as in `utf8` and `v2`.
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_STEMMED = re.compile("[a-z]{3,20}").fullmatch

Word = tuple[int, int, tuple[str, ...]]
"""Where a word begins and ends in its text, and its terms."""


def terms_of(text: str) -> list[str]:
    """Return the terms of a text, in order, each as often as it is there."""
    return _in_order(_words(text))


def all_terms_of(text: str) -> tuple[list[str], list[str]]:
    """Return the terms of a text, in order, and besides each word that is several terms as one."""
    words = _words(text)
    whole = [term for word in words if not word.islower() and (term := _whole(word)) is not None]
    return _in_order(words), whole


def _words(text: str) -> list[str]:
    return _word_in(text).findall(text)


def _word_in(text: str) -> re.Pattern[str]:
    return _ASCII_WORD if text.isascii() else _WORD


def _in_order(words: list[str]) -> list[str]:
    terms: list[str] = []
    # Nearly all words are terms of their own: the list of lists is flattened by one loop in C.
    for found in map(_terms, words):
        terms += found
    return terms


def words_of(text: str) -> Iterator[Word]:
    """Yield the words of a text and where they are, for marking what was found."""
    for found in _word_in(text).finditer(text):
        word = found.group()
        whole = _whole(word)
        yield found.start(), found.end(), _terms(word) if whole is None else (*_terms(word), whole)


@lru_cache(maxsize=1 << 14)
def _whole(word: str) -> str | None:
    """Return a word of several terms as one, None for one that is one."""
    if not word.isascii() or len(_terms(word)) < 2:
        return None
    return _stem(word.lower())


@lru_cache(maxsize=1 << 16)
def _terms(word: str) -> tuple[str, ...]:
    """Return the terms of a word. Remembered: a new one takes 20 µs, and texts repeat their words."""
    if word.isascii():
        parts = [word] if word.islower() or word.isdigit() else _PART.findall(word)
        return tuple(_stem(part.lower()) for part in parts)
    # Compatibility forms first (full-width letters, ligatures), so that one word has one spelling.
    word = unicodedata.normalize("NFKC", word).casefold()
    word = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", word)))
    return tuple(term for part in _WORD.findall(word) for term in _terms_of_part(part))


def _terms_of_part(part: str) -> tuple[str, ...]:
    if _UNSPACED_RUN.fullmatch(part):
        return tuple(part[i : i + 2] for i in range(len(part) - 1)) or (part,)
    return (_stem(part),)


def _stem(part: str) -> str:
    if _STEMMED(part):
        return str(_stemmer().stemWord(part))
    return part[:MOST_CHARACTERS]


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    # Porter's algorithm of 1980, which will not change: the terms in a database stay those of a query. Its successor
    # (Porter2) measured the same. Imported when a text is first looked at: it takes 6 ms.
    import snowballstemmer

    return snowballstemmer.stemmer("porter")
