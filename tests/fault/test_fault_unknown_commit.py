"""A commit whose sync fails: nobody can say what is on the disk, `store.resolve` finds out, for good.

The sync really fails: a seccomp filter on the writer's own thread makes the kernel refuse fsync and fdatasync with EIO.
No other thread notices, so other stores of the same process go on.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import platform
import sqlite3
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from memory_store import CommitUnknownError, ConfigurationError, MemoryStore, PositionLostError, StoreClosedError
from tests.fault.support import Child, Parent, database, episode, in_child, integrity_problems, log_problems
from tests.unit.samples import make_pattern

pytestmark = [
    pytest.mark.usefixtures("no_thread_left"),
    pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux"),
]

_SYNCS = {"x86_64": (74, 75), "aarch64": (82, 83)}
"""Numbers of fsync and fdatasync."""

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def forbid_syncs(_connection: sqlite3.Connection) -> None:
    """Make every further sync of this thread fail with EIO; there is no way back."""
    fsync, fdatasync = _SYNCS[platform.machine()]
    instructions = [
        (_LOAD, 0, 0, 0),  # the number of the system call
        (_EQUAL, 1, 0, fsync),
        (_EQUAL, 0, 1, fdatasync),
        (_RETURN, 0, 0, _ERROR | errno.EIO),
        (_RETURN, 0, 0, _ALLOW),
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    program = _Program(len(instructions), ctypes.cast(packed, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "the kernel refuses a seccomp filter")


async def break_syncs(store: MemoryStore) -> None:
    """Make every further commit of this store fail in its sync."""
    await store._access.shard.writer.lane.run(forbid_syncs)


@pytest.fixture
async def broken(file_url: str) -> AsyncIterator[MemoryStore]:
    """A store with a record, whose syncs fail from now on."""
    async with MemoryStore(file_url, staleness_s=3600) as store:
        await store.episodes.put(episode("before"))
        await break_syncs(store)
        yield store


@pytest.fixture
async def other(broken: MemoryStore, file_url: str) -> AsyncIterator[MemoryStore]:
    """Another store on the file, whose syncs go well."""
    async with MemoryStore(file_url, cache_path="") as store:
        yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The database file."""
    return tmp_path / "agent.db"


async def unknown(store: MemoryStore, id_: str = "perhaps") -> str:
    """Put a record and return the token of the error."""
    with pytest.raises(CommitUnknownError, match="resolve") as caught:
        await store.episodes.put(episode(id_))
    assert caught.value.token
    assert not caught.value.retryable
    return caught.value.token


def barriers(path: Path) -> int:
    """How many barriers the log holds."""
    with database(path) as connection:
        return len(
            connection.execute("SELECT 1 FROM changes WHERE kind = 'store' AND operation = 'barrier'").fetchall()
        )


async def test_every_way_to_write_tells_that_the_outcome_is_unknown(broken: MemoryStore) -> None:
    async def in_a_transaction() -> None:
        async with broken.transaction() as tx:
            await tx.episodes.put(episode("perhaps"))

    ways: list[Any] = [
        lambda: broken.episodes.put(episode("perhaps")),
        lambda: broken.episodes.put(episode("perhaps"), idempotency_key="k"),
        lambda: broken.episodes.put_many([episode("perhaps"), episode("perhaps too")]),
        lambda: broken.episodes.update("before", status="failed"),
        lambda: broken.episodes.delete("before"),
        in_a_transaction,
    ]
    tokens = set()
    for way in ways:
        with pytest.raises(CommitUnknownError) as caught:
            await way()
        tokens.add(caught.value.token)
    assert len(tokens) == len(ways)


async def test_nothing_of_it_is_served_and_nothing_is_said_to_be_done(broken: MemoryStore) -> None:
    position = broken.position
    assert await broken.episodes.get("perhaps") is None
    await unknown(broken)
    with pytest.raises(CommitUnknownError):
        await broken.episodes.update("before", status="failed")
    assert await broken.episodes.get("perhaps") is None
    found = await broken.episodes.get("before")
    assert found is not None
    assert (found.status, broken.position) == ("active", position)


async def test_all_writes_of_a_batch_are_told_with_one_token(broken: MemoryStore) -> None:
    puts = [broken.episodes.put(episode(f"perhaps-{i}")) for i in range(32)]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {CommitUnknownError}
    assert len({outcome.token for outcome in outcomes}) < 32  # type: ignore[union-attr]


