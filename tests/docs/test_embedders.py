"""The reference lists every embedder with its arguments."""

from __future__ import annotations

import inspect

import pytest

from memory_store import embedders
from tests.docs.pages import REPOSITORY, rows_of

REFERENCE = (REPOSITORY / "docs" / "reference.md").read_text("utf-8").partition("\n## Embedders\n")[2]
PAGE = (REPOSITORY / "docs" / "howto" / "embed.md").read_text("utf-8")
CLASSES = [name for name in embedders.__all__ if name != "Embedder"]


def test_every_embedder_is_there() -> None:
    assert sorted(row[0].strip("`") for row in rows_of(REFERENCE, first_heading="class")) == sorted(CLASSES)
    assert all(name in PAGE for name in embedders.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_its_arguments_are_there_with_their_defaults(name: str) -> None:
    [row] = [row for row in rows_of(REFERENCE, first_heading="class") if row[0] == f"`{name}`"]
    parameters = inspect.signature(getattr(embedders, name)).parameters.values()

    wanted = [
        item.name if item.default is inspect.Parameter.empty else f"{item.name}={item.default}" for item in parameters
    ]
    assert [part for part in row[1].split("`")[1::2] if part != "tokenizer.json"] == wanted
