"""Column types. A column's type decides how its value is checked, stored, cached and read back (see `codec`).

| type           | Python value            | SQLite        | cache           |
| -------------- | ----------------------- | ------------- | --------------- |
| String(256)    | short text, indexed     | TEXT          | str             |
| Text           | long text               | TEXT          | str             |
| Json           | JSON value              | TEXT (JSON)   | str, unparsed   |
| UtcDateTime    | datetime, UTC           | INTEGER (µs)  | int             |
| Float32Vector  | bytes, little-endian    | BLOB          | bin             |
| BigInteger     | int                     | INTEGER       | int             |
| Float          | float                   | REAL          | float           |
| Boolean        | bool                    | INTEGER 0/1   | bool            |
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKeyConstraint,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, UserDefinedType

from memory_store.clock import from_us, to_us
from memory_store.errors import InvalidRecordError

__all__ = [
    "METADATA",
    "Float32Vector",
    "Json",
    "LongText",
    "ShortText",
    "Terms",
    "UtcDateTime",
    "episode_columns",
    "record_table",
]

TextType = TypeVar("TextType", bound=String)

# Constraint names must be predictable, or a later migration could not name what it drops.
METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware moment, stored as integer microseconds since 1970 so that it sorts, indexes and packs as one."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Turn a filter's datetime into the stored integer."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise InvalidRecordError(f"time {value.isoformat()} has no timezone; use datetime.now(timezone.utc)")
        return to_us(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Turn the stored integer into a UTC datetime."""
        return None if value is None else from_us(value)


class Float32Vector(TypeDecorator[bytes]):
    """Numbers as little-endian IEEE 754 binary32, packed back to back."""

    impl = LargeBinary
    cache_ok = True


class Terms(UserDefinedType[str]):
    """The terms of a document: a tsvector on PostgreSQL, whose dialect has a type for it that takes 20 ms to import."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the server's name for it."""
        return "TSVECTOR"


def ShortText(length: int = 256) -> String:  # noqa: N802 - reads as a column type
    """Return the type of ids and of short, indexed text; `Limits.key_bytes` bounds it."""
    return _sorted_by_bytes(String(length))


def LongText() -> Text:  # noqa: N802 - reads as a column type
    """Return the type of text of any length."""
    return _sorted_by_bytes(Text())


def _sorted_by_bytes(type_: TextType) -> TextType:
    # As SQLite sorts. Under PostgreSQL's own collation pages would come in another order, and a new version of the
    # system's collation library breaks indexes. Lengths are the library's to check, on both.
    return type_.with_variant(Text(collation="C"), "postgresql")


def Json() -> JSON:  # noqa: N802 - reads as a column type
    """Return the type of JSON values.

    TEXT on SQLite: a column declared JSON has numeric affinity there, which turns the JSON text `1e2` into 100.
    """
    return JSON().with_variant(Text(), "sqlite")


def record_table(name: str, *columns: Any) -> Table:
    """Return the table of a kind: the five columns every kind has, then its own; the primary key is namespace, id.

    The column order after `namespace` is the order of the row everywhere: in the driver, in the cache, in the log.
    """
    return Table(
        name,
        METADATA,
        Column("namespace", ShortText(200), nullable=False),
        Column("id", ShortText(), nullable=False),
        Column("revision", BigInteger, nullable=False),
        Column("created_at", UtcDateTime, nullable=False),
        Column("updated_at", UtcDateTime, nullable=False),
        *columns,
        PrimaryKeyConstraint("namespace", "id"),
    )


def episode_columns() -> tuple[Any, ...]:
    """Return the column that ties a record to its episode, and the constraint that deletes it with the episode."""
    return (
        Column("episode_id", ShortText(), nullable=False),
        ForeignKeyConstraint(["namespace", "episode_id"], ["episodes.namespace", "episodes.id"], ondelete="CASCADE"),
    )
