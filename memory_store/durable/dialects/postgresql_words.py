"""What is said in other words on PostgreSQL than in SQLite: the durable tier is written in SQLite's.

Parameters are `$1`, not "?"; several keys come as one array.
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from memory_store.durable.changes import CHANGES
from memory_store.durable.connection import KeyedText, ServerText
from memory_store.durable.dialects.postgresql_inserts import SETTINGS
from memory_store.durable.statements import STATEMENTS, head_claim, head_release, log_insert, nonce_select, tail_select
from memory_store.records import RECORDS

__all__ = ["copy_targets", "restricted_words", "server_text", "with_array"]

_CLAIM = f"SELECT position, nonce, store_id, epoch, shard FROM head WHERE shard = $1 AND {SETTINGS} FOR UPDATE"


@cache
def _words() -> dict[str, str]:
    """What is said in other words here than in SQLite's."""
    return {
        # Without the lock, a snapshot taken before a change of the schema would find its new tables empty.
        "BEGIN": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE head IN ACCESS SHARE MODE",
        "BEGIN IMMEDIATE": "BEGIN ISOLATION LEVEL READ COMMITTED",
        # The head's row is locked before anything else, so that a shard has one writer at a time, as SQLite has.
        head_claim(): _CLAIM,
        head_release(): "SELECT 1",  # what the claim has set ends with its transaction
        "SELECT name FROM sqlite_master WHERE type = 'table'": (
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        ),
    }


@cache
def copy_targets() -> dict[str, tuple[str, list[str]]]:
    """Table and columns of the inserts that can be made by COPY."""
    known = {STATEMENTS[kind].insert: (spec.table.name, ["namespace", *spec.columns]) for kind, spec in RECORDS.items()}
    return {**known, log_insert(): (CHANGES.name, [column.name for column in CHANGES.columns])}


@cache
def restricted_words() -> dict[str, str]:
    """What a role says that sees one namespace only, see `durable/row_security.py`."""
    return {
        tail_select(): "SELECT * FROM memory_store_tail($1, $2, $3, $4)",
        nonce_select(): "SELECT nonce FROM memory_store_nonce($1, $2) AS nonce WHERE nonce IS NOT NULL",
    }


def server_text(sql: str) -> str:
    """Return a statement of the durable tier in PostgreSQL's words, with `$1` for parameters."""
    return str(sql) if type(sql) is ServerText else _translated(sql)


@cache
def _translated(sql: str) -> str:
    first = 1
    if isinstance(sql, KeyedText):
        sql, first = _looked_up(sql), 3
    pieces = _words().get(sql, sql).split("?")
    return "".join(f"{piece}${number}" for number, piece in enumerate(pieces[:-1], first)) + pieces[-1]


def _looked_up(sql: KeyedText) -> str:
    """Look up key by key, in the index of exactly these columns, whatever the planner thinks of the table.

    Before the server's first ANALYZE it takes any index that begins with the namespace, and reads all of it: 20,000
    episodes with five steps each took 36 s instead of 4.
    """
    table = sql.table
    # OFFSET 0 keeps it from becoming a plain join, which would be planned as before.
    one = f"(SELECT * FROM {table} WHERE namespace = $1 AND {sql.column} = asked.asked_key OFFSET 0) AS {table}"
    found = f"unnest($2::text[]) AS asked(asked_key) CROSS JOIN LATERAL {one}"
    said = " ".join(sql.split())
    said = said.replace(f"{table} WHERE {sql.condition}", found)
    return said.replace(f"{table} ON {sql.condition}", f"({found}) ON true")


def with_array(sql: KeyedText, parameters: Sequence[Any]) -> list[Any]:
    """Return the parameters of a statement for several keys as the server takes them: the keys in one array."""
    namespace, *rest = parameters
    return [namespace, list(dict.fromkeys(rest[: sql.places])), *rest[sql.places :]]
