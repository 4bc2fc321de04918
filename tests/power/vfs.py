# ruff: noqa: N802 - SQLite's own names
"""SQLite's files on a machine's disk.

Content, syncs and names are the machine's. Locks and the shared memory of WAL mode are those of SQLite's own "unix"
file system, on an empty real file a session: so connections meet as they do in the library, and none of it outlives the
session, as none of it outlives a power cut.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw

from tests.power.disk import Disk, File
from tests.power.machine import Machine, Session, io_error

__all__ = ["NAME", "SESSIONS", "install", "reset_randomness", "sync_beside"]

NAME = "power"
SESSIONS: dict[str, Session] = {}
"""Sessions by the folder in which they think their files are."""

_NEEDS_FOLDER = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL


class _Content:
    """What an open file does to the disk."""

    session: Session
    file: File
    label: str
    temporary = False
    folder_waits = False
    """Whether the first sync has to make the names safe as well, as SQLite's own file system does for journals."""

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self.file.visible[offset : offset + amount])

    def xFileSize(self) -> int:
        return len(self.file.visible)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self.temporary:
            self.file.write(offset, data)
            return

        def done(share: float) -> None:
            part = data if share >= 1 else data[: int(len(data) * share)]
            if part:
                self.file.write(offset, part)

        self.session.machine.step(self.session, f"write {self.label} {len(data)} at {offset}", done)

    def xTruncate(self, size: int) -> None:
        if self.temporary:
            self.file.truncate(size)
            return

        def done(share: float) -> None:
            if share:
                self.file.truncate(size)

        self.session.machine.step(self.session, f"truncate {self.label} to {size}", done)

    def xSync(self, flags: int) -> None:
        if self.temporary:
            return

        def done(share: float) -> None:
            if share:
                self.session.machine.sync(self.file)
                if self.folder_waits and not self.session.machine.lies:
                    self.session.machine.disk.sync_folder()
                self.folder_waits = False

        def failed(forget: bool) -> None:
            if forget:
                self.file.forget()

        self.session.machine.step(self.session, f"sync {self.label}", done, failed)

    def xFileControl(self, operation: int, pointer: int) -> bool:
        return False


class _Database(_Content, apsw.VFSFile):
    """The database file: its locks and its shared memory are those of a real, empty file."""

    def __init__(self, session: Session, file: File, label: str) -> None:
        self.session, self.file, self.label = session, file, label
        flags = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_READWRITE
        super().__init__("unix", str(Path(session.folder) / label), [flags, 0])


class _Plain(_Content):
    """A journal, a WAL or a temporary file, which nobody locks."""

    def __init__(self, session: Session, file: File, label: str) -> None:
        self.session, self.file, self.label = session, file, label

    def xClose(self) -> None:
        pass

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 4096

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE  # what SQLite's own file system says


class _FileSystem(apsw.VFS):
    def __init__(self) -> None:
        super().__init__(NAME, "unix", makedefault=True)
        self._drawn = 0

    def reset(self) -> None:
        self._drawn = 0

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        flags[1] = flags[0]
        if name is None:
            opened = _Plain(Session(Machine(Disk()), ""), File(), "temporary")
            opened.temporary = True
            return opened
        session, label = _find(name if isinstance(name, str) else name.filename())
        file = session.machine.disk.names.get(label)
        if file is None:
            file = _create(session, label, flags[0])
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return _Database(session, file, label)
        plain = _Plain(session, file, label)
        plain.folder_waits = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _NEEDS_FOLDER)
        return plain

    def xAccess(self, name: str, flags: int) -> bool:
        session, label = _find(name)
        return label in session.machine.disk.names

    def xDelete(self, name: str, sync_folder: bool) -> None:
        session, label = _find(name)
        disk = session.machine.disk
        if label not in disk.names:
            raise io_error(apsw.SQLITE_IOERR_DELETE_NOENT)

        def done(share: float) -> None:
            if share:
                disk.delete(label)
                # Cut in the middle, the deletion itself is not safe yet.
                if sync_folder and session.machine.on and not session.machine.lies:
                    disk.sync_folder()

        session.machine.step(session, f"delete {label}", done)

    def xFullPathname(self, name: str) -> str:
        return name

    def xRandomness(self, amount: int) -> bytes:
        self._drawn += 1
        return hashlib.shake_128(str(self._drawn).encode()).digest(amount)

    def excepthook(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Drop what SQLite could not hand to a caller: only errors that were made here are raised here."""
        if not isinstance(error, apsw.Error):
            raise error


def sync_beside(session: Session, label: str) -> None:
    """Do what the library does beside SQLite when it opens a database: sync a file and the names of the folder."""
    machine = session.machine
    file = machine.disk.names.get(label)
    if file is None:
        return

    def done(share: float) -> None:
        if share:
            machine.sync(file)
            if not machine.lies:
                machine.disk.sync_folder()

    machine.step(session, f"sync {label}", done, lambda forget: file.forget() if forget else None)


def _create(session: Session, label: str, flags: int) -> File:
    if not flags & apsw.SQLITE_OPEN_CREATE:
        raise io_error(apsw.SQLITE_CANTOPEN)

    def done(share: float) -> None:
        if share:
            session.machine.disk.create(label)

    session.machine.step(session, f"create {label}", done)
    return session.machine.disk.names[label]


def _find(path: str) -> tuple[Session, str]:
    folder, _, label = path.rpartition("/")
    return SESSIONS[folder], label


_installed: list[_FileSystem] = []


def install() -> None:
    """Make it SQLite's default file system in this process."""
    if not _installed:
        _installed.append(_FileSystem())


def reset_randomness() -> None:
    """Let SQLite draw the same random numbers again (the salts of a WAL), so that a case is the same each time."""
    _installed[0].reset()
    apsw.randomness(0)
