"""An embedding: a piece of an episode's text as a vector."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, Index

from memory_store.records.base import Record
from memory_store.records.columns import Float32Vector, LongText, ShortText, episode_columns, record_table
from memory_store.records.spec import RecordSpec

__all__ = ["EMBEDDING", "KNOWN_DIMENSIONS", "Embedding"]

KNOWN_DIMENSIONS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
    "embed-english-v3.0": 1024,
    "nomic-embed-text-v1": 768,
    "wordllama": 256,
    "all-MiniLM-L6-v2": 384,
}
"""Vector sizes the models' makers state; another size under one of these names is refused."""

_TABLE = record_table(
    "embeddings",
    *episode_columns(),
    Column("content", LongText(), nullable=False),
    Column("embedding", Float32Vector, nullable=False),
    Column("model_name", ShortText(), nullable=False),
    Column("vector_dim", BigInteger, nullable=False),
    Index(None, "namespace", "episode_id"),
    Index(None, "namespace", "model_name"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding(Record):
    """A text of an episode and its vector.

    Args:
        episode_id: the episode it belongs to.
        content: the text that was embedded.
        embedding: the vector: any iterable of finite numbers (a list, an `array`, a numpy array), or bytes that already
            are little-endian float32. Kept as those bytes; `vector` gives the numbers back without a copy.
        model_name: the model that made it; see `KNOWN_DIMENSIONS`.
        vector_dim: how many numbers. May be left out for a known model; other models declare theirs.
    """

    kind: ClassVar[str] = "embedding"

    episode_id: str
    content: str
    embedding: Any
    model_name: str
    vector_dim: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedding", _pack(self, self.embedding))
        if self.vector_dim == 0 and isinstance(self.model_name, str):
            known = KNOWN_DIMENSIONS.get(self.model_name)
            if known is None:
                self._refuse("vector_dim", f"must be given: model {self.model_name!r:.80} is not one the store knows")
            object.__setattr__(self, "vector_dim", known)
        Record.__post_init__(self)
        if len(self.embedding) != 4 * self.vector_dim or not self.embedding:
            size = len(self.embedding) // 4
            self._refuse(
                "embedding", f"has {size} numbers, vector_dim says {self.vector_dim}", limit=self.vector_dim, size=size
            )
        known = KNOWN_DIMENSIONS.get(self.model_name, self.vector_dim)
        if known != self.vector_dim:
            self._refuse(
                "vector_dim",
                f"is {self.vector_dim}, but {self.model_name} makes {known}",
                limit=known,
                size=self.vector_dim,
            )

    @property
    def vector(self) -> memoryview[float]:
        """The numbers, read-only and without a copy; `numpy.frombuffer(record.embedding, "<f4")` makes an array."""
        return memoryview(_swap_on_big_endian(self.embedding)).cast("f")


def _pack(record: Embedding, value: Any) -> bytes:
    if isinstance(value, bytearray):
        value = bytes(value)
    if isinstance(value, bytes):
        if len(value) % 4:
            record._refuse("embedding", f"has {len(value)} bytes, which is no whole number of float32")
        numbers = array.array("f", _swap_on_big_endian(value))
    elif isinstance(value, str) or not isinstance(value, Iterable):
        record._refuse("embedding", f"must be numbers or bytes, got {type(value).__name__}")
    else:
        try:
            numbers = array.array("f", value)
        except (TypeError, ValueError, OverflowError) as error:
            record._refuse("embedding", f"must hold numbers of float32 range ({error})")
    if not all(map(math.isfinite, numbers)):
        record._refuse("embedding", "must hold finite numbers only")
    return value if isinstance(value, bytes) else _swap_on_big_endian(numbers.tobytes())


def _swap_on_big_endian(packed: bytes) -> bytes:
    if sys.byteorder == "little":
        return packed
    swapped = array.array("f", packed)
    swapped.byteswap()
    return swapped.tobytes()


EMBEDDING = RecordSpec(
    record=Embedding,
    table=_TABLE,
    ttl_s=7200,
    field_limits=(("content", "content_bytes"),),
    parent="episode_id",
    order=("created_at", "id"),
    searched=("content",),
)
