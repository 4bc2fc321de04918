"""Models of the Sentence Transformers library: https://sbert.net."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from memory_store.embedders.base import require_extra
from memory_store.embedders.local import LocalModel

if TYPE_CHECKING:
    from memory_store.embedders.base import Float32Array

__all__ = ["SentenceTransformerEmbedder"]


class _Encoder(Protocol):
    """What is used of a SentenceTransformer (version 5 or later)."""

    def encode_document(self, inputs: list[str], *, show_progress_bar: bool) -> Any: ...

    def encode_query(self, inputs: list[str], *, show_progress_bar: bool) -> Any: ...


class SentenceTransformerEmbedder(LocalModel[_Encoder]):
    """A SentenceTransformer, run in a thread.

    Documents and queries get the prompts that the model has for them, if it has any. A text longer than the model reads
    is cut.

    Args:
        model: a folder, or the name of a model, which the library downloads unless it has it already.
        model_name: what its vectors are stored under; the last part of `model` where it is left out, so
            `sentence-transformers/all-MiniLM-L6-v2` is `all-MiniLM-L6-v2`.
        device: where it runs, such as "cpu" or "cuda"; None leaves that to the library.

    Raises:
        ConfigurationError: the extra `sentence-transformers` is not installed.
    """

    batch_size = 32

    def __init__(self, model: str, *, model_name: str | None = None, device: str | None = None) -> None:
        require_extra("SentenceTransformerEmbedder", "sentence-transformers", "sentence_transformers", "numpy")
        super().__init__(model_name or model.rstrip("/").rpartition("/")[2])
        self._source, self._device = model, device

    def load(self) -> _Encoder:
        """Load the model, or download it."""
        # By name: where the library is not installed, type checkers take the module they are reading for it.
        library = import_module("sentence_transformers")
        model: _Encoder = library.SentenceTransformer(self._source, device=self._device)
        return model

    def embed(self, model: _Encoder, texts: list[str]) -> Float32Array:
        """Return the vectors of texts that are to be found."""
        vectors: Float32Array = model.encode_document(texts, show_progress_bar=False)
        return vectors

    async def embed_queries(self, texts: list[str], /) -> Float32Array:
        """Return the vectors of texts that are searched for; raises the same as a call."""
        return await self.run(_embed_queries, texts)


def _embed_queries(model: _Encoder, texts: list[str]) -> Float32Array:
    vectors: Float32Array = model.encode_query(texts, show_progress_bar=False)
    return vectors
