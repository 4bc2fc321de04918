"""Spans and metrics as OpenTelemetry's own SDK receives them, and that nothing of it is there when it is off."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from memory_store import (
    ConfigurationError,
    ConflictError,
    DurableTimeoutError,
    Episode,
    MemoryStore,
    RecordNotFoundError,
)
from memory_store.config import resolve_settings
from memory_store.distribution import Distribution
from memory_store.statistics import METRICS
from tests.docs.pages import rows_of

REPOSITORY = Path(__file__).parents[2]
HISTOGRAMS = {"memory_store.commit.duration", "memory_store.commit.writes", "memory_store.read.keys"}
SPANS = {
    "memory_store.commit",
    "memory_store.read",
    "memory_store.transaction",
    "memory_store.checkpoint",
    "memory_store.cache.load",
    "memory_store.cache.rebuild",
    "memory_store.cache.save",
}


class Breakable(SpanProcessor):
    """A span processor of the application, which can break at a span's start or end."""

    breaks = ""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Break, or do nothing."""
        assert self.breaks != "start"

    def on_end(self, span: Any) -> None:
        """Break, or do nothing."""
        assert self.breaks != "end"


class Collected:
    """What the SDK was given."""

    def __init__(self, spans: InMemorySpanExporter, reader: InMemoryMetricReader, breakable: Breakable) -> None:
        self._spans, self._reader, self.breakable = spans, reader, breakable

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """The finished spans of the store, oldest first."""
        ours = [span for span in self._spans.get_finished_spans() if span.name.startswith("memory_store.")]
        return [span for span in ours if name in (None, span.name)]

    def points(self, database: Path) -> dict[str, dict[Any, Any]]:
        """The metrics of a database: by name, each by its kind and the number of the store."""
        found: dict[str, dict[Any, Any]] = {}
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data else []:
            for scope in resource.scope_metrics:
                assert scope.scope.name == "memory_store"
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        attributes = dict(point.attributes or {})
                        assert attributes.pop("db.system.name") == "sqlite"
                        if attributes.pop("db.namespace") == str(database):
                            found.setdefault(metric.name, {})[tuple(attributes.values())] = point
        return found

    def units(self) -> dict[str, str]:
        """The unit of each metric."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return {m.name: m.unit for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}


