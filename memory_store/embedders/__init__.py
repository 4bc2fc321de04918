"""Models that turn texts into vectors. What one needs is imported when it is made, so naming them all costs little."""

from __future__ import annotations

from memory_store.embedders.base import Embedder, FunctionEmbedder
from memory_store.embedders.checked import CheckedEmbedder
from memory_store.embedders.cohere import CohereEmbedder
from memory_store.embedders.ollama import OllamaEmbedder
from memory_store.embedders.onnx import OnnxEmbedder
from memory_store.embedders.openai import OpenAIEmbedder
from memory_store.embedders.sentence_transformers import SentenceTransformerEmbedder
from memory_store.embedders.wordllama import WordLlamaEmbedder

__all__ = [
    "CheckedEmbedder",
    "CohereEmbedder",
    "Embedder",
    "FunctionEmbedder",
    "OllamaEmbedder",
    "OnnxEmbedder",
    "OpenAIEmbedder",
    "SentenceTransformerEmbedder",
    "WordLlamaEmbedder",
]
