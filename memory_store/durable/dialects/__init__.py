"""What differs between databases; errors are told apart here, for all of them."""

from __future__ import annotations

import sqlite3

from memory_store.durable.dialects.sqlite import error_code, is_index_damage, translate
from memory_store.errors import ConstraintError, DurableUnavailableError

__all__ = [
    "ConnectionLostError",
    "DismissedError",
    "TransientError",
    "is_index_damage",
    "is_refusal",
    "outcome_is_unknown",
    "translate",
]


class TransientError(DurableUnavailableError):
    """The transaction was undone through no fault of its own: a deadlock, a failover. The same may work next time."""


class DismissedError(TransientError):
    """The server said that it did nothing, and the connection is of no more use; another one may be."""


class ConnectionLostError(TransientError):
    """The connection broke, or does not answer: what it was asked last may or may not have been done."""


def is_refusal(error: BaseException) -> bool:
    """Return whether the database refused the rows of one write, which says nothing about other writes."""
    return isinstance(translate(error), ConstraintError)


def outcome_is_unknown(error: BaseException) -> bool:
    """Return whether a commit that failed like this may have happened all the same."""
    return isinstance(error, ConnectionLostError) or error_code(error) == sqlite3.SQLITE_IOERR
