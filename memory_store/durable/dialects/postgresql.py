"""PostgreSQL: an asyncpg connection in the shape of `durable/connection.py`, its words, its errors.

A `Connection` is used by plain functions that its `runner` runs on the event loop: each statement switches to the loop
and back when the server has answered. So the durable tier is written once, and no thread is between it and the driver.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

import asyncpg

from memory_store.durable.changes import HeadState
from memory_store.durable.connection import KeyedText
from memory_store.durable.dialects import ConnectionLostError, DismissedError, TransientError
from memory_store.durable.dialects.postgresql_inserts import insert_text
from memory_store.durable.dialects.postgresql_text import arrays_of
from memory_store.durable.dialects.postgresql_words import copy_targets, restricted_words, server_text, with_array
from memory_store.durable.runner import Runner
from memory_store.durable.statements import server_dialect
from memory_store.durable.text_index import Document
from memory_store.errors import (
    ConfigurationError,
    ConstraintError,
    DurableError,
    DurableTimeoutError,
    DurableUnavailableError,
    StorageFullError,
)

__all__ = ["Connection", "connect", "escaped", "translate"]

T = TypeVar("T")

# Rows from which COPY beats executemany: it costs a round trip more.
_COPY_FROM = 64
_ON_CONFLICT = " ON CONFLICT (namespace, id) DO NOTHING"


class Cursor:
    """What a statement returned."""

    __slots__ = ("_rows", "description", "rowcount")

    def __init__(self, rows: list[tuple[Any, ...]] | None, rowcount: int = -1) -> None:
        self._rows = iter(rows or ())
        self.description = None if rows is None else True
        self.rowcount = rowcount

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        return list(self._rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, None behind the last one."""
        return next(self._rows, None)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._rows

    def close(self) -> None:
        """Drop the rows that are left."""
        self._rows = iter(())


class Connection:
    """One connection to the server, for one function at a time.

    Args:
        driver: the driver's connection.
        limits: settings that each transaction begins with, where the session cannot keep them.
    """

    def __init__(self, driver: Any, limits: Mapping[str, str] | None = None) -> None:
        self.driver, self.runner = driver, Runner()
        self._limits = "".join(f"; SET LOCAL {name} = {value}" for name, value in (limits or {}).items())
        self._restricted = False
        self.dialect = server_dialect()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return not self.driver.is_closed() and self.driver.is_in_transaction()

    def ask_rights(self) -> None:
        """Ask whether the role sees one namespace only, which has to be known before anything else is asked."""
        asked = "SELECT coalesce(row_security_active(to_regclass('changes')), false)"
        [(self._restricted,)] = self.execute(asked).fetchall()

    def close(self) -> None:
        """Drop it; what the server was asked last may or may not be done."""
        self.driver.terminate()
        self.runner.close()

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Run a statement; without parameters and rows it goes as it is, in one round trip."""
        parameters = _texts(parameters)
        if type(sql) is KeyedText:
            parameters = with_array(sql, parameters)
        text = server_text(sql)
        if self._restricted:
            text = restricted_words().get(sql, text)
        if self._limits and text.startswith("BEGIN"):
            text += self._limits
        if text.startswith(("SELECT", "WITH")) or " RETURNING " in text:
            return Cursor(_rows(self._wait(self.driver.fetch(text, *parameters))))
        status = str(self._wait(self.driver.execute(text, *parameters)))
        if text == "COMMIT" and status != "COMMIT":
            raise DurableError(f"the server ended a failed transaction with {status}")
        return Cursor(None, _count(status))

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run a statement for each member of `parameters`, in one round trip.

        An insert that leaves what exists alone is made as one that does not: rows that exist are refused here, with all
        others, since the server does not say how many there were.
        """
        rest = map(_texts, parameters)
        rows = list(islice(rest, _COPY_FROM))
        target = copy_targets().get(sql)
        if target is not None and len(rows) == _COPY_FROM and not self._restricted:
            table, columns = target
            # A row is made when its turn comes: all of them at once would keep the garbage collector busy.
            copied = self.driver.copy_records_to_table(table, records=chain(rows, rest), columns=columns)
            return Cursor(None, _count(self._wait(copied)))
        rows += rest
        if rows:
            self._wait(_in_task(self.driver.executemany(server_text(sql.removesuffix(_ON_CONFLICT)), rows)))
        return Cursor(None, len(rows))

    def insert_and_commit(
        self,
        kind: str,
        rows: Sequence[Sequence[Any]],
        head: HeadState,
        nonce: int,
        actor: str,
        at: int,
        documents: Sequence[Document],
        behind: Sequence[str],
    ) -> bool:
        """Insert rows that are new, log them at the position after `head`, index them and commit, in one round trip.

        Args:
            kind: of the records.
            rows: namespace and columns of each.
            head: where the log must still end.
            nonce: of the commit.
            actor: author of the changes.
            at: the commit's time, in microseconds.
            documents: what the full-text index gets.
            behind: namespaces whose rows are indexed later.

        Returns:
            Whether it was done; False where others have committed since `head`, and where the session cannot keep the
            limits that a transaction must have.

        Raises:
            ConstraintError: one of them exists, or cannot be stored; nothing was written.
            ConnectionLostError: nobody can say whether it was done.
        """
        if self._limits:
            return False
        columns = zip(*(_texts(row) for row in rows), strict=True)
        indexed = arrays_of(documents)
        parameters = (nonce, head.shard, head.position, head.nonce, actor, at, behind, *indexed, *columns)
        return bool(self._wait(self.driver.fetch(insert_text(kind), *parameters)))

    def _wait(self, answer: Coroutine[Any, Any, T]) -> T:
        try:
            return self.runner.wait(answer)
        except (Exception, asyncio.CancelledError) as error:
            translated = translate(error)
            if isinstance(translated, ConnectionLostError | DismissedError | asyncio.CancelledError):
                self.driver.terminate()  # whatever it still says is for nobody
            elif isinstance(error, asyncpg.DataError) and not self.in_transaction:
                # What the driver itself refuses it leaves without a Sync, inside a transaction that no one has begun:
                # the next BEGIN would fail. Any simple query ends it.
                self._wait(self.driver.execute("SELECT 1"))
            if translated is error:
                raise
            raise translated from error


