"""The memory database for agent runtimes: a durable SQL tier behind a write-through cache.

`async with MemoryStore("sqlite:///agent.db") as store: ...`; start with docs/quickstart.md.
"""

from __future__ import annotations

from memory_store.cache.keeper import CacheStatus
from memory_store.collection import Collection, Page, Parts
from memory_store.config import Limits, Settings
from memory_store.errors import (
    CacheError,
    CodecError,
    CommitUnknownError,
    ConfigurationError,
    ConflictError,
    ConstraintError,
    DimensionMismatchError,
    DurableError,
    DurableTimeoutError,
    DurableUnavailableError,
    EmbedderError,
    IndexDamagedError,
    InvalidRecordError,
    MemoryStoreError,
    PositionLostError,
    QuerySyntaxError,
    RecordError,
    RecordNotFoundError,
    SchemaMismatchError,
    SearchError,
    StorageFullError,
    StoreClosedError,
)
from memory_store.feed import LoggedChange
from memory_store.namespace import Namespace, Transaction
from memory_store.patterns import PatternMerge, Patterns, SimilarPattern
from memory_store.recall.embeddings import Embeddings
from memory_store.records import (
    Embedding,
    Episode,
    EpisodeStatus,
    Pattern,
    PatternType,
    SpatiotemporalEntry,
    Step,
    TaskType,
)
from memory_store.search.highlights import Highlight
from memory_store.search.results import Hit, Kept, SearchResults
from memory_store.statistics import StoreStats
from memory_store.store import MemoryStore

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "CacheStatus",
    "CodecError",
    "Collection",
    "CommitUnknownError",
    "ConfigurationError",
    "ConflictError",
    "ConstraintError",
    "DimensionMismatchError",
    "DurableError",
    "DurableTimeoutError",
    "DurableUnavailableError",
    "EmbedderError",
    "Embedding",
    "Embeddings",
    "Episode",
    "EpisodeStatus",
    "Highlight",
    "Hit",
    "IndexDamagedError",
    "InvalidRecordError",
    "Kept",
    "Limits",
    "LoggedChange",
    "MemoryStore",
    "MemoryStoreError",
    "Namespace",
    "Page",
    "Parts",
    "Pattern",
    "PatternMerge",
    "PatternType",
    "Patterns",
    "PositionLostError",
    "QuerySyntaxError",
    "RecordError",
    "RecordNotFoundError",
    "SchemaMismatchError",
    "SearchError",
    "SearchResults",
    "Settings",
    "SimilarPattern",
    "SpatiotemporalEntry",
    "Step",
    "StorageFullError",
    "StoreClosedError",
    "StoreStats",
    "TaskType",
    "Transaction",
]
