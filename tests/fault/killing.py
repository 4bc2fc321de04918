"""A child that writes and tells of each acknowledged write, killed at a random instant, again and again."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

from memory_store import Episode, MemoryStore, Step
from tests.fault.support import Child, Parent, database, episode, integrity_problems, log_problems

NAMESPACE = "killed"
EPISODES = 8


async def write_for_ever(parent: Parent, url: str, seed: int, round_: int) -> None:
    """Write until killed. Every message is a change of the ledger that is durable: `(key, value)`, None for gone.

    What it is about to write is sent before, as `("?", [(key, value), ...])`: killed in between, all of them may be
    either way, but only together.
    """
    seeded = random.Random(seed)
    parent.send(("opening", None))
    async with MemoryStore(url, namespace=NAMESPACE, cache_save_interval_s=0.01, timeout_s=20) as store:
        parent.send(("open", None))
        # Some rounds end by themselves, so that kills also meet the closing.
        for number in itertools.count() if seeded.random() < 0.6 else range(seeded.randrange(12)):
            await _write_once(parent, store, seeded, f"{round_}.{number}")
        parent.send(("closing", None))
    parent.send(("closed", None))


async def _write_once(parent: Parent, store: MemoryStore, seeded: random.Random, mark: str) -> None:
    id_ = f"e{seeded.randrange(EPISODES)}"
    filler = "x" * seeded.choice([10, 1000, 30_000])
    known = await store.episodes.get(id_)
    action = seeded.choice(["put", "update", "append", "transaction", "delete", "put_many"])
    if action in ("put", "update", "delete", "append") and known is None:
        action = "put"
    if action == "put":
        revision = 1 if known is None else known.revision + 1
        parent.send(("?", [(id_, (revision, mark))]))
        stored = await store.episodes.put(_episode(id_, mark, filler))
        parent.send((id_, (stored.revision, mark)))
    elif action == "update":
        parent.send(("?", [(id_, (known.revision + 1, mark))]))
        stored = await store.episodes.update(
            id_, expected_revision=known.revision, context={"mark": mark, "filler": filler}
        )
        parent.send((id_, (stored.revision, mark)))
    elif action == "append":
        before = [step.action for step in await store.steps.of(id_)]
        parent.send(("?", [(f"{id_}/steps", (*before, mark))]))
        await store.steps.append(id_, Step(action=mark, result=filler))
        parent.send((f"{id_}/steps", (*before, mark)))
    elif action == "delete":
        parent.send(("?", [(id_, None), (f"{id_}/steps", None)]))
        await store.episodes.delete(id_)
        parent.send(("both", [(id_, None), (f"{id_}/steps", None)]))
    elif action == "put_many":
        changed = [(f"m{mark}-{i}", (1, mark)) for i in range(3)]
        parent.send(("?", changed))
        await store.episodes.put_many([_episode(key, mark, filler) for key, _ in changed])
        parent.send(("both", changed))
    else:
        changed = [(f"t{mark}-a", (1, mark)), (f"t{mark}-b", (2, mark)), (f"t{mark}-b/steps", (mark,))]
        parent.send(("?", changed))
        async with store.transaction() as tx:
            await tx.episodes.put_many([_episode(f"t{mark}-a", mark, filler), _episode(f"t{mark}-b", mark, filler)])
            await tx.episodes.update(f"t{mark}-b", status="completed")
            await tx.steps.append(f"t{mark}-b", Step(action=mark))
        parent.send(("both", changed))


def _episode(id_: str, mark: str, filler: str) -> Episode:
    return episode(id_, context={"mark": mark, "filler": filler})


class Ledger:
    """What has been acknowledged, and what may have happened besides."""

    def __init__(self) -> None:
        self.sure: dict[str, Any] = {}
        self.maybe: list[tuple[str, Any]] = []
        self.acknowledged = 0
        self.last = ""

    def note(self, message: tuple[str, Any]) -> None:
        """Take a message of the child."""
        word, value = message
        if word in ("opening", "open", "closing", "closed"):
            self.last = word
        elif word == "?":
            self.maybe = value
        else:
            self.acknowledged += 1
            self.maybe = []
            self.sure.update(value if word == "both" else [(word, value)])

    def settle(self, seen: dict[str, Any]) -> None:
        """Check what is in the store against it and take over the last write, which may be there as a whole or not."""
        with_it = self.sure | dict(self.maybe)
        now = {key: seen.get(key) for key in with_it}
        wrong = [(key, value, with_it[key]) for key, value in now.items() if value != with_it[key]]
        without_it = {key: self.sure.get(key) for key in with_it}
        assert now in (with_it, without_it), f"acknowledged and not there, or half there: {wrong}"
        unknown = {key for key, value in seen.items() if value is not None} - set(with_it)
        assert not unknown, f"there and never written: {unknown}"
        self.sure = {key: value for key, value in now.items() if value is not None}
        self.maybe = []


def contents(path: Path) -> dict[str, Any]:
    """Return what the file holds, in the ledger's words, read with the plain driver."""
    with database(path) as connection:
        mark = "json_extract(context, '$.mark')"
        rows = connection.execute(f"SELECT id, revision, {mark} FROM episodes WHERE namespace = ?", (NAMESPACE,))
        held: dict[str, Any] = {id_: (revision, mark) for id_, revision, mark in rows}
        for episode_id, action in connection.execute(
            "SELECT episode_id, action FROM steps WHERE namespace = ? ORDER BY episode_id, step_number", (NAMESPACE,)
        ):
            key = f"{episode_id}/steps"
            held[key] = (*held.get(key, ()), action)
    return held