async def _in_task(answer: Coroutine[Any, Any, T]) -> T:
    """Wait in a task, which the driver needs where it has to wait for the server to take what is sent."""
    task = asyncio.get_running_loop().create_task(answer)
    try:
        return await task
    finally:
        task.cancel()  # nobody waits any more: the connection was closed


def _count(status: str) -> int:
    """Return how many rows a statement has touched, as its last words say; -1 where they do not."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdigit() else -1


async def connect(dsn: str, timeout_s: float, server_settings: dict[str, str], **options: Any) -> Any:
    """Return a connection of the driver's own.

    Args:
        dsn: as libpq reads it.
        timeout_s: longest wait for the server, in seconds.
        server_settings: the session's parameters.
        options: the driver's other arguments.

    Raises:
        DurableUnavailableError: the server cannot be reached, or refuses.
    """
    try:
        settings = {"application_name": "memory_store", **server_settings}
        # Seconds may be fractions here, whatever the driver's own annotation says.
        limit_s: Any = timeout_s
        driver = await asyncpg.connect(dsn, timeout=limit_s, server_settings=settings, **options)
    except (OverflowError, asyncpg.exceptions.ClientConfigurationError) as error:
        raise ConfigurationError(f"the URL asks for what cannot be: {error}") from error
    except Exception as error:
        raise translate(error) from error
    _keep_alive(driver)
    return driver


_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


def _keep_alive(driver: Any) -> None:
    """Let the system find out, within half a minute, that a connection has nobody at its other end."""
    wire = driver._transport.get_extra_info("socket")
    if wire is not None and wire.family in (socket.AF_INET, socket.AF_INET6):
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# PostgreSQL's text cannot hold NUL: it is written as SUB "0", and SUB itself as SUB "1". No JSON text holds SUB.
_NUL, _ESCAPE = "\0", "\x1a"


def _texts(values: Sequence[Any]) -> Sequence[Any]:
    for value in values:
        if type(value) is str and (_NUL in value or _ESCAPE in value):
            return [escaped(value) if type(value) is str else value for value in values]
    return values


def escaped(text: str) -> str:
    """Return text as it stands in the database; what goes as a parameter is made so by `execute`."""
    return text.replace(_ESCAPE, _ESCAPE + "1").replace(_NUL, _ESCAPE + "0")


def _rows(records: Iterable[Any]) -> list[tuple[Any, ...]]:
    rows = [tuple(record) for record in records]
    # A generator would take twice as long.
    if any([_ESCAPE in value for row in rows for value in row if type(value) is str]):  # noqa: C419
        return [tuple(_unescaped(value) if type(value) is str else value for value in row) for row in rows]
    return rows


def _unescaped(text: str) -> str:
    return text.replace(_ESCAPE + "0", _NUL).replace(_ESCAPE + "1", _ESCAPE)


# SQLSTATE, or its class, https://www.postgresql.org/docs/current/errcodes-appendix.html
_MEANINGS: dict[str, tuple[type[DurableError], str]] = {
    "08P01": (DurableUnavailableError, "the server, or a pooler before it, refused; try pooler=true in the URL"),
    "08": (ConnectionLostError, "the connection to the server broke"),
    "57P": (ConnectionLostError, "the server is shutting down, or starting"),
    "25P": (DismissedError, "the transaction was idle, or open, for too long"),
    "25P01": (DurableError, "the database failed"),
    "25P02": (DurableError, "the transaction had failed"),
    # The next connection may find the server that writes.
    "25006": (DismissedError, "the server only reads: it is a standby"),
    "40": (TransientError, "the transaction met another one"),
    "55P03": (DurableTimeoutError, "another transaction keeps a lock"),
    "57014": (DurableTimeoutError, "the statement took too long"),
    "53100": (StorageFullError, "the server's disk is full"),
    "53": (TransientError, "the server has no resources left"),
    "23": (ConstraintError, "the database refused the rows"),
    "22": (ConstraintError, "the database refused a value"),
    "54": (ConstraintError, "a value is larger than the database stores"),
    "28": (DurableUnavailableError, "the server refused the user; check name, password and its pg_hba.conf"),
    "3D": (DurableUnavailableError, "the database does not exist; create it first"),
    "42501": (DurableUnavailableError, "the role's rights forbid it"),
}


def translate(error: BaseException) -> BaseException:
    """Return the library's error for a driver's error; anything that is no driver error comes back as it is."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(getattr(error, "sqlstate", None) or "")
        for length in (5, 3, 2):
            if state[:length] in _MEANINGS:
                kind, hint = _MEANINGS[state[:length]]
                return kind(f"{hint} ({state}: {error})")
        return DurableError(f"the database failed ({state}: {error})")
    if isinstance(error, asyncpg.DataError):
        return ConstraintError(f"the database refused a value ({error})")
    if isinstance(error, TimeoutError):
        return ConnectionLostError("the server does not answer")
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | EOFError):
        return ConnectionLostError(f"the connection to the server broke ({error})")
    return error
