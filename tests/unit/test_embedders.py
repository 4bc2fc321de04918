"""Embedders: what may be one, what is checked, what is remembered, and what blank texts are."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import ConfigurationError, DimensionMismatchError, EmbedderError, StoreClosedError
from memory_store.embedders import CheckedEmbedder, Embedder, FunctionEmbedder
from memory_store.embedders.checked import content_hash
from memory_store.embedders.checks import check_vectors
from memory_store.records import KNOWN_DIMENSIONS
from tests.unit.toy_model import ToyModel, array_of, settle, vector_of

texts_with_repeats = st.lists(st.sampled_from(["", " ", "\n\t", "a", "b", "c", " a", "ä", "\0", "long " * 50]))


async def test_a_plain_function_is_an_embedder() -> None:
    async def lengths(texts: list[str]) -> list[list[int]]:
        return [[len(text), 1] for text in texts]

    embedder: Embedder = FunctionEmbedder(lengths, "lengths", batch_size=2)
    vectors = await CheckedEmbedder(embedder)(["a", "bb", "ccc"])

    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 1], [2, 1], [3, 1]]


async def test_a_function_for_queries_is_used_for_queries() -> None:
    async def documents(texts: list[str]) -> list[list[float]]:
        return [[1.0] for _ in texts]

    async def queries(texts: list[str]) -> list[list[float]]:
        return [[2.0] for _ in texts]

    checked = CheckedEmbedder(FunctionEmbedder(documents, "two ways", queries=queries))

    assert (await checked(["x"])).tolist() == [[1.0]]
    assert (await checked.embed_queries(["x"])).tolist() == [[2.0]], "not what is remembered of the document"
    assert (await checked(["x"])).tolist() == [[1.0]]


async def test_without_one_queries_are_embedded_and_remembered_as_documents() -> None:
    model = ToyModel()
    checked = CheckedEmbedder(model)

    assert np.array_equal(await checked(["x"]), await checked.embed_queries(["x"]))
    assert model.calls == [["x"]]


@given(texts_with_repeats, texts_with_repeats, st.integers(1, 5), st.integers(1, 3), st.sampled_from([0, 500, 10_000]))
def test_each_text_gets_its_own_vector(
    first: list[str], second: list[str], batch_size: int, concurrency: int, cache_bytes: int
) -> None:
    async def run() -> None:
        model = ToyModel(batch_size=batch_size, concurrency=concurrency)
        checked = CheckedEmbedder(model, cache_bytes=cache_bytes)
        both = await asyncio.gather(checked(first), checked(second), checked([]))
        assert np.array_equal(both[0], array_of(first)) or not first
        assert np.array_equal(both[1], array_of(second)) or not second
        assert len(both[2]) == 0
        assert np.array_equal(await checked(first), array_of(first)) or not first
        assert all(0 < len(call) <= batch_size for call in model.calls)
        assert all(text.strip() for call in model.calls for text in call), "blank texts are not sent"
        assert model.most_under_way <= concurrency
        if cache_bytes == 10_000:
            sent = [text for call in model.calls for text in call]
            assert len(sent) == len(set(sent)), "no text is sent twice"

    asyncio.run(run())


async def test_the_answer_belongs_to_the_caller() -> None:
    checked = CheckedEmbedder(ToyModel())
    (await checked(["x"]))[:] = 7

    assert (await checked(["x"])).tolist() == [vector_of("x")]


async def test_blank_texts_are_zero_whatever_the_model_is() -> None:
    model = ToyModel()
    checked = CheckedEmbedder(model)

    assert (await checked(["", " \n\t", "\u2003"])).tolist() == [[0, 0, 0]] * 3
    assert model.calls == [["size"]], "only its size was not known"
    assert (await checked([""])).tolist() == [[0, 0, 0]]
    assert len(model.calls) == 1


async def test_the_size_of_a_known_model_is_not_asked_for() -> None:
    async def never(_: list[str]) -> list[list[float]]:
        raise AssertionError("asked")

    checked = CheckedEmbedder(FunctionEmbedder(never, "wordllama"))

    assert checked.dimensions == 256
    assert (await checked([""])).shape == (1, 256)
    assert (await checked([])).shape == (0, 256)


@pytest.mark.parametrize(("name", "dimensions"), KNOWN_DIMENSIONS.items())
async def test_a_known_model_has_its_size(name: str, dimensions: int) -> None:
    async def other(texts: list[str]) -> np.ndarray:
        return np.zeros((len(texts), 7))

    with pytest.raises(DimensionMismatchError, match=f"vectors of 7 numbers, its vectors have {dimensions}") as caught:
        await CheckedEmbedder(FunctionEmbedder(other, name))(["x"])

    assert (caught.value.expected, caught.value.actual) == (dimensions, 7)


async def test_a_model_keeps_its_size() -> None:
    model = ToyModel()
    checked = CheckedEmbedder(model)
    await checked(["x"])
    model.dimensions = 4

    with pytest.raises(DimensionMismatchError):
        await checked(["y"])

    model.dimensions = 3
    assert (await checked(["y"])).tolist() == [vector_of("y")], "a failed call is not remembered"


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ([[1.0]], r"returned shape \(1, 1\) for 2 texts, not \(2, d\)"),
        ([[1.0]] * 3, r"returned shape \(3, 1\) for 2 texts"),
        ([1.0, 2.0], r"returned shape \(2,\) for 2 texts"),
        ([[[1.0]], [[1.0]]], r"returned shape \(2, 1, 1\)"),
        ([[], []], r"returned shape \(2, 0\)"),
        ([[1.0], [1.0, 2.0]], "returned no array of vectors"),
        (None, "returned object values, not numbers"),
        ([["1.0"], ["2.0"]], "returned <U3 values, not numbers"),
        ([[True], [False]], "returned bool values"),
        ([[1j], [2j]], "returned complex128 values"),
        ([[None], [1.0]], "returned object values"),
        ([[1.0], [float("nan")]], "numbers that are not finite"),
        ([[float("inf")], [float("-inf")]], "numbers that are not finite"),
        ([[1e300], [0.0]], "too large for float32"),
        ([[10**30], [0]], "returned object values"),
    ],
)
async def test_what_is_no_vector_is_refused(returned: Any, problem: str) -> None:
    calls = []

    async def wrong(texts: list[str]) -> Any:
        calls.append(texts)
        return returned

    with pytest.raises(EmbedderError, match=problem) as caught:
        await CheckedEmbedder(FunctionEmbedder(wrong, "m", batch_size=2))(["a", "b"])

    assert "'m'" in str(caught.value)
    assert not caught.value.retryable
    assert calls == [["a", "b"]]


async def test_a_vector_that_is_not_finite_fails_only_who_wants_it() -> None:
    calls = []

    async def embed(texts: list[str]) -> list[list[float]]:
        calls.append(texts)
        return [[float("nan") if text == "bad" else 1.0] for text in texts]

    checked = CheckedEmbedder(FunctionEmbedder(embed, "m"))
    one, two = await asyncio.gather(checked(["fine"]), checked(["bad"]), return_exceptions=True)

    assert isinstance(one, np.ndarray)
    assert one.tolist() == [[1.0]]
    assert isinstance(two, EmbedderError)
    assert calls == [["fine", "bad"]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint64])
def test_any_numbers_become_float32(dtype: Any) -> None:
    vectors = check_vectors("m", np.array([[1, 2], [3, 4]], dtype), 2, None)

    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ValueError("no such word"), False),
        (ConnectionResetError("gone"), True),
        (TimeoutError(), True),
        (EmbedderError("busy", retryable=True), True),
        (EmbedderError("never"), False),
    ],
)
async def test_what_a_model_raises_is_an_embedder_error(error: Exception, retryable: bool) -> None:
    model = ToyModel()
    model.refused["x"] = error

    with pytest.raises(EmbedderError) as caught:
        await CheckedEmbedder(model)(["x"])

    assert caught.value.retryable is retryable
    assert caught.value is error or caught.value.__cause__ is error
    assert str(error) in str(caught.value)


async def test_other_errors_of_the_library_pass() -> None:
    model = ToyModel()
    model.refused["x"] = ConfigurationError("no extra")

    with pytest.raises(ConfigurationError, match="no extra"):
        await CheckedEmbedder(model)(["x"])


@pytest.mark.parametrize("texts", ["a text", ("a", "b"), None, [1], ["a", None], [b"a"]])
async def test_texts_must_be_a_list_of_text(texts: Any) -> None:
    model = ToyModel()

    with pytest.raises(TypeError, match="texts must be a list of str"):
        await CheckedEmbedder(model)(texts)

    assert model.calls == []


async def test_a_lone_surrogate_is_refused_before_the_model_is_asked() -> None:
    model = ToyModel()

    with pytest.raises(EmbedderError, match="lone surrogate at 3"):
        await CheckedEmbedder(model)(["fine", "not\ud800"])

    assert model.calls == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_name": ""}, "model_name must not be empty"),
        ({"batch_size": 0}, "batch_size of embedder 'toy' must be a positive integer, got 0"),
        ({"concurrency": 1.5}, "concurrency of embedder 'toy' must be a positive integer, got 1.5"),
    ],
)
async def test_an_embedder_is_checked_when_it_is_taken(changes: dict[str, Any], problem: str) -> None:
    model = ToyModel()
    vars(model).update(changes)

    with pytest.raises(ConfigurationError, match=problem):
        CheckedEmbedder(model)


async def test_a_name_must_be_text() -> None:
    async def embed(_: list[str]) -> list[list[float]]:
        raise AssertionError

    with pytest.raises(TypeError, match="model_name must be a str, got int"):
        CheckedEmbedder(FunctionEmbedder(embed, 5))  # type: ignore[arg-type]


async def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    model = ToyModel(batch_size=1)
    checked = CheckedEmbedder(model, cache_bytes=2 * 450)
    for text in ("a", "b", "a", "c"):
        await checked([text])
    model.calls.clear()

    await checked(["a"])
    assert model.calls == []
    await checked(["b"])
    assert model.calls == [["b"]]


async def test_many_remembered_texts_do_not_hold_up_the_event_loop() -> None:
    checked = CheckedEmbedder(ToyModel(batch_size=10))
    texts = [f"{number}" for number in range(1000)]
    await checked(texts)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await checked(texts)
    counting.cancel()

    assert turns >= 99


async def test_nothing_is_remembered_where_no_memory_is_given() -> None:
    model = ToyModel()
    checked = CheckedEmbedder(model, cache_bytes=0)

    assert np.array_equal(await checked(["a", "a"]), array_of(["a", "a"]))
    assert np.array_equal(await checked(["a"]), array_of(["a"]))
    assert model.calls == [["a"], ["a"]]


async def test_closing_closes_the_model_once_and_for_all() -> None:
    model = ToyModel()
    checked = CheckedEmbedder(model)
    await checked(["x"])
    model.go.clear()
    waiting = asyncio.create_task(checked(["y"]))
    await settle()

    await checked.aclose()
    await checked.aclose()

    with pytest.raises(StoreClosedError, match="the embedder was closed"):
        await waiting
    assert model.closed == 1
    assert model.cancelled == [["y"]]
    with pytest.raises(StoreClosedError, match="the embedder is closed"):
        await checked(["x"])


async def test_a_model_without_connections_needs_no_end() -> None:
    async def embed(texts: list[str]) -> list[list[float]]:
        return [[1.0] for _ in texts]

    await CheckedEmbedder(FunctionEmbedder(embed, "m")).aclose()


def test_a_text_is_known_by_its_content() -> None:
    assert content_hash("ä") == content_hash("ä") != content_hash("a")
    assert content_hash("") == bytes.fromhex("cae66941d9efbd404e4d88758ea67670")
    assert len(content_hash("x" * 1_000_000)) == 16
