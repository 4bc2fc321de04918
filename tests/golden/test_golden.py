"""One stored sample a kind: what this library once wrote must be written and read the same way for ever.

The files are JSON: the shapes' fingerprint, the record's fields, and its packed row in hex. To renew them after a
deliberate change of a shape (which also needs a migration): `python -m tests.golden.renew`, then read the diff.
"""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from memory_store import Limits
from memory_store.codec import CODECS, fingerprint, pack_row
from memory_store.records import RECORDS
from tests.golden.renew import FOLDER, SAMPLES, read_sample, written

RENEW = "if the change is meant, run `python -m tests.golden.renew` and write a migration"


@pytest.mark.parametrize("kind", RECORDS)
def test_encoding_is_byte_identical(kind: str) -> None:
    stored = read_sample(kind)
    packed = pack_row(CODECS[kind].encode(SAMPLES[kind], Limits()))
    assert packed.hex() == stored["packed"], f"{kind} is packed differently from before; {RENEW}"


@pytest.mark.parametrize("kind", RECORDS)
def test_decoding_gives_the_same_record(kind: str) -> None:
    stored = read_sample(kind)
    record: Any = CODECS[kind].decode(msgpack.unpackb(bytes.fromhex(stored["packed"])))
    assert record == SAMPLES[kind], f"stored rows of {kind} are read differently from before; {RENEW}"
    assert written(record) == stored["fields"]
    assert list(stored["fields"]) == list(RECORDS[kind].columns)


@pytest.mark.parametrize("kind", RECORDS)
def test_the_fingerprint_is_the_one_the_samples_were_written_with(kind: str) -> None:
    assert read_sample(kind)["fingerprint"] == fingerprint(), (
        f"the shape of a kind has changed since {kind}.json was written, so every saved cache will be rebuilt; {RENEW}"
    )


@pytest.mark.parametrize("kind", RECORDS)
def test_a_sample_leaves_no_field_empty(kind: str) -> None:
    assert all(value not in (None, "", 0, {}) for value in read_sample(kind)["fields"].values())


def test_there_is_one_file_a_kind() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(RECORDS) == set(SAMPLES)
