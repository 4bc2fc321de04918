"""The vector index with a graph: what it finds, when it is not asked, and what happens beside a build."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from memory_store.search.vectors import VectorIndex
from memory_store.search.vectors.graph import Graph
from tests.mixtures import REAL, Matrix, Vectors, anywhere, clusters, mixtures
from tests.unit.vector_model import Model, check_contents, check_search

COUNT = 12_000
CLUSTERS = clusters(COUNT)


def keys_of(count: int) -> list[str]:
    """Return keys that sort as the rows do."""
    return [f"{number:06}" for number in range(count)]


def filled(stored: Matrix, exact_up_to: int = 5000) -> VectorIndex:
    """Return an index of these rows, six of a parent."""
    index = VectorIndex(stored.shape[1], exact_up_to=exact_up_to)
    index.put_many(keys_of(len(stored)), [f"p{number // 6}" for number in range(len(stored))], stored)
    return index


def with_graph(stored: Matrix) -> VectorIndex:
    """Return an index of these rows with a graph, if that pays."""
    index = filled(stored)
    assert index.needs_build
    assert index.adopt(index.snapshot().build())
    return index


def recall(index: VectorIndex, vectors: Vectors, among: list[str] | None = None, limit: int = 10) -> float:
    """Return the share of the nearest rows, compared in float32, that are found."""
    counted = np.arange(len(vectors.stored)) if among is None else np.array([int(key) for key in among])
    hits = 0
    for query in vectors.queries:
        true = vectors.stored[counted] @ query
        best = {f"{number:06}" for number in counted[np.argpartition(-true, limit)[:limit]]}
        hits += len(best & {key for key, _ in index.search(query, limit, among=among)})
    return hits / limit / len(vectors.queries)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved index with a graph over the clusters: opening it is cheap, building is not."""
    folder = tmp_path_factory.mktemp("index") / "saved"
    with_graph(CLUSTERS.stored).snapshot().save(folder, b"")
    return folder


@pytest.fixture
def index(saved: Path) -> VectorIndex:
    """An index of the clusters with a graph."""
    opened, _ = VectorIndex.open(saved, CLUSTERS.stored.shape[1], exact_up_to=5000)
    assert opened.has_graph
    return opened


class Asked:
    """Counts what graphs were asked, and how deep."""

    def __init__(self) -> None:
        self.depths: list[int] = []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked, nearest = Asked(), Graph.nearest

    def counting(self: Graph, query: Matrix, depth: int, most: int) -> object:
        asked.depths.append(depth)
        return nearest(self, query, depth, most)

    monkeypatch.setattr(Graph, "nearest", counting)
    return asked


# --- recall


def test_recall_on_groups(index: VectorIndex, asked: Asked) -> None:
    assert recall(index, CLUSTERS) >= 0.99
    assert len(asked.depths) == len(CLUSTERS.queries)


def test_recall_on_real_vectors_and_questions() -> None:
    if not REAL.is_file():
        pytest.skip("the shared real inputs are not beside this checkout")
    vectors = mixtures(10_000)
    index = with_graph(vectors.stored)
    assert index.has_graph
    assert recall(index, vectors) >= 0.99
    assert recall(index, vectors, limit=1) >= 0.99


def test_vectors_that_point_anywhere_stay_compared(asked: Asked) -> None:
    """No graph finds their neighbours in less time than it takes to compare them all."""
    vectors = anywhere(10_000)
    index = with_graph(vectors.stored)

    assert not index.has_graph
    assert not index.needs_build, "what was tried in vain is tried again when there is twice as much"
    asked.depths.clear()
    assert recall(index, vectors) == 1.0
    assert asked.depths == []
    more = anywhere(10_001, seed=1).stored
    index.put_many([f"more {number}" for number in range(len(more))], ["p"] * len(more), more)
    assert index.needs_build


def test_a_graph_changes_no_figure(index: VectorIndex) -> None:
    """It works on rounded rows; what it finds is compared again."""
    compared = filled(CLUSTERS.stored)
    for query in CLUSTERS.queries[:50]:
        true = dict(compared.search(query, 100))
        assert all(true[key] == similarity for key, similarity in index.search(query, 10))


