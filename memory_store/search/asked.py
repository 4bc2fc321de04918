"""What a search is asked, checked and brought into one form."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, Literal, get_args

import msgpack
from cachetools import LRUCache
from sqlalchemy import Dialect
from sqlalchemy.sql.elements import ColumnElement

from memory_store.durable.conditions import applies, condition_on, kind_named
from memory_store.durable.text_index import Condition
from memory_store.errors import ConfigurationError
from memory_store.records import RECORDS
from memory_store.text.documents import SEARCHED
from memory_store.text.queries import Expression, parse_query
from memory_store.text.terms import all_terms_of

__all__ = ["MOST_HITS", "Asked", "Asker", "Mode", "Syntax", "Where", "ask"]

Mode = Literal["hybrid", "text", "vector"]
Syntax = Literal["plain", "expert"]
Where = ColumnElement[bool] | Sequence[ColumnElement[bool]]

MOST_HITS = 1000
"""Of one page."""
_MOST_CHARACTERS = 10_000
_MOST_TERMS = 64
# Searches whose form is remembered, and characters of a query of which it is.
_MOST_ASKED, _MOST_REMEMBERED = 256, 500
_SURROGATE = re.compile("[\ud800-\udfff]")
_GREATEST = 3.4028234663852886e38  # of the numbers that have 32 bits, as those of stored vectors have


@dataclass(frozen=True, slots=True)
class Asked:
    """A search in one form.

    Args:
        text: the query as it was given.
        terms: what is sought by text: different terms, or an expert query.
        conditions: for each kind searched, what restricts it.
        mode: which parts are asked.
        limit: hits wanted.
        diversity: how unlike each other they shall be, None for not at all.
        of_vectors: what restricts the embeddings compared; None where none of them could be a hit, or none is compared.
        vector: to search with, in the place of the query's own; and of which model.
        model: as above.
        reads: the kinds whose changes make an answer void.
        key: all of this, packed: two searches with the same key ask the same.
    """

    text: str
    terms: tuple[str, ...] | Expression
    conditions: dict[str, Condition]
    mode: Mode
    limit: int
    diversity: float | None
    of_vectors: Condition | None
    vector: tuple[float, ...] | None
    model: str | None
    reads: tuple[str, ...]
    key: bytes

    @property
    def for_models(self) -> str:
        """The query as a model can be given it: with spaces for lone surrogates, which no UTF-8 text can hold.

        So it is answered as by text, where they are no part of any word either.
        """
        return _SURROGATE.sub(" ", self.text)

    @property
    def sought(self) -> frozenset[str]:
        """The terms that a hit is to be marked with."""
        return frozenset(self.terms.sought() if isinstance(self.terms, Expression) else self.terms)


def ask(
    dialect: Dialect,
    namespace: str,
    query: str,
    *,
    kinds: str | Iterable[str] | None = None,
    where: Where | None = None,
    mode: Mode = "hybrid",
    syntax: Syntax = "plain",
    limit: int = 10,
    at: datetime | None = None,
    diversity: float | None = None,
    vector: Iterable[float] | None = None,
    model: str | None = None,
) -> Asked:
    """Return the search in one form.

    Raises:
        TypeError: an argument has the wrong type.
        ConfigurationError: an argument has a value it cannot have.
        QuerySyntaxError: an expert query is malformed.
    """
    _check(query, mode, syntax, limit, diversity)
    given = [] if where is None else [where] if isinstance(where, ColumnElement) else list(where)
    named = [kind_named(expression) for expression in given]
    searched = _kinds(kinds, named)
    until = None if at is None else _moment(at)

    def condition(kind: str, dated: str) -> Condition:
        before = [] if until is None else [RECORDS[dated].table.c.created_at <= until]
        return condition_on(dialect, namespace, kind, [*given, *before])

    conditions = {kind: condition(kind, kind) for kind in searched}
    of_vectors = conditions.get("embedding")
    if of_vectors is None and "episode" in searched and mode != "text":  # an episode is found by what belongs to it
        of_vectors = condition("embedding", "episode")
    terms = parse_query(query) if syntax == "expert" else _different(query)
    numbers = None if vector is None else _numbers(vector)
    if model is not None:
        _check_model(model)
    if numbers is None and model is not None:
        raise ConfigurationError("model says whose the vector is: give a vector with it")
    asked = [query, searched, mode, syntax, limit, diversity, numbers, model]
    asked += [[condition.sql, list(condition.parameters)] for condition in conditions.values()]
    reads = (*searched, *(kind for kind in dict.fromkeys(named) if kind not in searched))
    if mode != "text" and "embedding" not in reads:
        reads = (*reads, "embedding")
    key: bytes = msgpack.packb(asked, default=repr, unicode_errors="surrogatepass") or b""
    if len(key) > 4096:
        key = hashlib.blake2b(key).digest()
    return Asked(query, terms, conditions, mode, limit, diversity, of_vectors, numbers, model, reads, key)


class Asker:
    """Brings what a namespace is asked into one form; what was asked before is known by its arguments.

    It takes 2 us instead of 15, and of 100 with expressions.

    Args:
        namespace: which.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._asked: LRUCache[Hashable, Asked] = LRUCache(_MOST_ASKED)

    def ask(self, dialect: Dialect, query: str, **arguments: Any) -> Asked:
        """Return `ask` of the same arguments."""
        key = _as_given(query, arguments)
        known = None if key is None else self._asked.get((dialect.name, key))
        if known is None:
            known = ask(dialect, self._namespace, query, **arguments)
            if key is not None:
                self._asked[dialect.name, key] = known
        return known


