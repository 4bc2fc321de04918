"""How much of what is wanted is found: Recall@10 and nDCG@10 on every retrieval set beside the checkout.

Text, vectors and both together go through the store's public API. They are held against FTS5's own BM25 (Porter's
stems, any of the query's words) and against the better of the two parts. A set is a folder with `corpus.jsonl`,
`queries.jsonl` and `qrels.tsv`; a query is asked within its `metadata.group`. Vectors are those of WordLlama, and those
that lie beside a set as `*.npz`, named after their model.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memory_store import Embedding, Episode, MemoryStore
from memory_store.embedders import CheckedEmbedder, Embedder, FunctionEmbedder, WordLlamaEmbedder

from .baselines import url_of
from .harness import Workspace, environment
from .searched import LIMIT, any_word, indexed
from .texts import RETRIEVAL, json_lines

_MEASURES = ("recall", "ndcg")


class Figures(NamedTuple):
    """Recall@10 and nDCG@10, from 0 to 1, the means over a set's queries."""

    recall: float
    ndcg: float


Runs = Mapping[str, list[str]]
"""The ids found for each query, best first."""


@dataclass(frozen=True)
class Retrieval:
    """A set: documents and queries by group, and how well which document answers which query."""

    name: str
    documents: Mapping[str, Mapping[str, str]]
    queries: Mapping[str, Mapping[str, str]]
    wanted: Mapping[str, Mapping[str, float]]

    def measure(self, runs: Runs) -> Figures:
        """Return how good these runs are. The gain of a document is 2**grade - 1, discounted by log2(rank + 1)."""
        recalls, gains = [], []
        for query, grades in self.wanted.items():
            found = runs.get(query, [])[:LIMIT]
            recalls.append(sum(id_ in grades for id_ in found) / len(grades))
            ideal = sorted(grades.values(), reverse=True)[:LIMIT]
            gains.append(_gain(grades.get(id_, 0.0) for id_ in found) / _gain(ideal))
        return Figures(sum(recalls) / len(recalls), sum(gains) / len(gains))