def test_recall_in_tight_groups() -> None:
    """Similarities of .99 and more: rounded to float16, neighbours would change places."""
    vectors = clusters(COUNT, dimensions=64, groups=400, spread=0.1)
    index = with_graph(vectors.stored)
    assert index.has_graph
    assert recall(index, vectors) >= 0.99


# --- what was put, replaced and discarded since the build


def test_what_was_put_since_is_found_at_once(index: VectorIndex, asked: Asked) -> None:
    later = clusters(900, seed=5).stored
    for number, row in enumerate(later):
        index.put(f"{COUNT + number:06}", "later", row)
    vectors = Vectors(np.concatenate([CLUSTERS.stored, later]), CLUSTERS.queries)

    assert recall(index, vectors) >= 0.99
    assert recall(index, Vectors(vectors.stored, later[:50]), limit=1) == 1.0
    assert asked.depths
    assert not index.needs_build


def test_what_was_discarded_since_is_not_found(index: VectorIndex, asked: Asked) -> None:
    for number in range(0, COUNT, 20):
        index.discard(f"{number:06}")
    left = [key for key in keys_of(COUNT) if key in index]

    assert len(index) == len(left) == COUNT * 19 // 20
    assert recall(index, CLUSTERS, left) >= 0.99, "named"
    unnamed = [index.search(query, 10) for query in CLUSTERS.queries]
    assert all(key in index for found in unnamed for key, _ in found)
    assert unnamed == [index.search(query, 10, among=left) for query in CLUSTERS.queries]
    assert len(asked.depths) == 3 * len(CLUSTERS.queries)


def test_where_everything_near_was_discarded_all_is_compared(index: VectorIndex, asked: Asked) -> None:
    """The graph would only meet what no longer counts."""
    query = CLUSTERS.queries[0]
    true = CLUSTERS.stored @ query
    near = [key for key, _ in index.search(query, 400)]
    for key in near:
        index.discard(key)
    true[[int(key) for key in near]] = -2
    asked.depths.clear()

    found = index.search(query, 10)

    assert len(asked.depths) == 2, "for the first candidates, then for all"
    assert [int(key) for key, _ in found] == np.argsort(-true)[:10].tolist()


def test_a_replaced_vector_is_found_where_it_is_now(index: VectorIndex) -> None:
    before, after = CLUSTERS.queries[:2]
    key = index.search(before, 1)[0][0]
    index.put(key, "moved", after)

    assert index.search(after, 1) == [(key, pytest.approx(1.0))]
    assert key not in [found for found, _ in index.search(before, 50)]
    assert index.parent_of(key) == "moved"


def test_equal_vectors_come_by_key_however_many_there_are() -> None:
    """More of one vector than a search of the graph looks at: which of them it would meet is chance."""
    stored = CLUSTERS.stored.copy()
    stored[1000:9000:4] = stored[0]
    index = with_graph(stored)

    found = index.search(stored[0], 15)

    equal = [0, *range(1000, 9000, 4)]
    assert [int(key) for key, _ in found] == equal[:15]
    assert recall(index, Vectors(stored, CLUSTERS.queries)) >= 0.99


# --- filters


@pytest.mark.parametrize(("share", "asks"), [(0.001, False), (0.01, False), (0.1, False), (0.9, True), (1, True)])
def test_narrow_filters_are_compared_and_wide_ones_may_use_the_graph(
    share: float, asks: bool, index: VectorIndex, asked: Asked
) -> None:
    chance = np.random.default_rng(1)
    among = [f"{number:06}" for number in chance.choice(COUNT, int(COUNT * share), replace=False)]

    found = recall(index, CLUSTERS, among)

    assert found >= 0.99 if asks else found == 1
    assert bool(asked.depths) == asks


def test_a_filter_that_leaves_out_what_is_near_is_compared(index: VectorIndex, asked: Asked) -> None:
    query = CLUSTERS.queries[3]
    true = CLUSTERS.stored @ query
    far = np.argsort(-true)[1000:]

    found = index.search(query, 10, among={f"{number:06}" for number in far})

    assert len(asked.depths) == 2, "for the first candidates, then for all"
    assert [int(key) for key, _ in found] == far[:10].tolist()


def test_many_answers_are_compared(index: VectorIndex, asked: Asked) -> None:
    query = CLUSTERS.queries[4]
    found = index.search(query, 3000)
    assert asked.depths == []
    assert len(found) == 3000
    best = np.argsort(-(CLUSTERS.stored @ query))
    assert {int(key) for key, _ in found} >= set(best[:2990].tolist())