async def test_a_cancelled_caller_of_a_commit_that_is_unknown_leaves_nothing_open(
    broken: MemoryStore, other: MemoryStore
) -> None:
    for delay in range(6):
        put = asyncio.ensure_future(broken.episodes.put(episode("perhaps")))
        for _ in range(delay):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])
        assert put.cancelled() or isinstance(put.exception(), CommitUnknownError)
    assert (await other.episodes.put(episode("after"))).revision == 1
    assert await broken.episodes.get("perhaps", freshness="linearizable") is None
    assert await broken.episodes.get("after") is not None


async def test_no_is_final_and_leaves_one_barrier(broken: MemoryStore, other: MemoryStore, path: Path) -> None:
    token = await unknown(broken)
    position = other.position
    assert await other.resolve(token) is False
    assert (barriers(path), other.position) == (1, position + 1)
    assert await other.resolve(token) is False
    await other.episodes.put(episode("after"))
    assert await other.resolve(token) is False
    assert (barriers(path), other.position) == (1, position + 2)
    assert await other.episodes.get("perhaps") is None
    assert integrity_problems(path) == []
    assert log_problems(path) == []


async def test_no_without_a_barrier_where_others_have_written_since(
    broken: MemoryStore, other: MemoryStore, path: Path
) -> None:
    token = await unknown(broken)
    await other.episodes.put(episode("took its place"))
    assert await other.resolve(token) is False
    assert barriers(path) == 0


async def test_the_store_that_failed_cannot_resolve_while_its_syncs_fail(
    broken: MemoryStore, other: MemoryStore
) -> None:
    """Its "no" would need a barrier that is as uncertain as the commit itself."""
    token = await unknown(broken)
    with pytest.raises(CommitUnknownError):
        await broken.resolve(token)
    assert await other.resolve(token) is False
    assert await broken.resolve(token) is False, "this takes no write any more"


async def test_several_tokens_at_once(broken: MemoryStore, other: MemoryStore, path: Path) -> None:
    tokens = [await unknown(broken, f"perhaps-{i}") for i in range(3)]
    assert await asyncio.gather(*map(other.resolve, tokens * 2)) == [False] * 6
    assert await asyncio.gather(*map(other.resolve, tokens)) == [False] * 3
    assert await other.episodes.count() == 1
    assert log_problems(path) == []


async def test_a_retry_with_an_idempotency_key_writes_once(broken: MemoryStore, other: MemoryStore) -> None:
    with pytest.raises(CommitUnknownError):
        await broken.episodes.put(episode("perhaps"), idempotency_key="k")
    for _ in range(2):
        assert (await other.episodes.put(episode("perhaps"), idempotency_key="k")).revision == 1


async def _fail_and_wait(parent: Parent, url: str) -> None:
    async with MemoryStore(url) as store:
        await store.episodes.put(episode("before"))
        await break_syncs(store)
        with pytest.raises(CommitUnknownError) as caught:
            await store.episodes.put(episode("perhaps", domain="unknown"))
        parent.send(caught.value.token)
        parent.wait_for("be killed")


async def _resolve(parent: Parent, url: str, token: str) -> bool:
    async with MemoryStore(url) as store:
        return await store.resolve(token)


async def test_yes_where_recovery_brings_the_commit_to_life(file_url: str, path: Path) -> None:
    """The frames were written, only their sync failed; the process dies, and the next one finds them in the log."""
    with Child(_fail_and_wait, file_url) as child:
        token = child.receive()
        child.kill()
    async with MemoryStore(file_url) as store, MemoryStore(file_url) as another:
        assert await store.resolve(token) is True
        assert await store.resolve(token) is True
        await another.episodes.put(episode("after"))
        assert await another.resolve(token) is True
        found = await store.episodes.get("perhaps")
        assert found is not None
        assert found.domain == "unknown"
    assert in_child(_resolve, file_url, token) is True
    assert barriers(path) == 0
    assert log_problems(path) == []


