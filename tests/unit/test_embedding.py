"""Embeddings: packing, sizes, known models."""

from __future__ import annotations

import array
import struct
from typing import Any

import pytest
from hypothesis import given

from memory_store import Embedding, InvalidRecordError
from memory_store.records import KNOWN_DIMENSIONS
from tests.unit.samples import make_embedding, vectors


@given(vectors)
def test_numbers_are_packed_as_little_endian_float32(numbers: list[float]) -> None:
    packed = struct.pack(f"<{len(numbers)}f", *numbers)
    for given_as in (
        numbers,
        tuple(numbers),
        array.array("f", numbers),
        iter(numbers),
        packed,
        array.array("d", numbers),
    ):
        record = make_embedding(embedding=given_as, vector_dim=len(numbers))
        assert record.embedding == packed
        assert list(record.vector) == numbers


def test_the_vector_is_a_read_only_view_of_the_bytes() -> None:
    record = make_embedding()
    assert record.vector.readonly
    assert record.vector.format == "f"
    with pytest.raises(TypeError):
        record.vector[0] = 1.0


def test_a_vector_of_the_caller_is_copied() -> None:
    numbers = array.array("f", [1.0, 2.0])
    record = make_embedding(embedding=numbers)
    numbers[0] = 9.0
    assert list(record.vector) == [1.0, 2.0]


@pytest.mark.parametrize(("model", "dimensions"), KNOWN_DIMENSIONS.items())
def test_known_models_have_their_size(model: str, dimensions: int) -> None:
    record = Embedding(episode_id="e", content="", embedding=[0.0] * dimensions, model_name=model)
    assert record.vector_dim == dimensions
    with pytest.raises(
        InvalidRecordError, match=f"has {dimensions - 1} numbers, vector_dim says {dimensions}"
    ) as caught:
        Embedding(episode_id="e", content="", embedding=[0.0] * (dimensions - 1), model_name=model)
    assert (caught.value.field, caught.value.limit, caught.value.size) == ("embedding", dimensions, dimensions - 1)
    with pytest.raises(InvalidRecordError, match=f"is 3, but {model} makes {dimensions}") as caught:
        Embedding(episode_id="e", content="", embedding=[0.0] * 3, model_name=model, vector_dim=3)
    assert (caught.value.field, caught.value.limit, caught.value.size) == ("vector_dim", dimensions, 3)


def test_the_known_sizes_are_the_makers() -> None:
    assert KNOWN_DIMENSIONS["text-embedding-3-small"] == 1536
    assert KNOWN_DIMENSIONS["text-embedding-3-large"] == 3072
    assert KNOWN_DIMENSIONS["text-embedding-ada-002"] == 1536
    assert KNOWN_DIMENSIONS["embed-english-v3.0"] == 1024
    assert KNOWN_DIMENSIONS["nomic-embed-text-v1"] == 768
    assert KNOWN_DIMENSIONS["wordllama"] == 256
    assert KNOWN_DIMENSIONS["all-MiniLM-L6-v2"] == 384


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"vector_dim": 0}, "vector_dim", "must be given"),
        ({"vector_dim": 3}, "embedding", "has 2 numbers, vector_dim says 3"),
        ({"vector_dim": "2"}, "vector_dim", "must be an integer, got str"),
        ({"embedding": [], "vector_dim": 0, "model_name": "wordllama"}, "embedding", "has 0 numbers"),
        ({"embedding": b"12345"}, "embedding", "has 5 bytes, which is no whole number of float32"),
        ({"embedding": "0.5,0.5"}, "embedding", "must be numbers or bytes, got str"),
        ({"embedding": 5}, "embedding", "must be numbers or bytes, got int"),
        ({"embedding": None}, "embedding", "must be numbers or bytes, got NoneType"),
        ({"embedding": [1.0, "x"]}, "embedding", "must hold numbers of float32 range"),
        ({"embedding": [1.0, float("nan")]}, "embedding", "must hold finite numbers only"),
        ({"embedding": [1.0, float("-inf")]}, "embedding", "must hold finite numbers only"),
        ({"embedding": struct.pack("<2f", 1.0, float("inf"))}, "embedding", "must hold finite numbers only"),
        ({"embedding": [1.0, 1e300]}, "embedding", ""),
        ({"model_name": None}, "model_name", "must be text"),
        ({"content": None}, "content", "must be text"),
        ({"episode_id": None}, "episode_id", "must be text"),
    ],
)
def test_a_broken_rule_is_named(changes: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(InvalidRecordError) as caught:
        make_embedding(**changes)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"embedding.{field} ")
    assert problem in str(caught.value)


def test_a_mutable_buffer_is_copied_as_bytes() -> None:
    buffer = bytearray(struct.pack("<2f", 1.0, 2.0))
    record = make_embedding(embedding=buffer)
    buffer[0] ^= 0xFF
    assert list(record.vector) == [1.0, 2.0]
    with pytest.raises(InvalidRecordError, match=r"no whole number of float32|must hold numbers"):
        make_embedding(embedding=bytearray(b"12345"))