async def contents_through_the_cache(store: MemoryStore, keys: list[str]) -> dict[str, Any]:
    """Return what the store says, in the ledger's words."""
    held: dict[str, Any] = {}
    for key in keys:
        if key.endswith("/steps"):
            held[key] = tuple(step.action for step in await store.steps.of(key.removesuffix("/steps"))) or None
        else:
            found = await store.episodes.get(key)
            held[key] = found and (found.revision, found.context["mark"])
    return held


async def kill_again_and_again(path: Path, rounds: int, seed: int) -> tuple[Ledger, set[str]]:
    """Kill a writer `rounds` times over one database, check it each time; return the ledger and where kills fell."""
    seeded = random.Random(seed)
    ledger = Ledger()
    met: set[str] = set()
    url = f"sqlite:///{path}"
    for round_ in range(rounds):
        with Child(write_for_ever, url, seeded.randrange(1 << 30), round_) as child:
            ledger.note(child.receive())
            # Short lives meet the opening, longer ones the writing; in between the child is never waited for.
            await _let_live(child, ledger, seeded)
            child.kill()
            for message in child.messages_left():
                ledger.note(message)
        met.add(ledger.last)
        if path.exists():
            await _check(path, ledger, deeply=round_ % 10 == 9 or round_ == rounds - 1)
    return ledger, met


async def _let_live(child: Child, ledger: Ledger, seeded: random.Random) -> None:
    """Let the child live for some messages and then for a part of the next write."""
    until = seeded.choice(["opening", "open", "closing", "some writes", "more writes"])
    messages = {"opening": 0, "open": 1, "closing": 80, "some writes": seeded.randrange(30)}
    for _ in range(messages.get(until, seeded.randrange(80))):
        if ledger.last in (until, "closed"):
            break
        ledger.note(child.receive())
    child.arrived_within(seeded.choice([0, 0, seeded.uniform(0, 0.004), seeded.uniform(0, 0.03)]))


async def _check(path: Path, ledger: Ledger, *, deeply: bool) -> None:
    url = f"sqlite:///{path}"
    async with MemoryStore(url, namespace=NAMESPACE, cache_save_interval_s=0, timeout_s=20) as store:
        # The saved cache may be serving already, or load while this reads: it must agree with the file either way.
        if deeply:
            await store.cache.wait()
        held = contents(path)
        keys = list(held.keys() | ledger.sure.keys() | dict(ledger.maybe).keys())
        if not deeply:
            keys = [key for key in keys if key[0] == "e" or key in dict(ledger.maybe)]
        assert await contents_through_the_cache(store, keys) == {key: held.get(key) for key in keys}
    ledger.settle(held)
    if deeply:
        assert integrity_problems(path) == []
        assert log_problems(path) == []
