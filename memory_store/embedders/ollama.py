"""Models that an Ollama server runs."""

from __future__ import annotations

from typing import Any

from memory_store.embedders.base import require_extra
from memory_store.embedders.remote import RemoteModel, Vectors, check_timeout

__all__ = ["OllamaEmbedder"]

_TRIES = 3


class OllamaEmbedder(RemoteModel):
    """A model on an Ollama server (https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embeddings).

    The model must have been pulled. A text longer than it reads is cut. What may pass is tried twice more. A key, where
    the server wants one, is read from `OLLAMA_API_KEY`.

    Args:
        model: name of the model, such as "nomic-embed-text".
        model_name: what its vectors are stored under; `model` where it is left out.
        host: where the server is; None is `OLLAMA_HOST`, or this machine.
        timeout_s: longest wait for the server in one try; a model that is not in memory yet is loaded first.

    Raises:
        ConfigurationError: the extra `ollama` is not installed.
    """

    batch_size = 32

    def __init__(
        self, model: str, *, model_name: str | None = None, host: str | None = None, timeout_s: float = 120.0
    ) -> None:
        require_extra("OllamaEmbedder", "ollama", "ollama", "tenacity", "numpy")
        check_timeout(timeout_s)
        import httpx
        import ollama
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

        super().__init__(model_name or model, (ConnectionError, httpx.TransportError))
        self._model = model
        self._client = ollama.AsyncClient(host, timeout=timeout_s)
        self._retrying = AsyncRetrying(
            stop=stop_after_attempt(_TRIES),
            wait=wait_random_exponential(multiplier=0.5, max=8),
            retry=retry_if_exception(self.passing),
            reraise=True,
        )

    async def request(self, texts: list[str]) -> Vectors:
        """Ask the server."""
        answer: Any = await self._retrying(self._client.embed, model=self._model, input=texts)
        vectors: Vectors = answer.embeddings
        return vectors

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._client.close()
