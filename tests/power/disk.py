"""A disk: what a program sees of it, what is safe, and what a power cut may leave.

The model, stricter than any one file system:

- A write or a change of length is visible at once and safe once the file has been synced. Until then a power cut keeps
  any part of it: any subset, in any order, torn at sectors of 512 bytes, the new length without the data, or rubbish in
  the sectors that were being written. Bytes beside a write are never hurt, as SQLite assumes ("powersafe overwrite").
- A name that was made or removed is safe once the folder has been synced. Until then each name, independently of the
  others, is left at any of its states since the last sync of the folder. SQLite syncs the folder when it first syncs a
  journal or WAL it has opened.
- After a failed sync the data may be treated in two ways: they wait for the next sync, or (`forget`) the system takes
  them for written, as Linux does: visible, never written again unless their page of 4,096 bytes is written to again.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["DAMAGES", "Disk", "File"]

SECTOR, PAGE = 512, 4096


@dataclass(slots=True)
class Write:
    """Bytes written at an offset."""

    offset: int
    data: bytes


@dataclass(slots=True)
class Truncate:
    """A file cut to a length."""

    size: int


def _apply(content: bytearray, operation: Write | Truncate) -> None:
    if isinstance(operation, Truncate):
        del content[operation.size :]
        return
    if len(content) < operation.offset:
        content.extend(bytes(operation.offset - len(content)))
    content[operation.offset : operation.offset + len(operation.data)] = operation.data


class File:
    """One file: its visible content, its safe content, and what was done since."""

    def __init__(self, content: bytes = b"") -> None:
        self.visible, self.safe = bytearray(content), bytearray(content)
        self.pending: list[Write | Truncate] = []
        self.forgotten: dict[int, list[Write]] = {}
        """What was written to pages whose sync failed, and which the system takes for written."""

    def write(self, offset: int, data: bytes) -> None:
        """Write, visibly."""
        operation = Write(offset, bytes(data))
        _apply(self.visible, operation)
        self.pending.append(operation)

    def truncate(self, size: int) -> None:
        """Cut to a length, visibly."""
        _apply(self.visible, Truncate(size))
        self.pending.append(Truncate(size))

    def sync(self) -> None:
        """Make safe what is pending; a page that had been forgotten is written whole once any of it was written to."""
        for operation in self.pending:
            _apply(self.safe, operation)
        for page in {part.offset // PAGE for part in _pieces(self.pending, PAGE)} & self.forgotten.keys():
            _apply(self.safe, Write(page * PAGE, bytes(self.visible[page * PAGE : (page + 1) * PAGE])))
            del self.forgotten[page]
        self.pending.clear()

    def forget(self) -> None:
        """Take what is pending for written, as after a failed sync on Linux."""
        for part in _pieces(self.pending, PAGE):
            self.forgotten.setdefault(part.offset // PAGE, []).append(part)
        for operation in self.pending:
            if isinstance(operation, Truncate):  # not data: it is in the file system's own journal
                _apply(self.safe, operation)
        self.pending.clear()

    def unsafe(self) -> list[Write | Truncate]:
        """Everything that a power cut may keep or lose."""
        return [*(part for _, parts in sorted(self.forgotten.items()) for part in parts), *self.pending]


def _pieces(operations: Sequence[Write | Truncate], size: int) -> Iterator[Write]:
    """Cut writes at multiples of a size."""
    for operation in operations:
        if isinstance(operation, Truncate):
            continue
        at, end = operation.offset, operation.offset + len(operation.data)
        while at < end:
            stop = min((at // size + 1) * size, end)
            yield Write(at, operation.data[at - operation.offset : stop - operation.offset])
            at = stop


def _sectors(operation: Write) -> list[Write]:
    """Cut a write at the sectors of the disk."""
    return list(_pieces([operation], SECTOR))


# What a power cut leaves of a file. Each takes the safe content and what is not safe, and changes the content.


def _nothing(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    """Nothing that was not synced."""


def _everything(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    for operation in unsafe:
        _apply(content, operation)


def _beginning(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    """The first ones, the last of them torn."""
    count = chance.randint(0, len(unsafe))
    _everything(content, unsafe[:count], chance)
    if count < len(unsafe) and isinstance(torn := unsafe[count], Write):
        sectors = _sectors(torn)
        _everything(content, [*sectors[: chance.randint(0, len(sectors))]], chance)


def _end(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    """The last ones without those before them."""
    _everything(content, unsafe[chance.randint(0, len(unsafe)) :], chance)


def _some(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    _everything(content, [operation for operation in unsafe if chance.random() < 0.5], chance)


def _shuffled(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    _everything(content, chance.sample(unsafe, chance.randint(0, len(unsafe))), chance)


def _torn(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    """Of each write, some of its sectors."""
    for operation in unsafe:
        parts = _sectors(operation) if isinstance(operation, Write) else [operation]
        _everything(content, [part for part in parts if chance.random() < 0.7], chance)


def _any_version(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    """Each sector as it was at any moment since the last sync, and any of the lengths."""
    now = bytearray(content)
    versions: defaultdict[int, list[bytes]] = defaultdict(list)
    lengths = [len(content)]
    for operation in unsafe:
        _apply(now, operation)
        lengths.append(len(now))
        if isinstance(operation, Write):
            for part in _sectors(operation):
                start = part.offset // SECTOR * SECTOR
                versions[start].append(bytes(now[start : start + SECTOR]))
    for start, known in versions.items():
        chosen = chance.choice([None, *known])
        if chosen is not None:
            _apply(content, Write(start, chosen))
    del content[chance.choice([max(lengths), *lengths]) :]


def _lengths_only(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    """The new length, but zeros where the new data should be; what was there before is as it was."""
    for operation in unsafe:
        if isinstance(operation, Truncate):
            _apply(content, operation)
        elif operation.offset + len(operation.data) > len(content):
            content.extend(bytes(operation.offset + len(operation.data) - len(content)))


def _rubbish(content: bytearray, unsafe: list[Write | Truncate], chance: random.Random) -> None:
    """Some sectors that were being written hold anything."""
    for operation in unsafe:
        for part in _sectors(operation) if isinstance(operation, Write) else [operation]:
            if isinstance(part, Write) and chance.random() < 0.2:
                part = Write(part.offset, chance.randbytes(len(part.data)))
            if chance.random() < 0.9:
                _apply(content, part)


DAMAGES = [_nothing, _everything, _torn, _some, _beginning, _any_version, _shuffled, _end, _rubbish, _lengths_only]
"""Seeds 0 to 9 damage every file in one of these ways, later seeds each file in another."""


@dataclass
class Disk:
    """The files of one folder."""

    names: dict[str, File] = field(default_factory=dict)
    safe_names: dict[str, File] = field(default_factory=dict)
    _states: defaultdict[str, list[File | None]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def holding(cls, files: dict[str, bytes]) -> Disk:
        """Return a disk with these files, all of it safe."""
        names = {name: File(content) for name, content in files.items()}
        return cls(names, dict(names))

    def contents(self) -> dict[str, bytes]:
        """Return what a program sees."""
        return {name: bytes(file.visible) for name, file in self.names.items()}

    def create(self, name: str) -> File:
        """Make an empty file."""
        file = self.names[name] = File()
        self._states[name].append(file)
        return file

    def delete(self, name: str) -> None:
        """Remove a name."""
        del self.names[name]
        self._states[name].append(None)

    def sync_folder(self) -> None:
        """Make every name safe."""
        self.safe_names = dict(self.names)
        self._states.clear()

    def after_power_cut(self, seed: int) -> Disk:
        """Return what the machine finds when it is switched on again."""
        chance = random.Random(f"damage {seed}")
        names = dict(self.safe_names)
        for name, states in sorted(self._states.items()):
            kept: list[File | None] = [names.get(name), *states]
            state = kept[0] if seed == 0 else kept[-1] if seed == 1 else chance.choice(kept)
            names.pop(name, None)
            if state is not None:
                names[name] = state
        files = {}
        for name, file in sorted(names.items()):
            content = bytearray(file.safe)
            damage = DAMAGES[seed] if seed < len(DAMAGES) else chance.choice(DAMAGES)
            damage(content, file.unsafe(), chance)
            files[name] = bytes(content)
        return Disk.holding(files)

    def digest(self) -> bytes:
        """Return a digest of everything that is safe."""
        digest = hashlib.blake2b(digest_size=16)
        for name, file in sorted(self.safe_names.items()):
            digest.update(f"{name} {len(file.safe)} ".encode() + file.safe)
        return digest.digest()
