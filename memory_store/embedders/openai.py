"""OpenAI's embedding models, and every server that speaks its API."""

from __future__ import annotations

from memory_store.embedders.base import require_extra
from memory_store.embedders.remote import RemoteModel, Vectors, check_timeout
from memory_store.errors import ConfigurationError

__all__ = ["OpenAIEmbedder"]


class OpenAIEmbedder(RemoteModel):
    """A model behind OpenAI's embeddings API (https://platform.openai.com/docs/api-reference/embeddings).

    The key is read from `OPENAI_API_KEY`. The client tries twice more after a failure that may pass.

    Args:
        model: name of the model; its vectors are stored under it.
        base_url: where the API is; None is `OPENAI_BASE_URL`, or OpenAI itself. vLLM, LM Studio, llama.cpp and others
            speak the same (with any key).
        timeout_s: longest wait for the server in one try.

    Raises:
        ConfigurationError: the extra `openai` is not installed, or the key is missing.
    """

    # Eight times what the API takes in number. But it takes 300,000 tokens at once, and 8,192 in one text.
    batch_size = 32

    def __init__(self, model: str, *, base_url: str | None = None, timeout_s: float = 30.0) -> None:
        require_extra("OpenAIEmbedder", "openai", "openai", "numpy")
        check_timeout(timeout_s)
        import openai

        super().__init__(model, (openai.APIConnectionError,))
        try:
            self._client = openai.AsyncOpenAI(base_url=base_url, timeout=timeout_s)
        except openai.OpenAIError as error:
            raise ConfigurationError(f"set the environment variable OPENAI_API_KEY ({error})") from error

    async def request(self, texts: list[str]) -> Vectors:
        """Ask the server. Vectors come with the index of their text, in any order."""
        answer = await self._client.embeddings.create(model=self.model_name, input=texts)
        vectors = {item.index: item.embedding for item in answer.data}  # two of one index are noticed as one too few
        return [vectors[index] for index in sorted(vectors)]

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._client.close()
