"""Patterns: counting their uses, ranking them, learning them from episodes, finding and merging near-duplicates."""

from __future__ import annotations

from memory_store.patterns.collection import Patterns, SimilarPattern
from memory_store.patterns.merging import PatternMerge

__all__ = ["PatternMerge", "Patterns", "SimilarPattern"]
