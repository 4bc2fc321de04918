"""Nothing is imported before it is used, and without its extra an embedder says what to install."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HEAVY = ("numpy", "onnxruntime", "tokenizers", "wordllama", "openai", "cohere", "ollama", "httpx", "pydantic")

# The package is hidden as if it were not installed: nothing finds or imports it.
_HIDE = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == {package!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hidden
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_naming_the_embedders_imports_none_of_what_they_need() -> None:
    done = run(f"import sys, memory_store, memory_store.embedders\nprint([n for n in {HEAVY!r} if n in sys.modules])")

    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("made", "package", "extra"),
    [
        ("WordLlamaEmbedder()", "wordllama", "wordllama"),
        ("WordLlamaEmbedder()", "numpy", "wordllama"),
        ("SentenceTransformerEmbedder('m')", "sentence_transformers", "sentence-transformers"),
        ("OnnxEmbedder('folder')", "onnxruntime", "onnx"),
        ("OnnxEmbedder('folder')", "tokenizers", "onnx"),
        ("OpenAIEmbedder('m')", "openai", "openai"),
        ("CohereEmbedder('m')", "cohere", "cohere"),
        ("OllamaEmbedder('m')", "ollama", "ollama"),
        ("OllamaEmbedder('m')", "tenacity", "ollama"),
        ("CheckedEmbedder(FunctionEmbedder(print, 'm'))", "numpy", "vectors"),
    ],
)
def test_a_missing_extra_is_named(made: str, package: str, extra: str) -> None:
    done = run(f"{_HIDE.format(package=package)}\nfrom memory_store.embedders import *\n{made}")

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("memory_store.errors.ConfigurationError: ")
    assert f"needs an extra: pip install 'memory-store[{extra}]'" in last
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert extra in declared["project"]["optional-dependencies"]
