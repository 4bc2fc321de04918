"""Records of every kind: small ones for tests that only need some, and hostile ones drawn by Hypothesis."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from memory_store import Embedding, Episode, EpisodeStatus, Pattern, SpatiotemporalEntry, Step
from memory_store.records import RECORDS, Record

MODEL = "a-model-nobody-knows"


def make_episode(_parent: str = "", **changes: Any) -> Episode:
    """A small episode."""
    return Episode(**{"task_type": "debugging", "domain": "web", "context": {"goal": "fix the flaky test"}} | changes)


def make_step(parent: str = "e1", **changes: Any) -> Step:
    """A small step without a number."""
    return Step(**{"episode_id": parent, "action": "pytest -x", "result": "1 failed", "tool_name": "shell"} | changes)


def make_pattern(_parent: str = "", **changes: Any) -> Pattern:
    """A small pattern."""
    return Pattern(**{"pattern_type": "tool_sequence", "pattern_data": {"tools": ["read", "edit"]}} | changes)


def make_embedding(parent: str = "e1", **changes: Any) -> Embedding:
    """A small embedding."""
    values = {"episode_id": parent, "content": "flaky", "embedding": [0.5, -1.25], "model_name": MODEL, "vector_dim": 2}
    return Embedding(**values | changes)


def make_place(parent: str = "e1", **changes: Any) -> SpatiotemporalEntry:
    """A small spatiotemporal entry."""
    values = {"episode_id": parent, "spatial_key": "web/debugging", "temporal_key": "2026-W47"}
    return SpatiotemporalEntry(**values | changes)


MAKE: dict[str, Callable[..., Any]] = {
    "episode": make_episode,
    "step": make_step,
    "pattern": make_pattern,
    "embedding": make_embedding,
    "spatiotemporal": make_place,
}
"""A factory a kind: `MAKE[kind](episode_id, **changes)`; kinds without an episode ignore the first argument."""

# One changeable field of each kind, with a value that no factory gives it.
CHANGE: dict[str, dict[str, Any]] = {
    "episode": {"reward_score": 0.75},
    "step": {"result": "1 passed"},
    "pattern": {"usage_count": 7},
    "embedding": {"content": "less flaky"},
    "spatiotemporal": {"diversity_score": 0.5},
}


def values_of(record: Record) -> dict[str, Any]:
    """Every field of a record by name, read the way a caller reads it."""
    return {name: getattr(record, name) for name in RECORDS[record.kind].columns}


# Any Unicode scalar value: NUL, control characters and astral planes included; lone surrogates are no text.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
counts = st.integers(0, (1 << 63) - 1)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# A day from the ends of the calendar, so that every offset stays inside it.
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.one_of(st.just(UTC), offsets)).map(
    lambda moment: moment.replace(fold=0)  # at a fixed offset it means nothing
)
scalars = st.none() | st.booleans() | st.integers(-(1 << 1023), 1 << 1023) | finite | texts
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
vectors = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=16)


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def _record(make: Callable[..., Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    common = {"id": keys, "revision": counts, "created_at": times, "updated_at": times}
    return st.fixed_dictionaries(common | fields).map(lambda values: make(**values))


def _embedding(**values: Any) -> Embedding:
    vector = values["embedding"]
    packed = struct.pack(f"<{len(vector)}f", *vector)
    return Embedding(**values | {"embedding": packed, "vector_dim": len(vector)})


RECORD_STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "episode": _record(
        Episode,
        task_type=keys,
        domain=keys,
        context=json_values,
        status=st.sampled_from(EpisodeStatus),
        success_rate=_maybe(shares),
        reward_score=_maybe(finite),
        completed_at=_maybe(times),
        reflection=_maybe(texts),
        metadata=json_values,
    ),
    "step": _record(
        Step,
        episode_id=keys,
        step_number=counts,
        action=texts,
        result=_maybe(texts),
        duration_ms=_maybe(counts),
        success=_maybe(st.booleans()),
        timestamp=_maybe(times),
        tool_name=_maybe(keys),
    ),
    "pattern": _record(
        Pattern,
        pattern_type=keys,
        pattern_data=json_values,
        domain=_maybe(keys),
        success_rate=shares,
        confidence=shares,
        usage_count=counts,
        last_used=_maybe(times),
        metadata=json_values,
    ),
    "embedding": _record(
        _embedding, episode_id=keys, content=texts, embedding=vectors, model_name=keys.map("m-".__add__)
    ),
    "spatiotemporal": _record(
        SpatiotemporalEntry,
        episode_id=keys,
        spatial_key=keys,
        temporal_key=keys,
        diversity_score=_maybe(shares),
    ),
}

any_record = st.one_of(list(RECORD_STRATEGIES.values()))
