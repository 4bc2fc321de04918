"""How fresh a read is: bounded, linearizable and `at_least`, for every way to read, over two stores on one file.

Nothing here waits for the clock: the stores are handed one that the test moves.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memory_store import ConfigurationError, Episode, MemoryStore, PositionLostError
from memory_store.clock import boot_s
from memory_store.config import Freshness
from memory_store.durable import schema
from memory_store.durable.engine import Target
from tests.fault.support import Parent, in_child
from tests.unit.samples import MAKE, make_episode, make_pattern, make_step

BOUND_S = 10.0


class Clock:
    """A boot clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = boot_s()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every store of the test."""
    clock = Clock()
    for name, module in list(sys.modules.items()):
        if name.startswith("memory_store.") and hasattr(module, "boot_s"):
            monkeypatch.setattr(module, "boot_s", clock)
    return clock


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without records: making one takes ten times as long as copying it."""
    path = tmp_path_factory.mktemp("empty") / "empty.db"
    schema.upgrade(Target(str(path), False, {}), 30.0)
    return path


@pytest.fixture
async def theirs(file_url: str, empty: Path, tmp_path: Path) -> AsyncIterator[MemoryStore]:
    """A store of somebody else on the file, with records of every kind; it keeps no saved cache."""
    shutil.copy(empty, tmp_path / "agent.db")
    async with MemoryStore(file_url, cache_path="") as store:
        await store.episodes.put_many([make_episode(id=id_) for id_ in ("e", "gone", "other")])
        for kind in ("step", "embedding", "spatiotemporal"):
            for parent in ("e", "gone"):
                await store.collection(kind).put(MAKE[kind](parent, id=f"{kind}-{parent}"))
        await store.patterns.put(make_pattern(id="p"))
        yield store


@pytest.fixture
async def ours(theirs: MemoryStore, clock: Clock, file_url: str) -> AsyncIterator[MemoryStore]:
    """A store that may be `BOUND_S` behind."""
    async with MemoryStore(file_url, staleness_s=BOUND_S, cache_path="") as store:
        await store.cache.wait()
        yield store


Read = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Case:
    """A way to read, and what another store does to what it reads."""

    name: str
    read: Callable[..., Awaitable[Any]]
    change: Callable[[MemoryStore], Awaitable[Any]]


def revisions(records: list[Any]) -> list[Any]:
    """Return what tells the states of records apart."""
    return [record and (record.id, record.revision) for record in records]


def get(kind: str, id_: str) -> Read:
    async def read(store: MemoryStore, **options: Any) -> Any:
        return revisions([await store.collection(kind).get(id_, **options)])

    return read


async def get_many(store: MemoryStore, **options: Any) -> Any:
    return revisions(await store.episodes.get_many(["e", "nobody", "other"], **options))


def parts_of(kind: str, parent: str = "e") -> Read:
    async def read(store: MemoryStore, **options: Any) -> Any:
        parts: Any = store.collection(kind)
        return revisions(await parts.of(parent, **options))

    return read


async def count(store: MemoryStore, **options: Any) -> Any:
    return await store.episodes.count(Episode.c.domain == "web", **options)


async def move_a_step(store: MemoryStore) -> None:
    await store.steps.put(make_step("other", id="step-e"))


