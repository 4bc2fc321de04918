"""One line of JSON -> the rows it stands for, or the reason why it stands for none.

Two shapes: a record as `export` writes it (`{"kind": "episode", "namespace": ..., every column}`), and a recorded run
(`{"id", "task_type", "domain", ..., "steps": [...]}`), an episode with its steps in one line.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from datetime import UTC, datetime, tzinfo
from typing import Any, BinaryIO, NoReturn

from sqlalchemy import JSON

from memory_store.codec import CODECS
from memory_store.config import Limits, check_namespace
from memory_store.durable.restore import Item, Unit
from memory_store.errors import ConfigurationError, InvalidRecordError
from memory_store.records import RECORDS, Record, RecordSpec
from memory_store.records.columns import Float32Vector, UtcDateTime

__all__ = ["MAX_LINE_BYTES", "LineError", "LineParser", "bounded_lines"]

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Longest line that is read: an episode of the largest size with several of the largest steps."""

_STATUS_WORDS = {"success": "completed", "failure": "failed", "incomplete": "archived"}
_RUN_FIELDS = frozenset(
    {"id", "task_type", "domain", "context", "status", "success_rate", "reward_score", "created_at"}
    | {"completed_at", "reflection", "metadata", "steps"}
)
_STEP_FIELDS = frozenset({"step_number", "action", "result", "tool_name", "duration_ms", "success", "timestamp"})


class LineError(Exception):
    """A line cannot be imported.

    Attributes:
        field: the field at fault, or None for the line as a whole.
        reason: what is wrong with it.
        id: id of the record concerned, or None.
    """

    def __init__(self, field: str | None, reason: str, id_: str | None = None) -> None:
        super().__init__(reason)
        self.field, self.reason, self.id = field, reason, id_