def _as_given(query: str, arguments: Mapping[str, Any]) -> Hashable | None:
    """Return what makes these arguments equal to others; None where that would take longer than to look at them."""
    if not isinstance(query, str) or len(query) > _MOST_REMEMBERED or arguments.get("vector") is not None:
        return None
    given: list[Any] = [query]
    for name, value in arguments.items():
        if name == "where" and value is not None:
            value = _expressions(value)
            if value is None:
                return None
        elif name == "kinds" and isinstance(value, list):
            value = tuple(value)
        elif value is not None and not isinstance(value, str | int | float | tuple | datetime):
            return None
        given += (name, type(value), value)  # 1 equals True, and is another argument
    return tuple(given)


def _expressions(where: Any) -> Hashable | None:
    """Return what makes SQLAlchemy's expressions equal: their forms, and the values in them."""
    found: list[Any] = []
    for expression in [where] if isinstance(where, ColumnElement) else where:
        key = expression._generate_cache_key() if isinstance(expression, ColumnElement) else None
        if key is None:
            return None
        found.append(key.key)
        for parameter in key.bindparams:
            value = parameter.effective_value
            if not isinstance(value, str | int | float | datetime | None):
                return None
            found += (type(value), value)
    return tuple(found)


def _check(query: str, mode: str, syntax: str, limit: int, diversity: float | None) -> None:
    if not isinstance(query, str):
        raise TypeError(f"query must be a str, got {type(query).__name__}")
    if len(query) > _MOST_CHARACTERS:
        raise ConfigurationError(f"query has {len(query):,} characters, the limit is {_MOST_CHARACTERS:,}")
    for name, value, known in (("mode", mode, get_args(Mode)), ("syntax", syntax, get_args(Syntax))):
        if value not in known:
            raise ConfigurationError(f"{name} must be one of {', '.join(known)}, got {value!r:.80}")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise TypeError(f"limit must be an int, got {type(limit).__name__}")
    if not 1 <= limit <= MOST_HITS:
        raise ConfigurationError(f"limit must be 1 to {MOST_HITS:,}, got {limit:,}")
    if diversity is None:
        return
    if isinstance(diversity, bool) or not isinstance(diversity, int | float):
        raise TypeError(f"diversity must be a number, got {type(diversity).__name__}")
    if not (math.isfinite(diversity) and 0 <= diversity <= 1):
        raise ConfigurationError(f"diversity must lie between 0 and 1, got {diversity}")


def _different(query: str) -> tuple[str, ...]:
    """Return the different terms of a plain query, so many at most."""
    return tuple(dict.fromkeys(chain(*all_terms_of(query))))[:_MOST_TERMS]


def _check_model(model: str) -> None:
    if not isinstance(model, str):
        raise TypeError(f"model must be a str, got {type(model).__name__}")
    if _SURROGATE.search(model):
        raise ConfigurationError(f"model {model!r:.80} has a lone surrogate, which no database stores")


def _kinds(kinds: str | Iterable[str] | None, named: Sequence[str]) -> list[str]:
    """Return the kinds to search: those asked for, else all of which every expression says something."""
    if kinds is None:
        fitting = [kind for kind in SEARCHED if all(applies(one, kind) for one in named)]
        if not fitting:
            raise ConfigurationError(f"no kind has all of {', '.join(dict.fromkeys(named))}: give one expression less")
        return fitting
    asked = list(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
    if not asked:
        raise ConfigurationError("kinds is empty: leave it out to search all")
    for kind in asked:
        if kind not in SEARCHED:
            raise ConfigurationError(f"kinds must be of {', '.join(SEARCHED)}, got {kind!r:.80}")
        for one in named:
            if not applies(one, kind):
                raise ConfigurationError(f"where says something of {one}, of which a {kind} is no part")
    return asked


def _numbers(vector: Iterable[float]) -> tuple[float, ...]:
    tolist = getattr(vector, "tolist", None)  # of an array, in a tenth of the time
    try:
        numbers = tuple(map(float, vector if tolist is None else tolist()))
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"vector must hold numbers: {error}") from error
    if not numbers:
        raise ConfigurationError("vector holds no numbers")
    if not sum(map(abs, numbers)) <= _GREATEST:  # nearly always all are fine, as this says in 10 us
        for place, number in enumerate(numbers):
            if not abs(number) <= _GREATEST:
                raise ConfigurationError(f"vector must hold finite numbers of 32 bits, that at {place} is {number}")
    return numbers


def _moment(at: datetime) -> datetime:
    if not isinstance(at, datetime):
        raise TypeError(f"at must be a datetime, got {type(at).__name__}")
    if at.tzinfo is None:
        raise ConfigurationError(f"at {at.isoformat()} has no timezone; use datetime.now(timezone.utc)")
    return at