async def in_a_transaction(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        await tx.episodes.update("e", domain="mobile")


POINTS = [
    Case("update", get("episode", "e"), lambda s: s.episodes.update("e", domain="mobile")),
    Case("replace", get("pattern", "p"), lambda s: s.patterns.put(make_pattern(id="p", usage_count=3))),
    Case("transaction", get("episode", "e"), in_a_transaction),
    Case("delete", get("episode", "e"), lambda s: s.episodes.delete("e")),
    Case("absence ends", get("episode", "new"), lambda s: s.episodes.put(make_episode(id="new"))),
    Case(
        "bulk",
        get("episode", "e"),
        lambda s: s.episodes.put_many([make_episode(id=i) for i in ["e", *map(str, range(1100))]]),
    ),
    Case("get_many", get_many, lambda s: s.episodes.update("other", domain="mobile")),
    Case("get_many absence ends", get_many, lambda s: s.episodes.put(make_episode(id="nobody"))),
    Case("append", parts_of("step"), lambda s: s.steps.append("e", make_step("e"))),
    Case("append to none", parts_of("step", "other"), lambda s: s.steps.append("other", make_step("other"))),
    Case("update of a part", parts_of("step"), lambda s: s.steps.update("step-e", result="2 failed")),
    Case("delete of a part", parts_of("step"), lambda s: s.steps.delete("step-e")),
    Case("moved away", parts_of("step"), move_a_step),
    Case("moved here", parts_of("step", "other"), move_a_step),
    *(
        Case(f"range delete of {kind}", parts_of(kind, "gone"), lambda s: s.episodes.delete("gone"))
        for kind in ("step", "embedding", "spatiotemporal")
    ),
]
COUNTS = [
    Case("count after a put", count, lambda s: s.episodes.put(make_episode(id="new"))),
    Case("count after a delete", count, lambda s: s.episodes.delete("e")),
    Case("count after an update", count, lambda s: s.episodes.update("e", domain="mobile")),
]
each_read = pytest.mark.parametrize("case", POINTS + COUNTS, ids=lambda case: case.name)
each_point = pytest.mark.parametrize("case", POINTS, ids=lambda case: case.name)


async def changed(case: Case, ours: MemoryStore, theirs: MemoryStore) -> tuple[Any, Any]:
    """Read in our store, change in theirs; return what was read and what is right now."""
    before = await case.read(ours, freshness="linearizable")
    await case.change(theirs)
    after = await case.read(theirs)
    assert before != after, "the case changes nothing"
    return before, after


@each_read
async def test_bounded_serves_within_the_bound_without_looking_and_looks_after_it(
    case: Case, ours: MemoryStore, theirs: MemoryStore, clock: Clock
) -> None:
    before, after = await changed(case, ours, theirs)
    looks = ours._access.coherence.looks
    clock.now += BOUND_S * 0.999
    assert await case.read(ours) == before
    assert ours._access.coherence.looks == looks
    clock.now += BOUND_S * 0.002
    assert await case.read(ours) == after
    assert ours._access.coherence.looks > looks


@each_read
async def test_linearizable_on_one_call_misses_nothing(case: Case, ours: MemoryStore, theirs: MemoryStore) -> None:
    _, after = await changed(case, ours, theirs)
    assert await case.read(ours, freshness="linearizable") == after
    assert await case.read(ours) == after, "what has been seen is not forgotten"


@each_read
@pytest.mark.parametrize("settings", [{"freshness": "linearizable"}, {"staleness_s": 0}], ids=str)
async def test_a_store_that_misses_nothing(
    case: Case, settings: dict[str, Any], theirs: MemoryStore, clock: Clock, file_url: str
) -> None:
    async with MemoryStore(file_url, cache_path="", **settings) as ours:
        before, after = await changed(case, ours, theirs)
        assert before != await case.read(ours) == after


@each_read
async def test_a_linearizable_store_can_be_asked_for_less(
    case: Case, theirs: MemoryStore, clock: Clock, file_url: str
) -> None:
    async with MemoryStore(file_url, cache_path="", freshness="linearizable", staleness_s=BOUND_S) as ours:
        await ours.cache.wait()  # its reads see what is new as well
        before, after = await changed(case, ours, theirs)
        assert await case.read(ours, freshness="bounded") == before
        clock.now += BOUND_S
        assert await case.read(ours, freshness="bounded") == after


@each_point
async def test_at_least_sees_the_write_it_names(case: Case, ours: MemoryStore, theirs: MemoryStore) -> None:
    before, after = await changed(case, ours, theirs)
    seen = ours.position
    assert await case.read(ours, at_least=seen) == before, "a position that was seen already costs nothing"
    assert await case.read(ours, at_least=theirs.position) == after


@each_point
async def test_a_future_position_is_lost_and_leaves_the_store_as_it_was(case: Case, ours: MemoryStore) -> None:
    before = await case.read(ours)
    with pytest.raises(PositionLostError) as caught:
        await case.read(ours, at_least=ours.position + 1)
    assert (caught.value.position, caught.value.head) == (ours.position + 1, ours.position)
    assert await case.read(ours) == before


async def test_a_future_position_is_lost_where_the_cache_is_not_asked(ours: MemoryStore) -> None:
    with pytest.raises(PositionLostError):
        await ours.steps.get("step-e", at_least=1 << 40)
    with pytest.raises(PositionLostError):
        await ours.steps.get_many(["step-e"], at_least=1 << 40)


@each_read
async def test_a_freshness_there_is_not_is_refused(case: Case, ours: MemoryStore) -> None:
    await case.read(ours)
    for wrong in ("strong", "", "Linearizable", 1, True, b"bounded"):
        with pytest.raises(ConfigurationError, match="freshness must be"):
            await case.read(ours, freshness=wrong)


async def test_a_freshness_there_is_not_is_refused_where_it_makes_no_difference(ours: MemoryStore) -> None:
    wrong: Any = "strong"
    with pytest.raises(ConfigurationError, match="freshness must be"):
        await ours.steps.get("step-e", freshness=wrong)
    with pytest.raises(ConfigurationError, match="freshness must be"):
        await ours.steps.get_many(["step-e"], freshness=wrong)


@pytest.mark.parametrize("settings", [{"freshness": "strong"}, {"staleness_s": -1}, {"staleness_s": "x"}], ids=str)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], file_url: str) -> None:
    with pytest.raises(ConfigurationError):
        MemoryStore(file_url, **settings)