def bounded_lines(file: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of a file without ever holding more than one; of a longer line, only the first bytes.

    Args:
        file: opened for reading bytes.
        max_line_bytes: a longer line is cut to one byte more, by which `import_lines` knows that it is too long.
    """
    while line := file.readline(max_line_bytes + 1):
        yield line
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


class LineParser:
    """Parses lines for one namespace.

    Args:
        namespace: where records go whose line names none.
        limits: the largest values accepted.
        timezone: what times without a zone are in.
        now: the time of the import, for records whose source holds no time.
        max_line_bytes: the longest line accepted.
    """

    def __init__(
        self, namespace: str, limits: Limits, timezone: tzinfo, now: datetime, max_line_bytes: int = MAX_LINE_BYTES
    ) -> None:
        self._namespace, self._limits, self._zone, self._now = namespace, limits, timezone, now
        self._max_line_bytes = max_line_bytes
        self._shapes = {kind: _Shape(spec) for kind, spec in RECORDS.items()}
        self._run_open = {
            kind: (_places(spec, "revision", "updated_at"), _places(spec, "revision", "updated_at", "created_at"))
            for kind, spec in RECORDS.items()
        }

    def parse(self, line: bytes | str) -> Unit | None:
        """Return the unit a line stands for, None for a blank line.

        Raises:
            LineError: it stands for none.
        """
        value = self._read(line)
        if value is None:
            return None
        if type(value) is not dict:
            raise LineError(None, f"is no JSON object but a {type(value).__name__}")
        given_id = value.get("id")
        id_ = given_id if isinstance(given_id, str) else None
        try:
            if "steps" in value:
                return self._run(value)
            if "kind" in value:
                return self._record(value)
        except InvalidRecordError as error:
            name = f"{error.kind}.{error.field}" if error.field else error.kind
            raise LineError(name, _without_name(str(error), name), error.key or id_) from error
        except LineError as error:
            error.id = error.id or id_
            raise
        raise LineError(None, 'has neither "steps" (a recorded run) nor "kind" (an exported record)', id_)

    def _read(self, line: bytes | str) -> Any:
        newline = line[-1:] in (b"\n", "\n")
        if len(line) - newline > self._max_line_bytes:
            raise LineError(None, f"is longer than {self._max_line_bytes:,} bytes")
        try:
            text = line.decode("utf-8") if isinstance(line, bytes) else line
            text = text.strip("\ufeff \t\r\n")
            return _decode(text) if text else None
        except UnicodeDecodeError as error:
            raise LineError(None, f"is not UTF-8 (byte {error.start + 1})") from error
        except json.JSONDecodeError as error:
            raise LineError(None, f"is not JSON ({error.msg} at character {error.pos + 1})") from error
        except ValueError as error:
            raise LineError(None, f"is not JSON that can be stored ({str(error)[:100]})") from error
        except RecursionError as error:
            raise LineError(None, "is nested too deep") from error

    def _record(self, value: dict[str, Any]) -> Unit:
        kind, namespace = value.pop("kind"), value.pop("namespace", self._namespace)
        shape = self._shapes.get(kind) if isinstance(kind, str) else None
        if shape is None:
            raise LineError("kind", f"{kind!r:.80} is unknown; known: {', '.join(RECORDS)}")
        try:
            check_namespace(namespace)
        except (ConfigurationError, TypeError) as error:
            raise LineError("namespace", str(error)) from error
        item = Item(shape.spec, namespace, *shape.row(value, self._zone, self._limits))
        return Unit([item])

    def _run(self, value: dict[str, Any]) -> Unit:
        steps, id_ = value["steps"], value.get("id")
        if type(steps) is not list:
            raise LineError("episode.steps", f"must be a list, got {type(steps).__name__}")
        if not isinstance(id_, str) or not id_:
            raise LineError("episode.id", f"must be text, got {id_!r:.40}")
        given = [self._step(id_, step) for step in steps]
        numbers = [step["step_number"] for step in given]
        if len(set(numbers)) != len(numbers):
            repeated = next(number for number in numbers if numbers.count(number) > 1)
            raise LineError("step.step_number", f"{repeated} appears twice")
        created_at = _time("episode.created_at", value.get("created_at"), self._zone)
        if created_at is None:
            created_at = min((step["timestamp"] for step in given if step["timestamp"] is not None), default=None)
        is_open = created_at is None
        created = created_at or self._now
        items = [self._item("episode", self._episode(value, steps, created), is_open)]
        for step in given:
            at = step["timestamp"] or created
            items.append(
                self._item("step", {**step, "created_at": at, "updated_at": at}, is_open and step["timestamp"] is None)
            )
        return Unit(items, complete=("step",))

    def _item(self, kind: str, values: dict[str, Any], is_open: bool) -> Item:
        spec = RECORDS[kind]
        row = CODECS[kind].encode(spec.record(**values), self._limits)
        return Item(spec, self._namespace, row, self._run_open[kind][is_open])

    def _episode(self, value: dict[str, Any], steps: list[dict[str, Any]], created_at: datetime) -> dict[str, Any]:
        for name in ("task_type", "domain"):
            if name not in value:
                raise LineError(f"episode.{name}", "is missing")
        values = {name: value[name] for name in value if name in _RUN_FIELDS and name != "steps"}
        word = value.get("status")
        values["created_at"] = values["updated_at"] = created_at
        values["completed_at"] = _time("episode.completed_at", value.get("completed_at"), self._zone)
        notes: dict[str, Any] = {}
        if isinstance(word, str) and word in _STATUS_WORDS:
            values["status"], notes["source_status"] = _STATUS_WORDS[word], word
        unknown = {name: value[name] for name in value if name not in _RUN_FIELDS}
        of_steps = {
            str(step["step_number"]): {name: step[name] for name in step if name not in _STEP_FIELDS}
            for step in steps
            if not step.keys() <= _STEP_FIELDS
        }
        if of_steps:
            unknown["steps"] = of_steps
        if unknown:
            notes["source"] = unknown
        if notes:
            metadata = value.get("metadata", {})
            if type(metadata) is not dict or metadata.keys() & notes.keys():
                raise LineError("episode.metadata", f"has no room for {' and '.join(notes)}, which import notes there")
            values["metadata"] = {**metadata, **notes}
        return values

    def _step(self, episode_id: str, step: Any) -> dict[str, Any]:
        if type(step) is not dict:
            raise LineError("episode.steps", f"must hold objects, holds a {type(step).__name__}")
        number = step.get("step_number")
        if type(number) is not int:
            raise LineError("step.step_number", f"must be an integer, got {number!r:.40}")
        if "action" not in step:
            raise LineError("step.action", f"is missing in step {number}")
        values = {name: step[name] for name in step if name in _STEP_FIELDS}
        values["timestamp"] = _time("step.timestamp", step.get("timestamp"), self._zone)
        values["id"], values["episode_id"] = f"{episode_id}/{number}", episode_id
        return values


class _Shape:
    """How the exported records of one kind are read."""

    def __init__(self, spec: RecordSpec[Any]) -> None:
        self.spec = spec
        columns = [spec.table.c[name] for name in spec.columns]
        self._names = frozenset(spec.columns)
        self._times = [c.name for c in columns if isinstance(c.type, UtcDateTime)]
        self._json = frozenset(c.name for c in columns if isinstance(c.type, JSON))
        self._vectors = [c.name for c in columns if isinstance(c.type, Float32Vector)]
        self._required = [
            item.name for item in fields(spec.record) if item.default is MISSING and item.default_factory is MISSING
        ]
        # What would be made up anew at each import must be given, or importing twice would store two records.
        self._required += [name for name in ("id", spec.number, spec.parent) if name and name not in self._required]
        self._optional_times = [c.name for c in columns if isinstance(c.type, UtcDateTime) and c.nullable]

    def row(self, value: Mapping[str, Any], zone: tzinfo, limits: Limits) -> tuple[Any, frozenset[int]]:
        """Return the row, and the places of the columns that the line leaves open."""
        kind = self.spec.kind
        for name in value:
            if name not in self._names:
                raise LineError(f"{kind}.{name:.80}", "is no field of this kind")
        for name in self._required:
            if name not in value or (value[name] is None and name not in self._json):
                raise LineError(f"{kind}.{name}", "is missing")
        values = {**dict.fromkeys(self._optional_times), **value}
        for name in self._times:
            if name in value:
                values[name] = _time(f"{kind}.{name}", value[name], zone)
        for name in self._vectors:
            values[name] = _vector(f"{kind}.{name}", value[name])
        if value.get("revision", 1) == 0:
            raise LineError(f"{kind}.revision", "must be 1 or more")
        record: Record = self.spec.record(**values)
        open_columns = _places(
            self.spec, *(name for name in ("revision", "created_at", "updated_at") if name not in value)
        )
        return CODECS[kind].encode(record, limits), open_columns


def _places(spec: RecordSpec[Any], *names: str) -> frozenset[int]:
    return frozenset(spec.index(name) for name in names)


def _time(name: str, value: Any, zone: tzinfo) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise LineError(name, f"must be a time as ISO 8601 text, got {type(value).__name__}")
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise LineError(name, f"is no time in ISO 8601: {value!r:.60}") from error


def _vector(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error) as error:
        raise LineError(name, f"is no base64 ({error})") from error


def _without_name(message: str, name: str | None) -> str:
    return message.removeprefix(f"{name} ") if name else message