async def test_no_stays_no_whatever_recovery_finds(file_url: str, path: Path) -> None:
    """A barrier took the commit's place in the log, so no crash afterwards can bring it to life."""
    with Child(_fail_and_wait, file_url) as child:
        token = child.receive()
        # A process of its own, killed right after the answer: the database is recovered from the log alone.
        with Child(_resolve_and_wait, file_url, token) as resolver:
            assert resolver.receive() is False
            resolver.kill()
        child.kill()
    async with MemoryStore(file_url) as store:
        assert await store.episodes.get("perhaps") is None
        assert await store.episodes.get("before") is not None
        assert await store.resolve(token) is False
    assert barriers(path) == 1
    assert integrity_problems(path) == []
    assert log_problems(path) == []


async def _resolve_and_wait(parent: Parent, url: str, token: str) -> None:
    async with MemoryStore(url) as store:
        parent.send(await store.resolve(token))
        parent.wait_for("be killed")


async def test_a_committed_write_is_yes(file_store: MemoryStore, tmp_path: Path) -> None:
    """Whatever raised the error after the commit, e.g. a connection that was lost."""
    put = await file_store.episodes.put(episode("done"))
    with database(tmp_path / "agent.db") as connection:
        [(store_id, nonce)] = connection.execute("SELECT store_id, nonce FROM head")
    assert await file_store.resolve(f"{store_id}.{put.position}.{nonce:x}.0") is True
    await file_store.episodes.put(episode("more"))
    assert await file_store.resolve(f"{store_id}.{put.position}.{nonce:x}.0") is True
    assert await file_store.resolve(f"{store_id}.{put.position}.{nonce ^ 1:x}.0") is False


TORN = [
    "",
    "x",
    "a.b.c.0",
    "a.1",
    "a.1.b",
    "1.2.3.4.5",
    "a.-1.b.0",
    "a.1.g.0",
    "a.1.b.",
    "a.1.b.-1",
    "a.1.b.a",
    "a.1.b.1000",
    " a.1.b.0",
    "a.1.b.0\n",
    "a.1.b.0 ",
    "A.1.B.0",
    "a.1." + "f" * 17 + ".0",
]


@pytest.mark.parametrize("token", TORN, ids=ascii)
async def test_what_is_no_token_is_refused(token: str, file_store: MemoryStore) -> None:
    position = file_store.position
    with pytest.raises(ConfigurationError, match="token"):
        await file_store.resolve(token)
    assert file_store.position == position


@pytest.mark.parametrize("token", [None, 7, b"a.1.b.0"], ids=ascii)
async def test_a_token_of_another_type_is_a_type_error(token: Any, file_store: MemoryStore) -> None:
    with pytest.raises(TypeError, match="token"):
        await file_store.resolve(token)


async def test_a_token_of_a_head_that_is_not_there_is_lost(file_store: MemoryStore) -> None:
    position = file_store.position
    with pytest.raises(PositionLostError, match="another database"):
        await file_store.resolve("a.1.b.1")
    assert file_store.position == position


async def test_a_token_of_another_database_is_lost(broken: MemoryStore, tmp_path: Path) -> None:
    token = await unknown(broken)
    async with MemoryStore(f"sqlite:///{tmp_path}/another.db") as another:
        position = another.position
        with pytest.raises(PositionLostError, match="another database"):
            await another.resolve(token)
        assert another.position == position
        writes = [another.resolve(token), another.patterns.put(make_pattern(id="p"))]
        lost, put = await asyncio.gather(*writes, return_exceptions=True)
        assert isinstance(lost, PositionLostError)
        assert put == await another.patterns.get("p"), "it fails alone in its batch"


async def test_behind_a_trimmed_log_nobody_knows(broken: MemoryStore, other: MemoryStore, path: Path) -> None:
    token = await unknown(broken)
    await other.episodes.put(episode("after"))
    await other.episodes.put(episode("after that"))
    with database(path) as connection:
        connection.execute("DELETE FROM changes WHERE position <= ?", (other.position - 1,))
    with pytest.raises(PositionLostError, match="no longer holds"):
        await other.resolve(token)


async def test_a_store_that_is_not_open_resolves_nothing(file_url: str) -> None:
    store = MemoryStore(file_url)
    with pytest.raises(StoreClosedError):
        await store.resolve("a.1.b.0")


async def test_not_inside_a_transaction_of_the_same_task(file_store: MemoryStore) -> None:
    async with file_store.transaction():
        with pytest.raises(ConfigurationError, match="transaction open"):
            await file_store.resolve("a.1.b.0")
