"""What one line becomes, and why others become nothing."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from memory_store import ConfigurationError, MemoryStore, Step, StorageFullError
from memory_store.transfer import bounded_lines, import_lines
from tests.integration.cli_support import PATTERN, bring, run_line

EXPORTED = {
    "kind": "episode",
    "namespace": "test-agent",
    "id": "e1",
    "revision": 7,
    "created_at": "2026-01-01T00:00:00.000001Z",
    "updated_at": "2026-01-02T00:00:00.000002Z",
    "task_type": "t",
    "domain": "d",
}


async def test_a_recorded_run_becomes_an_episode_and_its_steps(store: MemoryStore) -> None:
    report, rejections = await bring(store, run_line())

    assert (rejections, report.inserted) == ([], {"episode": 1, "step": 2})
    episode = await store.episodes.get("r1")
    assert episode is not None
    assert (episode.status, episode.metadata, episode.revision) == ("completed", {"source_status": "success"}, 1)
    assert episode.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (episode.reward_score, episode.context, episode.completed_at) == (1.0, {"goal": "x"}, None)
    first, second = await store.steps.of("r1")
    assert (first.id, first.step_number, first.result) == ("r1/1", 1, "a\0b \U0001f600")
    assert (first.timestamp, second.timestamp) == (episode.created_at, None)


@pytest.mark.parametrize(
    ("word", "status", "metadata"),
    [
        ("success", "completed", {"source_status": "success"}),
        ("failure", "failed", {"source_status": "failure"}),
        ("incomplete", "archived", {"source_status": "incomplete"}),
        ("completed", "completed", {}),
        ("active", "active", {}),
    ],
)
async def test_status_words(store: MemoryStore, word: str, status: str, metadata: dict[str, str]) -> None:
    await bring(store, run_line(status=word))

    episode = await store.episodes.get("r1")
    assert episode is not None
    assert (episode.status, episode.metadata) == (status, metadata)


async def test_unknown_keys_are_kept(store: MemoryStore) -> None:
    line = run_line(status="active", seed=3, kind="run")
    line["steps"][1]["tokens"] = 9
    await bring(store, line)

    episode = await store.episodes.get("r1")
    assert episode is not None
    assert episode.metadata == {"source": {"seed": 3, "kind": "run", "steps": {"2": {"tokens": 9}}}}


async def test_naive_times_are_in_the_zone_asked_for(store: MemoryStore) -> None:
    await bring(store, run_line(completed_at="2026-07-01T12:00:00+05:00"), timezone=ZoneInfo("Europe/Paris"))

    episode = await store.episodes.get("r1")
    assert episode is not None
    assert episode.created_at == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)
    assert episode.completed_at == datetime(2026, 7, 1, 7, tzinfo=UTC)


async def test_importing_again_changes_nothing_even_where_the_source_has_no_times(file_store: MemoryStore) -> None:
    timeless = run_line("r2", steps=[{"step_number": 1, "action": "a"}])
    await bring(file_store, run_line(), timeless)
    before = [await file_store.episodes.get(id_) for id_ in ("r1", "r2")], file_store.stats().position

    report, rejections = await bring(file_store, run_line(), timeless)

    assert (rejections, report.inserted, report.unchanged) == ([], {}, {"episode": 2, "step": 3})
    assert ([await file_store.episodes.get(id_) for id_ in ("r1", "r2")], file_store.stats().position) == before


async def test_an_exported_record_keeps_its_revision_and_times(store: MemoryStore) -> None:
    await bring(store, EXPORTED)

    episode = await store.episodes.get("e1")
    assert episode is not None
    assert episode.revision == 7
    assert episode.created_at == datetime(2026, 1, 1, microsecond=1, tzinfo=UTC)
    assert episode.updated_at == datetime(2026, 1, 2, microsecond=2, tzinfo=UTC)


OTHER = run_line(domain="elsewhere")
FEWER = run_line(steps=run_line()["steps"][:1])


@pytest.mark.parametrize(("changed", "field"), [(OTHER, "domain"), (FEWER, "steps")])
async def test_other_content_is_rejected_skipped_or_replaced(
    store: MemoryStore, changed: dict[str, Any], field: str
) -> None:
    await bring(store, run_line())
    await store.steps.of("r1")

    rejected, [rejection] = await bring(store, changed, run_line("r2"))
    assert (rejected.rejected, rejected.inserted, rejection.line, rejection.field) == (
        1,
        {"episode": 1, "step": 2},
        1,
        field,
    )
    assert "exists with other content" in rejection.reason

    skipped, none = await bring(store, changed, on_conflict="skip")
    assert (skipped.skipped, skipped.rejected, none) == (1, 0, [])
    kept = await store.episodes.get("r1")
    assert kept is not None
    assert (kept.domain, kept.revision, len(await store.steps.of("r1"))) == ("web", 1, 2)

    replaced, none = await bring(store, changed, on_conflict="replace")
    assert (none, replaced.rejected) == ([], 0)
    now = await store.episodes.get("r1")
    assert now is not None
    assert (now.domain, now.revision) == (changed["domain"], 2 if changed is OTHER else 1)
    assert now.created_at == kept.created_at
    assert [step.step_number for step in await store.steps.of("r1")] == [s["step_number"] for s in changed["steps"]]
    again, none = await bring(store, changed)
    assert (again.unchanged["episode"], none) == (1, [])


async def test_an_episode_that_lost_a_step_or_got_one_is_other_content(store: MemoryStore) -> None:
    await bring(store, run_line(), run_line("r2"))
    await store.steps.delete("r1/2")
    await store.steps.append("r2", Step(action="more"))

    _, rejections = await bring(store, run_line(), run_line("r2"))

    assert [(rejection.line, rejection.field) for rejection in rejections] == [(1, "steps"), (2, "steps")]


async def test_the_cache_follows_an_import(file_store: MemoryStore) -> None:
    await bring(file_store, run_line())
    assert len(await file_store.steps.of("r1")) == 2
    assert await file_store.episodes.get("r9") is None

    await bring(file_store, run_line("r9"), OTHER, on_conflict="replace")

    stored = await file_store.episodes.list()
    assert [await file_store.episodes.get(id_) for id_ in ("r1", "r9")] == stored.items
    assert [item.domain for item in stored.items] == ["elsewhere", "web"]
    assert len(await file_store.steps.of("r9")) == 2


async def test_a_record_may_come_twice_in_one_file(store: MemoryStore) -> None:
    report, [rejection] = await bring(store, run_line(), run_line(), OTHER)

    assert (report.inserted, report.unchanged) == ({"episode": 1, "step": 2}, {"episode": 1, "step": 2})
    assert rejection.line == 3


async def test_lines_may_come_asynchronously_and_as_text(store: MemoryStore) -> None:
    async def lines() -> AsyncIterator[str]:
        for number in range(3):
            yield json.dumps(run_line(f"r{number}"))

    assert (await import_lines(store, lines())).inserted["episode"] == 3


async def test_progress_is_told(store: MemoryStore) -> None:
    seen: list[int] = []
    lines = [json.dumps(PATTERN | {"id": str(number)}).encode() for number in range(4500)]

    report = await import_lines(store, lines, on_progress=lambda now: seen.append(now.lines))

    assert seen == sorted(set(seen))
    assert (len(seen) > 1, seen[-1], report.inserted["pattern"]) == (True, 4500, 4500)


async def test_a_wrong_word_for_conflicts_is_refused(store: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="on_conflict"):
        await import_lines(store, [], on_conflict="maybe")  # type: ignore[arg-type]


async def test_a_failing_source_leaves_whole_batches_and_raises(store: MemoryStore) -> None:
    def lines() -> Any:
        for number in range(3000):
            yield json.dumps(PATTERN | {"id": str(number)}).encode()
        raise StorageFullError("the source broke")

    with pytest.raises(StorageFullError, match="the source broke"):
        await import_lines(store, lines())

    assert await store.patterns.count() in (0, 2000)


def test_bounded_lines_never_holds_more_than_one_line() -> None:
    file = io.BytesIO(b"ab\n" + b"x" * (3 << 20) + b"\ncd\n" + b"y" * 99)

    assert list(bounded_lines(file, 4)) == [b"ab\n", b"xxxxx", b"cd\n", b"yyyyy"]
    assert list(bounded_lines(io.BytesIO(b"abcd\nabcde\nx"), 4)) == [b"abcd\n", b"abcde", b"x"]


@pytest.mark.parametrize("newline", [b"\n", b""])
async def test_a_line_of_exactly_the_limit_goes_in(store: MemoryStore, newline: bytes) -> None:
    line = json.dumps(PATTERN).encode()

    fits = await import_lines(store, bounded_lines(io.BytesIO(line + newline), len(line)), max_line_bytes=len(line))
    over = await import_lines(
        store, bounded_lines(io.BytesIO(line + newline), len(line) - 1), max_line_bytes=len(line) - 1
    )

    assert (fits.inserted["pattern"], over.rejected) == (1, 1)


async def test_each_line_is_committed_where_its_namespace_belongs(url: str) -> None:
    """On a server with several heads: the log of a namespace tells of it, and other stores' caches follow."""
    names = [f"agent-{number}" for number in range(8)]
    async with MemoryStore(url) as store:
        feeds = {name: store.namespace(name).follow(after="start") for name in names}
        assert [await store.namespace(name).episodes.get("e1") for name in names] == [None] * 8

        report, rejections = await bring(store, *(EXPORTED | {"namespace": name} for name in names))

        assert (rejections, report.inserted) == ([], {"episode": 8})
        for name, feed in feeds.items():
            change = await asyncio.wait_for(anext(feed), 10)
            assert (change.namespace, change.key) == (name, "e1")
            assert store.namespace(name).position == change.position
            assert await store.namespace(name).episodes.get("e1") is not None
