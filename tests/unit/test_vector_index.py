"""The vector index while everything is compared: what is found, in which order, and what is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from memory_store import ConfigurationError, DimensionMismatchError, InvalidRecordError, RecordNotFoundError
from memory_store.search.vectors import VectorIndex
from tests.mixtures import anywhere
from tests.unit.vector_model import Model, check_contents, check_search


def index_of(*rows: tuple[str, list[float]]) -> VectorIndex:
    """Return an index of two dimensions with these vectors, each of a parent of its own."""
    index = VectorIndex(2)
    for key, vector in rows:
        index.put(key, f"parent of {key}", vector)
    return index


# --- what is found


def test_the_most_similar_come_first_whatever_their_length() -> None:
    index = index_of(("east", [5, 0]), ("north", [0, 0.1]), ("north-east", [7, 7]), ("west", [-1, 0]))

    assert index.search([2, 0], 4) == [
        ("east", 1.0),
        ("north-east", pytest.approx(0.5**0.5)),
        ("north", 0.0),
        ("west", -1.0),
    ]
    assert [key for key, _ in index.search([0, 3], 2)] == ["north", "north-east"]


def test_equally_similar_ones_come_by_key_wherever_they_lie() -> None:
    """Chunks of 256 rows and more: a row's figure does not depend on its neighbours."""
    stored = anywhere(1, dimensions=33).stored[0]
    other = anywhere(3000, dimensions=33, seed=1).stored
    index = VectorIndex(33)
    order = np.random.default_rng(2).permutation(3000)
    for number, row in zip(order, other, strict=True):
        index.put(f"{number:04}", "p", stored if number % 3 == 0 else row)

    found = index.search(stored, 20)

    assert [key for key, _ in found] == [f"{number:04}" for number in range(0, 60, 3)]
    assert len({similarity for _, similarity in found}) == 1


def test_what_has_no_direction_is_similar_to_nothing() -> None:
    index = index_of(("b", [0, 0]), ("a", [0, 0]), ("c", [1, 0]), ("d", [-1, 0]))

    assert index.search([1, 0], 4) == [("c", 1.0), ("a", 0.0), ("b", 0.0), ("d", -1.0)]
    assert index.search([0, 0], 3) == [("a", 0.0), ("b", 0.0), ("c", 0.0)]
    assert index.vectors_of(["a"]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("scale", [1e-300, 1e-42, 1e-20, 1, 1e20, 1e38, 1e300])
def test_very_large_and_very_small_numbers_keep_their_direction(scale: float) -> None:
    index = index_of(("a", [3 * scale, 4 * scale]))

    assert index.vectors_of(["a"])[0] == pytest.approx([0.6, 0.8])
    assert index.search([3 * scale, 4 * scale], 1) == [("a", pytest.approx(1.0))]


@pytest.mark.parametrize("vector", [[3, 4], (3.0, 4.0), np.array([3, 4], np.float16), memoryview(np.array([3.0, 4.0]))])
def test_any_numbers_will_do(vector: Any) -> None:
    index = VectorIndex(2)
    index.put("a", "p", vector)
    assert index.vectors_of(["a"]).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert index.vectors_of(["a"]).dtype == np.float32


def test_a_put_replaces_vector_and_parent() -> None:
    index = index_of(("a", [1, 0]), ("b", [0, 1]))
    index.put("a", "another", [0, 1])

    assert len(index) == 2
    assert index.parent_of("a") == "another"
    assert index.search([0, 1], 5) == [("a", 1.0), ("b", 1.0)]
    index.discard_parent("parent of a")
    assert "a" in index, "it belongs to another parent now"


def test_what_is_discarded_is_gone() -> None:
    index = index_of(("a", [1, 0]), ("b", [1, 0]), ("c", [1, 0]))
    index.put("d", "parent of b", [1, 0])

    index.discard("a")
    index.discard("never there")
    index.discard_parent("parent of b")
    index.discard_parent("never there")

    assert (len(index), "a" in index, "b" in index, "c" in index, 5 in index) == (1, False, False, True, False)
    assert index.search([1, 0], 5) == [("c", 1.0)]
    index.put("a", "p", [1, 0])
    assert [key for key, _ in index.search([1, 0], 5)] == ["a", "c"]
    index.clear()
    assert len(index) == 0
    assert index.search([1, 0], 5) == []


def test_an_empty_index_answers() -> None:
    index = VectorIndex(3)
    assert index.search([1, 2, 3], 10) == []
    assert index.search([1, 2, 3], 10, among=["a"]) == []
    assert index.vectors_of([]).shape == (0, 3)
    index.put_many([], [], np.empty((0, 3)))
    assert (len(index), index.needs_build) == (0, False)


def test_many_are_put_as_one_after_another() -> None:
    stored = anywhere(1500, dimensions=16).stored
    keys = [f"{number % 1200}" for number in range(1500)]
    parents = [f"{number % 7}" for number in range(1500)]
    one, many = VectorIndex(16), VectorIndex(16)
    for key, parent, row in zip(keys, parents, stored, strict=True):
        one.put(key, parent, row)
    many.put_many(keys[:700], parents[:700], stored[:700])
    many.put_many(keys[700:], parents[700:], stored[700:])

    assert len(one) == len(many) == 1200
    for query in stored[:20]:
        assert many.search(query, 30) == one.search(query, 30)
    assert all(one.parent_of(key) == many.parent_of(key) for key in keys)


# --- filters


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 1])
def test_a_filter_is_exact(share: float) -> None:
    stored, queries = anywhere(3000, dimensions=24)
    index, model = VectorIndex(24), Model()
    for number, row in enumerate(stored):
        index.put(str(number), "p", row)
        model.put(str(number), "p", row)
    chance = np.random.default_rng(3)
    among = [str(number) for number in chance.choice(3000, int(3000 * share), replace=False)]

    for query, kind in zip(queries[:12], itertools.cycle([list, set, tuple, dict.fromkeys]), strict=False):
        check_search(index, model, query, 10, kind([*among, "unknown"]))


