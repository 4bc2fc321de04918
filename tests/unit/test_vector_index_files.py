"""Saved vector indexes: whole or not at all, private, and every damage is noticed."""

from __future__ import annotations

import os
import pkgutil
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store import CacheError, ConfigurationError
from memory_store.search.vectors import VectorIndex
from memory_store.search.vectors import graph as graphs
from memory_store.search.vectors.generations import MANIFEST, NewGeneration
from memory_store.search.vectors.manifest import Manifest
from tests.children import CHILDREN
from tests.mixtures import clusters

DIMENSIONS = 8
ROWS = clusters(2000, DIMENSIONS, groups=20).stored
QUERY = ROWS[5]


def key(number: int) -> str:
    return f"key {number}"


def put(index: VectorIndex, numbers: range) -> None:
    """Put these rows."""
    index.put_many([key(n) for n in numbers], [f"p{n % 7}" for n in numbers], ROWS[numbers.start : numbers.stop])


def small(count: int = 300) -> VectorIndex:
    """Return an index without a graph."""
    index = VectorIndex(DIMENSIONS)
    put(index, range(count))
    return index


def save(index: VectorIndex, folder: Path, state: bytes = b"state") -> None:
    index.snapshot().save(folder, state)


def load(folder: Path, dimensions: int = DIMENSIONS) -> tuple[VectorIndex, bytes]:
    """Open and read everything."""
    index, state = VectorIndex.open(folder, dimensions)
    index.verify()
    return index, state


def same(one: VectorIndex, other: VectorIndex) -> bool:
    """Whether two indexes hold and find the same."""
    keys = [key(number) for number in range(2000) if key(number) in one]
    return (
        len(one) == len(other) == len(keys)
        and one.vectors_of(keys).tolist() == other.vectors_of(keys).tolist()
        and [one.parent_of(name) for name in keys] == [other.parent_of(name) for name in keys]
        and one.search(QUERY, 50) == other.search(QUERY, 50)
    )


