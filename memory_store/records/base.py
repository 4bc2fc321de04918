"""What every record is: an immutable dataclass with slots that checks itself when it is made."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from memory_store.clock import new_id, utc_now
from memory_store.errors import CodecError, InvalidRecordError

if TYPE_CHECKING:
    from sqlalchemy.sql.base import ReadOnlyColumnCollection
    from sqlalchemy.sql.schema import Column

__all__ = ["Check", "Record", "check_json", "check_text"]

# A JSON integer may have any size in the format; this bound keeps it readable by every database and by `int()`.
_JSON_INTEGER_BITS = 1024
_INT64 = 1 << 63
# Hard ceiling while a record is made; a store's own `Limits.json_depth` (64 by default) applies when it is written.
_JSON_DEPTH = 500


class _Stored:
    """Carries the row a record was decoded from, so that times and JSON are parsed when they are first looked at.

    And the position of the commit that wrote it, where a write returned it. Neither is a field: they take no part in
    equality, `repr` or `replace`.
    """

    __slots__ = ("_position", "_row")
    _position: int
    _row: list[Any]

    @property
    def position(self) -> int | None:
        """Position of the commit that wrote it, if a write returned this record; else None.

        Hand it to another process: `get(id, at_least=position)` sees this write there.
        """
        return getattr(self, "_position", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(_Stored):
    """Base of the stored kinds.

    A record cannot be changed: `dataclasses.replace` makes a new one, `update` changes the stored one. JSON fields and
    whatever they hold belong to the caller alone: nothing done to them reaches the store or its cache.

    Args:
        id: text of 1 to 256 bytes; a time-ordered UUIDv7 when absent.
        revision: set by the store: 0 before the first write, 1 on insert, +1 on each change.
        created_at: when it came to be; timezone-aware, now when absent.
        updated_at: set by the store: when it was last written.

    Raises:
        InvalidRecordError: a value has the wrong type, is not finite, has no timezone, or is no JSON.
    """

    kind: ClassVar[str]
    c: ClassVar[ReadOnlyColumnCollection[str, Column[Any]]]
    """The columns, for filters and orders: `Episode.c.domain == "web"`."""

    _checks: ClassVar[tuple[tuple[str, Check, bool], ...]] = ()
    _lazy: ClassVar[Mapping[str, tuple[int, Callable[[Any], Any]]]] = {}

    id: str = field(default_factory=new_id)
    revision: int = 0
    created_at: datetime = field(default_factory=utc_now)
    updated_at: datetime = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        for name, check, nullable in self._checks:
            value = getattr(self, name)
            if value is None and nullable:
                continue
            checked = check(self, name, value)
            if checked is not value:
                object.__setattr__(self, name, checked)
        if not self.id:
            self._refuse("id", "must not be empty")
        if self.revision < 0:
            self._refuse("revision", f"must not be negative, got {self.revision}")

    if not TYPE_CHECKING:  # a type checker would take any misspelt field for an Any

        def __getattr__(self, name: str) -> Any:
            # Reached only while a slot is unset: decoded records leave times and JSON packed until they are looked at
            # (0.5 µs a time, 2 µs a kilobyte of JSON saved on every hit).
            lazy = self._lazy.get(name)
            if lazy is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            index, decode = lazy
            packed = self._row[index]
            try:
                value = None if packed is None else decode(packed)
            except (ValueError, TypeError, OverflowError) as error:
                raise CodecError(
                    f"{self.kind}.{name} is stored as something that cannot be read: {error}",
                    kind=self.kind,
                    key=self.id,
                ) from error
            object.__setattr__(self, name, value)
            return value

    def __hash__(self) -> int:
        return hash((self.kind, self.id))

    def _refuse(self, name: str, problem: str, *, limit: int | None = None, size: int | None = None) -> NoReturn:
        key = self.id if isinstance(self.id, str) else None
        raise InvalidRecordError(
            f"{self.kind}.{name} {problem}", kind=self.kind, key=key, field=name, limit=limit, size=size
        )

    def _require(self, name: str, condition: bool, problem: str) -> None:
        value = getattr(self, name)
        if value is not None and not condition:
            self._refuse(name, f"{problem}, got {value!r:.80}")


Check = Callable[[Record, str, Any], Any]


def check_text(record: Record, name: str, value: object) -> str:
    """Return text that every database can hold: any Unicode scalar values, NUL included, but no lone surrogates."""
    if not isinstance(value, str):
        record._refuse(name, f"must be text, got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            record._refuse(name, f"has a lone surrogate at character {error.start}, which no UTF-8 text can hold")
    return value[:]  # an enum's member becomes its plain word; a plain str is not copied


def check_key(record: Record, name: str, value: Any) -> str:
    """Return short text for a key: as `check_text`, and without NUL, at which C programs would cut the key off."""
    text = check_text(record, name, value)
    if "\0" in text:
        record._refuse(name, "must not hold NUL, it is a key")
    return text


def check_integer(record: Record, name: str, value: Any) -> int:
    """Return an integer of 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        record._refuse(name, f"must be an integer, got {type(value).__name__}")
    if not -_INT64 <= value < _INT64:
        record._refuse(
            name, f"must fit 64 bits, got one of {value.bit_length()} bits", limit=63, size=value.bit_length()
        )
    return int(value)


