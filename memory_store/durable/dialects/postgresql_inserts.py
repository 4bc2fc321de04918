"""New records committed in one round trip, in one statement: PostgreSQL's way of the commonest write.

One statement advances the head, inserts the rows, logs and indexes them, and is its own transaction. It does so only if
the head still is where this process saw it, so its position is known before it is sent, and an unknown outcome can be
resolved like any other. Where others have committed meanwhile it does nothing, and where a record exists it fails as a
whole; then the transaction of several statements does it.
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, Table

from memory_store.records import RECORDS, RecordSpec
from memory_store.records.columns import Float32Vector, UtcDateTime

__all__ = ["insert_text"]

SETTINGS = (
    # The triggers leave the log to us.
    "set_config('memory_store.writing', 'on', true) = 'on' "
    # An acknowledged write is on the disk, whatever the server's default is.
    "AND CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) "
    "ELSE '' END IS NOT NULL"
)
"""A condition that always holds, and sets what a write transaction of this library needs."""


@cache
def insert_text(kind: str) -> str:
    """Nonce, shard, position and nonce of the head seen, actor, time, and arrays: see below -> position.

    The arrays are the namespaces left in the backlog, those of the documents' columns, those of the rows' columns.
    """
    spec = RECORDS[kind]
    columns = ["namespace", *spec.columns]
    first = 8 + len(_DOCUMENT)
    arrays = ", ".join(f"${number}::{_type(spec.table, name)}[]" for number, name in enumerate(columns, first))
    names = ", ".join(columns)
    return (
        f"WITH new AS MATERIALIZED (SELECT * FROM unnest({arrays}) WITH ORDINALITY AS u({names}, idx)), "
        "head_ AS (UPDATE head SET position = position + 1, nonce = $1::bigint "
        f"WHERE shard = $2::int AND position = $3::bigint AND nonce = $4::bigint AND {SETTINGS} RETURNING position), "
        f"rows_ AS (INSERT INTO {spec.table.name} ({names}) SELECT {names} FROM new, head_), "
        "log_ AS (INSERT INTO changes (shard, position, idx, kind, namespace, key, parent, operation, revision, actor, "
        "at, nonce, image) "
        f"SELECT $2::int, head_.position, new.idx - 1, '{spec.kind}', new.namespace, new.id, {_parent(spec)}, "
        "'insert', new.revision, $5::text, $6::bigint, $1::bigint, NULL FROM new, head_), "
        f"{_INDEXED} "
        "SELECT position FROM head_"
    )


# A document may be there without its record: left by a plain DELETE that is still in the backlog.
_NUMBERS = ("at", "revision", "length")
_DOCUMENT = ("namespace", "kind", "id", "place", "at", "revision", "length", "corpus", "terms")
_INDEXED = (
    "behind_ AS (INSERT INTO backlog (shard, position, namespace) "
    "SELECT $2::int, head_.position, left_behind FROM unnest($7::text[]) AS left_behind, head_), "
    f"documents_ AS (INSERT INTO documents ({', '.join(_DOCUMENT)}) "
    f"SELECT {', '.join('terms::tsvector' if name == 'terms' else name for name in _DOCUMENT)} FROM unnest("
    + ", ".join(f"${number}::{'bigint' if name in _NUMBERS else 'text'}[]" for number, name in enumerate(_DOCUMENT, 8))
    + f") AS document({', '.join(_DOCUMENT)}), head_ ON CONFLICT (namespace, kind, id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _DOCUMENT[3:])
    + ")"
)


def _parent(spec: RecordSpec[Any]) -> str:
    return "NULL" if spec.parent is None else f"new.{spec.parent}"


def _type(table: Table, name: str) -> str:
    kind = table.c[name].type
    for type_, text in (
        (UtcDateTime, "bigint"),
        (JSON, "json"),
        (Boolean, "boolean"),
        (Float, "double precision"),
        (BigInteger, "bigint"),
        (Float32Vector, "bytea"),
    ):
        if isinstance(kind, type_):
            return text
    return "text"
