"""A PostgreSQL killed and started again under several processes: nothing is lost, nothing unknown stays so."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.processes.server_kills import disturbances, lines, run_through
from tests.servers.fixtures import MakePostgres


def test_nothing_is_lost_when_the_server_is_killed_under_load(
    make_postgres: MakePostgres, show: Callable[..., None]
) -> None:
    server = make_postgres(durable=False)
    url = server.create_database("killed")

    began = time.monotonic()
    counted = run_through([url], disturbances(server, 1), database="killed", times=8, check_every=4, seed=1)
    show(lines("kills of the server", 8, counted, time.monotonic() - began))
    assert counted["acknowledged"] > 10
    assert counted["reads"] > 10
