"""What is remembered of a search lasts until a record of a kind it was found in changes, and five minutes at most."""

from __future__ import annotations

from pathlib import Path

from memory_store import MemoryStore
from memory_store.recall.moment import Moment
from tests.unit.samples import make_episode


async def test_a_moment_lasts_until_a_kind_changes_or_it_is_over(tmp_path: Path) -> None:
    async with MemoryStore(f"sqlite:///{tmp_path}/agent.db") as store:
        await store.episodes.put(make_episode(id="e1"))
        moment = Moment.of(store._access)
        assert moment.lasts(store._access, ["episode", "embedding"], moment.until - 1)
        assert not moment.lasts(store._access, ["episode", "embedding"], moment.until)
        await store.episodes.put(make_episode(id="e2"))
        assert not moment.lasts(store._access, ["episode", "embedding"], moment.until - 1)
        assert moment.lasts(store._access, ["pattern", "embedding"], moment.until - 1)