def generation(folder: Path) -> Path:
    """Return the only generation there is."""
    [found] = [path for path in folder.iterdir() if path.is_dir()]
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved index with a graph, added rows and slots that were given up."""
    folder = tmp_path_factory.mktemp("made") / "saved"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "ROWS_A_STEP", 0)
        index = VectorIndex(DIMENSIONS, exact_up_to=100)
        put(index, range(400))
        assert index.adopt(index.snapshot().build())
    put(index, range(390, 450))
    index.discard(key(3))
    assert index.has_graph
    save(index, folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "saved"))


# --- what comes back


@pytest.mark.parametrize("count", [0, 1, 256, 257, 2000])
def test_what_is_saved_is_opened(count: int, tmp_path: Path) -> None:
    index = small(count)
    for number in range(0, count, 3):
        index.discard(key(number))
    save(index, tmp_path / "a", b"\0state")
    opened, state = load(tmp_path / "a")
    assert state == b"\0state"
    assert same(index, opened)

    assert opened.adopt(opened.snapshot().build())
    save(opened, tmp_path / "b")
    again, _ = load(tmp_path / "b")
    assert same(index, again)


def test_what_is_opened_goes_on(folder: Path) -> None:
    opened, _ = load(folder)
    assert (len(opened), opened.has_graph) == (449, True)
    put(opened, range(440, 500))
    opened.discard_parent("p2")
    save(opened, folder, b"later")
    again, state = load(folder)
    assert (same(opened, again), state) == (True, b"later")


def test_keys_of_any_text_come_back(tmp_path: Path) -> None:
    index = VectorIndex(2)
    names = ["\n", " ", "ä\r\n", "\U0001f600", "\x1f\x7f", "a" * 256]
    for name in names:
        index.put(name, name, [1, 2])
    save(index, tmp_path / "a")
    opened, _ = load(tmp_path / "a", 2)
    assert [found for found, _ in opened.search([1, 2], 10)] == sorted(names)
    assert [opened.parent_of(name) for name in names] == names


def test_a_base_that_has_not_changed_is_linked_into_the_next_generation(folder: Path) -> None:
    opened, _ = load(folder)
    for _ in range(2):
        before = generation(folder)
        with ExitStack() as held:  # an open file keeps its number from being given to another
            old = {path.name: os.fstat(held.enter_context(path.open()).fileno()).st_ino for path in before.iterdir()}
            save(opened, folder)
            new = {path.name: path.stat().st_ino for path in generation(folder).iterdir()}
        assert generation(folder) != before
        assert old.keys() == new.keys() == {"keys", "rows", "graph", "added"}
        assert {name for name in old if old[name] == new[name]} == {"rows", "graph"}
    assert same(opened, load(folder)[0])


def test_where_nothing_can_be_linked_it_is_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, _ = load(folder)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    save(opened, folder)
    monkeypatch.undo()
    assert same(opened, load(folder)[0])
    shutil.rmtree(folder)
    save(opened, folder)
    assert same(opened, load(folder)[0]), "the mapped files are still there for whoever has mapped them"


def test_a_snapshot_saves_what_was_there_when_it_was_taken(tmp_path: Path) -> None:
    index, then = small(), small()
    snapshot = index.snapshot()
    put(index, range(250, 700))
    index.discard(key(1))
    index.discard_parent("p3")
    snapshot.save(tmp_path / "a", b"")
    assert same(then, load(tmp_path / "a")[0])


def test_keys_that_were_discarded_are_not_in_the_files(tmp_path: Path) -> None:
    index = small()
    assert index.adopt(index.snapshot().build())
    index.put("secret", "hidden parent", QUERY)
    index.discard("secret")
    index.discard(key(7))
    save(index, tmp_path / "a")
    text = b"".join(path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert b"key 8\0" in text
    assert not [name for name in (b"secret", b"hidden", b"key 7\0") if name in text]


def test_files_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        save(small(), tmp_path / "a")
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(["manifest", "keys", "added"], 0o600)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", generation(tmp_path / "a"))} == {0o700}


def test_the_file_of_a_graph_is_private_too(made: Path) -> None:
    assert {stat.S_IMODE(path.stat().st_mode) for path in generation(made).iterdir()} == {0o600}


def test_the_state_has_a_bound(tmp_path: Path) -> None:
    save(small(), tmp_path / "a", b"x" * 1024 * 1024)
    assert len(load(tmp_path / "a")[1]) == 1024 * 1024
    with pytest.raises(ConfigurationError, match="state must have at most 1,048,576 bytes, has 1,048,577"):
        save(small(), tmp_path / "a", b"x" * (1024 * 1024 + 1))


def test_what_was_saved_is_read_from_the_files_from_then_on(folder: Path, tmp_path: Path) -> None:
    opened, _ = load(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "ROWS_A_STEP", 0)
        opened._exact_up_to = 100
        assert opened.adopt(opened.snapshot().build())
    kept, before = load(folder)[0], opened.snapshot()
    assert opened._base.rows.flags.owndata

    before.save(tmp_path / "new", b"")
    after = opened.snapshot()

    assert not opened._base.rows.flags.writeable, "mapped"
    assert opened.has_graph
    assert same(opened, kept)
    put(opened, range(500, 520))
    for snapshot in (before, after, opened.snapshot()):
        snapshot.save(tmp_path / "new", b"")
    assert same(opened, load(tmp_path / "new")[0])


# --- damage


def refused(folder: Path, message: str | None = None) -> None:
    """Check that an index is not opened."""
    with pytest.raises(CacheError, match=message):
        VectorIndex.open(folder, DIMENSIONS)


def test_nothing_saved_is_said(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "there is no saved index")
    refused(tmp_path, "there is no saved index")


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_noticed(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """In the manifest, the keys and the graph's links when it is opened; in the vectors by `verify`."""
    folder = tmp_path_factory.getbasetemp() / "flipped-vectors"
    if not folder.exists():
        shutil.copytree(made, folder)
    name = data.draw(st.sampled_from([MANIFEST, "keys", "rows", "graph", "added"]))
    path = folder / MANIFEST if name == MANIFEST else generation(folder) / name
    place, bit = data.draw(st.integers(0, path.stat().st_size - 1)), data.draw(st.integers(0, 7))
    vectors = 400 * DIMENSIONS * 2
    late = name in ("rows", "added") or (name == "graph" and 8 <= place < 8 + vectors)
    flip(path, place, bit)
    try:
        if late:
            index, _ = VectorIndex.open(folder, DIMENSIONS)
            index.search(QUERY, 10)
            snapshot = index.snapshot()
            for use in (index.verify, snapshot.build, lambda: snapshot.save(folder, b"")):
                with pytest.raises(CacheError, match=f"damaged .{name} has another checksum"):
                    use()
        else:
            refused(folder)
    finally:
        flip(path, place, bit)


def test_a_damaged_row_does_not_hide_the_others(folder: Path) -> None:
    """Until `verify` has found it."""
    place = generation(folder) / "rows"
    rows = np.fromfile(place, np.float32)
    rows[40 * DIMENSIONS : 43 * DIMENSIONS] = [np.nan, np.inf, -np.inf] * DIMENSIONS
    place.write_bytes(rows.tobytes())
    index, _ = VectorIndex.open(folder, DIMENSIONS)
    assert len(index.search(QUERY, 20)) == 20
    assert index.search(QUERY, 20)[0] == (key(5), pytest.approx(1.0))
    with pytest.raises(CacheError, match="rows has another checksum"):
        index.verify()


