"""Export, and the way back: every bit, in constant memory, with nothing half-written."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from memory_store import ConfigurationError, Embedding, Episode, MemoryStore, Step
from memory_store.transfer import ExportProgress, export_file, export_lines, import_lines, to_json
from tests.integration.cli_support import fill, fill_two_namespaces


async def exported(store: MemoryStore, **options: object) -> bytes:
    return b"".join([line async for line in export_lines(store, **options)])  # type: ignore[arg-type]


async def test_export_import_export_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = f"sqlite:///{tmp_path}/first.db", f"sqlite:///{tmp_path}/second.db"
    await fill_two_namespaces(first)
    async with MemoryStore(first) as store:
        before = await exported(store, all_namespaces=True)
    async with MemoryStore(second, namespace="somewhere") as store:
        report = await import_lines(store, before.splitlines(keepends=True))
        after = await exported(store, all_namespaces=True)
        again = await import_lines(store, before.split(b"\n"))

    assert after == before
    counts = {"episode": 3, "step": 9, "pattern": 3, "embedding": 3, "spatiotemporal": 3}
    assert report.rejected == again.rejected == 0
    assert report.inserted == again.unchanged == counts


async def test_a_record_comes_back_equal(store: MemoryStore) -> None:
    await fill(store, "one")
    before = [
        await store.episodes.get("e-one"),
        await store.steps.of("e-one"),
        await store.embeddings.of("e-one"),
        await store.spatiotemporal.of("e-one"),
        (await store.patterns.list()).items,
    ]
    lines = (await exported(store)).splitlines(keepends=True)
    async with MemoryStore("sqlite:///:memory:") as other:
        await import_lines(other, lines)
        copy = other.namespace("test-agent")
        assert [
            await copy.episodes.get("e-one"),
            await copy.steps.of("e-one"),
            await copy.embeddings.of("e-one"),
            await copy.spatiotemporal.of("e-one"),
            (await copy.patterns.list()).items,
        ] == before


async def test_only_the_kinds_and_namespaces_asked_for(store: MemoryStore) -> None:
    await fill(store, "one")
    await fill(store.namespace("other"), "two")

    mine = [json.loads(line) for line in (await exported(store, kinds=["pattern", "step"])).splitlines()]

    assert [line["kind"] for line in mine] == ["step"] * 3 + ["pattern"]
    assert {line["namespace"] for line in mine} == {"test-agent"}
    with pytest.raises(ConfigurationError, match="unknown kind"):
        await exported(store, kinds=["thought"])


async def test_parts_follow_their_episode_over_many_pages(store: MemoryStore) -> None:
    await store.episodes.put_many([Episode(id=f"{n:04}", task_type="t", domain="d") for n in range(600)])
    await store.steps.append("0300", [Step(action="a" * 20_000) for _ in range(700)])
    await store.steps.append("0599", Step(action="last"))

    lines = [json.loads(line) for line in (await exported(store)).splitlines()]

    assert [line["id"] for line in lines if line["kind"] == "episode"] == [f"{n:04}" for n in range(600)]
    assert [line["step_number"] for line in lines if line.get("episode_id") == "0300"] == list(range(1, 701))
    seen: set[str] = set()
    for line in lines:
        if line["kind"] == "episode":
            seen.add(line["id"])
        else:
            assert line["episode_id"] in seen
    assert len(lines) == 600 + 701


async def test_an_export_during_writes_can_be_imported(file_store: MemoryStore) -> None:
    await file_store.episodes.put_many([Episode(id=f"{n:04}", task_type="t", domain="d") for n in range(600)])
    lines: list[bytes] = []
    number = 0
    async for line in export_lines(file_store):
        lines.append(line)
        if len(lines) % 25 == 0:
            number += 1
            episode = await file_store.episodes.put(Episode(id=f"{number:04}x", task_type="t", domain="d"))
            await file_store.steps.append(episode.id, [Step(action="a"), Step(action="b")])
            await file_store.steps.append("0599", Step(action="late"))
            await file_store.episodes.delete(f"{number * 20:04}")

    async with MemoryStore("sqlite:///:memory:") as other:
        report = await import_lines(other, lines)

    assert number > 10
    assert report.rejected == 0
    assert sum(report.inserted.values()) == len(lines)


async def test_progress_reaches_the_total(store: MemoryStore) -> None:
    await fill(store, "one")
    seen: list[tuple[int, int]] = []

    def note(now: ExportProgress) -> None:
        seen.append((sum(now.done.values()), now.total))

    size = len(await exported(store, on_progress=note))

    assert seen[-1] == (7, 7)
    assert size > 0


async def test_a_file_is_written_whole_or_not_at_all(store: MemoryStore, tmp_path: Path) -> None:
    target = tmp_path / "backup.jsonl"
    target.write_text("the old one")
    await fill(store, "one")

    def stop(_: ExportProgress) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        await export_file(store, target, on_progress=stop)
    assert target.read_text() == "the old one"
    assert list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*")) == []

    await export_file(store, target)
    assert target.read_bytes() == await exported(store)
    assert target.stat().st_mode & 0o777 == 0o600

    with pytest.raises(ConfigurationError, match="cannot write in"):
        await export_file(store, tmp_path / "nowhere" / "x")


async def test_cancelling_an_export_leaves_no_file(store: MemoryStore, tmp_path: Path) -> None:
    await fill(store, "one")
    export = asyncio.create_task(export_file(store, tmp_path / "x.jsonl"))
    await asyncio.sleep(0)
    export.cancel()
    with pytest.raises(asyncio.CancelledError):
        await export

    assert [path.name for path in tmp_path.iterdir() if "jsonl" in path.name] == []


async def test_a_record_as_json_is_its_line(store: MemoryStore) -> None:
    await fill(store, "one")
    [embedding] = await store.embeddings.of("e-one")

    assert isinstance(embedding, Embedding)
    lines = (await exported(store, kinds=["embedding"])).decode()
    assert to_json(embedding, "test-agent") + "\n" == lines


_PEAK = """
import asyncio, json, resource, sys
from memory_store import MemoryStore
from memory_store.transfer import export_lines, import_lines

def lines(count):
    for number in range(count):
        steps = [{"step_number": 1, "action": "a", "result": "x" * 50_000}]
        run = {"id": f"{number:06}", "task_type": "t", "domain": "d", "steps": steps}
        yield json.dumps(run).encode()

async def main(count):
    async with MemoryStore("sqlite:///peak.db", cache_max_bytes=0, cache_path="") as store:
        await import_lines(store, lines(count))
        async for line in export_lines(store):
            pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

asyncio.run(main(int(sys.argv[1])))
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for count in (400, 4000):  # 20 MB and 200 MB
        folder = tmp_path / str(count)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(count)], cwd=folder, capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) / 1024)

    assert peaks[1] < peaks[0] + 40, f"peak memory in MB: {peaks}"
