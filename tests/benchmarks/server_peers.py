"""Peers on PostgreSQL: LangGraph's store, and SQLAlchemy's ORM as an application would write it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from langgraph.store.postgres.aio import AsyncPostgresStore
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from memory_store import MemoryStore
from memory_store.records import RECORDS
from tests.servers.postgres import PostgresServer

from .harness import Sizes
from .peer import Peer, measure, payload
from .rows import NAMESPACE, episode

_POOL = 10
_WRITERS = 64
_BUDGET = 5.0


@asynccontextmanager
async def _langgraph_store(server: PostgresServer) -> AsyncIterator[Peer]:
    dsn = server.dsn(_made(server, "langgraph"))
    async with AsyncPostgresStore.from_conn_string(dsn, pool_config={"min_size": _POOL, "max_size": _POOL}) as store:
        await store.setup()
        await store.aput(("one",), "one", payload(0))

        async def write(number: int) -> None:
            value = payload(number)
            await store.aput(("written",), value["id"], value)

        yield Peer(read=lambda _: store.aget(("one",), "one"), write=write)


@asynccontextmanager
async def _orm_sessions(server: PostgresServer) -> AsyncIterator[Peer]:
    """A mapped class over a table like `episodes`, one session a record."""

    class Base(DeclarativeBase):
        pass

    class Stored(Base):
        __table__ = RECORDS["episode"].table.to_metadata(Base.metadata)

    engine = create_async_engine(server.url(_made(server, "orm")), pool_size=_POOL, max_overflow=0)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        session = async_sessionmaker(engine, expire_on_commit=False)

        async def write(number: int) -> str:
            record = episode(number)
            fields = {name: getattr(record, name) for name in RECORDS["episode"].columns}
            async with session() as one, one.begin():
                one.add(Stored(namespace=NAMESPACE, **fields))
            return str(record.id)

        async def read(_: int) -> Any:
            async with session() as one:
                return await one.get(Stored, (NAMESPACE, first))

        first = await write(0)
        yield Peer(read=read, write=write)
    finally:
        await engine.dispose()


def _made(server: PostgresServer, name: str) -> str:
    server.create_database(name)
    return name


_PEERS: dict[str, Callable[[PostgresServer], AbstractAsyncContextManager[Peer]]] = {
    "LangGraph AsyncPostgresStore": _langgraph_store,
    "SQLAlchemy ORM sessions": _orm_sessions,
}


async def measure_server_peers(sizes: Sizes) -> list[dict[str, Any]]:
    """Measure them beside this store on one server, which syncs every commit."""
    rows: list[dict[str, Any]] = []
    rounds = sizes.fewer(12)
    with PostgresServer() as server:
        url = server.create_database("ours")
        async with MemoryStore(url, namespace=NAMESPACE, pool_size=_POOL) as store:
            one = await store.episodes.put(episode(0))
            ours = Peer(
                read=lambda _: store.episodes.get(one.id), write=lambda number: store.episodes.put(episode(number))
            )
            for name, opened in _PEERS.items():
                async with opened(server) as peer:
                    rows += [
                        await measure(
                            name, "read one, cached", peer.read, ours.read, rounds, count=min(sizes.slice, 50)
                        ),
                        await measure(name, "write one, alone", peer.write, ours.write, rounds, count=20),
                        await measure(
                            name,
                            "write, 64 at once",
                            peer.write,
                            ours.write,
                            rounds,
                            count=5,
                            together=_WRITERS,
                            budget=_BUDGET,
                        ),
                    ]
    return rows
