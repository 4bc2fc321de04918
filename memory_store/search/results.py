"""What a search returns: hits, each with its record, its scores and what matched."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from memory_store.codec import CODECS, Row, pack_row
from memory_store.errors import ConfigurationError
from memory_store.records import Record
from memory_store.search.highlights import Highlight, highlight

__all__ = ["Hit", "Kept", "Place", "SearchResults", "continued", "ordered", "read_cursor", "write_cursor"]


class Hit:
    """One record that was found. Equal hits are of the same record with the same score.

    Attributes:
        kind: of the record.
        id: of the record.
        score: greater is better; comparable within one search only.
        scores: the parts' own: "text" (BM25), "vector" (cosine similarity), "recency" (1 now, 0.5 after 30 days),
            "rerank" (the reranker's), each where it took part.
    """

    __slots__ = ("_record", "_row", "_terms", "id", "kind", "score", "scores")

    def __init__(
        self, kind: str, row: Row, score: float, scores: Mapping[str, float], terms: frozenset[str] = frozenset()
    ) -> None:
        self.kind, self.id, self.score, self.scores = kind, str(row[0]), score, scores
        self._row, self._terms = row, terms
        self._record: Record | None = None

    @property
    def record(self) -> Any:
        """The record as it was when it was found."""
        if self._record is None:
            self._record = CODECS[self.kind].decode(self._row)
        return self._record

    @property
    def highlights(self) -> tuple[Highlight, ...]:
        """Where the words of the query stand in the record, one excerpt a field; none for a hit by vector alone."""
        return highlight(self.kind, self._row, self._terms) if self._terms else ()

    @property
    def size(self) -> int:
        """About how many bytes the record has."""
        return 256 + sum(len(value) for value in self._row if isinstance(value, str | bytes))

    @property
    def row(self) -> Row:
        """The record's stored values."""
        return self._row

    @property
    def terms(self) -> frozenset[str]:
        """The terms it was sought by."""
        return self._terms

    def rescored(self, score: float, part: str) -> Hit:
        """Return the same hit with another score, which a part gave."""
        return Hit(self.kind, self._row, score, {**self.scores, part: score}, self._terms)

    def again(self) -> Hit:
        """Return the same hit with a record of its own, for another caller."""
        return Hit(self.kind, self._row, self.score, self.scores, self._terms)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hit):
            return NotImplemented
        return (self.kind, self.id, self.score) == (other.kind, other.id, other.score)

    def __hash__(self) -> int:
        return hash((self.kind, self.id))

    def __repr__(self) -> str:
        return f"<Hit {self.kind} {self.id} score={self.score:.4g}>"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a level of a recall kept.

    Args:
        level: "namespace", "domain", "task_type", "time", "similarity", "recency" or "diversity".
        kept: how many episodes were left behind it.
        detail: what it went by.
    """

    level: str
    kept: int
    detail: str


@dataclass(frozen=True, slots=True)
class SearchResults:
    """What a search found, best first; iterate it, or look at `hits`.

    Args:
        hits: the records found.
        cursor: pass it to `search` with the same arguments for the hits that follow; None when these were the last.
        complete: False where records of a bulk load, or changed by plain SQL, are still to be indexed: some may be
            missing from the hits, for moments.
        diversity: 1 less the mean similarity of the hits to one another; None where it was not asked for.
        explanation: what each level of a recall kept, where it was asked for.
    """

    hits: tuple[Hit, ...]
    cursor: str | None = None
    complete: bool = True
    diversity: float | None = None
    explanation: tuple[Kept, ...] = ()

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: int) -> Hit:
        return self.hits[place]

    def again(self) -> SearchResults:
        """Return the same results with records of their own, for another caller."""
        hits = tuple([hit.again() for hit in self.hits])
        return SearchResults(hits, self.cursor, self.complete, self.diversity, self.explanation)


class Place(NamedTuple):
    """Where a page of hits ends: how many hits there are up to there, and the last one's kind and id."""

    passed: int
    kind: str
    id: str


def write_cursor(query: bytes, place: Place) -> str:
    """Return the cursor that continues a search behind a place.

    Args:
        query: what was asked, packed.
        place: where its page ended.
    """
    packed = pack_row([_digest(query), *place])
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def read_cursor(query: bytes, cursor: str) -> Place:
    """Return the place a cursor names.

    Raises:
        ConfigurationError: it is no cursor, or one of another search.
    """
    if not isinstance(cursor, str):
        raise TypeError(f"cursor must be the text of a search's cursor, got {type(cursor).__name__}")
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        digest, passed, kind, id_ = msgpack.unpackb(packed, max_ext_len=0)
    except (ValueError, TypeError, binascii.Error, msgpack.UnpackException) as error:
        raise ConfigurationError(f"not the cursor of a search: {cursor!r:.80}") from error
    if digest != _digest(query) or (type(passed), type(kind), type(id_)) != (int, str, str):
        raise ConfigurationError(f"the cursor belongs to another search: {cursor!r:.80}")
    return Place(passed, kind, id_)


def _digest(query: bytes) -> bytes:
    return hashlib.blake2b(query, digest_size=8).digest()


def ordered(hits: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Return (score, kind, id) best first; equal scores stay in the order in which they were found.

    Which of those that are equal are found at all depends on how many are asked for, and their order is that of the
    search: any other one would put those that a later page asks for before those that were shown.
    """
    return sorted(hits, key=lambda hit: -hit[0])


def continued(hits: Sequence[tuple[float, str, str]], place: Place) -> int:
    """Return where the page behind a place begins.

    By number, since every write changes all scores a little. Where hits before it have gone, or the last one has, those
    behind them have moved up: then rather one is shown twice than one not at all.
    """
    last = next((index for index, (_, *found) in enumerate(hits) if found == [place.kind, place.id]), place.passed - 2)
    return max(0, min(last + 1, place.passed))
