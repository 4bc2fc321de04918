"""What several files of the suite share."""

from __future__ import annotations

import pytest

# A shared cache answers none of what these ask: with one beside the server they run in `make torture`.
_UNSHARED = (
    "test_lists",
    "test_pattern_learning",
    "test_pattern_similarity",
    "test_recall",
    "test_search",
    "test_vectors",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what differs by a shared cache that is not asked."""
    for item in items:
        if "[postgresql-redis" in item.name and item.path.stem in _UNSHARED:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=["file_url", "server_url"])
def common_url(request: pytest.FixtureRequest) -> str:
    """A URL of a database without records that several stores can open."""
    return str(request.getfixturevalue(request.param))