async def test_settings_come_from_the_url_as_well(theirs: MemoryStore, clock: Clock, file_url: str) -> None:
    async with MemoryStore(f"{file_url}?freshness=linearizable&cache_path=") as ours:
        assert (await ours.episodes.get_many(["e"]))[0] is not None
        await theirs.episodes.delete("e")
        assert await ours.episodes.get("e") is None


@pytest.mark.parametrize("freshness", ["bounded", "linearizable"])
async def test_own_writes_are_always_seen(freshness: Freshness, url: str) -> None:
    async with MemoryStore(url, freshness=freshness, staleness_s=3600) as store:
        assert await store.episodes.get("e") is None
        assert await store.episodes.count() == 0
        await store.episodes.put(make_episode(id="e"))
        assert revisions([await store.episodes.get("e")]) == [("e", 1)]
        assert await store.episodes.count() == 1
        await store.episodes.update("e", domain="mobile")
        assert revisions(await store.episodes.get_many(["e"])) == [("e", 2)]
        assert await store.steps.of("e") == []
        await store.steps.append("e", make_step("e", id="s"))
        assert revisions(await store.steps.of("e")) == [("s", 1)]
        await store.episodes.put_many([make_episode(id=id_) for id_ in ["e", *map(str, range(1100))]])
        assert revisions([await store.episodes.get("e"), await store.episodes.get("7")]) == [("e", 3), ("7", 1)]
        async with store.transaction() as tx:
            await tx.steps.append("e", make_step("e", id="t"))
            await tx.episodes.delete("7")
            assert revisions(await store.steps.of("e")) == [("s", 1)], "it is not committed yet"
        assert revisions(await store.steps.of("e")) == [("s", 1), ("t", 1)]
        assert await store.episodes.get("7") is None
        await store.episodes.delete("e")
        assert await store.steps.of("e") == []
        assert await store.episodes.count() == 1099


async def _put_and_tell(parent: Parent, url: str) -> list[int | None]:
    async with MemoryStore(url, cache_path="") as store:
        [put] = await store.episodes.put_many([make_episode(id="new")])
        [step] = await store.steps.append("e", make_step("e"))
        return [put.position, step.position]


