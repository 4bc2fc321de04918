"""Figures that a test keeps for the end of the test run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

LINES: pytest.StashKey[list[str]] = pytest.StashKey()


@pytest.fixture
def show(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return what keeps lines for the end of the test run, and with the test's result."""

    def keep(lines: Sequence[str]) -> None:
        request.config.stash.setdefault(LINES, []).extend(f"{request.node.name}: {line}" for line in lines)
        record_property("measured", "\n".join(lines))

    return keep
