"""Every error the library raises on purpose.

MemoryStoreError
├── ConfigurationError              a wrong URL, setting, namespace or use
│   └── StoreClosedError            the store is closed, or belongs to another event loop or process
├── RecordError
│   ├── RecordNotFoundError         the record (or the episode it belongs to) does not exist
│   ├── ConflictError               the record has changed, or its place is taken
│   └── InvalidRecordError          a value breaks a rule or a limit; nothing was written
├── CodecError                      stored bytes or lines that cannot be decoded
├── DurableError
│   ├── DurableUnavailableError     the database cannot be reached, opened or written
│   │   └── IndexDamagedError       records are whole, the full-text index is not: `reindex` makes it anew
│   ├── DurableTimeoutError         another program holds the database longer than `timeout_s`
│   ├── CommitUnknownError          the commit may or may not have happened; `resolve` finds out
│   ├── PositionLostError           the database does not know this position (any more)
│   ├── SchemaMismatchError         the database is at another revision than this library
│   ├── ConstraintError             the database refused the rows
│   └── StorageFullError            no space left; nothing was written
├── CacheError                      the cache tier failed; the durable tier is not affected
└── SearchError
    ├── QuerySyntaxError            an expert query is malformed
    ├── DimensionMismatchError      a vector has another size than those it is compared with
    └── EmbedderError               the model that makes vectors failed, or returned something else

`retryable` says whether the same call can be made again without risk of doing its work twice.
A programmer's mistake (a wrong argument type, a wrong method) stays a `TypeError`.
"""

from __future__ import annotations

__all__ = [
    "CacheError",
    "CodecError",
    "CommitUnknownError",
    "ConfigurationError",
    "ConflictError",
    "ConstraintError",
    "DimensionMismatchError",
    "DurableError",
    "DurableTimeoutError",
    "DurableUnavailableError",
    "EmbedderError",
    "IndexDamagedError",
    "InvalidRecordError",
    "MemoryStoreError",
    "PositionLostError",
    "QuerySyntaxError",
    "RecordError",
    "RecordNotFoundError",
    "SchemaMismatchError",
    "SearchError",
    "StorageFullError",
    "StoreClosedError",
]


class MemoryStoreError(Exception):
    """Base of every error of this library.

    Attributes:
        kind: kind of the record concerned, or None.
        namespace: namespace concerned, or None.
        key: id of the record concerned, or None.
        tier: "durable", "cache" or None.
        retryable: whether the same call can be repeated safely.
    """

    tier: str | None = None
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        namespace: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.namespace = namespace
        self.key = key


class ConfigurationError(MemoryStoreError):
    """A URL, setting, namespace or use of the store is wrong."""


class StoreClosedError(ConfigurationError):
    """The store is closed, was never opened, or belongs to another event loop or process."""


class RecordError(MemoryStoreError):
    """Something is wrong with one record."""


class RecordNotFoundError(RecordError):
    """The record, or the episode it belongs to, does not exist. Nothing was written."""


class ConflictError(RecordError):
    """Somebody changed the record first, or its place is taken. Nothing was written.

    Attributes:
        expected: revision the caller expected, or None.
        actual: revision that is stored, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        namespace: str | None = None,
        key: str | None = None,
        expected: int | None = None,
        actual: int | None = None,
    ) -> None:
        super().__init__(message, kind=kind, namespace=namespace, key=key)
        self.expected = expected
        self.actual = actual


class InvalidRecordError(RecordError):
    """A value breaks a rule or a limit. Nothing was written.

    Attributes:
        field: name of the field, or None when the record as a whole is meant.
        limit: the limit that was broken (bytes, dimensions, depth), or None.
        size: the value's size in the limit's unit, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        namespace: str | None = None,
        key: str | None = None,
        field: str | None = None,
        limit: int | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__(message, kind=kind, namespace=namespace, key=key)
        self.field = field
        self.limit = limit
        self.size = size


class CodecError(MemoryStoreError):
    """Stored bytes, rows or lines that cannot be decoded."""


class DurableError(MemoryStoreError):
    """The durable tier failed."""

    tier = "durable"


class DurableUnavailableError(DurableError):
    """The database cannot be reached, opened or written."""


class IndexDamagedError(DurableUnavailableError):
    """The full-text index of a file is damaged, the records are not: `store.reindex()` makes it anew from them."""


class DurableTimeoutError(DurableError):
    """Another program kept the database locked, or a transaction stayed open, for too long. Nothing was written."""

    retryable = True


class CommitUnknownError(DurableError):
    """The commit may or may not have happened: ask `await store.resolve(error.token)` before retrying.

    Attributes:
        token: names the commit, for `resolve`, in this process or another; "" where it was never begun.
    """

    def __init__(self, message: str, *, token: str = "") -> None:
        super().__init__(message)
        self.token = token


class PositionLostError(DurableError):
    """The database does not know this position, or the log no longer leads on from it: start again from nothing.

    It was restored from a backup, its log was trimmed, or the position belongs to another database.

    Attributes:
        position: the position asked for.
        head: the newest position of the database.
    """

    def __init__(self, message: str, *, position: int = 0, head: int = 0) -> None:
        super().__init__(message)
        self.position = position
        self.head = head


class SchemaMismatchError(DurableError):
    """The database is at another schema revision than this library. Nothing was touched.

    Attributes:
        found: revision of the database, or None when it holds something that is not a memory store.
        expected: revision this library works with.
    """

    def __init__(self, message: str, *, found: str | None = None, expected: str = "") -> None:
        super().__init__(message)
        self.found = found
        self.expected = expected


class ConstraintError(DurableError):
    """The database refused the rows. Nothing was written."""


class StorageFullError(DurableError):
    """The disk or a file size limit is full. Nothing was written; safe to retry once there is room."""

    retryable = True


class CacheError(MemoryStoreError):
    """The cache tier failed. The durable tier is not affected."""

    tier = "cache"


class SearchError(MemoryStoreError):
    """A search cannot be answered as asked. Nothing was written."""


class QuerySyntaxError(SearchError):
    """An expert query is malformed.

    Attributes:
        query: the query.
        at: index of the character where it goes wrong.
    """

    def __init__(self, message: str, *, query: str = "", at: int = 0) -> None:
        super().__init__(message)
        self.query = query
        self.at = at


class DimensionMismatchError(SearchError):
    """A vector has another size than those it is to be compared with.

    Attributes:
        expected: numbers that the stored vectors have.
        actual: numbers that this one has.
    """

    def __init__(self, message: str, *, expected: int = 0, actual: int = 0) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class EmbedderError(SearchError):
    """The model that makes vectors failed, could not be reached, or returned something that is no vector.

    Nothing was written. `retryable` says whether the same texts may go through later.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
