"""The adapters of models in this process: WordLlama itself, ONNX Runtime on models made here, and their threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from memory_store import ConfigurationError, EmbedderError
from memory_store.embedders import CheckedEmbedder, OnnxEmbedder, SentenceTransformerEmbedder, WordLlamaEmbedder
from memory_store.embedders.local import LocalModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "fix", "the", "test", "log", "read"]
TABLE = np.arange(len(WORDS) * 4, dtype=np.float32).reshape(len(WORDS), 4) - 10


@pytest.fixture(scope="module")
def wordllama() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


async def test_wordllama_finds_what_is_alike(wordllama: WordLlamaEmbedder) -> None:
    checked = CheckedEmbedder(wordllama)
    query, near, far = await checked(["the login test fails", "authentication tests are broken", "a recipe for soup"])

    assert query.shape == (256,)
    assert cosine(query, near) > cosine(query, far)


async def test_wordllama_gives_what_its_own_method_gives(wordllama: WordLlamaEmbedder) -> None:
    texts = ["fix", "fix the test " * 100, "\u200b", "\0", "日本語のテキスト", "x" * 5000]
    library = import_module("wordllama")
    own = library.WordLlama.load(cache_dir=Path(library.__file__).parent, disable_download=True)

    vectors = await wordllama(texts)

    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, own.embed(texts))


async def test_wordllama_reads_a_long_text_to_its_end(wordllama: WordLlamaEmbedder) -> None:
    words = "fix the test and read the log "
    once, often, other = await wordllama([words * 10, words * 20_000, words * 10_000 + "soup " * 70_000])

    assert cosine(once, often) > 0.9999
    assert cosine(once, other) < 0.9


async def test_wordllama_has_no_nan_for_no_words(wordllama: WordLlamaEmbedder) -> None:
    assert not (await wordllama([""])).any()


def test_wordllama_needs_no_network_and_leaves_logging_alone(tmp_path: Path) -> None:
    code = """
import asyncio, logging, sys
from memory_store.embedders import WordLlamaEmbedder

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise AssertionError(event)

sys.addaudithook(refuse)
print(asyncio.run(WordLlamaEmbedder()(["a text"])).shape, logging.getLogger().handlers, logging.getLogger().level)
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "(1, 256) [] 30\n"), done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is kept in a folder of its own"


def make_tokenizer(folder: Path, *, truncate: int | None = None) -> None:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.enable_padding(length=64)  # as some published files do
    if truncate:
        tokenizer.enable_truncation(truncate)
    tokenizer.save(str(folder / "tokenizer.json"))


