"""Idempotency keys: a put that is made once however often, and by whomever, it is asked for."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from memory_store import ConflictError, InvalidRecordError, MemoryStore, RecordNotFoundError
from memory_store.records import RECORDS
from tests.fault.support import Child, Parent, database, episode, in_child, integrity_problems, log_problems
from tests.unit.samples import CHANGE, MAKE, make_episode, make_pattern, make_step, values_of

KEY = "request-7"


async def total(store: MemoryStore) -> dict[str, int]:
    """How many records there are of each kind."""
    return {kind: await store.collection(kind).count() for kind in RECORDS}


@pytest.mark.parametrize("kind", RECORDS)
async def test_a_retry_returns_what_the_first_one_stored(kind: str, store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e1"))
    record = MAKE[kind]("e1")
    collection = store.collection(kind)
    first = await collection.put(record, idempotency_key=KEY)
    assert (first.revision, first.position) == (1, store.position)
    held, position = await total(store), store.position
    for _ in range(3):
        again = await collection.put(record, idempotency_key=KEY)
        assert values_of(again) == values_of(first)
        assert again.position == first.position
    assert (await total(store), store.position) == (held, position), "the retries changed nothing"
    assert await collection.get(first.id) == first


@pytest.mark.parametrize("kind", RECORDS)
async def test_a_retry_may_make_the_record_again(kind: str, store: MemoryStore) -> None:
    """What the library fills in (id, times, number) is made up anew then, and does not make it another record."""
    await store.episodes.put(make_episode(id="e1"))
    collection = store.collection(kind)
    first = await collection.put(MAKE[kind]("e1"), idempotency_key=KEY)
    again = await collection.put(MAKE[kind]("e1"), idempotency_key=KEY)
    assert values_of(again) == values_of(first)
    assert await collection.count() == 1 + (kind == "episode")


async def test_a_retry_in_another_store_and_after_a_restart(file_url: str) -> None:
    async with MemoryStore(file_url) as first_store, MemoryStore(file_url) as second_store:
        first = await first_store.episodes.put(make_episode(), idempotency_key=KEY)
        assert await second_store.episodes.put(make_episode(), idempotency_key=KEY) == first
    async with MemoryStore(file_url) as later:
        again = await later.episodes.put(make_episode(), idempotency_key=KEY)
        assert (values_of(again), again.position) == (values_of(first), first.position)
        assert await later.episodes.count() == 1


async def _put(parent: Parent, url: str) -> dict[str, Any]:
    async with MemoryStore(url) as store:
        return values_of(await store.episodes.put(make_episode(), idempotency_key=KEY))


async def test_a_retry_in_another_process(file_store: MemoryStore, file_url: str) -> None:
    async with MemoryStore(file_url) as store:
        theirs = in_child(_put, file_url)
        assert values_of(await store.episodes.put(make_episode(), idempotency_key=KEY)) == theirs
        assert values_of(await store.episodes.get(theirs["id"])) == theirs  # type: ignore[arg-type]


async def test_after_an_update_a_retry_returns_the_first_and_changes_nothing(store: MemoryStore) -> None:
    first = await store.episodes.put(make_episode(), idempotency_key=KEY)
    updated = await store.episodes.update(first.id, **CHANGE["episode"])
    again = await store.episodes.put(make_episode(), idempotency_key=KEY)
    assert values_of(again) == values_of(first)
    assert await store.episodes.get(first.id) == updated
    await store.cache.clear()
    assert await store.episodes.get(first.id) == updated


async def test_after_a_delete_a_retry_returns_the_first_and_does_not_bring_it_back(store: MemoryStore) -> None:
    first = await store.episodes.put(make_episode(), idempotency_key=KEY)
    await store.episodes.delete(first.id)
    assert values_of(await store.episodes.put(make_episode(), idempotency_key=KEY)) == values_of(first)
    assert await store.episodes.get(first.id) is None
    assert await store.episodes.count() == 0


async def test_a_put_over_an_existing_record_is_made_once(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e1"))
    first = await store.episodes.put(make_episode(id="e1", domain="mobile"), idempotency_key=KEY)
    assert first.revision == 2
    again = await store.episodes.put(make_episode(id="e1", domain="mobile"), idempotency_key=KEY)
    assert values_of(again) == values_of(first)
    assert await store.episodes.get("e1") == first


@pytest.mark.parametrize("field", [{"domain": "mobile"}, {"context": {}}, {"reward_score": 0.0}], ids=str)
async def test_a_key_for_other_content_is_a_conflict_that_names_it(field: dict[str, Any], store: MemoryStore) -> None:
    first = await store.episodes.put(make_episode(), idempotency_key=KEY)
    position = store.position
    with pytest.raises(ConflictError, match=KEY) as caught:
        await store.episodes.put(make_episode(**field), idempotency_key=KEY)
    assert (caught.value.kind, caught.value.key) == ("episode", first.id)
    assert (await store.episodes.count(), store.position) == (1, position)
    assert await store.episodes.put(make_episode(), idempotency_key=KEY) == first, "the key still stands for the first"


async def test_a_key_for_another_kind_or_episode_is_a_conflict(store: MemoryStore) -> None:
    await store.episodes.put_many([make_episode(id="e1"), make_episode(id="e2")])
    await store.steps.put(make_step("e1"), idempotency_key=KEY)
    with pytest.raises(ConflictError, match=KEY):
        await store.patterns.put(make_pattern(), idempotency_key=KEY)
    with pytest.raises(ConflictError, match=KEY):
        await store.steps.put(make_step("e2"), idempotency_key=KEY)
    assert await store.patterns.count() == 0
    assert await store.steps.count() == 1


WRONG = ["", "x" * 257, "é" * 129, "a\0b", "\ud800", 5, b"key", ["key"]]


@pytest.mark.parametrize("key", WRONG, ids=ascii)
async def test_a_key_that_is_none_is_refused_before_anything_is_written(key: Any, store: MemoryStore) -> None:
    position = store.position
    with pytest.raises(InvalidRecordError, match="idempotency_key") as caught:
        await store.episodes.put(make_episode(), idempotency_key=key)
    assert caught.value.field == "idempotency_key"
    assert store.position == position


@pytest.mark.parametrize(
    "key", ["x", "x" * 256, "é" * 128, "🔑" * 64, " ", "'; DROP TABLE head; --", "K", "k"], ids=ascii
)
async def test_any_text_of_1_to_256_bytes_is_a_key(key: str, store: MemoryStore) -> None:
    await store.episodes.put(make_episode(domain="another"), idempotency_key="X" if key == "x" else "another")
    first = await store.episodes.put(make_episode(), idempotency_key=key)
    assert await store.episodes.put(make_episode(), idempotency_key=key) == first
    assert await store.episodes.count() == 2


async def test_steps_keep_the_number_they_were_given(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e1"))
    step = make_step("e1")
    await store.steps.append("e1", make_step(step_number=4))
    first = await store.steps.put(step, idempotency_key=KEY)
    assert first.step_number == 5
    await store.steps.append("e1", make_step())
    again = await store.steps.put(step, idempotency_key=KEY)
    assert values_of(again) == values_of(first)
    assert [found.step_number for found in await store.steps.of("e1")] == [4, 5, 6]


async def test_64_concurrent_puts_with_one_key_make_one_row(store: MemoryStore) -> None:
    before = store.stats()
    stored = await asyncio.gather(*(store.episodes.put(make_episode(), idempotency_key=KEY) for _ in range(64)))
    assert {record.id for record in stored} == {stored[0].id}
    assert all(values_of(record) == values_of(stored[0]) for record in stored)
    assert {record.position for record in stored} == {before.position + 1}
    assert await store.episodes.count() == 1
    assert [record.id for record in (await store.episodes.list()).items] == [stored[0].id]


async def test_one_key_among_other_writes_of_a_batch(store: MemoryStore) -> None:
    """Some of the batch is refused by the database, so it is run again write by write, and in savepoints."""
    await store.episodes.put(make_episode(id="taken"))
    writes = [store.episodes.put(make_episode(), idempotency_key=KEY) for _ in range(20)]
    others = [store.episodes.put(make_episode(id="taken")) for _ in range(20)]
    wrong = [store.episodes.put(make_episode(domain="other"), idempotency_key=KEY) for _ in range(20)]
    lost = [store.steps.put(make_step("nobody"), idempotency_key="lost") for _ in range(4)]
    mixed = [write for group in zip(writes, others, wrong, strict=True) for write in group]
    done = await asyncio.gather(*mixed, *lost, return_exceptions=True)
    kept, replaced, refused = done[0:60:3], done[1:60:3], done[2:60:3]
    assert len({record.id for record in kept}) == 1  # type: ignore[union-attr]
    assert [record.revision for record in replaced] == list(range(2, 22))  # type: ignore[union-attr]
    assert {type(error) for error in refused} == {ConflictError}
    assert {type(error) for error in done[60:]} == {RecordNotFoundError}
    assert await store.episodes.count() == 2


async def test_64_concurrent_puts_of_other_contents_with_one_key(store: MemoryStore) -> None:
    puts = (store.episodes.put(make_episode(domain=str(i)), idempotency_key=KEY) for i in range(64))
    done = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in done].count("Episode") == 1
    assert [type(outcome).__name__ for outcome in done].count("ConflictError") == 63
    assert await store.episodes.count() == 1


async def test_a_put_that_failed_leaves_the_key_free(store: MemoryStore) -> None:
    step = make_step("e1")
    with pytest.raises(RecordNotFoundError):
        await store.steps.put(step, idempotency_key=KEY)
    await store.episodes.put(make_episode(id="e1"))
    await store.steps.append("e1", make_step(step_number=2))
    with pytest.raises(ConflictError, match="number 2"):
        await store.steps.put(make_step(step_number=2), idempotency_key=KEY)
    assert (await store.steps.put(step, idempotency_key=KEY)).step_number == 3


async def test_inside_a_transaction(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        first = await tx.episodes.put(make_episode(), idempotency_key=KEY)
        assert await tx.episodes.put(make_episode(), idempotency_key=KEY) == first
        with pytest.raises(ConflictError, match=KEY):
            await tx.episodes.put(make_episode(domain="mobile"), idempotency_key=KEY)
        assert await tx.episodes.count() == 1
    again = await store.episodes.put(make_episode(), idempotency_key=KEY)
    assert (values_of(again), again.position) == (values_of(first), tx.position)
    async with store.transaction() as tx:
        assert await tx.episodes.put(make_episode(), idempotency_key=KEY) == first
        await tx.patterns.put(make_pattern())
    assert await store.episodes.count() == 1


async def test_a_transaction_rolled_back_leaves_the_key_free(store: MemoryStore) -> None:
    lost: list[str] = []

    async def fail() -> None:
        async with store.transaction() as tx:
            lost.append((await tx.episodes.put(make_episode(), idempotency_key=KEY)).id)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await store.episodes.get(lost[0]) is None
    kept = await store.episodes.put(make_episode(domain="mobile"), idempotency_key=KEY)
    assert kept.id != lost[0]
    assert await store.episodes.get(kept.id) == kept


async def test_namespaces_do_not_share_keys(store: MemoryStore) -> None:
    other = store.namespace("other")
    ours = await store.episodes.put(make_episode(), idempotency_key=KEY)
    theirs = await other.episodes.put(make_episode(domain="mobile"), idempotency_key=KEY)
    assert ours.id != theirs.id
    assert await other.episodes.get(ours.id) is None
    assert await store.episodes.get(theirs.id) is None
    assert await other.episodes.put(make_episode(domain="mobile"), idempotency_key=KEY) == theirs


async def test_something_else_than_a_record_stays_a_type_error(store: MemoryStore) -> None:
    wrong: Any = make_pattern()
    with pytest.raises(TypeError):
        await store.episodes.put(wrong, idempotency_key=KEY)
    assert (await store.episodes.put(make_episode(), idempotency_key=KEY)).revision == 1


async def _put_and_never_answer(parent: Parent, url: str, moment: str) -> None:
    """Put with a key; before or after the commit, on the writer's own thread, say so and go no further."""

    def stop(*_: Any) -> None:
        parent.send("stopped")
        time.sleep(60)

    async with MemoryStore(url) as store:
        await store.episodes.put(episode("ready"))
        writer = store._access.shard.writer
        if moment == "after the commit":
            writer.guard.after_commit = stop  # type: ignore[method-assign]
        else:
            writer.log.commit = stop  # type: ignore[method-assign]
        await store.episodes.put(make_episode(id="once"), idempotency_key=KEY)


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
async def test_a_retry_after_a_kill_writes_exactly_once(moment: str, file_url: str, tmp_path: Path) -> None:
    with Child(_put_and_never_answer, file_url, moment) as child:
        assert child.receive() == "stopped"
        child.kill()
    with database(tmp_path / "agent.db") as connection:
        held = connection.execute("SELECT count(*) FROM episodes WHERE id = 'once'").fetchall()
    assert held == [(moment == "after the commit",)]
    async with MemoryStore(file_url) as store:
        position = store.position
        for _ in range(2):
            retried = await store.episodes.put(make_episode(id="once"), idempotency_key=KEY)
            assert (retried.revision, retried.position) == (1, position + (moment == "before the commit"))
        assert await store.episodes.get("once") == retried
        assert await store.episodes.count() == 2
    assert integrity_problems(tmp_path / "agent.db") == []
    assert log_problems(tmp_path / "agent.db") == []
