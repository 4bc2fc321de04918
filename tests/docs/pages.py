"""The pages: their code blocks, headings, links and tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^( *)(`{3,})(.*)$")


class Block(NamedTuple):
    """One fenced block: its language tag ("" where there is none), its text, the line it starts on."""

    language: str
    text: str
    line: int


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks; one that is never closed is an error."""
    blocks: list[Block] = []
    language, start, fence, lines = "", 0, "", []
    for number, line in enumerate(text.splitlines(), 1):
        found = _FENCE.match(line)
        if not fence and found:
            language, start, fence, lines = found[3].strip(), number, found[2], []
        elif fence and line.strip() == fence:
            blocks.append(Block(language, "\n".join(lines) + "\n", start))
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        raise ValueError(f"the block that starts on line {start} is never closed")
    return blocks


def prose_of(text: str) -> str:
    """Return the text without its blocks and without inline code."""
    kept, fence = [], ""
    for line in text.splitlines():
        found = _FENCE.match(line)
        if not fence and found:
            fence = found[2]
        elif fence and line.strip() == fence:
            fence = ""
        elif not fence:
            kept.append(re.sub(r"`[^`]*`", "", line))
    return "\n".join(kept)


def links_of(text: str) -> list[str]:
    """Return the targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(text))


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, made as the usual viewers make them."""
    outside = re.sub(r"(?ms)^```.*?^```", "", text)
    headings = re.findall(r"(?m)^#+ +(.+?) *$", outside)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows_of(text: str, *, first_heading: str) -> list[list[str]]:
    """Return the cells of every table whose first heading is this one."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == first_heading:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
    return rows
