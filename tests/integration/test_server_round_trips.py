"""What costs one round trip to a server costs no more: its time is most of a read's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from memory_store import Episode, MemoryStore
from memory_store.durable.dialects.postgresql import Connection
from tests.unit.samples import make_episode

ONCE: dict[str, Callable[[MemoryStore], Awaitable[Any]]] = {
    "get": lambda store: store.episodes.get("a"),
    "get what is not there": lambda store: store.episodes.get("nothing"),
    "get many": lambda store: store.episodes.get_many(["a", "b", "nothing"]),
    "list": lambda store: store.episodes.list(Episode.c.domain == "web", limit=1),
    "put what is new": lambda store: store.episodes.put(make_episode(id="c")),
}


@pytest.mark.parametrize("name", ONCE)
async def test_it_is_one_round_trip(name: str, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    wait = Connection._wait

    def counting(self: Connection, answer: Any) -> Any:
        asked.append(name)
        return wait(self, answer)

    async with MemoryStore(server_url, cache_max_bytes=0, hints=False, staleness_s=60) as store:
        await store.episodes.put_many([make_episode(id=id_, domain="web") for id_ in ("a", "b")])
        monkeypatch.setattr(Connection, "_wait", counting)
        await ONCE[name](store)
        monkeypatch.undo()
    assert len(asked) == 1
