"""Terms: the same for a document and for who seeks it, whatever the text."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.records import RECORDS
from memory_store.text.documents import document_terms, field_texts, searched_text
from memory_store.text.terms import MOST_CHARACTERS, all_terms_of, terms_of, words_of

TEXTS = st.text(max_size=60) | st.text(alphabet="aA1_é ß\u0130ﬁ\uff21编写ｶﾅกि\u0301\ud800\0'\"\\*:()-", max_size=40)


@given(TEXTS)
def test_terms_are_letters_and_digits_and_not_too_long(text: str) -> None:
    """Nothing is left that an index, or the language of its queries, could take for something else."""
    for term in terms_of(text):
        assert 1 <= len(term) <= MOST_CHARACTERS
        assert not set(term) & set(" \t\n\0'\"\\*:()-&|!<>_")
        assert term == term.casefold()
        term.encode()


@given(TEXTS, TEXTS)
def test_texts_beside_each_other_have_the_terms_of_both(one: str, other: str) -> None:
    assert terms_of(f"{one}\n{other}") == terms_of(one) + terms_of(other)


@given(TEXTS)
def test_words_are_where_they_are_said_to_be(text: str) -> None:
    words = list(words_of(text))
    in_order, as_one = all_terms_of(text)
    assert sorted(term for _, _, terms in words for term in terms) == sorted(in_order + as_one)
    ends = [0]
    for start, end, terms in words:
        assert ends[-1] <= start < end <= len(text)
        assert tuple(chain(*all_terms_of(text[start:end]))) == terms
        ends.append(end)


@pytest.mark.parametrize(
    ("word", "as_one"),
    [
        ("GitHub", ["github"]),
        ("PostgreSQL is not JavaScript", ["postgresql", "javascript"]),
        ("HTTPServerError2", ["httpservererror2"]),
        ("3F2A9bc", ["3f2a9bc"]),
        ("getUserNames", ["getusernam"]),  # without its ending, as in a query for it
        ("Git HUB get_user_name 3f2a", []),
        ("代码GitHub代码", ["github"]),
        ("x" * 30 + "Y" * 30, [("x" * 30 + "y" * 30)[:MOST_CHARACTERS]]),
    ],
)
def test_a_word_of_several_terms_is_one_besides(word: str, as_one: list[str]) -> None:
    assert all_terms_of(word) == (terms_of(word), as_one)
    assert set(terms_of(word.lower())) >= set(as_one)


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd"]), min_size=1, max_size=20))
def test_case_makes_no_difference_to_a_word_of_one_case(word: str) -> None:
    lower = word.lower()
    if lower.isascii():
        assert terms_of(lower.capitalize()) == terms_of(lower)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("getUserName", "get_user_name"),
        ("HTTPServer2", "http server2"),
        ("café", "cafe\u0301"),
        ("ﬁle", "file"),
        ("\uff21\uff22\uff23", "abc"),
        ("Straße", "STRASSE"),
        ("İstanbul", "istanbul"),
        ("ｶﾀｶﾅ", "カタカナ"),
        ("한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
        ("connections connecting", "connect connected"),
    ],
)
def test_spellings_of_the_same(one: str, other: str) -> None:
    assert terms_of(one) == terms_of(other)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("_ - \0", []),
        ("\ud800", []),
        ("編", ["編"]),
        ("使用Python编写", ["使用", "python", "编写"]),
        ("hindi: हिन्दी", ["hindi", "हिन्दी"]),
        ("a" * 100, ["a" * 40]),
        ("utf8 v2", ["utf8", "v2"]),
        ("x²", ["x2"]),
    ],
)
def test_terms_of_some_texts(text: str, terms: list[str]) -> None:
    assert terms_of(text) == terms


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def row_of(**values: object) -> list[object]:
    """The stored row of an episode with these values."""
    row: list[object] = [None] * len(RECORDS["episode"].columns)
    for name, value in values.items():
        row[RECORDS["episode"].index(name)] = value
    return row


@given(context=JSON, reflection=TEXTS)
def test_what_a_record_says_is_its_document(context: object, reflection: str) -> None:
    row = row_of(context=json.dumps(context), reflection=reflection)
    terms = document_terms("episode", row)
    assert set(terms_of(reflection)) <= set(terms)

    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in texts(item)]
        if isinstance(value, list):
            return [text for item in value for text in texts(item)]
        return [value] if isinstance(value, str) else []

    for text in texts(context):
        assert set(terms_of(text)) <= set(terms)


@pytest.mark.parametrize(
    "damaged", ["not json", "[", "[" * 5000, "[" + "1" * 5000 + "]", b"\xff", 5], ids=lambda value: repr(value)[:12]
)
def test_a_damaged_field_says_nothing_and_spoils_nothing_else(damaged: object) -> None:
    assert document_terms("episode", row_of(context=damaged, reflection="fine")) == ["fine"]
    assert dict(field_texts("episode", row_of(context='"fine"', reflection=damaged)))["context"] == "fine"


def test_of_a_long_text_beginning_and_end_are_searched() -> None:
    text = "first " + "x" * 100_000 + " last"
    kept = searched_text(text)
    assert len(kept) < 10_000
    assert {"first", "last"} <= set(terms_of(kept))