async def test_at_least_with_positions_of_another_process(ours: MemoryStore, file_url: str) -> None:
    assert await ours.episodes.get("new") is None
    steps = await ours.steps.of("e")
    put, step = in_child(_put_and_tell, file_url)
    assert await ours.episodes.get("new") is None, "within the bound"
    assert revisions([await ours.episodes.get("new", at_least=put)]) == [("new", 1)]
    assert len(await ours.steps.of("e", at_least=step)) == len(steps) + 1
    assert ours.position == step


async def stream(store: MemoryStore) -> list[Episode]:
    return [record async for record in store.episodes.stream()]


READS_OF_THE_DATABASE: dict[str, Callable[[MemoryStore], Awaitable[Any]]] = {
    "list": lambda s: s.episodes.list(),
    "list of another kind": lambda s: s.patterns.list(),
    "stream": stream,
    "count": lambda s: s.episodes.count(Episode.c.domain == "never asked before"),
    "part": lambda s: s.steps.get("step-e"),
    "parts": lambda s: s.steps.get_many(["step-e"]),
    "another key": lambda s: s.episodes.get("not in the cache"),
    "other keys": lambda s: s.episodes.get_many(["not in the cache", "nor this"]),
    "other list of parts": lambda s: s.steps.of("nobody"),
    "own write": lambda s: s.patterns.put(make_pattern()),
}


@pytest.mark.parametrize("name", READS_OF_THE_DATABASE)
async def test_after_a_read_of_the_database_the_cache_is_no_older(
    name: str, ours: MemoryStore, theirs: MemoryStore
) -> None:
    """Reads of one process never go backwards: what one of them has seen, the next ones see as well."""
    assert revisions([await ours.episodes.get("e")]) == [("e", 1)]
    assert len(await ours.steps.of("e")) == 1
    assert await ours.episodes.count() == 3
    await theirs.episodes.update("e", domain="mobile")
    await theirs.steps.delete("step-e")
    await theirs.episodes.delete("gone")
    assert revisions([await ours.episodes.get("e")]) == [("e", 1)], "within the bound"
    await READS_OF_THE_DATABASE[name](ours)
    assert revisions([await ours.episodes.get("e")]) == [("e", 2)]
    assert await ours.steps.of("e") == []
    assert await ours.episodes.count() == 2


@pytest.mark.parametrize("freshness", ["bounded", "linearizable"])
async def test_readers_beside_a_writer_never_go_backwards(freshness: Freshness, file_url: str, tmp_path: Path) -> None:
    """Linearizable ones never miss what was acknowledged before they asked, either."""
    async with (
        MemoryStore(file_url, cache_path="") as theirs,
        MemoryStore(file_url, cache_path="", freshness=freshness, staleness_s=0.002) as ours,
    ):
        await theirs.episodes.put(make_episode(id="e", context=0))
        acknowledged, ended = 0, False

        async def write() -> None:
            nonlocal acknowledged, ended
            for number in range(1, 151):
                await theirs.episodes.update("e", context=number)
                acknowledged = number
            ended = True

        async def read(way: Callable[[], Awaitable[Any]]) -> int:
            newest = reads = 0
            while not ended:
                least = acknowledged if freshness == "linearizable" else newest
                found = await way()
                assert found.context >= max(least, newest)
                newest, reads = found.context, reads + 1
                await asyncio.sleep(0)
            return reads

        async def listed() -> Any:
            return (await ours.episodes.list(Episode.c.id == "e")).items[0]

        async def among_others() -> Any:
            return (await ours.episodes.get_many(["nobody", "e"]))[1]

        async def after_a_drop() -> Any:
            await ours.cache.clear()
            return await ours.episodes.get("e")

        reading = [lambda: ours.episodes.get("e"), among_others, listed, after_a_drop, lambda: ours.episodes.get("e")]
        *_, reads = await asyncio.gather(write(), *map(read, reading))
        assert reads > 100
        found = await ours.episodes.get("e", freshness="linearizable")
        assert found is not None
        assert found.context == 150
