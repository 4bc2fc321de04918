"""Record <-> row <-> msgpack, and the fingerprint of all shapes.

A row is the list of a record's stored values in column order, without the namespace: ids and text as `str`, times as
integer microseconds, JSON as its text, vectors as bytes. The same row is bound to SQL, kept in the change log and
packed into the cache: positional msgpack lists measured half the decode time of maps.

A cache entry is `[expires_at, as_of, row, row, ...]` behind a prefix of fixed width, so that a row can be appended and
the header replaced without decoding the rest. No row means: known to be absent.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Generic, NoReturn, cast

import msgpack
from sqlalchemy import JSON, Boolean, Column, Float, String, Text

from memory_store.clock import to_us
from memory_store.config import Limits
from memory_store.errors import CodecError, InvalidRecordError
from memory_store.records import RECORDS, RecordSpec
from memory_store.records.columns import Float32Vector, UtcDateTime
from memory_store.records.spec import R

__all__ = [
    "CODECS",
    "ENTRY_PREFIX_BYTES",
    "RecordCodec",
    "append_rows",
    "check_entry",
    "entry_as_of",
    "entry_expiry",
    "fingerprint",
    "make_entry",
    "pack_row",
    "read_entry",
]

Row = list[Any]

# Format of everything packed: raise it when the meaning of stored bytes changes though no column does.
_FORMAT = 1

# array32 (0xdd) of n elements, float64 (0xcb) expiry, uint64 (0xcf) as_of; msgpack's own encodings at fixed width.
_PREFIX = struct.Struct(">BIBdBQ")
ENTRY_PREFIX_BYTES = _PREFIX.size


class RecordCodec(Generic[R]):
    """Encodes and decodes the records of one kind."""

    def __init__(self, spec: RecordSpec[R]) -> None:
        self.spec = spec
        columns = [spec.table.c[name] for name in spec.columns]
        self._json = [(i, c.name) for i, c in enumerate(columns) if isinstance(c.type, JSON)]
        self._times = [i for i, c in enumerate(columns) if isinstance(c.type, UtcDateTime)]
        self._keys = [i for i, c in enumerate(columns) if isinstance(c.type, String) and not isinstance(c.type, Text)]
        self._sized = [i for i, c in enumerate(columns) if isinstance(c.type, String | JSON | Float32Vector)]
        self._vectors = [i for i, c in enumerate(columns) if isinstance(c.type, Float32Vector)]
        self._bounded = [(spec.index(name), limit) for name, limit in spec.field_limits]
        self._values = attrgetter(*spec.columns)
        self.decode = _compile_decoder(spec)
        """Return the record of a row, a list or tuple, which belongs to the record afterwards."""

    def decode_written(self, row: Sequence[Any], position: int) -> R:
        """Return the record of a row that was written at a position; 0 where the commit is still to come."""
        record = self.decode(row)
        if position:
            object.__setattr__(record, "_position", position)
        return record

    def encode(self, record: R, limits: Limits) -> Row:
        """Return the record's row after every limit has been checked.

        Raises:
            InvalidRecordError: a value is over its limit, or JSON was changed into something that is none.
        """
        row: Row = list(self._values(record))
        for index in self._times:
            if row[index] is not None:
                row[index] = to_us(row[index])
        for index, name in self._json:
            row[index] = self._encode_json(record, name, row[index], limits)
        # Each check is tried on the number of characters first: no text has more than four bytes a character.
        keys = [value for index in self._keys if (value := row[index]) is not None]
        if sum(map(len, keys)) * 4 > limits.key_bytes:
            for index in self._keys:
                self._bound(record, self.spec.columns[index], row[index], limits.key_bytes)
        for index, limit_name in self._bounded:
            self._bound(record, self.spec.columns[index], row[index], getattr(limits, limit_name))
        if self.spec.size_limit is not None:
            limit = getattr(limits, self.spec.size_limit)
            values = [value for index in self._sized if (value := row[index]) is not None]
            if sum(map(len, values)) * 4 > limit and (size := sum(map(_size, values))) > limit:
                self._refuse(record, None, size, limit)
        for index in self._vectors:
            if (size := len(row[index]) // 4) > limits.embedding_dimensions:
                self._refuse(record, self.spec.columns[index], size, limits.embedding_dimensions, unit="dimensions")
        return row

    def _encode_json(self, record: R, name: str, value: Any, limits: Limits) -> str:
        if value == {} and type(value) is dict:
            return "{}"
        try:
            text = _dump(value)
            if not text.isascii():
                text.encode("utf-8")  # a lone surrogate is a ValueError here, before anything is written
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRecordError(
                f"{self.spec.kind}.{name} cannot be stored as JSON: {error}",
                kind=self.spec.kind,
                key=record.id,
                field=name,
            ) from error
        deepest = limits.json_depth
        if text.count("{") + text.count("[") > deepest and (depth := _depth(value)) > deepest:
            self._refuse(record, name, depth, deepest, unit="levels of nesting")
        return text

    def _bound(self, record: R, name: str, value: str | None, limit: int) -> None:
        if value is not None and len(value) * 4 > limit and (size := _size(value)) > limit:
            self._refuse(record, name, size, limit)

    def _refuse(self, record: R, name: str | None, size: int, limit: int, *, unit: str = "bytes") -> NoReturn:
        what = f"{self.spec.kind}.{name}" if name else f"{self.spec.kind} as a whole"
        raise InvalidRecordError(
            f"{what} has {size:,} {unit}, the limit is {limit:,}",
            kind=self.spec.kind,
            key=record.id[:256],
            field=name,
            limit=limit,
            size=size,
        )


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8"))
    return len(value)


def _make_dump() -> Callable[[Any], str]:
    """Return JSON's own compact encoder, made once: `json.dumps` makes a new one each time, half of its cost."""
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without the C accelerator
        return json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

    def refuse(value: Any) -> None:
        raise TypeError(f"{type(value).__name__} is not a JSON value")

    encode = make(None, refuse, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(encode(value, 0))


_dump = _make_dump()


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        containers = [item for item in level if isinstance(item, dict | list)]
        deepest += bool(containers)
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _compile_decoder(spec: RecordSpec[R]) -> Callable[[Sequence[Any]], R]:
    """Return a function that turns a row into a record in about 0.3 µs.

    A frozen dataclass takes 1.4 µs to build, since each field goes through `object.__setattr__`. So the fields are set
    on a twin class with the same slots and an ordinary `__init__`, and the finished object is then given the real
    class, which CPython allows exactly when the slots agree. Times and JSON stay in the row until looked at
    (`Record.__getattr__`).
    """
    names = spec.columns
    lines, targets = [], []
    for index, name in enumerate(names):
        if name in spec.record._lazy:
            targets.append("_")
            continue
        targets.append(f"v{index}")
        boolean = isinstance(spec.table.c[name].type, Boolean)
        lines.append(f" self.{name} = v{index}" + (f" if v{index} is None else v{index} == 1" if boolean else ""))
    source = f"def __init__(self, row):\n {', '.join(targets)} = row\n self._row = row\n" + "\n".join(lines)
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102 - built from our own column names, as `dataclasses` does
    twin = type(
        f"_{spec.record.__name__}Twin",
        spec.record.__bases__,
        {
            "__slots__": spec.record.__slots__,
            # Both: they share one C slot, which stays slow while either is the frozen dataclass's own.
            "__setattr__": object.__setattr__,
            "__delattr__": object.__delattr__,
            "__init__": namespace["__init__"],
        },
    )
    record_class = spec.record

    def decode(row: Sequence[Any]) -> R:
        record = twin(row)
        record.__class__ = record_class
        return cast("R", record)

    return decode


CODECS: dict[str, RecordCodec[Any]] = {kind: RecordCodec(spec) for kind, spec in RECORDS.items()}


def pack_row(row: Sequence[Any]) -> bytes:
    """Return a row as msgpack."""
    return cast("bytes", msgpack.packb(row))


def make_entry(expires_at: float, as_of: int, rows: Sequence[bytes]) -> bytes:
    """Return the cache entry of packed rows; of none, the entry that says "absent".

    Args:
        expires_at: deadline on the boot clock, in seconds.
        as_of: position at which the rows equalled the database.
        rows: packed rows.
    """
    return _PREFIX.pack(0xDD, len(rows) + 2, 0xCB, expires_at, 0xCF, as_of) + b"".join(rows)


read_entry: Callable[[bytes], list[Any]] = msgpack.unpackb
"""Return `[expires_at, as_of, row, ...]` of an entry this process made."""


def append_rows(entry: bytes, expires_at: float, as_of: int, rows: Sequence[bytes]) -> bytes:
    """Return the entry with packed rows added at its end and a new header."""
    count = _PREFIX.unpack_from(entry)[1] + len(rows)
    return b"".join((_PREFIX.pack(0xDD, count, 0xCB, expires_at, 0xCF, as_of), entry[ENTRY_PREFIX_BYTES:], *rows))


def entry_expiry(entry: bytes) -> float:
    """Return the entry's deadline on the boot clock, in seconds."""
    return cast("float", _PREFIX.unpack_from(entry)[3])


def entry_as_of(entry: bytes) -> int:
    """Return the position at which the entry equalled the database."""
    return cast("int", _PREFIX.unpack_from(entry)[5])


def _packed_types(column: Column[Any], nullable: bool) -> frozenset[type]:
    kind = column.type
    if isinstance(kind, Boolean):
        types = {bool, int}
    elif isinstance(kind, Float):
        types = {float, int}
    elif isinstance(kind, Float32Vector):
        types = {bytes}
    else:
        types = {str} if isinstance(kind, String | JSON) else {int}
    return frozenset(types | {type(None)} if nullable else types)


_PACKED_TYPES = {
    kind: [_packed_types(spec.table.c[n], bool(spec.table.c[n].nullable) or n == spec.number) for n in spec.columns]
    for kind, spec in RECORDS.items()
}


_SEEN: dict[str, set[tuple[type, ...]]] = {kind: set() for kind in RECORDS}
"""Combinations of value types that rows of a kind were found to be right with: rows of a kind have only a few."""


def check_entry(kind: str, entry: bytes) -> float:
    """Check bytes that come from a file before they may be served, and return the entry's deadline.

    Raises:
        CodecError: they are not an entry of this kind with rows of the kind's width and value types.
    """
    try:
        head = _PREFIX.unpack_from(entry)
        if (head[0], head[2], head[4]) != (0xDD, 0xCB, 0xCF):
            raise CodecError("cache entry has a wrong prefix", kind=kind)
        rows = msgpack.unpackb(entry, max_ext_len=0, max_map_len=0, strict_map_key=True)
    except (ValueError, struct.error, msgpack.UnpackException) as error:
        raise CodecError(f"cache entry cannot be decoded: {error}", kind=kind) from error
    seen = _SEEN[kind]
    for row in islice(rows, 2, None):
        types = tuple(map(type, row)) if type(row) is list else ()
        if types not in seen:
            _check_row(kind, row)
            seen.add(types)
    return cast("float", head[3])


def _check_row(kind: str, row: Any) -> None:
    allowed = _PACKED_TYPES[kind]
    if type(row) is not list or len(row) != len(allowed):
        raise CodecError(f"cache entry has a row that is no {kind}", kind=kind)
    for value, types in zip(row, allowed, strict=True):
        if type(value) not in types:
            raise CodecError(f"cache entry of a {kind} has a value of type {type(value).__name__}", kind=kind)


def fingerprint() -> str:
    """Return a digest of every kind's shape: a changed field can never be decoded as the old one."""
    shapes = [
        [spec.kind, spec.parent, spec.order, [[name, repr(spec.table.c[name].type)] for name in spec.columns]]
        for spec in RECORDS.values()
    ]
    return hashlib.blake2b(json.dumps([_FORMAT, shapes]).encode(), digest_size=16).hexdigest()