def test_a_key_named_twice_is_found_once() -> None:
    index = index_of(("a", [1, 0]), ("b", [0, 1]))
    assert index.search([1, 0], 5, among=["b", "a", "b", "a"]) == [("a", 1.0), ("b", 0.0)]
    assert index.search([1, 0], 5, among=[]) == []


def test_a_filter_passes_over_what_was_discarded() -> None:
    index = index_of(("a", [1, 0]), ("b", [1, 0]))
    index.put("a", "p", [0, 1])
    index.discard("b")
    assert index.search([1, 0], 5, among={"a", "b"}) == [("a", 0.0)]


# --- what is refused


@pytest.mark.parametrize(
    "vector", [[1, float("nan")], [float("inf"), 0], [0, float("-inf")], [np.longdouble("1e400"), 1]]
)
def test_numbers_that_are_not_finite_are_refused(vector: Any) -> None:
    index = index_of(("a", [1, 0]))
    for use in (lambda: index.put("b", "p", vector), lambda: index.put_many(["b"], ["p"], [vector])):
        with pytest.raises(InvalidRecordError, match="finite") as caught:
            use()
        assert caught.value.field in ("vector", "vectors")
    with pytest.raises(InvalidRecordError, match="query must hold finite numbers"):
        index.search(vector, 1)
    assert len(index) == 1


def test_another_size_is_refused() -> None:
    index = VectorIndex(3)
    uses = [
        lambda: index.put("a", "p", [1, 2]),
        lambda: index.put_many(["a"], ["p"], [[1, 2]]),
        lambda: index.search([1, 2], 1),
    ]
    for use in uses:
        with pytest.raises(DimensionMismatchError, match="has 2 dimensions, the index has 3") as caught:
            use()
        assert (caught.value.expected, caught.value.actual) == (3, 2)
    assert len(index) == 0


@pytest.mark.parametrize("vector", [None, "ab", [["a", "b"]], [True, False], [[1, 2]], 5, [[1], [2, 3]], [10**400, 1]])
def test_what_is_no_vector_is_a_mistake(vector: Any) -> None:
    index = VectorIndex(2)
    with pytest.raises(TypeError):
        index.put("a", "p", vector)
    with pytest.raises(TypeError):
        index.search(vector, 1)
    assert len(index) == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "has 0"),
        ("x" * 257, "has 257"),
        ("ä" * 129, "has 258"),
        ("a\0b", "must not hold NUL"),
        ("\ud800", "UTF-8"),
    ],
)
def test_keys_and_parents_have_bounds(key: str, message: str) -> None:
    index = VectorIndex(2)
    for place, field in enumerate(("key", "parent")):
        names = ["a", "p"]
        names[place] = key
        for use in (
            lambda names=names: index.put(*names, [1, 2]),
            lambda names=names: index.put_many(["b", names[0]], ["p", names[1]], [[1, 2], [1, 2]]),
        ):
            with pytest.raises(InvalidRecordError, match=message) as caught:
                use()
            assert caught.value.field == field
    assert len(index) == 0
    with pytest.raises(TypeError, match="key must be text"):
        index.put(5, "p", [1, 2])  # type: ignore[arg-type]
    index.put("ä" * 128, "x" * 256, [1, 2])


def test_uneven_lists_are_refused() -> None:
    index = VectorIndex(2)
    with pytest.raises(InvalidRecordError, match="1 keys and 2 parents for 2 vectors"):
        index.put_many(["a"], ["p", "q"], [[1, 2], [3, 4]])
    assert len(index) == 0