def check_float(record: Record, name: str, value: Any) -> float:
    """Return a finite float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        record._refuse(name, f"must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        record._refuse(name, "is too large for a float")
    if not math.isfinite(number):
        record._refuse(name, f"must be finite, got {number}")
    return number


def check_boolean(record: Record, name: str, value: Any) -> bool:
    """Return a bool."""
    if not isinstance(value, bool):
        record._refuse(name, f"must be True or False, got {type(value).__name__}")
    return value


def check_time(record: Record, name: str, value: Any) -> datetime:
    """Return the moment in UTC."""
    if not isinstance(value, datetime):
        record._refuse(name, f"must be a datetime, got {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        record._refuse(
            name, f"{value.isoformat()} has no timezone; use datetime.now(timezone.utc) or value.replace(tzinfo=...)"
        )
    if value.tzinfo is UTC:
        return value
    try:
        return value.astimezone(UTC)
    except OverflowError:
        record._refuse(name, f"{value.isoformat()} is outside the years 1 to 9999 in UTC")


def check_json(record: Record, name: str, value: Any) -> Any:
    """Return the value if it is a JSON value that reads back equal: no tuples, no other keys than text, no NaN."""
    _check_json(record, name, value, 1)
    return value


def _check_json(record: Record, name: str, value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str:
        check_text(record, name, value)
    elif kind is dict or kind is list:
        if depth > _JSON_DEPTH:
            record._refuse(name, f"is nested deeper than {_JSON_DEPTH} levels", limit=_JSON_DEPTH, size=depth)
        if kind is dict:
            for key in value:
                if type(key) is not str:
                    record._refuse(name, f"has a key of type {type(key).__name__}; JSON keys are text")
                check_text(record, name, key)
            value = value.values()
        for item in value:
            _check_json(record, name, item, depth + 1)
    elif value is None or kind is bool:
        pass
    elif kind is int:
        if value.bit_length() > _JSON_INTEGER_BITS:
            record._refuse(
                name, "holds an integer that is too large", limit=_JSON_INTEGER_BITS, size=value.bit_length()
            )
    elif kind is float:
        if not math.isfinite(value):
            record._refuse(name, f"must be finite, got {value}")
    else:
        record._refuse(
            name, f"holds a {kind.__name__}, which is not a JSON value (use dict, list, str, int, float, bool)"
        )


def parse_json(text: str) -> Any:
    """Return the value of stored JSON text."""
    return json.loads(text)
