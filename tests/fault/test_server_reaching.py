"""Who the server is, and whether it may be used: a standby, a moved address, a wrong password, TLS."""

from __future__ import annotations

import asyncio

import pytest

from memory_store import ConfigurationError, DurableUnavailableError, MemoryStore
from tests.fault.servers_support import SETTINGS, Timed
from tests.fault.support import episode
from tests.servers.fixtures import MakePostgres, MakeStandby
from tests.servers.proxy import Proxy
from tests.servers.tls import CERTIFICATE, TlsFront


async def test_a_standby_is_read_and_not_written_and_left_once_the_address_has_moved(
    make_postgres: MakePostgres, make_standby: MakeStandby
) -> None:
    primary = make_postgres(durable=False)
    url = primary.create_database("pair")
    async with MemoryStore(url, **SETTINGS) as store:
        await store.episodes.put(episode("a"))
    standby = make_standby(primary)
    async with (
        Proxy(standby.upstream) as proxy,
        MemoryStore(primary.url_through(proxy.port, "pair"), **SETTINGS) as store,
    ):
        assert await store.episodes.count() == 1
        accepted = proxy.accepted
        with Timed() as taken, pytest.raises(DurableUnavailableError, match="25006"):
            await store.episodes.put(episode("b"))
        assert taken.seconds < 5
        assert proxy.accepted - accepted <= 6
        await asyncio.gather(*(store.episodes.get(f"{i}") for i in range(10)))
        proxy.upstream = primary.upstream  # and the connections to the standby stay
        assert (await store.episodes.put(episode("b"))).revision == 1


async def test_a_wrong_password_or_database_is_told_at_once(make_postgres: MakePostgres) -> None:
    server = make_postgres(durable=False)
    server.create_database("guarded")
    server.execute("CREATE USER agent PASSWORD 'right'; ALTER DATABASE guarded OWNER TO agent")
    (server.data / "pg_hba.conf").write_text("local all postgres trust\nhost all agent all scram-sha-256\n")
    server.configure()
    address = f"127.0.0.1:{server.port}"
    for url, hint in (
        (f"postgresql://agent:wrong@{address}/guarded", "password"),
        (f"postgresql://agent@{address}/guarded", "password"),
        (f"postgresql://agent:right@{address}/nowhere", "database"),
        (f"postgresql://nobody:right@{address}/guarded", "refused"),
    ):
        with Timed() as taken, pytest.raises(DurableUnavailableError, match=hint) as refused:
            await MemoryStore(url, **SETTINGS).open()
        assert taken.seconds < 2
        assert "right" not in str(refused.value)
        assert "wrong" not in str(refused.value)
    async with MemoryStore(f"postgresql://agent:right@{address}/guarded", **SETTINGS) as store:
        await store.episodes.put(episode("a"))


async def test_tls_is_used_as_the_url_says(make_postgres: MakePostgres) -> None:
    server = make_postgres(durable=False)
    server.create_database("secret")
    async with TlsFront(server.socket) as front:
        base = f"postgresql://postgres@localhost:{front.port}/secret"
        refused = [
            f"{base}?sslmode=disable",
            f"{base}?sslmode=verify-ca&sslrootcert={CERTIFICATE.with_name('none.pem')}",
            # Another name of the same address, which the certificate does not have.
            f"{base.replace('localhost', '127.1')}?sslmode=verify-full&sslrootcert={CERTIFICATE}",
        ]
        for url in refused:
            with Timed() as taken, pytest.raises((DurableUnavailableError, ConfigurationError)):
                await MemoryStore(url, **SETTINGS).open()
            assert taken.seconds < 5
        assert front.versions == []
        for query in ("sslmode=require", f"sslmode=verify-full&sslrootcert={CERTIFICATE}"):
            async with MemoryStore(f"{base}?{query}", **SETTINGS) as store:
                await store.episodes.put(episode(query[:16]))
        assert {str(version)[:3] for version in front.versions} == {"TLS"}
