"""A store against a dictionary: Hypothesis looks for a sequence of verbs after which the two disagree."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from memory_store import ConflictError, Episode, MemoryStore, Namespace, RecordNotFoundError, Step, Transaction
from tests.unit.samples import make_episode, make_step

T = TypeVar("T")

IDS = [f"e{number}" for number in range(4)]
ids = st.sampled_from(IDS)
namespaces = st.sampled_from(["one", "two"])
contexts = st.dictionaries(st.sampled_from("ab"), st.integers(0, 3) | st.text(max_size=3), max_size=2)
domains = st.sampled_from(["web", "cli"])


class Model:
    """What a store should hold: records by namespace and id, and each episode's steps by number."""

    def __init__(self) -> None:
        self.episodes: dict[tuple[str, str], Episode] = {}
        self.steps: dict[tuple[str, str], dict[int, Step]] = {}

    def copy(self) -> Model:
        """A model of its own, for a transaction."""
        copied = Model()
        copied.episodes = dict(self.episodes)
        copied.steps = {key: dict(steps) for key, steps in self.steps.items()}
        return copied


class StoreAgainstModel(RuleBasedStateMachine):
    """The machine; its store has a loop of its own."""

    memory = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.mkdtemp(prefix="model-")
        self.model = Model()
        self.store: MemoryStore | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to its end."""
        return self.loop.run_until_complete(work)

    def at(self, namespace: str) -> Namespace:
        """The namespace."""
        assert self.store is not None
        return self.store.namespace(namespace)

    async def used_bytes(self) -> int:
        """What the cache takes, asked on the store's loop."""
        assert self.store is not None
        return self.store.stats().used_bytes

    @initialize(budget=st.sampled_from([100_000_000, 3_000, 0]))
    def open(self, budget: int) -> None:
        """A tiny budget makes evictions a matter of course, none switches the cache off."""
        self.budget = budget
        url = "sqlite:///:memory:" if self.memory else f"sqlite:///{self.folder}/agent.db"
        self.store = self.run(MemoryStore(url, namespace="one", cache_max_bytes=budget).open())

    def teardown(self) -> None:
        if self.store is not None:
            self.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    @rule(namespace=namespaces, id_=ids, context=contexts, domain=domains)
    def put(self, namespace: str, id_: str, context: dict[str, Any], domain: str) -> None:
        self._put(self.at(namespace), self.model, namespace, make_episode(id=id_, context=context, domain=domain))

    def _put(self, target: Namespace | Transaction, model: Model, namespace: str, record: Episode) -> None:
        stored = self.run(target.episodes.put(record))
        before = model.episodes.get((namespace, record.id))
        assert stored.revision == (before.revision + 1 if before else 1)
        assert stored == replace(record, revision=stored.revision, updated_at=stored.updated_at)
        model.episodes[namespace, record.id] = stored
        model.steps.setdefault((namespace, record.id), {})

    @rule(namespace=namespaces, chosen=st.lists(ids, unique=True, max_size=4), domain=domains)
    def put_many(self, namespace: str, chosen: list[str], domain: str) -> None:
        stored = self.run(self.at(namespace).episodes.put_many(make_episode(id=id_, domain=domain) for id_ in chosen))
        for record in stored:
            before = self.model.episodes.get((namespace, record.id))
            assert record.revision == (before.revision + 1 if before else 1)
            self.model.episodes[namespace, record.id] = record
            self.model.steps.setdefault((namespace, record.id), {})

    @rule(namespace=namespaces, id_=ids, domain=domains, offset=st.sampled_from([None, 0, 0, 1]))
    def update(self, namespace: str, id_: str, domain: str, offset: int | None) -> None:
        before = self.model.episodes.get((namespace, id_))
        expected = None if offset is None else (before.revision if before else 1) + offset
        try:
            stored = self.run(self.at(namespace).episodes.update(id_, expected_revision=expected, domain=domain))
        except RecordNotFoundError:
            assert before is None
        except ConflictError:
            assert before is not None
            assert offset == 1
        else:
            assert before is not None
            assert offset != 1
            expected_record = replace(before, domain=domain, revision=before.revision + 1)
            assert stored == replace(expected_record, updated_at=stored.updated_at)
            self.model.episodes[namespace, id_] = stored

    @rule(namespace=namespaces, id_=ids)
    def delete(self, namespace: str, id_: str) -> None:
        self._delete(self.at(namespace), self.model, namespace, id_)

    def _delete(self, target: Namespace | Transaction, model: Model, namespace: str, id_: str) -> None:
        assert self.run(target.episodes.delete(id_)) is ((namespace, id_) in model.episodes)
        model.episodes.pop((namespace, id_), None)
        model.steps.pop((namespace, id_), None)

    @rule(namespace=namespaces, id_=ids, numbers=st.lists(st.none() | st.integers(1, 6), min_size=1, max_size=3))
    def append(self, namespace: str, id_: str, numbers: list[int | None]) -> None:
        self._append(self.at(namespace), self.model, namespace, id_, numbers)

    def _append(
        self, target: Namespace | Transaction, model: Model, namespace: str, id_: str, numbers: list[int | None]
    ) -> None:
        known = model.steps.get((namespace, id_))
        given = [number for number in numbers if number is not None]
        clash = len(set(given)) < len(given) or bool(set(given) & set(known or ()))
        try:
            stored = self.run(target.steps.append(id_, [make_step("", step_number=number) for number in numbers]))
        except RecordNotFoundError:
            assert known is None
        except ConflictError:
            assert clash
        else:
            assert known is not None
            assert not clash
            highest = max([0, *known, *given])
            for step, number in zip(stored, numbers, strict=True):
                highest += number is None
                assert step.step_number == (highest if number is None else number)
                known[step.step_number or 0] = step

    @rule(namespace=namespaces, id_=ids, index=st.integers(0, 5))
    def delete_step(self, namespace: str, id_: str, index: int) -> None:
        known = self.model.steps.get((namespace, id_), {})
        for number in sorted(known)[index : index + 1]:
            assert self.run(self.at(namespace).steps.delete(known.pop(number).id))

    @rule(namespace=namespaces, id_=ids, domain=domains, numbers=st.lists(st.none(), max_size=2), fails=st.booleans())
    def transaction(self, namespace: str, id_: str, domain: str, numbers: list[None], fails: bool) -> None:
        """All of it or nothing; each verb inside sees the ones before it."""
        inside = self.model.copy()
        context = self.at(namespace).transaction()
        tx = self.run(context.__aenter__())
        self._put(tx, inside, namespace, make_episode(id=id_, domain=domain))
        if numbers:
            self._append(tx, inside, namespace, id_, list(numbers))
        self._delete(tx, inside, namespace, IDS[0])
        self._check(tx, inside, namespace)
        if fails:
            self.run(_fail(context))
        else:
            self.run(context.__aexit__(None, None, None))
            self.model = inside

    @rule()
    def rebuild(self) -> None:
        assert self.store is not None
        self.run(self.store.cache.rebuild())

    @rule()
    def clear(self) -> None:
        assert self.store is not None
        self.run(self.store.cache.clear())

    @rule()
    def reopen(self) -> None:
        if not self.memory:
            assert self.store is not None
            self.run(self.store.close())
            self.open(self.budget)

    @rule(namespace=namespaces, domain=domains)
    def list(self, namespace: str, domain: str) -> None:
        expected = [
            record
            for (name, _), record in sorted(self.model.episodes.items())
            if name == namespace and record.domain == domain
        ]
        page = self.run(self.at(namespace).episodes.list(Episode.c.domain == domain, limit=1000))
        assert page.items == expected
        assert self.run(self.at(namespace).episodes.count(Episode.c.domain == domain)) == len(expected)

    @invariant()
    def both_agree(self) -> None:
        if self.store is not None:
            for namespace in ("one", "two"):
                self._check(self.at(namespace), self.model, namespace)
            assert self.run(self.used_bytes()) <= self.budget

    def _check(self, target: Namespace | Transaction, model: Model, namespace: str) -> None:
        assert self.run(target.episodes.get_many(IDS)) == [model.episodes.get((namespace, id_)) for id_ in IDS]
        for id_ in IDS:
            known = model.steps.get((namespace, id_), {})
            assert self.run(target.steps.of(id_)) == [known[number] for number in sorted(known)]


class OnMemory(StoreAgainstModel):
    """The same without a file."""

    memory = True


async def _fail(context: Any) -> None:
    """Leave a transaction as an exception in its block would."""
    error = ValueError("the caller's own")
    with contextlib.suppress(ValueError):
        await context.__aexit__(ValueError, error, None)


SETTINGS = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestOnFile = StoreAgainstModel.TestCase
TestOnFile.settings = SETTINGS

# The same at length, for `make torture`.
LongOnFile = type("LongOnFile", (StoreAgainstModel,), {})
TestAtLength = pytest.mark.slow(LongOnFile.TestCase)
TestAtLength.settings = settings(SETTINGS, max_examples=1000, stateful_step_count=60)
TestOnMemory = OnMemory.TestCase
TestOnMemory.settings = SETTINGS