def make_model(folder: Path, inputs: list[str], *, flat: bool = False) -> None:
    """A table of token vectors; `flat` models give one vector for a text themselves."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["tokens"])]
    if flat:
        nodes.append(helper.make_node("ReduceMean", ["tokens"], ["sentence"], axes=[1], keepdims=0))
    output = helper.make_tensor_value_info(
        "sentence" if flat else "tokens", TensorProto.FLOAT, ["n", 4] if flat else ["n", "t", 4]
    )
    arguments = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in inputs]
    graph = helper.make_graph(nodes, "g", arguments, [output], [numpy_helper.from_array(TABLE, "table")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-encoder"
    path.mkdir()
    make_tokenizer(path)
    make_model(path, ["input_ids", "attention_mask", "token_type_ids"])
    return path


def mean_of(*words: str) -> np.ndarray:
    return TABLE[[WORDS.index(word) for word in ("[CLS]", *words)]].mean(axis=0)


async def test_onnx_takes_the_mean_of_a_text_s_own_tokens(folder: Path) -> None:
    embedder = OnnxEmbedder(folder, normalize=False)

    vectors = await embedder(["fix the test", "log", "read the unheard"])

    assert embedder.model_name == "tiny-encoder"
    assert vectors.dtype == np.float32
    expected = [mean_of("fix", "the", "test"), mean_of("log"), mean_of("read", "the", "[UNK]")]
    assert np.allclose(vectors, expected, atol=1e-6), "what pads the shorter texts does not count"
    assert np.allclose(await embedder(["log"]), [mean_of("log")], atol=1e-6), "nor does the company"


async def test_onnx_vectors_have_length_one_unless_told_otherwise(folder: Path) -> None:
    expected = np.stack([mean_of("fix"), mean_of("log", "log")])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)

    assert np.allclose(await OnnxEmbedder(folder)(["fix", "log log"]), expected, atol=1e-6)


@pytest.mark.parametrize("inputs", [["input_ids"], ["attention_mask", "input_ids"]])
async def test_onnx_gives_a_model_the_inputs_it_has(folder: Path, inputs: list[str]) -> None:
    make_model(folder, inputs)

    vectors = await OnnxEmbedder(folder, normalize=False)(["fix", "the test"])

    assert np.allclose(vectors, [mean_of("fix"), mean_of("the", "test")], atol=1e-6)


@pytest.mark.parametrize(("said", "asked", "read"), [(None, None, 511), (None, 3, 2), (5, None, 4), (5, 8, 7)], ids=str)
async def test_onnx_reads_so_many_tokens(folder: Path, said: int | None, asked: int | None, read: int) -> None:
    make_tokenizer(folder, truncate=said)

    vectors = await OnnxEmbedder(folder, max_tokens=asked, normalize=False)(["fix " * read + "log " * 600])

    assert np.allclose(vectors, [mean_of(*["fix"] * read)], atol=1e-4)


async def test_onnx_through_the_one_place(folder: Path) -> None:
    checked = CheckedEmbedder(OnnxEmbedder(folder, model_name="mine", normalize=False))
    texts = ["fix", "", *(f"fix {'the ' * number}" for number in range(100))]

    vectors = await checked(texts)

    assert (checked.model_name, checked.dimensions) == ("mine", 4)
    assert not vectors[1].any()
    assert np.allclose(vectors[51], mean_of("fix", *["the"] * 49), atol=1e-5)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_onnx_says_which_file_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(ConfigurationError, match=f"tiny-encoder has no {name}"):
        OnnxEmbedder(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
async def test_onnx_says_which_model_is_damaged(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"damaged")

    with pytest.raises(EmbedderError, match="model 'tiny-encoder' cannot be loaded") as caught:
        await OnnxEmbedder(folder)(["fix"])

    assert caught.value.__cause__ is not None


async def test_onnx_refuses_models_of_another_form(folder: Path) -> None:
    make_model(folder, ["input_ids", "position_ids"])
    with pytest.raises(ConfigurationError, match="takes input_ids, position_ids; known are attention_mask, input_ids"):
        await OnnxEmbedder(folder)(["fix"])

    make_model(folder, ["input_ids"], flat=True)
    with pytest.raises(EmbedderError, match=r"returned shape \(1, 4\) for tokens of shape \(1, 2\)"):
        await OnnxEmbedder(folder)(["fix"])


@pytest.mark.parametrize("max_tokens", [0, -1, 2.5, True])
def test_onnx_wants_a_number_of_tokens(folder: Path, max_tokens: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_tokens must be a positive integer or None"):
        OnnxEmbedder(folder, max_tokens=max_tokens)


class Counted(LocalModel[list[str]]):
    """Notes which threads load and use it, and refuses two at once as tokenizers do."""

    def __init__(self) -> None:
        super().__init__("counted")
        self.loads: list[str] = []
        self.fails: Exception | None = None
        self._used = threading.Lock()

    def load(self) -> list[str]:
        self.loads.append(threading.current_thread().name)
        if self.fails:
            raise self.fails
        return []

    def embed(self, model: list[str], texts: list[str]) -> np.ndarray:
        if not self._used.acquire(blocking=False):
            raise RuntimeError("Already borrowed")
        try:
            model.append(threading.current_thread().name)
            return np.array([[float(len(text))] for text in texts], np.float32)
        finally:
            self._used.release()


async def test_a_model_is_loaded_once_and_used_by_one_thread_at_a_time() -> None:
    model = Counted()

    answers = await asyncio.gather(*(model(["x" * number]) for number in range(1, 30)))

    assert [answer.tolist() for answer in answers] == [[[float(number)]] for number in range(1, 30)]
    assert len(model.loads) == 1
    assert threading.main_thread().name not in model.loads
    assert model._model is not None
    assert len(model._model) == 29
    assert threading.main_thread().name not in model._model


async def test_a_model_that_could_not_be_loaded_is_loaded_by_the_next_call() -> None:
    model = Counted()
    model.fails = OSError("the disk is full")

    with pytest.raises(EmbedderError, match="model 'counted' cannot be loaded: OSError: the disk is full"):
        await model(["x"])

    model.fails = None
    assert (await model(["x"])).tolist() == [[1.0]]


def stand_in() -> ModuleType:
    """A module with the calls of Sentence Transformers 5 and 6 that are used, by their signatures there."""

    class SentenceTransformer:
        def __init__(self, model_name_or_path: str | None = None, *, device: str | None = None, **_: Any) -> None:
            if model_name_or_path == "absent":
                raise OSError("absent is not a local folder and is not a valid model identifier")
            self.made_of, self.device = model_name_or_path, device

        def encode_query(
            self,
            inputs: list[str],
            prompt_name: str | None = None,
            prompt: str | None = None,
            batch_size: int = 32,
            show_progress_bar: bool | None = None,
            **_: Any,
        ) -> np.ndarray:
            return self._encode("query", inputs, show_progress_bar)

        def encode_document(
            self,
            inputs: list[str],
            prompt_name: str | None = None,
            prompt: str | None = None,
            batch_size: int = 32,
            show_progress_bar: bool | None = None,
            **_: Any,
        ) -> np.ndarray:
            return self._encode("document", inputs, show_progress_bar)

        def _encode(self, task: str, inputs: list[str], show_progress_bar: bool | None) -> np.ndarray:
            assert show_progress_bar is False, "a bar would be drawn into the program's output"
            assert threading.current_thread() is not threading.main_thread()
            return np.array([[len(text), task == "query", self.device == "cpu"] for text in inputs], np.float32)

    module = ModuleType("sentence_transformers")
    module.__spec__ = ModuleSpec("sentence_transformers", None)
    vars(module)["SentenceTransformer"] = SentenceTransformer
    return module


async def test_sentence_transformers_tells_queries_from_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in())
    embedder = SentenceTransformerEmbedder("mixedbread-ai/mxbai-embed-large-v1", device="cpu")
    checked = CheckedEmbedder(embedder)

    assert embedder.model_name == "mxbai-embed-large-v1"
    assert (await checked(["abc", "", "a"])).tolist() == [[3, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert (await checked.embed_queries(["abc"])).tolist() == [[3, 1, 1]]
    assert SentenceTransformerEmbedder("models/mine/").model_name == "mine"
    assert SentenceTransformerEmbedder("models/mine", model_name="theirs").model_name == "theirs"


async def test_sentence_transformers_says_which_model_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in())

    with pytest.raises(EmbedderError, match="model 'absent' cannot be loaded: OSError: absent is not a local folder"):
        await SentenceTransformerEmbedder("absent")(["x"])