def test_every_bit_of_the_manifest_counts(folder: Path) -> None:
    path = folder / MANIFEST
    for place in range(path.stat().st_size):
        for bit in range(8):
            flip(path, place, bit)
            refused(folder)
            flip(path, place, bit)
    load(folder)


@pytest.mark.parametrize("name", [MANIFEST, "keys", "rows", "graph", "added"])
def test_a_file_of_another_length_is_refused(name: str, folder: Path) -> None:
    path = folder / MANIFEST if name == MANIFEST else generation(folder) / name
    content = path.read_bytes()
    for other in [b"", content[:1], content[: len(content) // 2], content[:-1], content + b"\0", content + content]:
        path.write_bytes(other)
        refused(folder, "not a saved index" if name == MANIFEST and len(other) < 2 else "damaged")
    path.unlink()
    refused(folder, "there is no saved index" if name == MANIFEST else f"{name} is missing")


def test_a_missing_generation_is_refused(folder: Path) -> None:
    generation(folder).rename(folder / "elsewhere")
    refused(folder, "is missing")


@pytest.mark.parametrize("name", [MANIFEST, "keys", "rows", "graph", "added"])
def test_links_pipes_and_folders_in_place_of_a_file_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    path = folder / MANIFEST if name == MANIFEST else generation(folder) / name
    target = Path(shutil.move(path, tmp_path / "target"))
    for replace in (lambda: path.symlink_to(target), lambda: os.mkfifo(path), path.mkdir):
        replace()
        refused(folder, "cannot open the saved index")
        path.rmdir() if path.is_dir() else path.unlink()
    os.link(target, path)
    load(folder)


def test_folders_behind_links_are_refused(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    refused(link, "cannot open the saved index")
    with pytest.raises(CacheError, match="cannot save the index"):
        save(small(), link)
    place = generation(folder)
    target = Path(shutil.move(place, tmp_path / "target"))
    place.symlink_to(target)
    refused(folder, "cannot open the saved index")


def test_another_size_of_vectors_is_refused(folder: Path) -> None:
    with pytest.raises(CacheError, match="has 8 dimensions, not 9"):
        VectorIndex.open(folder, 9)


def test_another_format_is_refused(folder: Path) -> None:
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content.replace(b"vectors 1", b"vectors 2"))
    refused(folder, "not a saved index of this format")


def forge(folder: Path, **changes: Any) -> None:
    """Write a manifest with other values and a checksum that holds."""
    manifest = Manifest.parse((folder / MANIFEST).read_bytes(), DIMENSIONS)
    (folder / MANIFEST).write_bytes(manifest._replace(**changes).pack())


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 1 << 60},
        {"rows": -1},
        {"rows": 0},
        {"rows": 399},
        {"added": 1 << 62},
        {"added": -5},
        {"added": 0},
        {"depth": 0},
        {"depth": -128},
        {"refused_at": -1},
        {"row_type": "<f2"},
        {"row_type": ">f4"},
        {"row_type": "|O"},
        {"row_type": "nonsense"},
        {"generation": ".."},
        {"generation": "../saved"},
        {"generation": ""},
        {"generation": "0" * 16},
        {"generation": b"0" * 16},
        {"graphs_version": "0.1.0"},
        {"state": "text"},
        {"seals": {}},
        {"dimensions": 1 << 40},
    ],
)
def test_a_forged_manifest_is_refused(changes: dict[str, Any], folder: Path) -> None:
    """Checksums prove that the bytes are as written, not who wrote them."""
    forge(folder, **changes)
    refused(folder)


@pytest.mark.parametrize("shape", [[1, 2, "3"], [1, 2], [1, 2, 3, 4], [], [1.0, 2, 3], [-1, 0, 0]])
def test_a_forged_seal_is_refused(shape: list[Any], folder: Path) -> None:
    seals = Manifest.parse((folder / MANIFEST).read_bytes(), DIMENSIONS).seals
    good = (folder / MANIFEST).read_bytes()
    for name in seals:
        forge(folder, seals={**seals, name: shape})
        refused(folder)
        (folder / MANIFEST).write_bytes(good)


def test_a_graph_needs_what_made_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_store.search.vectors.files.graphs_available", lambda: False)
    refused(folder, "needs usearch: pip install")


# --- crashes


def states(folder: Path) -> tuple[int, int]:
    """Return what the owner's state says how many vectors there are, and how many there are."""
    index, state = load(folder)
    return int(state), len(index)


