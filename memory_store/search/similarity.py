"""Near-duplicates without an embedder: shingles, Jaccard similarity, and MinHash LSH to compare only what may be alike.

Content is a set of shingles, pairs of neighbouring tokens (Broder 1997). Two sets are as similar as the share of
shingles they have in common (Jaccard). MinHash signatures cut into bands find the pairs worth comparing (Leskovec,
Rajaraman, Ullman: Mining of Massive Datasets, chapter 3); whoever asks compares those exactly, so nothing is reported
as similar that is not.

Hashes and permutations are seeded, not drawn: the same content has the same signature in every process.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any, Protocol, TypeAlias

from memory_store.errors import ConfigurationError

__all__ = ["NearDuplicates", "Shingles", "banding", "check_threshold", "jaccard", "shingles"]

Shingles: TypeAlias = frozenset[str]

# Of scripts that are written without spaces each character is a token: Thai, Lao, Tibetan, Burmese, Khmer, kana (NFKC
# has widened the narrow ones) and Han.
_SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_SPACELESS += "\uf900-\ufaff\U00020000-\U0003ffff"
# A word, such a character, or any other mark by itself: "a < b" and "a > b" are not the same.
_TOKEN = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+|[^\w\s]")

_SEED = 1
_MOST_PERMUTATIONS = 128
# Share of the pairs exactly at the threshold that are not found; of those above it, fewer.
_MISSED = 0.01
_LOWEST, _HIGHEST = 0.1, 1.0
# Each takes four bytes a permutation while it is hashed: a megabyte of text at once would take 80 of memory.
_SIGNED_AT_ONCE = 8192


def shingles(content: Any) -> Shingles:
    """Return the shingles of text or of a JSON value; none of what has no token.

    The tokens of text are its words without regard to case and compatibility forms (NFKC), characters in scripts
    without spaces, and marks. Those of a JSON value are the tokens of its keys, sorted, and of its values, in order;
    the end of a list is a token too, so that a sequence and its continuation differ. A pair that comes again is another
    shingle, so that going round a loop once is not the same as twice.

    Pairs were chosen over triples because patterns are short: with triples one other word among ten leaves less than
    half in common.

    Args:
        content: text, or a JSON value.
    """
    tokens = list(_tokens_of(content))
    if len(tokens) == 1:
        return frozenset(tokens)
    times: Counter[str] = Counter()
    found: set[str] = set()
    for first, second in pairwise(tokens):
        pair = f"{first} {second}"  # no token holds a space
        times[pair] += 1
        found.add(pair if times[pair] == 1 else f"{pair} {times[pair]}")
    return frozenset(found)


def _tokens_of(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield from _TOKEN.findall(unicodedata.normalize("NFKC", content).casefold())
    elif isinstance(content, dict):
        for key in sorted(content):
            yield from _tokens_of(key)
            yield from _tokens_of(content[key])
    elif isinstance(content, list):
        for item in content:
            yield from _tokens_of(item)
        if content:
            yield "]"
    else:
        yield from _TOKEN.findall(json.dumps(content))


def jaccard(first: Shingles, second: Shingles) -> float:
    """Return the share of all shingles of two sets that both have, 0 to 1; 0 where there are none."""
    common = len(first & second)
    return common / (len(first) + len(second) - common) if common else 0.0


def check_threshold(threshold: float) -> float:
    """Return the threshold if it is one.

    Raises:
        ConfigurationError: it is no number from 0.1 to 1. Below that, nearly everything would have to be compared.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise ConfigurationError(f"threshold must be a number, got {type(threshold).__name__}")
    if not _LOWEST <= threshold <= _HIGHEST:
        raise ConfigurationError(f"threshold must be {_LOWEST} to {_HIGHEST:g}, got {threshold!r}")
    return float(threshold)


def banding(threshold: float) -> tuple[int, int]:
    """Return how many bands of how many rows a signature is cut into.

    A pair of similarity s is found with probability 1 - (1 - s**rows)**bands. These are the most rows, which lets the
    fewest others through, with which 99 % of the pairs at the threshold are found and 128 permutations suffice.
    """
    for rows in range(_MOST_PERMUTATIONS, 0, -1):
        agreeing = threshold**rows
        needed = 1 if agreeing == 1 else math.ceil(math.log(_MISSED) / math.log1p(-agreeing))
        bands = max(needed, 2)  # datasketch takes no fewer
        if bands * rows <= _MOST_PERMUTATIONS:
            return bands, rows
    raise AssertionError("unreachable: at the lowest threshold one row is enough")


class Signature(Protocol):
    """A MinHash signature, as datasketch holds it."""

    hashvalues: Any


class NearDuplicates:
    """Keys by their shingles, so that the near-duplicates of anything are found without comparing it with everything.

    Not for several threads at a time; `sign` alone is. A key takes about 300 bytes a band: 11 KB at a threshold of
    0.5, 5 KB at 0.8.

    Args:
        threshold: Jaccard similarity, 0.1 to 1, from which on 99 % of the pairs are candidates.

    Raises:
        ConfigurationError: the threshold is none, or datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = check_threshold(threshold)
        bands, rows = banding(self.threshold)
        datasketch = _datasketch()
        self._blank = datasketch.MinHash(num_perm=bands * rows, seed=_SEED)
        self._lsh = datasketch.MinHashLSH(num_perm=bands * rows, params=(bands, rows))

    def sign(self, shingled: Shingles) -> Signature | None:
        """Return the signature of shingles; None where there are none, which is alike to nothing."""
        if not shingled:
            return None
        signature: Any = self._blank.copy()  # shares the permutations, which take longer to draw than to apply
        encoded = [shingle.encode("utf-8", "surrogatepass") for shingle in shingled]
        for start in range(0, len(encoded), _SIGNED_AT_ONCE):
            signature.update_batch(encoded[start : start + _SIGNED_AT_ONCE])
        return signature  # type: ignore[no-any-return]

    def put(self, key: str, signature: Signature | None) -> None:
        """Hold a key under a signature, in place of the one it had; under None not at all."""
        if key in self._lsh:
            self._lsh.remove(key)
        if signature is not None:
            self._lsh.insert(key, signature)

    def candidates(self, signature: Signature | None) -> list[str]:
        """Return the keys that may be alike, sorted; to be compared."""
        return [] if signature is None else sorted(self._lsh.query(signature))


def _datasketch() -> ModuleType:
    # Imported when it is used: it brings SciPy, which takes half a second.
    try:
        datasketch = import_module("datasketch")
    except ImportError as error:
        raise ConfigurationError("near-duplicates need MinHash: pip install 'memory-store[similarity]'") from error
    return datasketch
