"""The vector index of one namespace and one model, in this process: exact while small, a graph where that pays."""

from __future__ import annotations

from memory_store.errors import ConfigurationError

try:
    from numpy import vecdot as _  # noqa: F401 - numpy 2 is the first that has it
except ImportError as error:
    raise ConfigurationError("vector search needs numpy 2: pip install 'memory-store[vectors]'") from error

from memory_store.search.vectors.index import VectorIndex
from memory_store.search.vectors.snapshot import Built, Snapshot

__all__ = ["Built", "Snapshot", "VectorIndex"]
