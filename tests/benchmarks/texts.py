"""Documents of about 1 KB made of lines that people and programs wrote, and what is sought in them.

The lines come from the recorded runs and the retrieval sets beside the checkout where they are, else from the made-up
words of `rows`. The same on every run.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .harness import REPOSITORY
from .rows import RECORDED, text

RETRIEVAL = REPOSITORY.parent / "shared" / "data" / "retrieval"
_DOCUMENT_CHARACTERS = 1000
_SHORTEST_LINE, _LONGEST_LINE = 20, 200
_SAMPLE = 4000
_WORD = re.compile(r"[a-z]{4,}")


def _texts() -> Iterator[str]:
    for path in sorted(RETRIEVAL.glob("*/corpus.jsonl")):
        yield from (document["text"] for document in json_lines(path))
    for path in sorted(RECORDED.glob("*.jsonl")):
        for run in json_lines(path):
            for step in run["steps"]:
                yield from (said[:20_000] for said in (step["action"], step["result"]) if said)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that holds one a line."""
    yield from (json.loads(line) for line in path.read_bytes().split(b"\n") if line)


@functools.cache
def _lines() -> tuple[str, ...]:
    """Return lines that have words, each once."""
    found = (line.strip().replace("\0", "") for said in _texts() for line in said.splitlines())
    lines = tuple(dict.fromkeys(line for line in found if _SHORTEST_LINE <= len(line) <= _LONGEST_LINE))
    return lines or tuple(text(number, 80) for number in range(20_000))


def document(number: int) -> str:
    """Return the document of this number."""
    lines, chance = _lines(), random.Random(number)
    chosen: list[str] = []
    length = 0
    while length < _DOCUMENT_CHARACTERS:
        chosen.append(lines[int(chance.random() * len(lines))])
        length += len(chosen[-1]) + 1
    return "\n".join(chosen)[:_DOCUMENT_CHARACTERS]


@functools.cache
def _shares(rows: int) -> dict[str, float]:
    """Return words and the share of the first `rows` documents that have them, by a sample of these."""
    sample = range(0, rows, max(1, rows // _SAMPLE))
    counted = Counter(word for number in sample for word in set(_WORD.findall(document(number).lower())))
    return {word: count / len(sample) for word, count in sorted(counted.items())}


def queries(rows: int, each: int) -> dict[str, list[str]]:
    """Return so many queries of each sort, to be sought in the first `rows` documents.

    A rare word is in a few of 10,000 documents, a middling one in one of a hundred. Questions are what people asked of
    the retrieval sets, where these are, else ten words that are not rare.
    """
    chance, shares = random.Random(20260101), _shares(rows)
    rare = [word for word, share in shares.items() if share <= max(0.0005, 1.5 / rows)]
    middling = [word for word, share in shares.items() if 0.005 <= share <= 0.02]
    usual = [word for word, share in shares.items() if share >= 0.005]
    asked = [str(line["text"]) for path in sorted(RETRIEVAL.glob("*/queries.jsonl")) for line in json_lines(path)]
    questions = [said for said in asked if len(said.split()) == 10]
    return {
        "rare": chance.sample(rare, each),
        "middling": chance.sample(middling, each),
        "two_words": [" ".join(chance.sample(middling, 2)) for _ in range(each)],
        "question": chance.sample(questions or [" ".join(chance.sample(usual, 10)) for _ in range(each)], each),
    }


def word_in_half(rows: int) -> str:
    """Return the word that is nearest to being in half of the first `rows` documents."""
    shares = _shares(rows)
    return min(shares, key=lambda word: abs(shares[word] - 0.5))
