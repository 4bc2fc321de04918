"""Expert queries: words, "phrases", prefix*, AND, OR, NOT and parentheses, read into an expression.

    connection AND (timeout OR refused) NOT "retry later"
    getUser* error

Words beside each other must all be there. NOT stands between what is sought and what is not. NOT binds closest, then
AND, then OR, as in SQLite's FTS5. Only capital AND, OR and NOT are operators.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, NoReturn

from memory_store.errors import QuerySyntaxError
from memory_store.text.terms import terms_of

__all__ = ["MOST_TERMS", "Expression", "parse_query"]

MOST_TERMS = 64
"""Of an expert query."""
# FTS5 reads expressions on a stack of 100 places, of which `a OR b AND c NOT (` takes 7.
_MOST_NESTED = 12

_TOKEN = re.compile(r'\s*(?:(?P<phrase>"[^"]*")(?P<phrase_star>\*?)|(?P<mark>[()])|(?P<word>[^\s()"]+)|(?P<open>"))')


@dataclass(frozen=True, slots=True)
class Expression:
    """A phrase (one term or several in a row, the last one with a `*` for a prefix), or what joins two expressions."""

    operator: Literal["phrase", "and", "or", "not"]
    terms: tuple[str, ...] = ()
    sides: tuple[Expression, ...] = ()

    def sought(self) -> Iterator[str]:
        """Yield the terms that a document is sought for, not those it must not have."""
        yield from self.terms
        for side in self.sides[:1] if self.operator == "not" else self.sides:
            yield from side.sought()


class _Token(NamedTuple):
    kind: Literal["phrase", "(", ")", "AND", "OR", "NOT", "end"]
    at: int
    terms: tuple[str, ...] = ()


def parse_query(query: str) -> Expression:
    """Return the expression of an expert query.

    Raises:
        QuerySyntaxError: a quotation or parenthesis is left open, an operator stands alone, a word has no letter or
            digit, or there are more than 64 terms.
    """
    return _Parser(query).parse()


class _Parser:
    def __init__(self, query: str) -> None:
        self._query = query
        self._tokens = list(self._read())
        self._next = 0
        self._nested = 0

    def parse(self) -> Expression:
        if self._peek().kind == "end":
            self._refuse("is empty", 0)
        expression = self._either()
        if self._peek().kind != "end":
            self._refuse("has a ) without a (", self._peek().at)
        if sum(len(token.terms) for token in self._tokens) > MOST_TERMS:
            self._refuse(f"has more than {MOST_TERMS} terms", len(self._query))
        return expression

    def _read(self) -> Iterator[_Token]:
        at = 0
        while found := _TOKEN.match(self._query, at):
            start, at = found.end() - len(found.group().lstrip()), found.end()
            if found["open"]:
                self._refuse("has a quotation that is left open", start)
            elif found["mark"]:
                yield _Token("(" if found["mark"] == "(" else ")", start)
            elif found["word"] in ("AND", "OR", "NOT"):
                yield _Token(found["word"], start)  # type: ignore[arg-type]  # one of these three
            else:
                text = found["phrase"] or found["word"]
                starred = bool(found["phrase_star"]) if found["phrase"] else text.endswith("*")
                yield _Token("phrase", start, self._terms(text, starred, start))
        yield _Token("end", len(self._query))

    def _terms(self, text: str, starred: bool, at: int) -> tuple[str, ...]:
        terms = terms_of(text)
        if not terms:
            self._refuse(f"has nothing to search for in {text[:40]!r}", at)
        if starred:
            terms[-1] += "*"
        return tuple(terms)

    def _either(self) -> Expression:
        left = self._both()
        while self._take("OR"):
            left = Expression("or", sides=(left, self._both()))
        return left

    def _both(self) -> Expression:
        left = self._without()
        while self._take("AND") or self._peek().kind in ("phrase", "("):
            left = Expression("and", sides=(left, self._without()))
        return left

    def _without(self) -> Expression:
        left = self._unit()
        while self._take("NOT"):
            left = Expression("not", sides=(left, self._unit()))
        return left

    def _unit(self) -> Expression:
        token = self._peek()
        self._next += 1
        if token.kind == "phrase":
            return Expression("phrase", terms=token.terms)
        if token.kind != "(":
            ended = token.kind == "end"
            self._refuse("ends too early" if ended else f"has a {token.kind} with nothing before it", token.at)
        self._nested += 1
        if self._nested > _MOST_NESTED:
            self._refuse(f"is nested deeper than {_MOST_NESTED} parentheses", token.at)
        inside = self._either()
        if not self._take(")"):
            self._refuse("has a ( that is left open", token.at)
        self._nested -= 1
        return inside

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, kind: str) -> bool:
        taken = self._peek().kind == kind
        self._next += taken
        return taken

    def _refuse(self, problem: str, at: int) -> NoReturn:
        raise QuerySyntaxError(f"the query {problem}, at character {at}", query=self._query, at=at)