def _gain(grades: Iterable[float]) -> float:
    return sum((2**grade - 1) / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def retrieval_sets(root: Path = RETRIEVAL) -> list[Path]:
    """Return the folders that hold a set."""
    return sorted(path.parent for path in root.glob("*/qrels.tsv"))


def load(folder: Path, queries: int) -> Retrieval:
    """Return a set, with its first so many queries."""
    wanted: dict[str, dict[str, float]] = {}
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        wanted.setdefault(query, {})[document] = float(grade)
    kept = dict(list(wanted.items())[:queries])
    return Retrieval(folder.name, _by_group(folder / "corpus.jsonl"), _by_group(folder / "queries.jsonl", kept), kept)


def _by_group(path: Path, kept: Mapping[str, Any] | None = None) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for line in json_lines(path):
        if kept is None or line["_id"] in kept:
            found.setdefault(line["metadata"]["group"], {})[line["_id"]] = line["text"]
    return found


def models_of(folder: Path, found: Retrieval) -> list[Embedder]:
    """Return the models a set is measured with."""
    return [WordLlamaEmbedder(), *(_given(path, found) for path in sorted(folder.glob("*.npz")))]


def _given(path: Path, found: Retrieval) -> Embedder:
    """Return a model that looks up the vectors it is given for a set's texts."""
    with np.load(path) as archive:
        sides = [(found.documents, "corpus"), (found.queries, "queries")]
        vectors: dict[str, Any] = {}
        for groups, side in sides:
            names = archive["corpus_ids" if side == "corpus" else "query_ids"].tolist()
            of_id = dict(zip(names, archive[side].astype(np.float32), strict=True))
            vectors |= {text: of_id[id_] for texts in groups.values() for id_, text in texts.items()}

    async def embed(texts: list[str]) -> Any:
        return np.stack([vectors[text] for text in texts])

    return FunctionEmbedder(embed, path.stem)


def by_fts5(found: Retrieval) -> Runs:
    """Return what FTS5 finds by itself, in a table of each group."""
    runs: dict[str, list[str]] = {}
    for group, documents in found.documents.items():
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("CREATE VIRTUAL TABLE bare USING fts5(id UNINDEXED, text, tokenize='porter unicode61')")
            connection.executemany("INSERT INTO bare VALUES (?, ?)", documents.items())
            for id_, query in found.queries.get(group, {}).items():
                sought = " OR ".join(f'"{word}"' for word in any_word(query))
                sql = f"SELECT id FROM bare WHERE bare MATCH ? ORDER BY rank LIMIT {LIMIT}"
                runs[id_] = [row[0] for row in connection.execute(sql, (sought,))]
    return runs


@asynccontextmanager
async def _filled(path: Path, found: Retrieval, model: Embedder) -> AsyncIterator[MemoryStore]:
    """Yield a store with a namespace for each group, its documents as embeddings of a model."""
    async with MemoryStore(url_of(path), embed=model, cache_path="") as store:
        embed = CheckedEmbedder(model)
        for group, documents in found.documents.items():
            space = store.namespace(group)
            await space.episodes.put_many([Episode(id=id_, task_type="set", domain="set") for id_ in documents])
            vectors = await embed(list(documents.values()))
            await space.embeddings.put_many(
                [
                    Embedding(
                        id=id_,
                        episode_id=id_,
                        content=text,
                        embedding=vector.tobytes(),
                        model_name=model.model_name,
                        vector_dim=len(vector),
                    )
                    for (id_, text), vector in zip(documents.items(), vectors, strict=True)
                ]
            )
            await indexed(space)
        yield store


async def _runs(store: MemoryStore, found: Retrieval, mode: Any) -> Runs:
    runs: dict[str, list[str]] = {}
    for group, queries in found.queries.items():
        for id_, query in queries.items():
            hits = await store.namespace(group).search(query, kinds="embedding", mode=mode, limit=LIMIT)
            runs[id_] = [hit.id for hit in hits]
    return runs


async def measure_quality(*, queries: int = 1_000_000, root: Path = RETRIEVAL) -> dict[str, Any]:
    """Measure every set and return the JSON object of the result.

    Args:
        queries: of each set, that many at most; the tests take few.
        root: where the sets are.
    """
    rows: list[dict[str, Any]] = []
    with Workspace() as workspace:
        for folder in retrieval_sets(root):
            found = load(folder, queries)
            bare = found.measure(by_fts5(found))
            for model in models_of(folder, found):
                async with _filled(workspace.new("quality"), found, model) as store:
                    text, vector, both = [
                        found.measure(await _runs(store, found, mode)) for mode in ("text", "vector", "hybrid")
                    ]
                if not any(row["set"] == found.name for row in rows):
                    rows.append(_row(found.name, "FTS5's BM25", "", bare, None))
                    rows.append(_row(found.name, "text", "", text, bare))
                rows.append(_row(found.name, "vectors", model.model_name, vector, None))
                better = Figures(max(text.recall, vector.recall), max(text.ndcg, vector.ndcg))
                rows.append(_row(found.name, "both", model.model_name, both, better))
    return {"name": "quality", "quality": rows, "environment": environment()}


def _row(of: str, method: str, model: str, figures: Figures, least: Figures | None) -> dict[str, Any]:
    met = least is None or all(mine >= other for mine, other in zip(figures, least, strict=True))
    row: dict[str, Any] = {"set": of, "method": method, "model": model}
    row |= {measure: round(figure, 4) for measure, figure in zip(_MEASURES, figures, strict=True)}
    row |= {f"least_{measure}": None if least is None else round(getattr(least, measure), 4) for measure in _MEASURES}
    return row | {"verdict": "no budget" if least is None else "met" if met else "missed"}
