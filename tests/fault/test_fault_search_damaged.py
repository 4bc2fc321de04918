"""A full-text index that somebody has damaged: making it anew mends it, and records are never harmed by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from memory_store import MemoryStore
from tests.fault.search_truth import found, index_problems, left_behind
from tests.fault.support import database, episode, integrity_problems, log_problems

DAMAGE = {
    "no documents": "DELETE FROM documents",
    "some documents gone": "DELETE FROM documents WHERE id LIKE 'e1%'",
    "an empty index": "INSERT INTO documents_text (documents_text) VALUES ('delete-all')",
    "other terms": "UPDATE documents SET terms = 'x y z' WHERE id LIKE 'e2%'",
    "other keys": "UPDATE documents SET key = key + 1000",
    "parts of the index gone": "DELETE FROM documents_text_data WHERE id > 10",
    "parts of the index spoilt": "UPDATE documents_text_data SET block = x'00112233' WHERE id > 10",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_making_the_index_anew_mends_it(damage: str, file_url: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    async with MemoryStore(file_url) as store:
        await store.episodes.put_many([episode(f"e{n}", context=f"lantern n{n}") for n in range(50)])
        await store.namespace("other").episodes.put(episode("o", context="lantern"))
        assert len(await found(store, "lantern")) == 50
        with database(path) as connection:
            connection.execute(damage)
        await store.episodes.put(episode("new", context="harbour"))
        assert await store.reindex() == 52
        assert len(await found(store, "lantern")) == 50
        assert await found(store, "harbour") == {"new"}
        assert await found(store.namespace("other"), "lantern") == {"o"}
        await store.episodes.update("e1", context="harbour")
        await store.episodes.delete("e2")
        assert await found(store, "harbour") == {"new", "e1"}
    assert left_behind(path) == []
    assert index_problems(path) == []
    assert integrity_problems(path) == []
    assert log_problems(path) == []