def test_a_query_without_direction_does_not_ask_the_graph(index: VectorIndex, asked: Asked) -> None:
    assert index.search(np.zeros(32), 2) == [("000000", 0.0), ("000001", 0.0)]
    assert asked.depths == []


# --- building


def test_a_second_build_takes_the_rows_of_the_first(index: VectorIndex) -> None:
    rows = index.vectors_of(["000005"])
    for number in range(2000):
        index.discard(f"{number + 100:06}")
    index.put("new", "p", CLUSTERS.queries[0])

    assert index.needs_build
    assert index.adopt(index.snapshot().build())

    assert (index.has_graph, index.needs_build, len(index)) == (True, False, COUNT - 1999)
    assert index.vectors_of(["000005"]).tolist() == rows.tolist()
    assert index.search(CLUSTERS.queries[0], 1)[0][0] == "new"
    assert recall(index, CLUSTERS, [key for key in keys_of(COUNT) if key in index]) >= 0.99


def test_an_index_that_has_shrunk_loses_its_graph(index: VectorIndex) -> None:
    for number in range(4000, COUNT):
        index.discard(f"{number:06}")
    assert index.adopt(index.snapshot().build())

    assert (index.has_graph, len(index)) == (False, 4000)
    assert recall(index, Vectors(CLUSTERS.stored[:4000], CLUSTERS.queries)) == 1


def test_a_build_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    blocks: list[int] = []

    class Stopping(Graph):
        @classmethod
        def build(cls, rows: Matrix, stop: threading.Event | None) -> Graph | None:
            assert stop is not None
            stop.set()
            blocks.append(len(rows))
            return super().build(rows, stop)

    monkeypatch.setattr("memory_store.search.vectors.base.Graph", Stopping)
    index = filled(CLUSTERS.stored)
    assert not index.adopt(index.snapshot().build(stop))
    assert blocks == [COUNT]
    assert (index.has_graph, index.needs_build) == (False, True)


def test_builds_and_saves_run_beside_writes_and_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread writes and searches; another builds and saves snapshots all the time."""
    monkeypatch.setattr("memory_store.search.vectors.index._LEAST_OUTDATED", 50)
    vectors = clusters(6000, dimensions=16)
    index, model = filled(vectors.stored[:3000], exact_up_to=1000), Model()
    for key, row in zip(keys_of(3000), vectors.stored, strict=False):
        model.put(key, f"p{int(key) // 6}", row)
    rows = iter(vectors.stored[3000:])
    chance = np.random.default_rng(0)
    rounds = {"built": 0, "saved": 0}

    async def write() -> None:
        for number in range(3000):
            key, parent = f"{chance.integers(0, 4000):06}", f"q{number // 6}"
            row = next(rows)
            index.put(key, parent, row)
            model.put(key, parent, row)
            if number % 5 == 0:
                index.discard(other := f"{chance.integers(0, 4000):06}")
                model.kept.pop(other, None)
            if number % 40 == 0:
                index.discard_parent(parent := f"p{chance.integers(0, 500)}")
                model.discard_parent(parent)
                check_search(index, model, vectors.queries[number % 200].tolist(), 5, complete=False)
            if number % 20 == 0:
                await asyncio.sleep(0)

    async def keep_up(writing: asyncio.Task[None]) -> None:
        while not writing.done():
            snapshot, held = index.snapshot(), dict(model.kept)
            await asyncio.to_thread(snapshot.save, tmp_path / "saved", str(len(held)).encode())
            opened, state = await asyncio.to_thread(VectorIndex.open, tmp_path / "saved", 16)
            then = Model()
            then.kept = held
            assert int(state) == len(held)
            check_contents(opened, then)
            rounds["saved"] += 1
            built = await asyncio.to_thread(index.snapshot().build)
            assert built is not None
            rounds["built"] += index.adopt(built)

    async def both() -> None:
        writing = asyncio.create_task(write())
        await keep_up(writing)
        await writing

    asyncio.run(both())

    assert rounds["built"] >= 1
    assert rounds["saved"] >= 1
    check_contents(index, model)
    for query in vectors.queries[:30]:
        check_search(index, model, query.tolist(), 10, complete=False)
