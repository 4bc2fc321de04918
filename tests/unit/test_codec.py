"""Record <-> row: every value comes back the same, and every limit is checked before anything is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from sqlalchemy import Column, Integer, MetaData

from memory_store import InvalidRecordError, Limits
from memory_store import codec as codec_module
from memory_store.codec import CODECS, fingerprint, pack_row
from memory_store.records import RECORDS, Record
from tests.unit.samples import MAKE, any_record, make_embedding, make_episode, make_pattern, make_step, values_of


def there_and_back(record: Record, limits: Limits | None = None) -> Any:
    """The record after a trip through row and msgpack."""
    codec = CODECS[record.kind]
    return codec.decode(msgpack.unpackb(pack_row(codec.encode(record, limits or Limits()))))


@given(any_record)
def test_every_record_comes_back_the_same(record: Record) -> None:
    again = there_and_back(record)
    before, after = values_of(record), values_of(again)
    assert after == before
    # 1 == 1.0 == True, so the types must agree as well, inside JSON too.
    assert repr(after) == repr(before)
    assert again == record


@given(any_record)
def test_a_row_holds_only_what_the_database_stores(record: Record) -> None:
    row = CODECS[record.kind].encode(record, Limits())
    assert len(row) == len(RECORDS[record.kind].columns)
    assert {type(value) for value in row} <= {str, int, float, bool, bytes, type(None)}
    assert row[:2] == [record.id, record.revision]


@pytest.mark.parametrize("kind", RECORDS)
def test_nothing_done_to_a_record_reaches_the_row_it_came_from(kind: str) -> None:
    codec = CODECS[kind]
    packed = pack_row(codec.encode(MAKE[kind](), Limits()))
    record = codec.decode(msgpack.unpackb(packed))
    for value in values_of(record).values():
        if isinstance(value, dict):
            value["changed"] = True
    assert pack_row(codec.encode(codec.decode(msgpack.unpackb(packed)), Limits())) == packed


def test_times_and_json_are_parsed_when_they_are_looked_at_and_only_once() -> None:
    record = there_and_back(make_episode())
    assert record.context is record.context
    assert record.created_at is record.created_at


def refusal(record: Record, **limits: int) -> InvalidRecordError:
    """The error of encoding a record under these limits; the record exactly at them is fine."""
    CODECS[record.kind].encode(record, Limits(**limits))
    with pytest.raises(InvalidRecordError) as caught:
        CODECS[record.kind].encode(record, Limits(**{name: limit - 1 for name, limit in limits.items()}))
    return caught.value


# Two UTF-8 bytes a letter: the limits count bytes, not characters.
@pytest.mark.parametrize("letter", ["x", "ü", "\0"])
@pytest.mark.parametrize("field", ["action", "result"])
def test_a_step_that_is_too_large_is_refused(field: str, letter: str) -> None:
    size = 3000 * len(letter.encode())
    error = refusal(make_step(**{field: letter * 3000}), step_bytes=size)
    assert (error.kind, error.field, error.limit, error.size) == ("step", field, size - 1, size)
    assert str(error) == f"step.{field} has {size:,} bytes, the limit is {size - 1:,}"


@pytest.mark.parametrize(("kind", "limit"), [("episode", "episode_bytes"), ("pattern", "pattern_bytes")])
def test_a_record_that_is_too_large_as_a_whole_is_refused(kind: str, limit: str) -> None:
    record = MAKE[kind](metadata={"text": "ü" * 500})
    row = CODECS[kind].encode(record, Limits())
    size = sum(len(value.encode()) for value in row if isinstance(value, str))
    error = refusal(record, **{limit: size})
    assert (error.kind, error.field, error.limit, error.size, error.key) == (kind, None, size - 1, size, record.id)
    assert str(error) == f"{kind} as a whole has {size:,} bytes, the limit is {size - 1:,}"


def test_the_content_of_an_embedding_has_a_limit() -> None:
    error = refusal(make_embedding(content="ü" * 100), content_bytes=200)
    assert (error.field, error.limit, error.size) == ("content", 199, 200)


def test_the_dimensions_of_an_embedding_have_a_limit() -> None:
    error = refusal(make_embedding(embedding=[0.0] * 12, vector_dim=12), embedding_dimensions=12)
    assert (error.field, error.limit, error.size) == ("embedding", 11, 12)
    assert str(error) == "embedding.embedding has 12 dimensions, the limit is 11"


def test_the_depth_of_json_has_a_limit() -> None:
    error = refusal(make_episode(context={"a": [{"b": []}]}), json_depth=4)
    assert (error.field, error.limit, error.size) == ("context", 3, 4)
    assert str(error) == "episode.context has 4 levels of nesting, the limit is 3"
    wide = make_episode(context=[[] for _ in range(100)])
    CODECS["episode"].encode(wide, Limits(json_depth=2))  # many brackets, little depth


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("episode", "id"),
        ("episode", "task_type"),
        ("episode", "domain"),
        ("step", "tool_name"),
        ("step", "episode_id"),
        ("pattern", "pattern_type"),
        ("pattern", "domain"),
        ("embedding", "model_name"),
        ("spatiotemporal", "spatial_key"),
        ("spatiotemporal", "temporal_key"),
    ],
)
def test_every_key_has_a_limit(kind: str, field: str) -> None:
    record = MAKE[kind](**{"id": "x"} | {field: "ü" * 60})
    error = refusal(record, key_bytes=120)
    assert (error.kind, error.field, error.limit, error.size) == (kind, field, 119, 120)


def test_an_error_never_carries_a_huge_key() -> None:
    with pytest.raises(InvalidRecordError) as caught:
        CODECS["episode"].encode(make_episode(id="x" * 5000), Limits())
    assert caught.value.key == "x" * 256
    assert len(str(caught.value)) < 400


def test_the_defaults_are_the_documented_limits() -> None:
    mib = 1024 * 1024
    assert dataclasses.asdict(Limits()) == {
        "episode_bytes": 10 * mib,
        "step_bytes": mib,
        "pattern_bytes": mib,
        "content_bytes": mib,
        "embedding_dimensions": 8192,
        "json_depth": 64,
        "key_bytes": 256,
    }
    one_mib = make_step(action="x", result="y" * mib)
    assert there_and_back(one_mib).result == one_mib.result
    with pytest.raises(InvalidRecordError, match=r"step\.result has 1,048,577 bytes, the limit is 1,048,576"):
        there_and_back(make_step(action="x", result="y" * (mib + 1)))
    with pytest.raises(InvalidRecordError, match="as a whole"):
        there_and_back(make_episode(reflection="y" * 10 * mib))


def test_the_fingerprint_changes_with_every_part_of_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {fingerprint()}
    assert fingerprint() in seen

    def must_be_new() -> None:
        digest = fingerprint()
        assert digest not in seen
        seen.add(digest)

    for kind, spec in RECORDS.items():
        with monkeypatch.context() as patch:  # a column more
            wider = spec.table.to_metadata(MetaData())
            wider.append_column(Column("added", Integer))
            changed = _with(spec, table=wider, columns=(*spec.columns, "added"))
            patch.setattr(codec_module, "RECORDS", {**RECORDS, kind: changed})
            must_be_new()
            patch.setattr(codec_module, "RECORDS", {**RECORDS, kind: _with(spec, columns=spec.columns[:-1])})
            must_be_new()
            patch.setattr(codec_module, "RECORDS", {**RECORDS, kind: _with(spec, columns=spec.columns[::-1])})
            must_be_new()
            retyped = spec.table.to_metadata(MetaData())
            retyped.c[spec.columns[-1]].type = Integer()
            patch.setattr(codec_module, "RECORDS", {**RECORDS, kind: _with(spec, table=retyped)})
            must_be_new()
    monkeypatch.setattr(codec_module, "_FORMAT", codec_module._FORMAT + 1)
    must_be_new()


def _with(spec: Any, **changes: Any) -> Any:
    """A bare copy of a spec with other attributes."""
    names = ("kind", "parent", "order", "columns", "table")
    return type("Shape", (), {name: getattr(spec, name) for name in names} | changes)


def test_a_pattern_named_by_its_content_fits_the_key_limit() -> None:
    CODECS["pattern"].encode(make_pattern(pattern_type="x" * 223), Limits())
