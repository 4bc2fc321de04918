"""Which text of the library is answered by which method of the simulated connection.

Whatever text is not here is an error: a changed statement must be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from memory_store.durable import statements as sql
from memory_store.durable.log import begin_epoch
from memory_store.records import RECORDS
from tests.simulation.connection import COUNT, Connection, Cursor, Handler

__all__ = ["install"]

_PLACES = (1, 2, 4, 8, 16, 32)


def _for(method: Callable[[Connection, Any, Sequence[Any]], Cursor], bound: Any) -> Handler:
    return lambda connection, parameters: method(connection, bound, parameters)


def _handlers() -> dict[str, Handler]:
    made: dict[str, Handler] = {
        "BEGIN": Connection.begin,
        "BEGIN IMMEDIATE": Connection.begin_immediate,
        "COMMIT": Connection.commit,
        "ROLLBACK": Connection.roll_back,
        "SAVEPOINT one": Connection.savepoint,
        "ROLLBACK TO one": Connection.roll_back_to,
        "RELEASE one": Connection.release,
        sql.head_select(): Connection.select_head,
        sql.heads_select(): Connection.select_head,
        sql.head_claim(): Connection.claim_head,
        sql.head_update(): Connection.update_head,
        sql.log_insert(): Connection.insert_log,
        sql.tail_select(): Connection.select_tail,
        sql.nonce_select(): Connection.select_nonce,
        COUNT: Connection.count,
    }
    for kind, spec in RECORDS.items():
        texts = sql.STATEMENTS[kind]
        for places in _PLACES:
            # For a kind without a parent both are one text.
            made[texts.get_by_id(places)] = _for(Connection.get_by_id, spec)
            made[texts.get_with_head(places)] = _for(Connection.get_with_head, spec)
            made[texts.get_many(places)] = _for(Connection.get, kind)
        made[texts.get] = _for(Connection.get, kind)
        made[texts.insert] = _for(Connection.insert, spec)
        made[texts.replace] = _for(Connection.replace, spec)
        made[texts.delete] = _for(Connection.delete, spec)
        if spec.parent is None:
            made[texts.newest] = _for(Connection.newest, kind)
            continue
        made[texts.has_parts] = _for(Connection.has_parts, kind)
        for places in _PLACES:
            made[texts.last_numbers(places)] = _for(Connection.last_numbers, spec)
        if spec.number is not None:
            made[texts.numbers] = _for(Connection.numbers, spec)
            made[texts.renumber] = _for(Connection.renumber, spec)
    begin_epoch(partial(_learn, made), "learn")
    return made


def _learn(made: dict[str, Handler], text: str, _: Sequence[Any] = ()) -> Cursor:
    """Take the text of the update that begins an epoch, which has no name of its own."""
    made.setdefault(text, Connection.set_head)
    return Cursor([(0, 0, "", 0)])


def install() -> None:
    """Tell connections what answers which text."""
    Connection.handlers.update(_handlers())