def test_wrong_uses_are_said() -> None:
    for dimensions in (0, -1, 65_537):
        with pytest.raises(ConfigurationError, match="dimensions must be 1 to 65,536"):
            VectorIndex(dimensions)
    with pytest.raises(ConfigurationError, match="exact_up_to"):
        VectorIndex(2, exact_up_to=-1)
    index = index_of(("a", [1, 0]))
    with pytest.raises(ConfigurationError, match="limit must be at least 1"):
        index.search([1, 0], 0)
    with pytest.raises(TypeError, match="among"):
        index.search([1, 0], 1, among="a")
    for ask in (index.parent_of, lambda key: index.vectors_of(["a", key])):
        with pytest.raises(RecordNotFoundError, match="no vector of 'b'") as caught:
            ask("b")
        assert caught.value.key == "b"


# --- builds without a graph


def test_a_build_works_in_what_was_replaced_and_discarded() -> None:
    stored = anywhere(4000, dimensions=8).stored
    index, model = VectorIndex(8), Model()
    for number, row in enumerate(stored):
        key, parent = f"{number % 1100}", f"{number % 13}"
        index.put(key, parent, row)
        model.put(key, parent, row)
    assert index.needs_build, "2,900 of 4,000 slots were given up"
    before = index.search(stored[0], 20)

    assert index.adopt(index.snapshot().build())

    assert not index.needs_build
    assert not index.has_graph
    check_contents(index, model)
    assert index.search(stored[0], 20) == before
    index.discard_parent("5")
    model.discard_parent("5")
    index.put("new", "5", stored[1])
    model.put("new", "5", stored[1])
    check_contents(index, model)
    check_search(index, model, stored[1], 30)


def test_what_happens_during_a_build_is_kept() -> None:
    index, model = VectorIndex(4), Model()
    stored = iter(anywhere(2000, dimensions=4).stored)

    def put(key: str, parent: str) -> None:
        row = next(stored)
        index.put(key, parent, row)
        model.put(key, parent, row)

    for number in range(700):
        put(f"{number}", f"p{number % 10}")
    built = index.snapshot().build()
    for number in range(650, 1000):
        put(f"{number}", f"q{number % 10}")
    for number in (3, 660, 990):
        index.discard(f"{number}")
        del model.kept[f"{number}"]
    for parent in ("p4", "q5"):
        index.discard_parent(parent)
        model.discard_parent(parent)
    put("4", "p4")

    assert index.adopt(built)

    check_contents(index, model)
    check_search(index, model, next(stored), 50)
    for number in range(300):
        put(f"late {number}", "p4")
    index.discard_parent("p4")
    model.discard_parent("p4")
    check_contents(index, model)


def test_a_build_that_is_out_of_date_is_not_adopted() -> None:
    index = index_of(("a", [1, 0]))
    first, second = index.snapshot().build(), index.snapshot().build()

    assert index.adopt(first)
    assert not index.adopt(second)
    third = index.snapshot().build()
    index.clear()
    assert not index.adopt(third)
    assert not VectorIndex(2).adopt(third)
    assert len(index) == 0


# --- without what is optional

_HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hidden
"""


def run_without(hidden: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which some packages are not installed."""
    program = _HIDDEN.format(hidden=hidden) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


def test_without_numpy_the_extra_is_named() -> None:
    done = run_without(("numpy",), "import memory_store, memory_store.search\nimport memory_store.search.vectors")

    assert done.stderr.splitlines()[-1].startswith("memory_store.errors.ConfigurationError: vector search needs numpy")
    assert "pip install 'memory-store[vectors]'" in done.stderr


def test_without_usearch_everything_is_compared(tmp_path: Any) -> None:
    code = f"""
import numpy as np
from pathlib import Path
from memory_store.search.vectors import VectorIndex
index = VectorIndex(4, exact_up_to=10)
rows = np.random.default_rng(0).standard_normal((500, 4))
index.put_many([str(n) for n in range(500)], ["p"] * 500, rows)
assert not index.needs_build
assert index.adopt(index.snapshot().build())
assert not index.has_graph and not index.needs_build
index.snapshot().save(Path({str(tmp_path)!r}) / "saved", b"state")
opened, state = VectorIndex.open(Path({str(tmp_path)!r}) / "saved", 4)
best = max(range(500), key=lambda n: rows[n] @ rows[7] / np.linalg.norm(rows[n]))
print(opened.search(rows[7], 1)[0][0], best, state.decode())
"""
    done = run_without(("usearch", "numkong"), code)

    assert (done.returncode, done.stdout, done.stderr) == (0, "7 7 state\n", "")


def test_the_package_does_not_import_what_it_may_not_need() -> None:
    code = "import sys, memory_store, memory_store.search.vectors\nprint({'usearch', 'numkong'} & set(sys.modules))"
    done = run_without((), code)
    assert (done.stdout, done.stderr) == ("set()\n", "")
