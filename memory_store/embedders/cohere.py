"""Cohere's embedding models."""

from __future__ import annotations

import os

from memory_store.embedders.base import require_extra
from memory_store.embedders.remote import RemoteModel, Vectors, check_timeout
from memory_store.errors import ConfigurationError

__all__ = ["CohereEmbedder"]


class CohereEmbedder(RemoteModel):
    """A model behind Cohere's embed API, version 2 (https://docs.cohere.com/reference/embed).

    The key is read from `CO_API_KEY`. Documents and queries are told apart, as these models want it. A text longer than
    the model reads is cut. The client tries twice more when the server is not reached, or answers 408, 409, 429 or 5xx.

    Args:
        model: name of the model; its vectors are stored under it.
        base_url: where the API is; None is `CO_API_URL`, or Cohere itself.
        timeout_s: longest wait for the server in one try.

    Raises:
        ConfigurationError: the extra `cohere` is not installed, or the key is missing.
    """

    batch_size = 96  # the API's own limit

    def __init__(self, model: str, *, base_url: str | None = None, timeout_s: float = 30.0) -> None:
        require_extra("CohereEmbedder", "cohere", "cohere", "numpy")
        check_timeout(timeout_s)
        import cohere
        import httpx
        from cohere.core.api_error import ApiError

        super().__init__(model, (httpx.TransportError,))
        base_url = base_url or os.environ.get("CO_API_URL")  # the client looks only when it is imported
        try:
            self._client = cohere.AsyncClientV2(base_url=base_url, timeout=timeout_s)
        except ApiError as error:
            raise ConfigurationError("set the environment variable CO_API_KEY") from error

    async def request(self, texts: list[str]) -> Vectors:
        """Ask the server for vectors of texts that are to be found."""
        return await self._request(texts, "search_document")

    async def embed_queries(self, texts: list[str], /) -> Vectors:
        """Return the vectors of texts that are searched for; raises the same as a call."""
        return await self.receive(self._request(texts, "search_query"))

    def reason(self, error: Exception) -> str:
        """Return what an error of the client says, without the headers it puts first."""
        return str(getattr(error, "body", None) or error)

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._client.__aexit__(None, None, None)  # the only way the client has

    async def _request(self, texts: list[str], input_type: str) -> Vectors:
        answer = await self._client.embed(
            model=self.model_name, texts=texts, input_type=input_type, embedding_types=["float"]
        )
        if answer.embeddings.float_ is None:
            raise ValueError("no float embeddings")
        return answer.embeddings.float_
