"""Operations for the scenarios, as `Collection` would make them: the same content in every run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from memory_store import Embedding, Episode, Pattern, Step
from memory_store.codec import CODECS
from memory_store.config import Limits
from memory_store.durable.operations import Delete, Put, Update
from memory_store.durable.outcomes import PutOnce
from memory_store.durable.restore import Item, Restore, Unit
from memory_store.records import RECORDS, Record

__all__ = [
    "append",
    "delete",
    "embedding",
    "import_runs",
    "make_episode",
    "pattern",
    "put",
    "put_episode",
    "put_once",
    "update",
]

NAMESPACE = "agent"
_LIMITS = Limits()
_MADE = datetime(2026, 11, 21, 12, tzinfo=UTC)
_TIMES: dict[str, Any] = {"created_at": _MADE, "updated_at": _MADE}


def _encoded(record: Record) -> list[Any]:
    return CODECS[record.kind].encode(record, _LIMITS)


def put(*records: Record) -> Put:
    """Put records of one kind."""
    return Put(RECORDS[records[0].kind], NAMESPACE, [_encoded(record) for record in records])


def put_once(record: Record, key: str) -> PutOnce:
    """Put a record under an idempotency key."""
    return PutOnce(RECORDS[record.kind], NAMESPACE, _encoded(record), key)


def make_episode(id_: str, **values: Any) -> Episode:
    """Return an episode of about half a kilobyte."""
    context = {"goal": f"what {id_} is about", "filler": "x" * 300}
    given = {"task_type": "testing", "domain": "web", "context": context} | _TIMES | values
    return Episode(id=id_, **given)


def put_episode(id_: str, **values: Any) -> Put:
    """Put an episode."""
    return put(make_episode(id_, **values))


def append(episode: str, *ids: str) -> Put:
    """Append steps to an episode."""
    steps = [
        Step(id=id_, episode_id=episode, action="pytest -x", result="1 failed", timestamp=_MADE, **_TIMES)
        for id_ in ids
    ]
    return put(*steps)


def pattern(id_: str, **values: Any) -> Put:
    """Put a pattern."""
    given = {"pattern_type": "tool_sequence", "pattern_data": {"tools": ["read", "edit"]}} | _TIMES | values
    return put(Pattern(id=id_, **given))


def embedding(id_: str, episode: str, numbers: int = 384) -> Put:
    """Put an embedding."""
    vector = [number / 8 for number in range(numbers)]
    made = Embedding(
        id=id_,
        episode_id=episode,
        content=id_,
        embedding=vector,
        model_name="a-model",
        vector_dim=numbers,
        **_TIMES,
    )
    return put(made)


def update(kind: str, id_: str, expected_revision: int | None = None, **values: Any) -> Update:
    """Update fields of a record."""
    return Update(RECORDS[kind], NAMESPACE, id_, values, expected_revision, _LIMITS)


def delete(kind: str, id_: str) -> Delete:
    """Delete a record."""
    return Delete(RECORDS[kind], NAMESPACE, id_, None)


def import_runs(*names: str) -> Restore:
    """Import episodes with their steps."""
    units = []
    for name in names:
        steps = [
            Step(id=f"{name}-{number}", episode_id=name, step_number=number, action="ls", timestamp=_MADE, **_TIMES)
            for number in (1, 2, 3)
        ]
        items = [Item(RECORDS[r.kind], NAMESPACE, _encoded(r), frozenset()) for r in (make_episode(name), *steps)]
        units.append(Unit(items, complete=("step",)))
    return Restore(units, replace=False)
