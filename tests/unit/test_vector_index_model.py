"""Random histories of an index against a dictionary: puts, discards, searches, builds, saves and openings."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memory_store.search.vectors import Built, VectorIndex
from tests.unit.vector_model import Model, check_contents, check_search

KEYS = st.sampled_from([f"key {number}" for number in range(24)])
PARENTS = st.sampled_from(["p", "q", "r", "ß", "\U0001f600"])
# Small whole numbers: equal directions, opposite ones and zeros are common.
VECTORS = st.lists(st.integers(-2, 2), min_size=5, max_size=5)
NUMBERS = st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5)


class IndexAgainstModel(RuleBasedStateMachine):
    """An index, possibly with a graph, and what it must hold."""

    exact_up_to = 1_000_000
    complete = True

    @initialize(count=st.integers(0, 120), seed=st.integers(0, 9))
    def begin(self, count: int, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.saved: tuple[dict[str, Any], bytes] | None = None
        self.built: Built | None = None
        self.index, self.model = VectorIndex(5, exact_up_to=self.exact_up_to), Model()
        rows = np.random.default_rng(seed).standard_normal((count, 5))
        self.put_all([f"first {number}" for number in range(count)], ["p"] * count, rows.tolist())

    def put_all(self, keys: list[str], parents: list[str], rows: list[list[float]]) -> None:
        self.index.put_many(keys, parents, np.array(rows).reshape(-1, 5))
        for key, parent, row in zip(keys, parents, rows, strict=True):
            self.model.put(key, parent, row)

    @rule(key=KEYS, parent=PARENTS, vector=VECTORS)
    def put(self, key: str, parent: str, vector: list[int]) -> None:
        self.index.put(key, parent, vector)
        self.model.put(key, parent, vector)

    @rule(rows=st.lists(st.tuples(KEYS, PARENTS, VECTORS), max_size=30))
    def put_many(self, rows: list[tuple[str, str, list[float]]]) -> None:
        self.put_all([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])

    @rule(key=KEYS)
    def discard(self, key: str) -> None:
        self.index.discard(key)
        self.model.kept.pop(key, None)

    @rule(share=st.integers(2, 9))
    def discard_many(self, share: int) -> None:
        for key in list(self.model.kept)[::share]:
            self.index.discard(key)
            del self.model.kept[key]

    @rule(parent=PARENTS)
    def discard_parent(self, parent: str) -> None:
        self.index.discard_parent(parent)
        self.model.discard_parent(parent)

    @rule()
    def clear(self) -> None:
        self.index.clear()
        self.model.kept = {}

    @rule(query=VECTORS | NUMBERS, limit=st.integers(1, 6) | st.integers(1, 200))
    def search(self, query: list[float], limit: int) -> None:
        check_search(self.index, self.model, query, limit, complete=self.complete)

    @rule(query=VECTORS | NUMBERS, limit=st.integers(1, 30), among=st.sets(KEYS), share=st.integers(1, 20))
    def search_among(self, query: list[float], limit: int, among: set[str], share: int) -> None:
        chosen = among | set(list(self.model.kept)[::share])
        check_search(self.index, self.model, query, limit, chosen, complete=self.complete)

    @rule()
    def rebuild(self) -> None:
        assert self.index.adopt(self.index.snapshot().build())

    @rule()
    def build(self) -> None:
        self.built = self.index.snapshot().build()

    @precondition(lambda self: self.built is not None)
    @rule()
    def adopt(self) -> None:
        built, self.built = self.built, None
        self.index.adopt(built)

    @rule(state=st.binary(max_size=40))
    def save(self, state: bytes) -> None:
        self.index.snapshot().save(self.folder / "saved", state)
        self.saved = (dict(self.model.kept), state)

    @precondition(lambda self: self.saved is not None)
    @rule(verify=st.booleans())
    def open(self, verify: bool) -> None:
        self.index, state = VectorIndex.open(self.folder / "saved", 5, exact_up_to=self.exact_up_to)
        self.model.kept = dict(self.saved[0])
        assert state == self.saved[1]
        if verify:
            self.index.verify()

    @invariant()
    def holds_what_it_must(self) -> None:
        if hasattr(self, "index"):
            check_contents(self.index, self.model)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)


class WithGraph(IndexAgainstModel):
    """Builds make graphs, which so few rows are not worth asking."""

    exact_up_to = 3


class ThroughGraph(WithGraph):
    """Graphs are asked however few the rows are; a graph may miss one."""

    complete = False


@pytest.fixture
def graphs_of_any_size(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("memory_store.search.vectors.graph.ROWS_A_STEP", 0)
    monkeypatch.setattr("memory_store.search.vectors.graph._RECALL", 0)
    return monkeypatch


HISTORIES = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_without_a_graph() -> None:
    run_state_machine_as_test(IndexAgainstModel, settings=HISTORIES)


def test_with_a_graph_that_is_not_worth_asking(graphs_of_any_size: pytest.MonkeyPatch) -> None:
    run_state_machine_as_test(WithGraph, settings=HISTORIES)


def test_through_a_graph(graphs_of_any_size: pytest.MonkeyPatch) -> None:
    graphs_of_any_size.setattr("memory_store.search.vectors.index.ROWS_A_STEP", 0)
    graphs_of_any_size.setattr("memory_store.search.vectors.graph._DEPTHS", (8,))
    run_state_machine_as_test(ThroughGraph, settings=HISTORIES)
