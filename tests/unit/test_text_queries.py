"""Expert queries: any text is read or refused in words; what binds closer comes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.durable.dialects.sqlite_text import _in_words
from memory_store.errors import QuerySyntaxError
from memory_store.text.queries import Expression, parse_query

PIECES = st.sampled_from(
    ["a", "b", '"c d"', "e*", '"f g"*', "AND", "OR", "NOT", "(", ")", '"', "*", "-", "and", "编写", ""]
)


@given(st.text(max_size=60) | st.lists(PIECES, max_size=14).map(" ".join) | st.lists(PIECES, max_size=14).map("".join))
def test_any_text_is_read_or_refused(query: str) -> None:
    expression, refused = None, None
    try:
        expression = parse_query(query)
    except QuerySyntaxError as error:
        refused = error
    if refused is not None:
        assert refused.query == query
        assert 0 <= refused.at <= len(query)
    else:
        assert expression is not None
        assert "" not in [term.rstrip("*") for term in expression.sought()]
        assert list(expression.sought())


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("a b", '"a" AND "b"'),
        ("a AND b OR c", '"a" AND "b" OR "c"'),
        ("a OR b AND c", '"a" OR "b" AND "c"'),
        ("(a OR b) c", '("a" OR "b") AND "c"'),
        ("a b NOT c", '"a" AND "b" NOT "c"'),
        ("(a b) NOT c", '("a" AND "b") NOT "c"'),
        ("a NOT b NOT c", '"a" NOT "b" NOT "c"'),
        ("a NOT (b NOT c)", '"a" NOT ("b" NOT "c")'),
        ("a or not b", '"a" AND "or" AND "not" AND "b"'),
        ('"a b"*', '"a b" *'),
        ("a* OR b", '"a" * OR "b"'),
    ],
)
def test_what_binds_closer_comes_first(query: str, said: str) -> None:
    assert _in_words("", parse_query(query)) == said


def test_what_must_not_be_there_is_not_sought() -> None:
    expression = parse_query("a NOT (b OR c) d*")
    assert list(expression.sought()) == ["a", "d*"]
    assert isinstance(expression, Expression)


def test_limits_are_told() -> None:
    parse_query(" ".join(["a"] * 64))
    with pytest.raises(QuerySyntaxError, match="has more than 64 terms"):
        parse_query(" ".join(["a"] * 65))
    parse_query("(" * 12 + "a" + ")" * 12)
    with pytest.raises(QuerySyntaxError, match="nested deeper than 12 parentheses"):
        parse_query("(" * 13 + "a" + ")" * 13)
    with pytest.raises(QuerySyntaxError):
        parse_query("(" * 10_000)
