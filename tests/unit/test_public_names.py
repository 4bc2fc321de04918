"""`__all__` lists, the error tree, and that a kind is complete wherever kinds are iterated."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import pkgutil
from pathlib import Path

import pytest

import memory_store
from memory_store import MemoryStore, errors
from memory_store.cache.shelf import Shelf
from memory_store.codec import CODECS
from memory_store.durable.schema import METADATA
from memory_store.durable.statements import STATEMENTS
from memory_store.records import PARTS, RECORDS
from tests.unit.samples import CHANGE, MAKE, RECORD_STRATEGIES

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(memory_store.__path__, "memory_store.")
    if not module.name.startswith("memory_store.cli")
)


def test_the_public_names_are_sorted_and_there() -> None:
    names = memory_store.__all__
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(memory_store, name) is not None


def test_every_public_name_of_the_package_is_listed() -> None:
    bound = {
        name
        for name, value in vars(memory_store).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert bound == set(memory_store.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_lists_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    source = Path(inspect.getfile(module)).read_text(encoding="utf-8")
    assert module.__doc__, "a module says what it is for"
    if not [node for node in ast.parse(source).body if not isinstance(node, ast.Expr | ast.ImportFrom)]:
        return  # a folder's docstring
    listed = module.__all__
    assert listed == _sorted_as_ruff(listed)
    assert len(set(listed)) == len(listed)
    for item in listed:
        assert hasattr(module, item)


def _sorted_as_ruff(names: list[str]) -> list[str]:
    """Constants first, then classes, then the rest (RUF022)."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))


def test_the_package_offers_every_error() -> None:
    assert set(errors.__all__) <= set(memory_store.__all__)
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)


def test_the_tree_of_errors() -> None:
    tree = {name: getattr(errors, name).__base__.__name__ for name in errors.__all__ if name != "MemoryStoreError"}
    assert tree == {
        "ConfigurationError": "MemoryStoreError",
        "StoreClosedError": "ConfigurationError",
        "RecordError": "MemoryStoreError",
        "RecordNotFoundError": "RecordError",
        "ConflictError": "RecordError",
        "InvalidRecordError": "RecordError",
        "CodecError": "MemoryStoreError",
        "DurableError": "MemoryStoreError",
        "DurableUnavailableError": "DurableError",
        "IndexDamagedError": "DurableUnavailableError",
        "DurableTimeoutError": "DurableError",
        "CommitUnknownError": "DurableError",
        "PositionLostError": "DurableError",
        "SchemaMismatchError": "DurableError",
        "ConstraintError": "DurableError",
        "StorageFullError": "DurableError",
        "CacheError": "MemoryStoreError",
        "SearchError": "MemoryStoreError",
        "QuerySyntaxError": "SearchError",
        "DimensionMismatchError": "SearchError",
        "EmbedderError": "SearchError",
    }
    assert errors.MemoryStoreError.__base__ is Exception


def test_the_tier_and_what_can_be_retried() -> None:
    retryable = {name for name in errors.__all__ if getattr(errors, name).retryable}
    assert retryable == {"DurableTimeoutError", "StorageFullError"}
    for name in errors.__all__:
        error = getattr(errors, name)
        assert error.tier == (
            "durable" if issubclass(error, errors.DurableError) else "cache" if error is errors.CacheError else None
        )


def test_errors_carry_what_they_are_about() -> None:
    plain = errors.CodecError("broken", kind="step", namespace="n", key="k")
    assert (str(plain), plain.kind, plain.namespace, plain.key) == ("broken", "step", "n", "k")
    conflict = errors.ConflictError("changed", key="k", expected=1, actual=2)
    assert (conflict.key, conflict.expected, conflict.actual) == ("k", 1, 2)
    invalid = errors.InvalidRecordError("large", field="f", limit=1, size=2)
    assert (invalid.field, invalid.limit, invalid.size) == ("f", 1, 2)
    mismatch = errors.SchemaMismatchError("older", found="0001", expected="0002")
    assert (mismatch.found, mismatch.expected, mismatch.kind) == ("0001", "0002", None)
    unknown = errors.CommitUnknownError("perhaps", token="store.1.a")
    assert (unknown.token, errors.CommitUnknownError("never begun").token) == ("store.1.a", "")
    lost = errors.PositionLostError("gone", position=7, head=5)
    assert (lost.position, lost.head) == (7, 5)


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_survive_pickling(name: str) -> None:
    """They cross process pools, whose workers answer with pickles."""
    own: dict[str, dict[str, object]] = {
        "CommitUnknownError": {"token": "store.1.a"},
        "PositionLostError": {"position": 7, "head": 5},
        "SchemaMismatchError": {"found": "1", "expected": "2"},
        "QuerySyntaxError": {"query": '"open', "at": 5},
        "DimensionMismatchError": {"expected": 384, "actual": 256},
        "EmbedderError": {"retryable": True},
    }
    error = getattr(errors, name)("message", **own.get(name, {"kind": "step"}))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == "message"
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_kind_is_complete(kind: str) -> None:
    spec = RECORDS[kind]
    store = MemoryStore("sqlite:///:memory:")
    assert spec.kind == spec.record.kind == kind
    assert spec.table.metadata is METADATA
    assert CODECS[kind].spec is spec
    assert kind in STATEMENTS
    assert kind in Shelf(0, {}).counters
    assert store.collection(kind) in vars(store).values(), "every kind is an attribute of the store"
    assert MAKE.keys() == CHANGE.keys() == RECORD_STRATEGIES.keys() == RECORDS.keys()
    assert (Path(__file__).parents[1] / "golden" / f"{kind}.json").is_file(), "every kind has a golden sample"
    assert [column.name for column in spec.table.primary_key] == ["namespace", "id"]
    assert list(spec.table.columns.keys())[:5] == ["namespace", "id", "revision", "created_at", "updated_at"]
    assert all(index.columns.keys()[0] == "namespace" for index in spec.table.indexes), "a namespace leads every index"
    assert spec.ttl_s > 0
    assert spec.warm_by in spec.columns
    assert (spec in PARTS) == bool(spec.parent)


def test_cached_times_are_the_documented_ones() -> None:
    ttl_s = {kind: spec.ttl_s for kind, spec in RECORDS.items()}
    assert ttl_s == {"episode": 3600, "step": 3600, "pattern": 1800, "embedding": 7200, "spatiotemporal": 3600}


def test_an_unknown_kind_has_no_collection() -> None:
    with pytest.raises(memory_store.ConfigurationError, match="unknown kind 'stepp'; known: episode, step"):
        MemoryStore("sqlite:///:memory:").collection("stepp")
