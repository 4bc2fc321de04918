"""WordLlama: a small model that comes with its package and needs no network, no key and no torch.

https://github.com/dleemiller/WordLlama: the vector of a text is the mean of its tokens' vectors.
"""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from memory_store.embedders.base import require_extra
from memory_store.embedders.local import LocalModel

if TYPE_CHECKING:
    from wordllama import WordLlamaInference

    from memory_store.embedders.base import Float32Array

__all__ = ["WordLlamaEmbedder"]

# Token vectors summed at once: a text of a million tokens would else take a gigabyte.
_TOKENS = 4096


class WordLlamaEmbedder(LocalModel["WordLlamaInference"]):
    """WordLlama's 256 dimensions, from the weights inside its package (16 MB); the network is never touched.

    Texts of any length count in full. Loading takes half a second, once, in a thread.

    Raises:
        ConfigurationError: the extra `wordllama` is not installed.
    """

    batch_size = 64
    fusion_weight = 0.38

    def __init__(self) -> None:
        require_extra("WordLlamaEmbedder", "wordllama", "wordllama", "numpy")
        super().__init__("wordllama")

    def load(self) -> WordLlamaInference:
        """Load weights and tokenizer from the package's own folder."""
        wordllama = _import_quietly()
        # Its tokenizer is found only where `cache_dir` says, even if that is the package itself.
        folder = Path(str(wordllama.__file__)).parent
        model: WordLlamaInference = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
        model.tokenizer.no_padding()
        return model

    def embed(self, model: WordLlamaInference, texts: list[str]) -> Float32Array:
        """Return the mean of each text's token vectors, zero for a text without tokens.

        Its own `embed` gives the same to the bit. But it pads every text to the longest of its batch, which takes twice
        as long on texts of mixed length, and 16 GB for 64 texts of which one has 1 MiB.
        """
        import numpy as np

        vectors = np.zeros((len(texts), model.embedding.shape[1]), np.float32)
        encodings = model.tokenizer.encode_batch(texts, add_special_tokens=False)
        for vector, encoding in zip(vectors, encodings, strict=True):
            tokens = encoding.ids
            for start in range(0, len(tokens), _TOKENS):
                # Clipped as in its own `embed`: the tokenizer knows tokens that have no vector.
                vector += model.embedding.take(tokens[start : start + _TOKENS], axis=0, mode="clip").sum(axis=0)
            vector /= max(len(tokens), 1)
        return vectors


def _import_quietly() -> ModuleType:
    """Import the package without its `logging.basicConfig`, which would set up the root logger of the whole program."""
    root, guard = logging.getLogger(), logging.NullHandler()
    root.addHandler(guard)
    try:
        return import_module("wordllama")
    finally:
        root.removeHandler(guard)
