"""The database of a `:memory:` store, made without migrating each time."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from contextlib import closing
from pathlib import Path

from memory_store.clock import now_us
from memory_store.durable import schema
from memory_store.durable.changes import new_nonce
from memory_store.durable.dialects import translate
from memory_store.durable.engine import Target
from memory_store.errors import DurableUnavailableError

__all__ = ["make_private"]

# An empty database, by its revision and the migrations that made it.
_IMAGES: dict[tuple[str, Path], bytes] = {}
_MAKING = threading.Lock()


def make_private(target: Target, timeout_s: float) -> None:
    """Make the file of a `:memory:` store that is about to be opened. Blocks.

    To migrate is nine tenths of opening one, and gives the same each time: the first of a process is migrated, the
    others are copies of it with an identity of their own.

    Raises:
        DurableUnavailableError: the file cannot be written.
    """
    made_by = (schema.HEAD_REVISION, schema.migrations_folder())
    with _MAKING:
        if made_by not in _IMAGES:
            schema.upgrade(target, timeout_s)
            _IMAGES[made_by] = _image(target.path)
            return
    try:
        Path(target.path).write_bytes(_IMAGES[made_by])
        _give_identity(target.path)
    except OSError as error:
        raise DurableUnavailableError(f"{target.path} cannot be written: {error.strerror}") from error
    except sqlite3.Error as error:
        raise translate(error) from error


def _image(path: str) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return Path(path).read_bytes()


def _give_identity(path: str) -> None:
    """Make another database of a copy, with a first commit of its own."""
    nonce = new_nonce()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE head SET store_id = ?, nonce = ?", (uuid.uuid4().hex, nonce))
        connection.execute("UPDATE changes SET nonce = ?, at = ?", (nonce, now_us()))
