"""kill -9 while records are written and indexed: what was acknowledged is found, and the index is what the records say.

The child says what it is about to write before it does, and what was acknowledged after; the parent kills it anywhere,
opens the database again, and searches for the word of each record.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from memory_store import MemoryStore, Step
from tests.fault.search_truth import found, index_problems, left_behind, nothing_left, server_index_problems
from tests.fault.servers_support import truth_of
from tests.fault.support import Child, Parent, episode, integrity_problems, log_problems

NAMESPACE = "killed"
EPISODES = 6

Written = dict[str, str | None]
"""The word of each record by id; None where it is gone."""


class Writing:
    """Writes in a child until it is killed, one thing after another."""

    def __init__(self, parent: Parent, store: MemoryStore, seed: int, round_: int) -> None:
        self._parent, self._store, self._round = parent, store, round_
        self._seeded = random.Random(seed)
        self._here: dict[str, set[str]] = {}

    async def run(self) -> None:
        """Begin with what there is."""
        for one in (await self._store.episodes.list(limit=1000)).items:
            self._here[one.id] = {step.id for step in await self._store.steps.of(one.id)}
        for number in itertools.count():
            word = f"w{self._round}x{number}"
            write = self._seeded.choice([self._put, self._put, self._load, self._steps, self._delete, self._together])
            await write(word)
            if self._seeded.random() < 0.3:
                await self._store.search(word, mode="text")
            if self._seeded.random() < 0.1:
                await self._store.reindex()

    async def _telling(self, written: Written, write: Any) -> None:
        self._parent.send(("about to", written))
        await write
        self._parent.send(("done", written))

    async def _put(self, word: str) -> None:
        id_ = f"e{self._seeded.randrange(EPISODES)}"
        await self._telling({id_: word}, self._store.episodes.put(episode(id_, context=f"put {word}")))
        self._here.setdefault(id_, set())

    async def _load(self, word: str) -> None:
        """More than a commit indexes itself."""
        ids = [f"m{number}" for number in range(self._seeded.choice([17, 60, 300]))]
        loaded = [episode(id_, context=f"loaded {word}") for id_ in ids]
        await self._telling(dict.fromkeys(ids, word), self._store.episodes.put_many(loaded))
        self._here |= {id_: self._here.get(id_, set()) for id_ in ids}

    async def _steps(self, word: str) -> None:
        if self._here:
            id_ = self._seeded.choice(sorted(self._here))
            ids = [f"s{word}y{number}" for number in range(self._seeded.choice([1, 3, 40]))]
            steps = [Step(id=step, action=word, result="ok " * 50) for step in ids]
            await self._telling(dict.fromkeys(ids, word), self._store.steps.append(id_, steps))
            self._here[id_] |= set(ids)

    async def _delete(self, word: str) -> None:
        """Its steps go with it."""
        if self._here:
            id_ = self._seeded.choice(sorted(self._here))
            gone = dict.fromkeys([id_, *self._here.pop(id_)])
            await self._telling(gone, self._store.episodes.delete(id_))

    async def _together(self, word: str) -> None:
        async def write() -> None:
            async with self._store.transaction() as tx:
                await tx.episodes.put(episode("t1", context=word))
                await tx.episodes.put(episode("t2", context=word))
                await tx.episodes.update("t2", reflection=word)

        await self._telling({"t1": word, "t2": word}, write())
        for id_ in ("t1", "t2"):
            self._here.setdefault(id_, set())


async def write_for_ever(parent: Parent, url: str, seed: int, round_: int) -> None:
    """What the child does."""
    async with MemoryStore(url, namespace=NAMESPACE, timeout_s=20) as store:
        parent.send(("open", {}))
        await Writing(parent, store, seed, round_).run()


class Ledger:
    """What has been acknowledged, and what may have happened besides."""

    def __init__(self) -> None:
        self.sure: Written = {}
        self.maybe: Written = {}
        self.acknowledged = 0

    def note(self, message: tuple[str, Written]) -> None:
        """Take a message of the child."""
        word, written = message
        if word == "about to":
            self.maybe = written
        elif word == "done":
            self.sure |= written
            self.maybe = {}
            self.acknowledged += 1

    async def check(self, store: MemoryStore) -> None:
        """Search for each word; whether the last write happened is seen, and it happened as a whole."""
        words = {word for word in (*self.sure.values(), *self.maybe.values()) if word}
        held = {word: await found(store, word) for word in words}
        seen = {id_: word for word, ids in held.items() for id_ in ids}
        assert sum(map(len, held.values())) == len(seen), "found under two of its words"
        before = {id_: word for id_, word in self.sure.items() if word}
        after = {id_: word for id_, word in (self.sure | self.maybe).items() if word}
        assert seen in (before, after), sorted(set(seen.items()) ^ set(before.items()))[:5]
        self.sure, self.maybe = dict(seen), {}


async def kill_again_and_again(url: str, rounds: int, seed: int, check: Any) -> Ledger:
    """Kill a writer so many times, and check after each."""
    seeded, ledger = random.Random(seed), Ledger()
    for round_ in range(rounds):
        with Child(write_for_ever, url, seeded.randrange(1 << 30), round_) as child:
            for _ in range(seeded.randrange(2, 60)):
                ledger.note(child.receive())
            child.arrived_within(seeded.choice([0, seeded.uniform(0, 0.005), seeded.uniform(0, 0.06)]))
            child.kill()
            for message in child.messages_left():
                ledger.note(message)
        async with MemoryStore(url, namespace=NAMESPACE, timeout_s=20) as store:
            await ledger.check(store)
        await check()
    return ledger


async def test_nothing_acknowledged_is_missing_from_the_index_of_a_file(file_url: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"

    async def check() -> None:
        assert left_behind(path) == []
        assert index_problems(path) == []

    ledger = await kill_again_and_again(file_url, 15, 5, check)
    assert ledger.acknowledged > 100
    assert integrity_problems(path) == []
    assert log_problems(path) == []


async def test_nothing_acknowledged_is_missing_from_the_index_of_a_server(server_url: str) -> None:
    async def check() -> None:
        async with truth_of(server_url) as truth:
            await truth.quiet()
            assert await truth.connection.fetch("SELECT * FROM backlog") == []
            assert await server_index_problems(truth.connection) == []

    ledger = await kill_again_and_again(server_url, 6, 6, check)
    assert ledger.acknowledged > 30


async def load_and_index(parent: Parent, url: str, count: int) -> None:
    """Load so many records in one commit, then make the whole index anew, again and again."""
    async with MemoryStore(url, namespace=NAMESPACE, timeout_s=20) as store:
        await store.episodes.put_many([episode(f"e{n}", context=f"bulk number{n}") for n in range(count)])
        parent.send("loaded")
        while True:
            await store.reindex(on_progress=lambda *_: parent.send("indexing"))


@pytest.mark.parametrize("messages", [1, 2, 5, 9, 14, 22])
async def test_an_index_half_made_is_gone_on_with(file_url: str, tmp_path: Path, messages: int) -> None:
    path = tmp_path / "agent.db"
    with Child(load_and_index, file_url, 500) as child:
        for _ in range(messages):
            child.receive()
        child.kill()
    async with MemoryStore(file_url, namespace=NAMESPACE) as store:
        assert await found(store, "number499") == {"e499"}
        assert len(await found(store, "bulk")) == 500
        await nothing_left(store)
    assert left_behind(path) == []
    assert index_problems(path) == []
