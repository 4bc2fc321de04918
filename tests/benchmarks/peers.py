"""What a user would pick instead, measured beside this store in one run.

Each peer stores the same record of about 1 KB through its own public API, with its own defaults, on the same disk; only
LangGraph's store is put into WAL mode, which its budget is against. The peers are installed in an environment of their
own (`make bench-peers`).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
from agents import SQLiteSession
from agents.extensions.memory import AsyncSQLiteSession
from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.genai import types
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.store.sqlite.aio import AsyncSqliteStore

from memory_store import Episode

from .baselines import open_quiet
from .harness import Sizes, Workspace, environment
from .peer import Peer, measure, payload
from .rows import DOMAINS, episode, episodes
from .server_peers import measure_server_peers
from .vector_beside import measure_vector_peers
from .vector_peers import VECTOR_PACKAGES

_SPACE = ("bench",)
_PACKAGES = ("langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres", "openai-agents", "google-adk")


@asynccontextmanager
async def _langgraph_store(folder: Path, searched: int) -> AsyncIterator[Peer]:
    async with aiosqlite.connect(folder / "store.db", isolation_level=None) as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        async with AsyncSqliteStore(connection) as store:
            await store.setup()
            for start in range(0, searched, 500):
                payloads = [payload(number) for number in range(start, min(start + 500, searched))]
                await asyncio.gather(*(store.aput(_SPACE, value["id"], value) for value in payloads))
            await store.aput(("one",), "one", payload(0))

            async def write(number: int) -> None:
                value = payload(number)
                await store.aput(("written",), value["id"], value)

            yield Peer(
                read=lambda _: store.aget(("one",), "one"),
                write=write,
                search=lambda number: store.asearch(
                    _SPACE, filter={"domain": DOMAINS[number % len(DOMAINS)]}, limit=50
                ),
            )


@asynccontextmanager
async def _langgraph_saver(folder: Path, _: int) -> AsyncIterator[Peer]:
    async with AsyncSqliteSaver.from_conn_string(str(folder / "saver.db")) as saver:
        await saver.setup()

        async def write(number: int) -> None:
            config: Any = {"configurable": {"thread_id": str(number), "checkpoint_ns": ""}}
            checkpoint = empty_checkpoint() | {"channel_values": {"episode": payload(number)}}
            await saver.aput(config, checkpoint, {"source": "loop", "step": 1, "parents": {}}, {})

        await write(0)
        yield Peer(read=lambda _: saver.aget_tuple({"configurable": {"thread_id": "0"}}), write=write)


@asynccontextmanager
async def _openai_session(folder: Path, _: int) -> AsyncIterator[Peer]:
    read, written = (SQLiteSession(name, folder / "session.db") for name in ("read", "written"))
    try:
        yield await _session_peer(read, written)
    finally:
        read.close()
        written.close()


@asynccontextmanager
async def _openai_async_session(folder: Path, _: int) -> AsyncIterator[Peer]:
    read, written = (AsyncSQLiteSession(name, folder / "session.db") for name in ("read", "written"))
    try:
        yield await _session_peer(read, written)
    finally:
        await read.close()
        await written.close()


async def _session_peer(read: Any, written: Any) -> Peer:
    def item(number: int) -> dict[str, Any]:
        return {"role": "user", "content": str(payload(number))}

    await read.add_items([item(0)])
    return Peer(read=lambda _: read.get_items(), write=lambda number: written.add_items([item(number)]))


@asynccontextmanager
async def _adk_sessions(folder: Path, _: int) -> AsyncIterator[Peer]:
    service = DatabaseSessionService(f"sqlite+aiosqlite:///{folder / 'adk.db'}")
    try:
        names = {"app_name": "bench", "user_id": "bench"}
        read = await service.create_session(session_id="read", **names)
        written = await service.create_session(session_id="written", **names)

        def event(number: int) -> Event:
            text = types.Content(role="user", parts=[types.Part(text=str(payload(number)))])
            return Event(author="user", id=str(uuid.uuid4()), invocation_id=str(number), content=text)

        await service.append_event(read, event(0))
        yield Peer(
            read=lambda _: service.get_session(session_id="read", **names),
            write=lambda number: service.append_event(written, event(number)),
        )
    finally:
        await service.close()


_PEERS: dict[str, Callable[[Path, int], AbstractAsyncContextManager[Peer]]] = {
    "LangGraph AsyncSqliteStore": _langgraph_store,
    "LangGraph AsyncSqliteSaver": _langgraph_saver,
    "OpenAI Agents SQLiteSession": _openai_session,
    "OpenAI Agents AsyncSQLiteSession": _openai_async_session,
    "ADK DatabaseSessionService": _adk_sessions,
}


async def measure_peers(sizes: Sizes) -> dict[str, Any]:
    """Measure every peer and return the JSON object of the result."""
    rows: list[dict[str, Any]] = []
    searched = min(sizes.rows, 10_000)
    with Workspace() as workspace:
        async with open_quiet(workspace.new("ours")) as store:
            for start in range(0, searched, 1000):
                await store.episodes.put_many(episodes(min(1000, searched - start), start))
            one = await store.episodes.put(episode(0))

            async def search(number: int) -> None:
                wanted = Episode.c.domain == DOMAINS[number % len(DOMAINS)]
                await store.episodes.list(wanted, order_by=Episode.c.created_at.desc(), limit=50)

            # The whole call of a writer who has words, not a record: making the record is in it, as for the peers.
            ours = Peer(
                read=lambda _: store.episodes.get(one.id),
                write=lambda number: store.episodes.put(episode(number)),
                search=search,
            )
            for name, opened in _PEERS.items():
                async with opened(workspace.new("peer").parent, searched) as peer:
                    rows += await _compare(name, peer, ours, sizes)
    rows += await measure_server_peers(sizes)
    return {
        "name": "peers",
        "peers": rows,
        "vectors": await measure_vector_peers(sizes),
        "versions": {name: importlib.metadata.version(name) for name in (*_PACKAGES, *VECTOR_PACKAGES)},
        "environment": environment(),
    }


async def _compare(name: str, peer: Peer, ours: Peer, sizes: Sizes) -> list[dict[str, Any]]:
    rounds = sizes.fewer(12)
    rows = [
        await measure(name, "read one, cached", peer.read, ours.read, rounds, count=min(sizes.slice, 50), budget=100)
    ]
    rows.append(await measure(name, "write one, alone", peer.write, ours.write, rounds, count=min(sizes.slice, 20)))
    if "Saver" in name or "Store" in name:
        budget = 1.2 if "Store" in name else None
        rows.append(
            await measure(name, "write, 64 at once", peer.write, ours.write, rounds, together=64, budget=budget)
        )
    if peer.search is not None and ours.search is not None:
        rows.append(await measure(name, "50 by a field, of 10,000", peer.search, ours.search, rounds, count=3))
    return rows