def test_files_are_synced_before_the_manifest_names_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, _ = load(folder)
    put(opened, range(10))
    assert opened.adopt(opened.snapshot().build())
    synced: list[int] = []
    sync, replace = os.fsync, os.replace

    def noting(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        sync(file)

    def replacing(source: Path, target: Path) -> None:
        named = [path.stat().st_ino for path in (*source.parent.iterdir(), source.parent)]
        assert len(named) == 4, "keys, rows, manifest and their folder"
        assert set(named) <= set(synced)
        synced.clear()
        replace(source, target)

    monkeypatch.setattr("os.fsync", noting)
    monkeypatch.setattr("os.replace", replacing)
    save(opened, folder)
    assert synced == [folder.stat().st_ino]


class Failing:
    """A call that fails from its nth time on."""

    def __init__(self, call: Callable[..., Any], good: int) -> None:
        self.call, self.good, self.count = call, good, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.count += 1
        if self.count > self.good:
            raise OSError(28, "No space left on device")
        return self.call(*arguments, **named)


@pytest.mark.parametrize(
    "name", ["os.open", "os.write", "os.fsync", "os.link", "os.replace", "os.mkdir", "fcntl.flock"]
)
def test_whatever_step_fails_the_old_index_or_the_new_one_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "saved"
    index = small(100)
    assert index.adopt(index.snapshot().build())
    save(index, place, b"100")
    put(index, range(100, 160))
    failed, reached = 0, set()
    while True:
        failing = Failing(pkgutil.resolve_name(name), failed)
        monkeypatch.setattr(name, failing)
        try:
            save(index, place, b"160")
        except CacheError as error:
            reached.add(str(error))
        monkeypatch.undo()
        assert states(place) in [(100, 100), (160, 160)]
        if failing.count <= failed:
            break
        failed += 1

    assert failed >= 1, "it was called"
    assert reached <= {f"cannot save the index in {place}: No space left on device"}
    assert states(place) == (160, 160)
    save(index, place, b"160")
    assert len(list(place.iterdir())) == 2, "the manifest and one generation: nothing half-written is left"


def _save_for_ever(folder: Path) -> None:
    index = VectorIndex(DIMENSIONS)
    for number in range(2000):
        put(index, range(number, number + 1))
        if number % 40 == 30:
            index.adopt(index.snapshot().build())
        index.snapshot().save(folder, str(number + 1).encode())


def test_a_killed_process_leaves_one_whole_index(tmp_path: Path) -> None:
    place = tmp_path / "saved"
    chance = np.random.default_rng(4)
    for _ in range(8):
        child = CHILDREN.Process(target=_save_for_ever, args=(place,), daemon=True)
        child.start()
        _await(lambda: (place / MANIFEST).exists(), child)
        time.sleep(chance.uniform(0, 0.2))
        child.kill()
        child.join()
        said, held = states(place)
        assert said == held
    save(small(20), place, b"20")
    assert states(place) == (20, 20)
    assert len(list(place.iterdir())) == 2


def _await(condition: Callable[[], bool], child: BaseProcess) -> None:
    while not condition():
        assert child.exitcode is None
        time.sleep(0.001)


def _save_alike(folder: Path, counts: list[int]) -> None:
    for count in counts:
        save(small(count), folder, str(count).encode())


def test_processes_that_save_to_one_folder_do_not_mix(tmp_path: Path) -> None:
    place = tmp_path / "saved"
    save(small(1), place, b"1")
    children = [
        CHILDREN.Process(target=_save_alike, args=(place, list(range(start, start + 25))), daemon=True)
        for start in (100, 200, 300)
    ]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        said, held = states(place)
        assert said == held
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert states(place) in {(124, 124), (224, 224), (324, 324)}
    save(small(2), place, b"2")
    assert len(list(place.iterdir())) == 2


def test_what_another_process_writes_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One save in the middle of another, which has written all of its files and not published them."""
    place = tmp_path / "saved"
    publish, inner = NewGeneration.publish, []

    def publishing(self: NewGeneration, manifest: bytes) -> None:
        if not inner:
            inner.append(True)
            save(small(10), place, b"10")
            assert states(place) == (10, 10)
        publish(self, manifest)

    monkeypatch.setattr(NewGeneration, "publish", publishing)
    save(small(30), place, b"30")
    assert states(place) == (30, 30)
    assert len(list(place.iterdir())) == 2


def test_an_open_index_outlives_its_files(folder: Path) -> None:
    opened, _ = VectorIndex.open(folder, DIMENSIONS)
    kept, _ = load(folder)
    save(small(5), folder)
    assert same(opened, kept)
    opened.verify()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot save the index"):
        save(small(), tmp_path / "absent" / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot save the index"):
        save(small(), tmp_path / "file")
    refused(tmp_path / "file", "cannot open the saved index")


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "saved"
    save(small(), place)
    (place / "notes").mkdir()
    (place / "0123456789abcdef").write_text("a file, not a generation")
    (place / "fedcba9876543210").symlink_to(tmp_path)
    save(small(), place)
    assert {path.name for path in place.iterdir()} >= {"notes", "0123456789abcdef", "fedcba9876543210"}
    assert tmp_path.is_dir()
