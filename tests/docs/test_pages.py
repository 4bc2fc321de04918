"""The pages hang together: links, anchors, the way from the index, the words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REPOSITORY, anchors_of, links_of, name_of, rows_of

# One meaning each; the glossary has them, whatever else it has.
WORDS = """record, kind, namespace, revision, durable tier, cache tier, position, head, watermark, follower, hit, miss,
fill, evict, expire, invalidate, write-through, group commit, version key"""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page.read_text("utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert target.is_relative_to(REPOSITORY), f"{name_of(page)} links out of the repository: {link}"
        if anchor:
            assert anchor in anchors_of(target.read_text("utf-8")), f"{name_of(page)} links to {link}"


def test_every_page_is_in_the_index() -> None:
    index = REPOSITORY / "docs" / "index.md"
    linked = {(index.parent / link).resolve() for link in links_of(index.read_text("utf-8"))}

    missing = set(PAGES) - linked - {index, REPOSITORY / "README.md"}

    assert not missing


def test_the_glossary_has_each_word_once() -> None:
    words = [row[0] for row in rows_of((REPOSITORY / "docs/glossary.md").read_text("utf-8"), first_heading="word")]

    assert len(words) == len(set(words))
    assert {word.strip() for word in WORDS.split(",")} <= set(words)


def test_the_readme_has_a_place_for_figures() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")

    assert re.search(r"(?s)<!-- figures -->\n(\|.*\|\n){3,}<!-- /figures -->", text)


def test_a_broken_link_and_a_missing_anchor_would_be_noticed() -> None:
    text = "# A title, here\n\n[one](gone.md#x) `[code](not-a-link)` ![picture](p.svg)\n"

    assert links_of(text) == ["gone.md#x", "p.svg"]
    assert anchors_of(text) == {"a-title-here"}
