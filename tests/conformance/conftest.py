"""What several files of the suite share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["file_url", "server_url"])
def common_url(request: pytest.FixtureRequest) -> str:
    """A URL of a database without records that several stores can open."""
    return str(request.getfixturevalue(request.param))
