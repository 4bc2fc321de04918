"""Models exported to ONNX, run by ONNX Runtime: the usual small sentence models without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memory_store.embedders.base import require_extra
from memory_store.embedders.local import LocalModel
from memory_store.errors import ConfigurationError, EmbedderError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from memory_store.embedders.base import Float32Array

__all__ = ["OnnxEmbedder"]

_TOKENS = 512
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class _Loaded(NamedTuple):
    """What is loaded: the tokenizer, the session, and the names of the inputs the model wants."""

    tokenizer: Tokenizer
    session: Any
    inputs: list[str]


class OnnxEmbedder(LocalModel[_Loaded]):
    """A text encoder in a folder: `model.onnx` and `tokenizer.json`, as exporters write them.

    The model takes `input_ids`, and if it likes `attention_mask` and `token_type_ids`, int64 (n, tokens). Its first
    output is a vector for each token, float (n, tokens, d), of which the mean over the text's own tokens is taken.

    Args:
        folder: where both files are.
        model_name: what its vectors are stored under; the folder's name where it is left out.
        max_tokens: tokens of a text that are read, the rest is cut off; None is what `tokenizer.json` says, or 512.
        normalize: whether vectors are scaled to length 1, as most such models are meant to be used.

    Raises:
        ConfigurationError: the extra `onnx` or one of the files is missing.
    """

    batch_size = 32

    def __init__(
        self,
        folder: str | Path,
        *,
        model_name: str | None = None,
        max_tokens: int | None = None,
        normalize: bool = True,
    ) -> None:
        require_extra("OnnxEmbedder", "onnx", "onnxruntime", "tokenizers", "numpy")
        self._folder = Path(folder).resolve()
        for name in ("model.onnx", "tokenizer.json"):
            if not (self._folder / name).is_file():
                raise ConfigurationError(f"{self._folder} has no {name}")
        if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
            raise ConfigurationError(f"max_tokens must be a positive integer or None, got {max_tokens!r}")
        super().__init__(model_name or self._folder.name)
        self._max_tokens, self._normalize = max_tokens, normalize

    def load(self) -> _Loaded:
        """Load tokenizer and model."""
        from onnxruntime import InferenceSession
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        if self._max_tokens is not None or tokenizer.truncation is None:
            tokenizer.enable_truncation(self._max_tokens or _TOKENS)
        tokenizer.no_padding()  # some files pad every text to the longest there could be
        session = InferenceSession(str(self._folder / "model.onnx"))
        inputs = [item.name for item in session.get_inputs()]
        if "input_ids" not in inputs or not _INPUTS.issuperset(inputs):
            known = ", ".join(sorted(_INPUTS))
            raise ConfigurationError(f"model {self.model_name!r} takes {', '.join(inputs)}; known are {known}")
        return _Loaded(tokenizer, session, inputs)

    def embed(self, model: _Loaded, texts: list[str]) -> Float32Array:
        """Return the mean of each text's token vectors."""
        import numpy as np

        encodings = model.tokenizer.encode_batch(texts)
        shape = len(texts), max(1, *(len(encoding.ids) for encoding in encodings))
        arrays = {name: np.zeros(shape, np.int64) for name in _INPUTS}
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            arrays["input_ids"][row, :length] = encoding.ids
            arrays["attention_mask"][row, :length] = encoding.attention_mask
            arrays["token_type_ids"][row, :length] = encoding.type_ids
        tokens = model.session.run(None, {name: arrays[name] for name in model.inputs})[0]
        if tokens.ndim != 3 or tokens.shape[:2] != shape:
            raise EmbedderError(
                f"model {self.model_name!r} returned shape {tokens.shape} for tokens of shape {shape}, "
                "not a vector for each token"
            )
        mask = arrays["attention_mask"].astype(np.float32)
        vectors: Float32Array = np.einsum("ntd,nt->nd", tokens.astype(np.float32, copy=False), mask)
        vectors /= np.maximum(mask.sum(axis=1, keepdims=True), 1)
        if self._normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return vectors
