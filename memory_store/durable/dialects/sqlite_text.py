"""SQLite's full-text index: FTS5 over the terms of `documents`, read term by term.

FTS5 ranks by itself, but over all that the table holds, whatever namespace it is of, and a word in half of 100,000
documents takes it 80 ms. What is read here are its postings: those of 5,000 documents take 4.1 ms with their lengths,
and FTS5's own ranking of as many 5.6 ms.

Lengths come from FTS5's table of them, https://www.sqlite.org/fts5.html#fts5_data_structures: its rows are so short
that they are read four times as fast as those of `documents`. Each document also has the name of its corpus as a term,
which says how many there are.
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from memory_store.durable.connection import Connection
from memory_store.durable.dialects.sqlite import DAMAGED_INDEX, allow_shadow_writes, error_code, is_index_damage
from memory_store.durable.text_index import IS_BEHIND, Condition, Document, Gone, Posting, State, meeting_query
from memory_store.errors import IndexDamagedError
from memory_store.text.queries import Expression

__all__ = ["FileTextIndex"]

_COLUMNS = "key, namespace, kind, id, parent, place, at, revision, length, corpus, terms"
_INSERT = f"INSERT INTO documents ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ONE = "SELECT key, corpus, terms FROM documents WHERE namespace = ? AND kind = ? AND id = ?"
_OF_PARENT = "SELECT key, corpus, terms FROM documents WHERE namespace = ? AND kind = ? AND parent = ?"
_AT_ONCE = 500
_POSTINGS = (
    "SELECT p.doc, s.sz FROM documents_postings AS p CROSS JOIN documents_text_docsize AS s ON s.id = p.doc "
    "WHERE p.term = ? LIMIT ?"
)
# Places of a term that are read, for each document that is: one has 1.2 of them, in the mean of 100,000 texts, and
# where all have so many that not all are read, that takes half a second.
_PLACES = 64
# Newest documents that say how long one is on average.
_WEIGHED = 1_000


class FileTextIndex:
    """See `TextIndex`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, documents: Sequence[Document], gone: Sequence[Gone]) -> None:
        """Take the old terms out of the index by name, as FTS5 asks for where it does not keep the text itself."""
        run = self._connection.execute
        old = [row for document in documents for row in run(_ONE, document[:3])]
        for namespace, kind, id_, parent in gone:
            old += run(_OF_PARENT if id_ is None else _ONE, (namespace, kind, parent if id_ is None else id_))
        many = self._connection.executemany
        if old:
            dropped = {key: (key, _named(corpus, terms)) for key, corpus, terms in old}
            many("INSERT INTO documents_text (documents_text, rowid, terms) VALUES ('delete', ?, ?)", dropped.values())
            many("DELETE FROM documents WHERE key = ?", [(key,) for key in dropped])
        if documents:
            first = self._newest() + 1
            rows = [(key, *one[:9], " ".join(one.terms)) for key, one in enumerate(documents, first)]
            many(_INSERT, rows)
            named = [(row[0], _named(*row[-2:])) for row in rows]
            many("INSERT INTO documents_text (rowid, terms) VALUES (?, ?)", named)

    def clear(self) -> None:
        """Forget all: a document's terms are taken out of the index by name, so both must have been right before."""
        forget = "INSERT INTO documents_text (documents_text) VALUES ('delete-all')"
        try:
            self._connection.execute(forget)
        except sqlite3.DatabaseError as error:
            # With another code where it is FTS5's own version number that is damaged.
            if not (is_index_damage(error) or error_code(error) == sqlite3.SQLITE_ERROR):
                raise
            self._start_over()
            self._connection.execute(forget)
        self._connection.execute("DELETE FROM documents")

    def _start_over(self) -> None:
        """Put what FTS5 reads before it does anything at all as it is in a new table."""
        run = self._connection.execute
        allow_shadow_writes(self._connection)
        run("CREATE VIRTUAL TABLE temp.fresh_text USING fts5(terms, content='', tokenize='ascii')")
        for part in ("data", "config"):
            run(f"DELETE FROM main.documents_text_{part}")
            run(f"INSERT INTO main.documents_text_{part} SELECT * FROM temp.fresh_text_{part}")
        run("DROP TABLE temp.fresh_text")

    def damage(self) -> str | None:
        """Let FTS5 compare the index with the documents, https://www.sqlite.org/fts5.html#the_integrity_check_command.

        That is a write, which a file opened to be read refuses, and for which writers of any other would have to wait:
        so it is done to a copy in the temporary database, whose content is the file's own view. 0.5 s for 30,000
        documents of 100 terms.
        """
        run = self._connection.execute
        run("SELECT 1 FROM main.documents_text LIMIT 0")  # whether FTS5 opens it
        allow_shadow_writes(self._connection)
        run("SAVEPOINT text_check")
        try:
            run("CREATE TEMP VIEW checked_terms AS SELECT key, terms FROM main.documents_terms")
            run(
                "CREATE VIRTUAL TABLE temp.checked_text USING "
                "fts5(terms, content='checked_terms', content_rowid='key', tokenize='ascii')"
            )
            for part in ("data", "idx", "docsize"):
                run(f"DELETE FROM temp.checked_text_{part}")
                run(f"INSERT INTO temp.checked_text_{part} SELECT * FROM main.documents_text_{part}")
            run("INSERT INTO temp.checked_text (checked_text, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as error:
            if not is_index_damage(error):
                raise
            return str(error)
        finally:
            if self._connection.in_transaction:  # an interruption has ended it
                run("ROLLBACK TO text_check")
                run("RELEASE text_check")
        return None

    def statistics(self, corpus: str, namespace: str, kind: str) -> tuple[int, float]:
        """Look up how many have the name of the corpus, and take the average length of the newest of them."""
        [count] = self.frequencies(corpus, [""], namespace, 0)
        sizes = self._connection.execute(
            "SELECT s.sz FROM documents_text AS t CROSS JOIN documents_text_docsize AS s ON s.id = t.rowid "
            f"WHERE documents_text MATCH ? ORDER BY t.rowid DESC LIMIT {_WEIGHED}",
            (_quoted(corpus, ""),),
        ).fetchall()
        return count, sum(_LENGTHS[size] for (size,) in sizes) / len(sizes) if sizes else 0.0

    def frequencies(self, corpus: str, terms: Sequence[str], namespace: str, documents: int) -> list[int]:
        """Look them up in the vocabulary by one cursor: to open it takes 25 us, a term in 50,000 documents 2 ms."""
        named = [corpus + term for term in terms]
        sql = f"SELECT term, doc FROM documents_vocabulary WHERE term IN ({', '.join('?' * len(named))})"
        try:
            found = dict(self._connection.execute(sql, named).fetchall())
        except sqlite3.DatabaseError as error:
            # Where FTS5 does not even open the index, its vocabulary says so with codes that may mean anything.
            if error_code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
                raise
            raise IndexDamagedError(f"{DAMAGED_INDEX} ({error})") from error
        return [int(found.get(name, 0)) for name in named]

    def postings(self, corpus: str, term: str, condition: Condition, limit: int) -> list[Posting]:
        """Read each place where the term stands, in the order of the documents, which CROSS JOIN keeps."""
        most = limit * _PLACES
        if condition.ids is None:  # all of the corpus, whose name is in the term
            found = Counter(self._connection.execute(_POSTINGS, (corpus + term, most)))
            postings = [(key, times, _LENGTHS[size]) for (key, size), times in found.items()]
        else:
            rows = self._connection.execute(
                "SELECT d.key, d.length FROM documents_postings AS p CROSS JOIN documents AS d ON d.key = p.doc "
                f"WHERE p.term = ? AND {condition.sql} LIMIT ?",
                (corpus + term, *condition.parameters, most),
            )
            postings = [(key, times, length) for (key, length), times in Counter(rows).items()]
        return postings[:limit]

    def matching(self, corpus: str, terms: Sequence[str], condition: Condition, limit: int) -> list[int]:
        """Newest first, which FTS5 can do without ranking them."""
        return self._match(" OR ".join(_quoted(corpus, term) for term in terms), condition, limit)

    def matching_expression(self, corpus: str, expression: Expression, condition: Condition, limit: int) -> list[int]:
        """Say it in FTS5's own words."""
        return self._match(_in_words(corpus, expression), condition, limit)

    def _match(self, query: str, condition: Condition, limit: int) -> list[int]:
        rows = self._connection.execute(
            "SELECT d.key FROM documents_text AS t CROSS JOIN documents AS d ON d.key = t.rowid "
            f"WHERE documents_text MATCH ? AND {condition.sql} ORDER BY t.rowid DESC LIMIT ?",
            (query, *condition.parameters, limit),
        )
        return [key for (key,) in rows]

    def meeting(self, condition: Condition, limit: int) -> list[int]:
        """Ask the records, which have indexes for it, then look their documents up."""
        sql, parameters = meeting_query(condition, limit)
        return [key for (key,) in self._connection.execute(sql, parameters)]

    def counts(
        self, namespace: str, keys: Sequence[int], corpus: str, terms: Sequence[str]
    ) -> list[tuple[int, int, list[int]]]:
        """Count in the documents' own terms."""
        found = self._rows("SELECT key, length, terms FROM documents WHERE key", keys)
        sought = [f" {term[:-1]}" if term.endswith("*") else f" {term} " for term in terms]
        return [(key, length, _counted(f" {text} ", sought)) for key, length, text in found]

    def terms(self, namespace: str, kind: str, ids: Sequence[str]) -> list[tuple[str, int, list[str]]]:
        """Read them as they stand there."""
        found: list[tuple[str, int, list[str]]] = []
        for start in range(0, len(ids), _AT_ONCE):
            chunk = ids[start : start + _AT_ONCE]
            places = ", ".join("?" * len(chunk))
            sql = f"SELECT id, revision, terms FROM documents WHERE namespace = ? AND kind = ? AND id IN ({places})"
            rows = self._connection.execute(sql, (namespace, kind, *chunk))
            found += [(id_, revision, text.split(" ") if text else []) for id_, revision, text in rows]
        return found

    def state(self, shard: int, namespace: str, sought: Sequence[tuple[str, str]] = ()) -> State:
        """Take the newest key of all; what is sought is as quickly read when it is asked for."""
        sql = f"SELECT position, {IS_BEHIND} FROM head WHERE shard = ?"
        [(position, behind)] = self._connection.execute(sql, (namespace, shard, shard))
        return State(position, bool(behind), self._newest())

    def _newest(self) -> int:
        [(newest,)] = self._connection.execute("SELECT coalesce(max(key), 0) FROM documents")
        return int(newest)

    def ids(self, namespace: str, keys: Sequence[int]) -> dict[int, tuple[str, str]]:
        """Look them up."""
        found = self._rows("SELECT key, kind, id, namespace FROM documents WHERE key", keys)
        return {key: (kind, id_) for key, kind, id_, of in found if of == namespace}

    def _rows(self, select: str, keys: Sequence[int]) -> Iterator[Any]:
        for start in range(0, len(keys), _AT_ONCE):
            chunk = keys[start : start + _AT_ONCE]
            yield from self._connection.execute(f"{select} IN ({', '.join('?' * len(chunk))})", chunk)


def _named(corpus: str, terms: str) -> str:
    """Return terms as the index has them, the corpus first; the view `documents_terms` says the same."""
    return f"{corpus} {corpus}{terms.replace(' ', f' {corpus}')}"


class _Lengths(dict[bytes, int]):
    """How many terms a document has, without its corpus, by what FTS5 notes: seven bits a byte, the highest first.

    A dictionary, since thousands are looked up in a search; texts are capped, so it stays small.
    """

    def __missing__(self, size: bytes) -> int:
        length = 0
        for byte in size:
            length = length << 7 | byte & 0x7F
        self[size] = length - 1
        return length - 1


_LENGTHS = _Lengths()


def _quoted(corpus: str, term: str) -> str:
    return f'"{corpus}{term}"'


def _counted(text: str, sought: Sequence[str]) -> list[int]:
    counts = [text.count(one) for one in sought]
    for place, one in enumerate(sought):
        # A term beside itself shares its space, and counts once for twice: in few texts, so all are spared the longer
        # way, spaces made two, which took half of the time.
        if counts[place] and f"{one}{one[1:]}" in text:
            counts[place] = text.replace(" ", "  ").count(one)
    return counts


def _in_words(corpus: str, expression: Expression) -> str:
    """Return an expression as FTS5 reads it, https://www.sqlite.org/fts5.html#full_text_query_syntax."""
    if expression.operator == "phrase":
        *first, last = expression.terms
        star = " *" if last.endswith("*") else ""
        return f'"{" ".join(corpus + term for term in (*first, last.removesuffix("*")))}"{star}'
    left, right = (
        f"({_in_words(corpus, side)})"
        if _BINDS[side.operator] < _BINDS[expression.operator] + is_right
        else _in_words(corpus, side)
        for is_right, side in enumerate(expression.sides)
    )
    return f"{left} {expression.operator.upper()} {right}"


# Parentheses are put where they are needed alone, since FTS5 reads no more than 100 at a time.
_BINDS: dict[Any, int] = {"or": 0, "and": 1, "not": 2, "phrase": 3}
