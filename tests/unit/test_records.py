"""Every kind: what is filled in, what is refused and how the error says so, and that a record cannot be changed."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from hypothesis import given

from memory_store import Episode, EpisodeStatus, InvalidRecordError, Limits, PatternType, Step, TaskType
from memory_store.codec import CODECS
from memory_store.records import RECORDS, QueryResult, Record
from memory_store.records.columns import Float32Vector, UtcDateTime
from tests.unit.samples import CHANGE, MAKE, any_record, make_episode, make_pattern, make_place, make_step, values_of

KINDS = list(RECORDS)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def decoded(record: Record) -> Any:
    """The record as it comes out of a tier: its times and JSON still packed."""
    codec = CODECS[record.kind]
    return codec.decode(codec.encode(record, Limits()))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_times_are_filled_in(kind: str) -> None:
    before = datetime.now(UTC)
    first, second = MAKE[kind](), MAKE[kind]()
    assert first.revision == 0
    assert before <= first.created_at <= datetime.now(UTC)
    assert first.created_at.tzinfo is UTC
    assert first.updated_at.tzinfo is UTC
    if kind == "pattern":
        assert first.id == second.id  # named by its content
    else:
        assert first.id < second.id


def test_a_step_is_dated_unless_its_time_is_said_to_be_unknown() -> None:
    assert Step(action="x").timestamp is not None
    assert Step(action="x", timestamp=None).timestamp is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_cannot_be_changed(kind: str) -> None:
    for record in (MAKE[kind](), decoded(MAKE[kind](step_number=1) if kind == "step" else MAKE[kind]())):
        for name in RECORDS[kind].columns:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(record, name, getattr(record, name))
            with pytest.raises(dataclasses.FrozenInstanceError):
                delattr(record, name)
        with pytest.raises((AttributeError, TypeError)):  # slots: there is nowhere to put anything else
            record.something_else = 1
        assert not hasattr(record, "__dict__")


@pytest.mark.parametrize("kind", KINDS)
def test_replace_makes_another_record_and_leaves_the_first(kind: str) -> None:
    record = decoded(MAKE[kind](step_number=1) if kind == "step" else MAKE[kind]())
    before = values_of(record)
    changed = dataclasses.replace(record, **CHANGE[kind])
    assert values_of(changed) == before | CHANGE[kind]
    assert values_of(record) == before
    assert changed != record


def test_replace_checks_the_new_value() -> None:
    with pytest.raises(InvalidRecordError, match=r"episode\.success_rate must lie between 0 and 1, got 1\.5"):
        dataclasses.replace(make_episode(), success_rate=1.5)


@given(any_record)
def test_copies_and_pickles_are_equal_and_independent(record: Record) -> None:
    packed = decoded(record)  # not looked at yet: the copy must carry what is still packed
    copies = [copy.copy(packed), copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), dataclasses.replace(packed)]
    for other in [*copies, copy.deepcopy(record), pickle.loads(pickle.dumps(record))]:
        assert type(other) is type(record)
        assert other == record
        assert hash(other) == hash(record)
        assert values_of(other) == values_of(record)


@pytest.mark.parametrize("kind", KINDS)
def test_equality_looks_at_every_field(kind: str) -> None:
    record = MAKE[kind](step_number=1) if kind == "step" else MAKE[kind]()
    assert record == decoded(record)
    assert record != "record"
    assert record != dataclasses.replace(record, revision=record.revision + 1)
    assert record != dataclasses.replace(record, created_at=record.created_at + timedelta(microseconds=1))
    assert len({record, decoded(record)}) == 1


def test_records_of_two_kinds_are_never_equal() -> None:
    assert make_episode(id="x", created_at=NOON, updated_at=NOON) != make_place(
        id="x", created_at=NOON, updated_at=NOON
    )
    assert hash(make_episode(id="x")) != hash(make_place(id="x"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_repr_tells_kind_and_fields(kind: str) -> None:
    record = decoded(MAKE[kind](step_number=1) if kind == "step" else MAKE[kind]())
    text = repr(record)
    assert text.startswith(type(record).__name__ + "(")
    assert all(f"{name}=" in text for name in RECORDS[kind].columns)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'Episode' object has no attribute 'goal'"):
        _ = decoded(make_episode()).goal
    with pytest.raises(TypeError, match="goal"):
        Episode(task_type="t", domain="d", goal=1)


def test_enums_are_accepted_and_become_their_plain_words() -> None:
    episode = make_episode(task_type=TaskType.DEBUGGING, status=EpisodeStatus.FAILED)
    assert (type(episode.task_type), type(episode.status)) == (str, str)
    assert (episode.task_type, episode.status) == ("debugging", "failed")
    assert type(make_pattern(pattern_type=PatternType.OPTIMIZATION).pattern_type) is str
    assert make_episode(task_type="my own word").task_type == "my own word"
    assert make_pattern(pattern_type="my own word").pattern_type == "my own word"


def test_times_are_kept_in_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    episode = make_episode(completed_at=datetime(2026, 11, 21, 21, tzinfo=tokyo))
    assert episode.completed_at == NOON
    assert episode.completed_at.tzinfo is UTC


class Nowhere(tzinfo):
    """A timezone that does not know its offset, which makes a datetime naive all the same."""

    def utcoffset(self, _moment: datetime | None) -> None:
        return None


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("episode", {"id": ""}, "id", "must not be empty"),
    ("episode", {"id": 5}, "id", "must be text, got int"),
    ("episode", {"id": "a\0b"}, "id", "must not hold NUL"),
    ("episode", {"id": "a\ud800b"}, "id", "lone surrogate at character 1"),
    ("episode", {"revision": -1}, "revision", "must not be negative, got -1"),
    ("episode", {"revision": True}, "revision", "must be an integer, got bool"),
    ("episode", {"revision": 1 << 63}, "revision", "must fit 64 bits"),
    ("episode", {"created_at": datetime(2026, 11, 21)}, "created_at", "2026-11-21T00:00:00 has no timezone; use "),
    ("episode", {"created_at": datetime(2026, 11, 21, tzinfo=Nowhere())}, "created_at", "has no timezone"),
    ("episode", {"created_at": "2026-11-21"}, "created_at", "must be a datetime, got str"),
    ("episode", {"created_at": None}, "created_at", "must be a datetime, got NoneType"),
    (
        "episode",
        {"created_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))},
        "created_at",
        "is outside the years 1 to 9999 in UTC",
    ),
    ("episode", {"task_type": None}, "task_type", "must be text, got NoneType"),
    ("episode", {"domain": b"web"}, "domain", "must be text, got bytes"),
    ("episode", {"status": "success"}, "status", "must be one of active, completed, failed, archived, got 'success'"),
    ("episode", {"status": None}, "status", "must be text"),
    ("episode", {"success_rate": 1.001}, "success_rate", "must lie between 0 and 1, got 1.001"),
    ("episode", {"success_rate": float("nan")}, "success_rate", "must be finite, got nan"),
    ("episode", {"reward_score": float("inf")}, "reward_score", "must be finite, got inf"),
    ("episode", {"reward_score": "0.5"}, "reward_score", "must be a number, got str"),
    ("episode", {"reward_score": True}, "reward_score", "must be a number, got bool"),
    ("episode", {"reward_score": 10**400}, "reward_score", "is too large for a float"),
    ("episode", {"reflection": 5}, "reflection", "must be text, got int"),
    ("episode", {"context": {"a": {1}}}, "context", "holds a set, which is not a JSON value"),
    ("episode", {"context": (1, 2)}, "context", "holds a tuple, which is not a JSON value"),
    ("episode", {"context": {1: 2}}, "context", "has a key of type int; JSON keys are text"),
    ("episode", {"context": [float("nan")]}, "context", "must be finite, got nan"),
    ("episode", {"context": [1 << 1024]}, "context", "holds an integer that is too large"),
    ("episode", {"context": {"a": "\udfff"}}, "context", "lone surrogate"),
    ("episode", {"context": {"\udfff": 1}}, "context", "lone surrogate"),
    ("episode", {"metadata": {"at": NOON}}, "metadata", "holds a datetime, which is not a JSON value"),
    ("step", {"action": None}, "action", "must be text, got NoneType"),
    ("step", {"result": b"x"}, "result", "must be text, got bytes"),
    ("step", {"step_number": -1}, "step_number", "must not be negative, got -1"),
    ("step", {"step_number": 1.0}, "step_number", "must be an integer, got float"),
    ("step", {"duration_ms": -5}, "duration_ms", "must not be negative, got -5"),
    ("step", {"duration_ms": 12.5}, "duration_ms", "must be an integer, got float"),
    ("step", {"success": 1}, "success", "must be True or False, got int"),
    ("step", {"timestamp": datetime(2026, 11, 21)}, "timestamp", "has no timezone"),
    ("step", {"tool_name": "a\0"}, "tool_name", "must not hold NUL"),
    ("step", {"episode_id": None}, "episode_id", "must be text, got NoneType"),
    ("pattern", {"success_rate": -0.1}, "success_rate", "must lie between 0 and 1, got -0.1"),
    ("pattern", {"confidence": 2}, "confidence", "must lie between 0 and 1, got 2"),
    ("pattern", {"confidence": None}, "confidence", "must be a number, got NoneType"),
    ("pattern", {"usage_count": -1}, "usage_count", "must not be negative, got -1"),
    ("pattern", {"pattern_type": 5}, "pattern_type", "must be text, got int"),
    ("pattern", {"pattern_data": {"x": b""}}, "pattern_data", "holds a bytes, which is not a JSON value"),
    ("pattern", {"domain": 5}, "domain", "must be text, got int"),
    ("pattern", {"domain": b"web"}, "domain", "must be text, got bytes"),
    ("spatiotemporal", {"diversity_score": 1.5}, "diversity_score", "must lie between 0 and 1, got 1.5"),
    ("spatiotemporal", {"spatial_key": None}, "spatial_key", "must be text, got NoneType"),
    ("spatiotemporal", {"temporal_key": 7}, "temporal_key", "must be text, got int"),
]


@pytest.mark.parametrize(("kind", "changes", "field", "problem"), REFUSED)
def test_a_broken_rule_is_named(kind: str, changes: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(InvalidRecordError) as caught:
        MAKE[kind](**changes)
    error = caught.value
    assert str(error).startswith(f"{kind}.{field} ")
    assert problem in str(error)
    assert (error.kind, error.field, error.retryable) == (kind, field, False)


def test_what_has_a_limit_says_limit_and_size() -> None:
    with pytest.raises(InvalidRecordError) as caught:
        make_episode(revision=1 << 70)
    assert (caught.value.limit, caught.value.size) == (63, 71)
    with pytest.raises(InvalidRecordError) as caught:
        make_episode(context=1 << 1025)
    assert (caught.value.limit, caught.value.size) == (1024, 1026)
    deep: Any = []
    for _ in range(600):
        deep = [deep]
    with pytest.raises(InvalidRecordError, match="nested deeper than 500 levels") as caught:
        make_episode(context=deep)
    assert caught.value.limit == 500


def test_json_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidRecordError, match="nested deeper"):
        make_episode(context=endless)


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "", "\0", [], {}, {"": {"a": [None, 1e308, 1 << 1023]}}])
def test_every_json_value_is_accepted(value: Any) -> None:
    record = make_episode(context=value, metadata=value)
    again = decoded(record)
    assert again.context == value
    assert type(again.context) is type(value)
    assert again.metadata == value


def test_a_mapping_changed_after_the_record_was_made_is_checked_again_when_it_is_written() -> None:
    context: dict[str, Any] = {"goal": "x"}
    record = make_episode(context=context)
    for broken in ({1}, float("nan"), "\ud800"):
        context["late"] = broken
        with pytest.raises(InvalidRecordError, match=r"episode\.context cannot be stored as JSON") as caught:
            CODECS["episode"].encode(record, Limits())
        assert caught.value.field == "context"
        assert caught.value.key == record.id


def test_a_filter_needs_a_timezone_too() -> None:
    with pytest.raises(InvalidRecordError, match="has no timezone"):
        UtcDateTime().process_bind_param(datetime(2026, 11, 21), None)  # type: ignore[arg-type]
    assert UtcDateTime().process_bind_param(NOON, None) == 1795262400_000000  # type: ignore[arg-type]
    assert UtcDateTime().process_result_value(1795262400_000000, None) == NOON  # type: ignore[arg-type]
    assert UtcDateTime().process_bind_param(None, None) is None  # type: ignore[arg-type]
    assert Float32Vector().cache_ok


def test_numbers_take_the_form_of_their_column() -> None:
    assert type(make_episode(reward_score=1).reward_score) is float
    assert type(make_pattern(success_rate=1).success_rate) is float
    step = make_step(step_number=0, duration_ms=0, success=False)
    assert (step.step_number, step.duration_ms, step.success) == (0, 0, False)


def test_a_query_result_survives_its_row() -> None:
    result = QueryResult(id="q", ids=("a", "b"), scores=(0.5, 0.25), total=9)
    assert QueryResult.from_row(result.to_row()) == result
    assert QueryResult.from_row(QueryResult(id="q").to_row()) == QueryResult(id="q", ids=(), scores=(), total=None)
    assert QueryResult.ttl_s == 300
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.total = 1  # type: ignore[misc]
