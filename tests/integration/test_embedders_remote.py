"""The adapters of models behind an API: the makers' own clients against a server that speaks their formats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from memory_store import ConfigurationError, DimensionMismatchError, EmbedderError, StoreClosedError
from memory_store.embedders import CheckedEmbedder, CohereEmbedder, OllamaEmbedder, OpenAIEmbedder
from memory_store.embedders.remote import RemoteModel
from tests.servers.installation import free_port
from tests.servers.models import Answer, ModelServer, vector_of

APIS = ["openai", "cohere", "ollama"]
PATHS = {"openai": "/v1/embeddings", "cohere": "/v2/embed", "ollama": "/api/embed"}
TEXTS = ["fix the test", "read the log", "fix the tests"]


def make(api: str, url: str, timeout_s: float = 20.0, model: str = "a-model") -> RemoteModel:
    if api == "openai":
        return OpenAIEmbedder(model, base_url=f"{url}/v1", timeout_s=timeout_s)
    if api == "cohere":
        return CohereEmbedder(model, base_url=url, timeout_s=timeout_s)
    return OllamaEmbedder(model, host=url, timeout_s=timeout_s)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "CO_API_URL", "COHERE_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OPENAI_API_KEY", "CO_API_KEY", "OLLAMA_API_KEY"):
        monkeypatch.setenv(name, "the-secret-key")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def embedder(api: str, server: ModelServer) -> AsyncIterator[RemoteModel]:
    made = make(api, server.url)
    yield made
    await made.aclose()
    await server.until_closed()


def same(vectors: Any, texts: list[str], dimensions: int = 4) -> bool:
    return np.array_equal(vectors, np.array([vector_of(text, dimensions) for text in texts], np.float32))


async def test_vectors_come_in_the_order_of_the_texts(api: str, embedder: RemoteModel, server: ModelServer) -> None:
    assert same(await embedder(TEXTS), TEXTS)
    [request] = server.requests
    assert (request.path, request.texts, request.body["model"]) == (PATHS[api], TEXTS, "a-model")
    assert request.headers["authorization"] == "Bearer the-secret-key"


async def test_a_connection_is_used_again(embedder: RemoteModel, server: ModelServer) -> None:
    for text in TEXTS:
        assert same(await embedder([text]), [text])

    assert server.connections == 1


async def test_vectors_with_indices_may_come_in_any_order(server: ModelServer) -> None:
    embedder = make("openai", server.url)
    server.rest = Answer(backwards=True)

    assert same(await embedder(TEXTS), TEXTS)

    await embedder.aclose()


@pytest.mark.parametrize("indices", [[0, 0], [0], [0, 1, 2]])
async def test_vectors_whose_indices_are_not_those_of_the_texts_are_refused(
    server: ModelServer, indices: list[int]
) -> None:
    embedder = CheckedEmbedder(make("openai", server.url))
    data = [{"object": "embedding", "index": index, "embedding": [1.0]} for index in indices]
    server.rest = Answer(body={"object": "list", "data": data, "model": "m", "usage": {}})

    with pytest.raises(EmbedderError, match=r"returned shape \(\d, 1\) for 2 texts"):
        await embedder(TEXTS[:2])

    await embedder.aclose()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_what_passes_is_tried_again(embedder: RemoteModel, server: ModelServer, status: int) -> None:
    server.script.append(Answer(status))

    assert same(await embedder(TEXTS), TEXTS)
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [429, 500])
async def test_what_does_not_pass_is_told_as_retryable(embedder: RemoteModel, server: ModelServer, status: int) -> None:
    server.rest = Answer(status)

    with pytest.raises(EmbedderError, match=f"refused by its server with status {status}.*says {status}") as caught:
        await embedder(TEXTS)

    assert caught.value.retryable
    assert caught.value.__cause__ is not None
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_is_refused_is_not_tried_again(embedder: RemoteModel, server: ModelServer, status: int) -> None:
    server.rest = Answer(status)

    with pytest.raises(EmbedderError, match=f"refused by its server with status {status}.*says {status}") as caught:
        await embedder(TEXTS)

    assert not caught.value.retryable
    assert len(server.requests) == 1
    assert "the-secret-key" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"<html>Welcome to the hotel</html>", b'{"data": [', b"[]", b"{}", b"null", b'"text"', b'{"data": [], "id": "1"}'],
)
async def test_an_answer_that_is_not_understood_is_an_error(
    embedder: RemoteModel, server: ModelServer, body: bytes
) -> None:
    server.rest = Answer(body=body)

    with pytest.raises(EmbedderError) as caught:
        await embedder(TEXTS)

    assert not caught.value.retryable
    assert len(server.requests) == 1


async def test_fewer_vectors_than_texts_are_an_error(embedder: RemoteModel, server: ModelServer) -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
    server.rest = Answer(body={"id": "1", "data": data, "embeddings": {"float": [[1.0]]}})
    if isinstance(embedder, OllamaEmbedder):
        server.rest = Answer(body={"model": "m", "embeddings": [[1.0]]})

    with pytest.raises(EmbedderError, match=r"shape \(1, 1\) for 3 texts"):
        await CheckedEmbedder(embedder)(TEXTS)


async def test_an_error_page_is_not_repeated_in_full(embedder: RemoteModel, server: ModelServer) -> None:
    server.rest = Answer(404, body=b"nothing here " * 1000)

    with pytest.raises(EmbedderError, match="status 404") as caught:
        await embedder(TEXTS)

    assert len(str(caught.value)) < 500


async def test_a_server_that_is_too_slow_is_given_up(api: str, server: ModelServer) -> None:
    server.rest = Answer(hangs=True)
    embedder = make(api, server.url, timeout_s=0.2)

    with pytest.raises(EmbedderError, match="cannot be reached") as caught:
        await embedder(TEXTS)

    assert caught.value.retryable
    await server.until_closed()
    assert server.given_up == len(server.requests) >= 1
    await embedder.aclose()


async def test_a_broken_connection_is_told_as_retryable(embedder: RemoteModel, server: ModelServer) -> None:
    server.rest = Answer(cut=True)

    with pytest.raises(EmbedderError, match="cannot be reached") as caught:
        await embedder(TEXTS)

    assert caught.value.retryable


async def test_a_server_that_is_not_there_is_told_as_retryable(api: str) -> None:
    embedder = make(api, f"http://127.0.0.1:{free_port()}")

    with pytest.raises(EmbedderError, match="cannot be reached") as caught:
        await embedder(TEXTS)

    assert caught.value.retryable
    await embedder.aclose()


async def test_a_cancelled_call_closes_its_connection(embedder: RemoteModel, server: ModelServer) -> None:
    server.script.append(Answer(hangs=True))
    calling = asyncio.create_task(embedder(TEXTS))
    await server.asked.wait()

    calling.cancel()

    with pytest.raises(asyncio.CancelledError):
        await calling
    await server.until_closed()
    assert server.given_up == 1
    assert same(await embedder(TEXTS), TEXTS), "the next call has another connection"


async def test_closing_cancels_what_is_under_way(api: str, server: ModelServer) -> None:
    server.rest = Answer(hangs=True)
    checked = CheckedEmbedder(make(api, server.url))
    calling = asyncio.create_task(checked(TEXTS))
    await server.asked.wait()

    await checked.aclose()

    with pytest.raises(StoreClosedError):
        await calling
    await server.until_closed()


async def test_many_texts_go_in_batches_a_few_at_once(embedder: RemoteModel, server: ModelServer) -> None:
    checked = CheckedEmbedder(embedder)
    texts = [f"text {number}" for number in range(1000)]

    assert same(await checked(texts), texts)

    assert sorted(text for request in server.requests for text in request.texts) == sorted(texts)
    assert {len(request.texts) for request in server.requests[:-4]} == {checked._documents._batch_size}
    assert 1 < server.most_under_way <= embedder.concurrency


async def test_a_model_that_is_known_has_its_size(api: str, server: ModelServer) -> None:
    checked = CheckedEmbedder(make(api, server.url, model="embed-english-v3.0"))

    with pytest.raises(DimensionMismatchError) as caught:
        await checked(TEXTS)

    assert (caught.value.expected, caught.value.actual) == (1024, 4)
    await checked.aclose()


async def test_a_model_that_changes_its_size_is_noticed(embedder: RemoteModel, server: ModelServer) -> None:
    checked = CheckedEmbedder(embedder)
    await checked(TEXTS)
    server.dimensions = 5

    with pytest.raises(DimensionMismatchError, match="vectors of 5 numbers, its vectors have 4"):
        await checked(["another text"])

    assert same(await checked(TEXTS), TEXTS), "what is remembered is of the old size"


async def test_cohere_is_told_what_is_searched_for(server: ModelServer) -> None:
    embedder = CohereEmbedder("embed-english-v3.0", base_url=server.url)

    assert same(await embedder(TEXTS), TEXTS)
    assert same(await embedder.embed_queries(TEXTS), TEXTS)

    assert [request.body["input_type"] for request in server.requests] == ["search_document", "search_query"]
    await embedder.aclose()


@pytest.mark.parametrize(
    ("api", "variable", "path"),
    [("openai", "OPENAI_BASE_URL", "/v1"), ("cohere", "CO_API_URL", ""), ("ollama", "OLLAMA_HOST", "")],
)
async def test_the_address_may_come_from_the_environment(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, api: str, variable: str, path: str
) -> None:
    monkeypatch.setenv(variable, server.url + path)
    made = {"openai": OpenAIEmbedder, "cohere": CohereEmbedder, "ollama": OllamaEmbedder}[api]("a-model")

    assert same(await made(TEXTS), TEXTS)

    await made.aclose()


async def test_an_ollama_model_may_be_stored_under_another_name(server: ModelServer) -> None:
    embedder = OllamaEmbedder("nomic-embed-text:v1", model_name="nomic-embed-text-v1", host=server.url)

    await embedder(TEXTS)

    assert embedder.model_name == "nomic-embed-text-v1"
    assert server.requests[0].body["model"] == "nomic-embed-text:v1"
    await embedder.aclose()


@pytest.mark.parametrize(("api", "variable"), [("openai", "OPENAI_API_KEY"), ("cohere", "CO_API_KEY")])
def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch, api: str, variable: str) -> None:
    monkeypatch.delenv(variable)

    with pytest.raises(ConfigurationError, match=f"set the environment variable {variable}"):
        make(api, "http://127.0.0.1:1")


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), True, "5"])
def test_a_timeout_must_be_one(api: str, timeout_s: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout_s must be a finite number above 0"):
        make(api, "http://127.0.0.1:1", timeout_s=timeout_s)
