"""The program, and databases for it: in a file, and on a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli_support import Program


@pytest.fixture(params=["file", "server"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL of an empty database that several processes can use, once in a file and once on a server."""
    if request.param == "server":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/agent.db"


@pytest.fixture
def program(shared_url: str, tmp_path: Path) -> Program:
    """The program, run in an empty folder with such a database; its saved cache is in `agent.db.cache`."""
    return Program(tmp_path, shared_url, {"MEMORY_STORE_CACHE_PATH": f"{tmp_path}/agent.db.cache"})
