"""What several files of the suite share."""

from __future__ import annotations

import pytest

# A shared cache answers none of what these ask, and a database in memory is a file's: they run in `make torture` there.
_UNSHARED = (
    "test_lists",
    "test_pattern_learning",
    "test_pattern_similarity",
    "test_recall",
    "test_search",
    "test_vectors",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is as on another backend."""
    for item in items:
        if item.path.stem in _UNSHARED and ("[postgresql-redis" in item.name or "[sqlite-memory" in item.name):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=["file_url", "server_url"])
def common_url(request: pytest.FixtureRequest) -> str:
    """A URL of a database without records that several stores can open."""
    return str(request.getfixturevalue(request.param))
