"""Servers killed, failed over and cut off at length."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.processes.server_kills import disturbances, lines, run_through
from tests.processes.shown import show
from tests.servers.fixtures import MakePostgres

__all__ = ["show"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_over_300_kills_of_the_server(
    seed: int, make_postgres: MakePostgres, show: Callable[..., None]
) -> None:
    server = make_postgres(durable=seed == 0)
    url = server.create_database("killed")
    began = time.monotonic()
    counted = run_through(
        [url], disturbances(server, seed), database="killed", times=100, check_every=5, seed=100 + seed, longest_pause_s=0.6
    )
    show(lines("kills of the server", 100, counted, time.monotonic() - began))
    assert counted["acknowledged"] > 500
    assert counted["resolved: True"] > 0
    assert counted["resolved: False"] > 0
