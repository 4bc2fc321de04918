"""Writes whose outcome can be asked for: once for each idempotency key, or by the token of an unknown commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import fields
from typing import Any, NamedTuple

import msgpack
from sqlalchemy import JSON

from memory_store.clock import utc_now
from memory_store.codec import Row, pack_row
from memory_store.durable.changes import Change
from memory_store.durable.log import STORE, CommitToken
from memory_store.durable.lookup import Ask, Work
from memory_store.durable.operations import Context, Put, Update, absent
from memory_store.durable.statements import (
    STATEMENTS,
    head_select,
    idempotency_insert,
    idempotency_select,
    nonce_select,
)
from memory_store.errors import ConflictError, PositionLostError
from memory_store.records import RecordSpec

__all__ = ["PutOnce", "Resolve", "UpdateOnce"]


class PutOnce:
    """A put that is made once for each idempotency key.

    Returns (row as stored, position of the commit that stored it; 0 where that is the commit to come).
    """

    size = 1

    def __init__(self, spec: RecordSpec[Any], namespace: str, row: Row, key: str) -> None:
        self.spec, self.namespace, self.row, self.key = spec, namespace, row, key
        self._own = _own_columns(spec)

    def run(self, context: Context) -> Work:
        """Answer from what the first put noted, or put and note it, in one transaction.

        Raises:
            ConflictError: the key was used for another record.
        """
        digest = self._digest()
        noted = yield from _find_noted(self.spec, self.namespace, self.key, digest, context)
        if noted is not None:
            row = list(self.row)
            for index, value in zip(self._own, msgpack.unpackb(noted.stored), strict=True):
                row[index] = value
            return row, noted.position
        [row] = yield from Put(self.spec, self.namespace, [self.row]).run(context)
        stored = pack_row([row[index] for index in self._own])
        note = (self.namespace, self.key, self.spec.kind, digest, row[0], stored, context.position)
        yield Ask(idempotency_insert(), note)
        return row, 0

    def _digest(self) -> bytes:
        """Return a digest of what the caller gave, without what is made up anew when he makes the record again."""
        given: Row = []
        for index, name in enumerate(self.spec.columns):
            if index in self._own and name != self.spec.number:
                continue
            value = self.row[index]
            if isinstance(self.spec.table.c[name].type, JSON):
                value = json.dumps(json.loads(value), sort_keys=True)  # the order of its keys is no content
            given.append(value)
        return hashlib.blake2b(pack_row(given), digest_size=16).digest()


def _own_columns(spec: RecordSpec[Any]) -> list[int]:
    """Return the columns that are not of the caller's making: id, the store's own, times that default to now."""
    names = {"id", "revision", "created_at", "updated_at", spec.number}
    names |= {item.name for item in fields(spec.record) if item.default_factory is utc_now}
    return [index for index, name in enumerate(spec.columns) if name in names]


class UpdateOnce:
    """An update that is made once for each idempotency key.

    Returns (row as stored, position of the commit that made it; 0 where that is the commit to come). A retry returns
    the row as it is by then: what the update computed is not its caller's to know again, and would be the whole row.

    Args:
        update: what is made once.
        key: names it in its namespace.
        asked: what the caller asked for: the same key for something else is a mistake, not a retry.
    """

    size = 1

    def __init__(self, update: Update, key: str, asked: Row) -> None:
        self.update, self.key = update, key
        self.spec, self.namespace = update.spec, update.namespace
        self._digest = hashlib.blake2b(pack_row(["update", update.id, *asked]), digest_size=16).digest()

    def run(self, context: Context) -> Work:
        """Read the record if the update was made, or make it and note it, in one transaction.

        Raises:
            ConflictError: the key was used for something else.
            RecordNotFoundError: there is no such record, or no longer.
        """
        update = self.update
        noted = yield from _find_noted(self.spec, self.namespace, self.key, self._digest, context)
        if noted is not None:
            rows = yield Ask(STATEMENTS[self.spec.kind].get, (self.namespace, update.id))
            if not rows:
                raise absent(self.spec, self.namespace, update.id)
            return list(rows[0]), noted.position
        row = yield from update.run(context)
        note = (self.namespace, self.key, self.spec.kind, self._digest, update.id, pack_row([]), context.position)
        yield Ask(idempotency_insert(), note)
        return row, 0


class _Noted(NamedTuple):
    """What a write noted: the columns that are not of the caller's making, and its commit (0: the one to come)."""

    stored: bytes
    position: int


def _find_noted(
    spec: RecordSpec[Any], namespace: str, key: str, digest: bytes, context: Context
) -> Generator[Ask, list[tuple[Any, ...]], _Noted | None]:
    """Return what was noted under a key, None where it is free.

    Raises:
        ConflictError: it was used for something else.
    """
    found = yield Ask(idempotency_select(), (namespace, key))
    if not found:
        return None
    kind, known, id_, stored, position = found[0]
    if (kind, known) != (spec.kind, digest):
        raise ConflictError(
            f"idempotency key {key!r:.300} was used for another {kind}", kind=spec.kind, namespace=namespace, key=id_
        )
    return _Noted(stored, 0 if position == context.position else position)


class Resolve:
    """Find out whether a commit happened. Returns that, or the error that says why nobody knows.

    A commit whose sync failed may lie in the write-ahead log, invisible, and come to life in the recovery after a
    crash. So a "no" commits a barrier, which takes its place there: once that is durable, the answer is final.

    Args:
        token: of the commit.
        confirm: commit a barrier for a "yes" as well. What a server shows may not be as safe as what it acknowledges,
            if the connection broke while it waited for a standby: the barrier waits for it, and all before it.
    """

    size = 1

    def __init__(self, token: CommitToken, *, confirm: bool = False) -> None:
        self.token, self.confirm = token, confirm

    def run(self, context: Context) -> Work:
        """Look for the token's random number at its position."""
        token = self.token
        [(position, nonce, store_id, *_)] = yield Ask(head_select(), (token.shard,))
        if store_id != token.store_id:
            return PositionLostError("the token belongs to another database", position=token.position, head=position)
        if token.position < position:
            rows = yield Ask(nonce_select(), (token.shard, token.position))
            if not rows:
                return PositionLostError(
                    f"the log no longer holds position {token.position:,}", position=token.position, head=position
                )
            nonce = rows[0][0]
        happened = bool(token.position <= position and nonce == token.nonce)
        if token.position > position or (happened and self.confirm):
            context.changes.append(Change(STORE, "", None, None, "barrier", None))
        return happened
