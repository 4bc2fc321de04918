"""The samples, and how their files are written: `python -m tests.golden.renew`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from memory_store import Embedding, Episode, Limits, Pattern, SpatiotemporalEntry, Step
from memory_store.codec import CODECS, fingerprint, pack_row
from memory_store.records import RECORDS, Record

FOLDER = Path(__file__).parent

_COMMON: dict[str, Any] = {
    "revision": 3,
    "created_at": datetime(2026, 11, 21, 9, 30, 0, 123_456, tzinfo=UTC),
    "updated_at": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
}
_EPISODE_ID = "0193a2b4-5c6d-7e8f-9a0b-1c2d3e4f5a6b"

SAMPLES: dict[str, Record] = {
    "episode": Episode(
        id=_EPISODE_ID,
        task_type="debugging",
        domain="web",
        context={"goal": "fix the flaky test", "numbers": [1e2, -0.0, 1 << 70, 5e-324], "null": None, "deep": [[{}]]},
        status="completed",
        success_rate=0.1,
        reward_score=-1.5,
        completed_at=datetime(2026, 11, 21, 18, 30, tzinfo=timezone(timedelta(hours=9))),
        reflection="NUL \0, quotes \"', astral \U0001f600, line\r\nends\u2028",
        metadata={"ключ": "значение", "": True},
        **_COMMON,
    ),
    "step": Step(
        id="step-1",
        episode_id=_EPISODE_ID,
        step_number=(1 << 63) - 1,
        action="pytest -x",
        result="1 failed\x1b[0m",
        duration_ms=812,
        success=True,
        timestamp=datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        tool_name="shell",
        **_COMMON,
    ),
    "pattern": Pattern(
        pattern_type="tool_sequence",
        pattern_data=["read", {"edit": 1.5}],
        domain="web",
        success_rate=1.0,
        confidence=1 / 3,
        usage_count=42,
        last_used=datetime(1, 1, 1, tzinfo=UTC),
        metadata=[False],
        **_COMMON,
    ),
    "embedding": Embedding(
        id="embedding-1",
        episode_id=_EPISODE_ID,
        content="flaky",
        embedding=[0.5, -1.25, 3.4028234663852886e38, 1e-45],
        model_name="a-model-nobody-knows",
        vector_dim=4,
        **_COMMON,
    ),
    "spatiotemporal": SpatiotemporalEntry(
        id="place-1",
        episode_id=_EPISODE_ID,
        spatial_key="web/debugging",
        temporal_key="2026-W47",
        diversity_score=0.7,
        **_COMMON,
    ),
}


def written(record: Record) -> dict[str, Any]:
    """A record's fields as a sample's file has them."""
    fields = {name: getattr(record, name) for name in RECORDS[record.kind].columns}
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else value


def read_sample(kind: str) -> dict[str, Any]:
    """A kind's stored sample."""
    sample: dict[str, Any] = json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
    return sample


def main() -> None:
    """Write every sample."""
    for kind, record in SAMPLES.items():
        packed = pack_row(CODECS[kind].encode(record, Limits()))
        sample = {"fingerprint": fingerprint(), "fields": written(record), "packed": packed.hex()}
        (FOLDER / f"{kind}.json").write_text(json.dumps(sample, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