@pytest.fixture(scope="session")
def sdk() -> Iterator[Collected]:
    """The SDK, set up for the process: OpenTelemetry takes a provider once, and tests may come here in two turns."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing, metering = TracerProvider(), MeterProvider([reader])
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    tracing.add_span_processor(breakable := Breakable())
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(metering)
    yield Collected(spans, reader, breakable)
    metering.shutdown()
    tracing.shutdown()


@pytest.fixture
def collected(sdk: Collected) -> Collected:
    """The SDK without the spans of other tests."""
    sdk._spans.clear()
    return sdk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@pytest.fixture
async def told(file_url: str, collected: Collected) -> AsyncIterator[MemoryStore]:
    """A store that tells OpenTelemetry, its cache loaded."""
    async with MemoryStore(file_url, telemetry=True) as store:
        await store.cache.wait()
        yield store


def episode(**values: Any) -> Episode:
    return Episode(task_type="testing", domain="web", **values)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("memory_store."): value for name, value in (span.attributes or {}).items()}


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def links(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


tracer = trace.get_tracer("tests")


class Caller(NamedTuple):
    """A span of the application."""

    id: int
    trace: int


def caller_of(span: trace.Span) -> Caller:
    return Caller(span.get_span_context().span_id, span.get_span_context().trace_id)


async def test_off_is_the_default_and_tells_nothing(file_url: str, path: Path, collected: Collected) -> None:
    async with MemoryStore(file_url) as store:
        stored = await store.episodes.put(episode())
        await store.episodes.get(stored.id)
        async with store.transaction() as tx:
            await tx.episodes.put(episode())

        assert collected.points(path) == {}
    assert collected.spans() == []


async def test_metrics_are_the_statistics(told: MemoryStore, path: Path, collected: Collected) -> None:
    stored = await told.episodes.put_many([episode() for _ in range(10)])
    for each in stored[:4]:
        await told.episodes.get(each.id)
    await told.patterns.get("nothing")
    stats, found = told.stats(), collected.points(path)

    for name in ("hits", "misses", "fills", "dirty_fills", "evictions", "expiries", "invalidations"):
        told_of = {key[0]: point.value for key, point in found[f"memory_store.cache.{name}"].items()}
        assert told_of == {kind: getattr(counters, name) for kind, counters in stats.cache.items()}
    assert found["memory_store.cache.hits"]["episode",].value == 4
    for name, value in {
        "cache.entries": stats.entries,
        "cache.size": stats.used_bytes,
        "cache.limit": stats.max_bytes,
        "cache.restarts": 0,
        "position": stats.position,
        "commits": 1,
        "writes": 1,
        "head.lag": 0,
        "head.looks": stats.looks,
        "head.rewinds": 0,
        "log.applied": 0,
        "wal.size": stats.wal_bytes,
        "checkpoints": 0,
        "failures": 0,
        "feeds": 0,
    }.items():
        assert found[f"memory_store.{name}"][()].value == value, name
    assert 0 <= found["memory_store.head.age"][()].value < 300
    assert "memory_store.checkpoint.age" not in found, "there was none"


async def test_histograms_are_the_distributions(told: MemoryStore, path: Path, collected: Collected) -> None:
    stored = await asyncio.gather(*(told.episodes.put(episode()) for _ in range(20)))
    await told.cache.clear()
    await told.episodes.get_many([each.id for each in stored])
    stats, found = told.stats(), collected.points(path)

    for name, distribution in {
        "commit.duration": stats.commit_s,
        "commit.writes": stats.commit_writes,
        "read.keys": stats.read_keys,
    }.items():
        point = found[f"memory_store.{name}"][()]
        assert distribution != Distribution()
        assert (point.count, point.sum, point.max) == (distribution.count, distribution.sum, distribution.max), name
    assert max(found["memory_store.commit.duration"][()].explicit_bounds) == 10
    assert 64 in found["memory_store.commit.writes"][()].explicit_bounds


async def test_names_and_units_are_those_of_the_table(told: MemoryStore, path: Path, collected: Collected) -> None:
    await told.episodes.put_many([episode(reflection="x" * 16_000) for _ in range(1200)])
    await told.episodes.get("nobody")
    assert told.stats().checkpoints == 1

    assert collected.points(path).keys() == {metric.name for metric in METRICS} | HISTOGRAMS
    units = collected.units()
    assert {metric.name: units[metric.name] for metric in METRICS} == {metric.name: metric.unit for metric in METRICS}
    assert [units[name] for name in sorted(HISTOGRAMS)] == ["s", "{write}", "{key}"]


async def test_a_closed_store_is_quiet_and_can_be_opened_again(file_url: str, path: Path, collected: Collected) -> None:
    for commits in (3, 1):
        async with MemoryStore(file_url, telemetry=True) as store:
            for _ in range(commits):
                await store.episodes.put(episode())
            assert collected.points(path)["memory_store.commits"][()].value == commits
        # Histograms are told, not asked for: the SDK goes on reporting what it was told.
        assert collected.points(path).keys() <= HISTOGRAMS


async def test_two_stores_on_one_file_are_told_apart(file_url: str, path: Path, collected: Collected) -> None:
    async with MemoryStore(file_url, telemetry=True) as one:
        async with MemoryStore(file_url, telemetry=True) as two:
            await one.episodes.put(episode())
            await two.episodes.put(episode())
            await two.episodes.put(episode())
            writes = collected.points(path)["memory_store.writes"]
            assert {key: point.value for key, point in writes.items()} == {(): 1, (2,): 2}
        async with MemoryStore(file_url, telemetry=True):
            assert collected.points(path)["memory_store.writes"].keys() == {(), (2,)}
        assert collected.points(path)["memory_store.writes"].keys() == {()}


async def test_a_write_s_commit_belongs_to_its_caller_s_span(told: MemoryStore, collected: Collected) -> None:
    with tracer.start_as_current_span("agent") as span:
        caller = caller_of(span)
        stored = await told.episodes.put(episode())
    [commit] = collected.spans("memory_store.commit")

    assert (parent(commit), commit.context and commit.context.trace_id, links(commit)) == (*caller, set())
    found = attributes(commit)
    assert found.pop("db.namespace").endswith("/agent.db")
    assert found == {"db.system.name": "sqlite", "writes": 1, "rows": 1, "position": stored.position}
    assert commit.status.status_code is StatusCode.UNSET


async def test_callers_that_share_a_commit_are_linked(told: MemoryStore, collected: Collected) -> None:
    async def write(name: str, count: int) -> Caller:
        with tracer.start_as_current_span(name) as span:
            await asyncio.gather(*(told.episodes.put(episode()) for _ in range(count)))
            return caller_of(span)

    async with told.transaction() as tx:  # what comes while it has the writer shares the next commit
        await tx.episodes.put(episode())
        writes = asyncio.gather(write("one", 2), write("two", 3))
        while len(told._access.shard.writer._waiting) < 5:
            await asyncio.sleep(0)
    one, two = await writes
    [shared] = collected.spans("memory_store.commit")

    assert (parent(shared), links(shared), attributes(shared)["writes"]) == (None, {one.id, two.id}, 5)


async def test_writes_of_one_span_make_commits_that_are_its_children(told: MemoryStore, collected: Collected) -> None:
    with tracer.start_as_current_span("agent") as span:
        await asyncio.gather(*(told.episodes.put(episode()) for _ in range(10)))
    commits = collected.spans("memory_store.commit")

    assert sum(attributes(commit)["writes"] for commit in commits) == 10
    assert {parent(commit) for commit in commits} == {caller_of(span).id}


async def test_a_writer_without_a_span_makes_no_parent(told: MemoryStore, collected: Collected) -> None:
    await told.episodes.put(episode())
    [commit] = collected.spans("memory_store.commit")

    assert (parent(commit), links(commit)) == (None, set())


async def test_a_read_of_many_keys_is_one_span_and_a_hit_is_none(told: MemoryStore, collected: Collected) -> None:
    stored = await told.episodes.put_many([episode() for _ in range(30)])
    await told.episodes.get_many([each.id for each in stored])
    assert collected.spans("memory_store.read") == []
    await told.cache.clear()
    with tracer.start_as_current_span("agent") as span:
        await told.episodes.get_many([each.id for each in stored])
    [read] = collected.spans("memory_store.read")

    assert (attributes(read)["keys"], parent(read)) == (30, caller_of(span).id)


async def test_a_transaction_is_a_span_and_the_block_is_inside(told: MemoryStore, collected: Collected) -> None:
    with tracer.start_as_current_span("agent") as outer:
        async with told.transaction() as tx:
            await tx.episodes.put(episode())
            inside = trace.get_current_span().get_span_context().span_id
        assert trace.get_current_span() is outer
    [span] = collected.spans("memory_store.transaction")

    assert span.context is not None
    assert (parent(span), span.context.span_id) == (caller_of(outer).id, inside)
    assert attributes(span)["position"] == tx.position
    assert collected.spans("memory_store.commit") == [], "its commit is its own, not a batch's"


async def test_what_ends_a_transaction_is_recorded(told: MemoryStore, collected: Collected) -> None:
    async def fail() -> None:
        async with told.transaction() as tx:
            await tx.episodes.put(episode())
            raise KeyError("plan")

    with pytest.raises(KeyError):
        await fail()
    [failed] = collected.spans("memory_store.transaction")

    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "KeyError: 'plan'")
    assert [dict(event.attributes or {})["exception.type"] for event in failed.events] == ["KeyError"]
    assert "position" not in attributes(failed)


async def test_a_cancelled_transaction_is_cancelled_and_no_error(told: MemoryStore, collected: Collected) -> None:
    inside = asyncio.Event()

    async def never() -> None:
        async with told.transaction():
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(never())
    await inside.wait()
    task.cancel()
    await asyncio.wait({task})
    [span] = collected.spans("memory_store.transaction")

    assert task.cancelled()
    assert (attributes(span)["cancelled"], span.status.status_code) == (True, StatusCode.UNSET)


async def test_a_commit_that_fails_says_why(path: Path, collected: Collected) -> None:
    async with MemoryStore(f"sqlite:///{path}", telemetry=True, timeout_s=0.05) as store:
        await store.cache.wait()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DurableTimeoutError):
                await store.episodes.put(episode())
    [commit] = collected.spans("memory_store.commit")

    assert commit.status.status_code is StatusCode.ERROR
    assert (commit.status.description or "").startswith("DurableTimeoutError: ")
    assert [event.name for event in commit.events] == ["exception"]


async def test_a_refused_write_is_noted_in_a_commit_that_went_well(told: MemoryStore, collected: Collected) -> None:
    stored = await told.episodes.put(episode())
    results = await asyncio.gather(
        told.episodes.update(stored.id, expected_revision=9, domain="cli"),
        told.episodes.update("nobody", domain="cli"),
        return_exceptions=True,
    )
    spans = collected.spans("memory_store.commit")[1:]

    assert [type(result) for result in results] == [ConflictError, RecordNotFoundError]
    noted = [dict(event.attributes or {})["exception.type"] for span in spans for event in span.events]
    assert noted == ["memory_store.errors.ConflictError", "memory_store.errors.RecordNotFoundError"]
    assert {span.status.status_code for span in spans} == {StatusCode.UNSET}


async def test_a_checkpoint_is_part_of_the_commit_that_made_it_due(told: MemoryStore, collected: Collected) -> None:
    await told.episodes.put_many([episode(reflection="x" * 16_000) for _ in range(1200)])
    [commit], [checkpoint] = collected.spans("memory_store.commit"), collected.spans("memory_store.checkpoint")

    assert commit.context is not None
    assert parent(checkpoint) == commit.context.span_id
    found = attributes(checkpoint)
    assert found["moved"] == found["frames"] > 1000


async def test_the_life_of_the_cache(file_url: str, collected: Collected) -> None:
    for _ in range(2):
        async with MemoryStore(file_url, telemetry=True) as store:
            await store.cache.wait()
            await store.episodes.put(episode())
    lives = [span for span in collected.spans() if span.name.startswith("memory_store.cache.")]

    assert [span.name.rpartition(".")[2] for span in lives] == ["load", "rebuild", "save", "load", "save"]
    first, rebuilt, saved, second, _ = map(attributes, lives)
    assert first["refused"] == rebuilt["reason"]
    assert rebuilt["keys"] == 0
    assert saved["entries"] == second["entries"] == 1
    assert "refused" not in second
    assert {span.status.status_code for span in lives} == {StatusCode.UNSET}


async def test_a_save_that_fails_is_an_error(tmp_path: Path, collected: Collected) -> None:
    (tmp_path / "saved").write_text("in the way of the folder")
    url = f"sqlite:///{tmp_path}/agent.db"
    async with MemoryStore(url, telemetry=True, cache_path=str(tmp_path / "saved")) as store:
        await store.cache.wait()
        await store.cache.save()
        said = (await store.cache.status()).error
    failed = collected.spans("memory_store.cache.save")[0]

    assert said
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, f"CacheError: {said}")


async def test_it_can_be_asked_on_another_thread_while_the_store_works(
    told: MemoryStore, path: Path, collected: Collected, caplog: pytest.LogCaptureFixture
) -> None:
    done, rounds = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            rounds.append(collected.points(path)["memory_store.writes"][()].value)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        with caplog.at_level(logging.WARNING, logger="opentelemetry"):
            for _ in range(20):
                stored = await asyncio.gather(*(told.episodes.put(episode()) for _ in range(20)))
                await told.episodes.get_many([each.id for each in stored])
            async with MemoryStore("sqlite:///:memory:", telemetry=True) as other:
                await other.episodes.put(episode())
    finally:
        done.set()
        thread.join()

    assert rounds == sorted(rounds)
    assert collected.points(path)["memory_store.writes"][()].value == 400
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("breaks", ["start", "end"])
async def test_what_breaks_in_the_application_s_telemetry_breaks_nothing_else(
    breaks: str, told: MemoryStore, collected: Collected, caplog: pytest.LogCaptureFixture
) -> None:
    collected.breakable.breaks = breaks
    try:
        stored = await told.episodes.put(episode())
        async with told.transaction() as tx:
            await tx.episodes.update(stored.id, domain="cli")
        await told.cache.clear()
        found = await told.episodes.get(stored.id)
    finally:
        collected.breakable.breaks = ""

    assert found is not None
    assert found.domain == "cli"
    # Commit, transaction, save, read: one line each.
    assert [record.getMessage() for record in caplog.records] == ["OpenTelemetry failed"] * 4
    assert {record.name for record in caplog.records} == {"memory_store"}


def test_every_name_is_on_the_page() -> None:
    page = (REPOSITORY / "docs" / "howto" / "observe.md").read_text("utf-8")
    kinds = {"counter": "counter", "sum": "up-down counter", "gauge": "gauge"}

    told = {row[0]: row[1] for row in rows_of(page, first_heading="metric") if "histogram" not in row[1]}
    assert told == {f"`{m.name}`": f"{kinds[m.instrument]}, `{m.unit}`" for m in METRICS}
    assert {name for name in HISTOGRAMS | SPANS if f"| `{name}` |" not in page} == set()


async def test_no_span_has_a_name_that_is_not_listed(told: MemoryStore, collected: Collected) -> None:
    async with told.transaction() as tx:
        await tx.episodes.put(episode())
    await told.cache.rebuild()
    await told.cache.save()

    assert {span.name for span in collected.spans()} <= SPANS


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("ON", True), ("yes", True), ("False", False), ("0", False)]
)
def test_environment_and_url_can_turn_it_on(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_settings({"telemetry": text}, {}).telemetry is value
    monkeypatch.setenv("MEMORY_STORE_TELEMETRY", text)
    assert resolve_settings({}, {}).telemetry is value
    assert resolve_settings({}, {"telemetry": not value}).telemetry is not value


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="URL parameter telemetry has the wrong form: 'perhaps'"):
        MemoryStore("sqlite:///:memory:?telemetry=perhaps")
    with pytest.raises(ConfigurationError, match="telemetry must be True or False, got 'yes'"):
        MemoryStore("sqlite:///:memory:", telemetry="yes")


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, where the SDK has not been set up."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MEMORY_STORE_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


WITHOUT_PACKAGE = """
import asyncio, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
from memory_store import ConfigurationError, Episode, MemoryStore
try:
    MemoryStore("sqlite:///agent.db", telemetry=True)
except ConfigurationError as error:
    print(error)
async def main():
    async with MemoryStore("sqlite:///agent.db") as store:
        await store.episodes.put(Episode(task_type="t", domain="d"))
        print(store.stats().commits)
asyncio.run(main())
"""

NOT_IMPORTED = """
import asyncio, sys
from memory_store import Episode, MemoryStore
async def main():
    async with MemoryStore("sqlite:///agent.db") as store:
        async with store.transaction() as tx:
            await tx.episodes.put(Episode(task_type="t", domain="d"))
asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""

WITHOUT_SDK = """
import asyncio
from memory_store import Episode, MemoryStore
async def main():
    async with MemoryStore("sqlite:///agent.db", telemetry=True) as store:
        stored = await store.episodes.put(Episode(task_type="t", domain="d"))
        async with store.transaction() as tx:
            await tx.episodes.update(stored.id, domain="e")
        print((await store.episodes.get(stored.id)).domain)
asyncio.run(main())
"""

FORKED = """
import asyncio, os
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from memory_store import MemoryStore
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
async def main():
    async with MemoryStore("sqlite:///agent.db", telemetry=True) as store:
        assert reader.get_metrics_data() is not None
        child = os.fork()
        if child == 0:
            os._exit(0 if reader.get_metrics_data() is None else 7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert reader.get_metrics_data() is not None
asyncio.run(main())
"""


def test_without_the_package_it_says_what_to_install_and_everything_else_works(tmp_path: Path) -> None:
    done = run(WITHOUT_PACKAGE, tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    message, commits = done.stdout.splitlines()
    assert message == 'telemetry=True needs OpenTelemetry: pip install "memory-store[telemetry]"'
    assert commits == "1"


def test_off_does_not_even_import_it(tmp_path: Path) -> None:
    done = run(NOT_IMPORTED, tmp_path)

    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_on_without_an_sdk_is_harmless(tmp_path: Path) -> None:
    done = run(WITHOUT_SDK, tmp_path)

    assert (done.stdout, done.stderr) == ("e\n", "")


def test_a_forked_child_tells_nothing_of_its_parent_s_store(tmp_path: Path) -> None:
    done = run(FORKED, tmp_path)

    assert (done.stdout, done.stderr) == ("0\n", "")
