"""What killed processes had told of, and what the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fault.support import database
from tests.processes.killed import NAMESPACE, keys_of


class LostError(AssertionError):
    """Something acknowledged is gone, or something is half there."""


class Ledger:
    """What one slot's processes have told of: what is sure, and the last write, of which nobody knows."""

    def __init__(self) -> None:
        self.sure: dict[str, Any] = {}
        self.may: dict[str, Any] = {}
        self.acknowledged = 0

    def settle(self, found: dict[str, Any]) -> None:
        """Compare with what is there, and take over the last write, which is there as a whole or not at all."""
        without = {key: self.sure.get(key) for key in found}
        if found not in (without, without | self.may):
            wrong = {
                key: (value, without[key], self.may.get(key)) for key, value in found.items() if value != without[key]
            }
            raise LostError(f"found, sure, may be: {wrong}")
        self.sure, self.may = {key: value for key, value in found.items() if value is not None}, {}


def contents(path: Path, slot: int) -> dict[str, Any]:
    """Return what the file holds of a slot's keys, in the ledger's words, read with the plain driver."""
    held: dict[str, Any] = dict.fromkeys(keys_of(slot))
    with database(path) as driver:
        where = "WHERE namespace = ? AND id LIKE ?"
        for id_, revision, mark in driver.execute(
            f"SELECT id, revision, json_extract(context, '$.mark') FROM episodes {where}", (NAMESPACE, f"{slot}-%")
        ):
            held[id_] = (revision, mark)
        for episode_id, action in driver.execute(
            f"SELECT episode_id, action FROM steps {where} ORDER BY episode_id, step_number", (NAMESPACE, f"{slot}-%")
        ):
            held[f"{episode_id}/steps"] = (*(held[f"{episode_id}/steps"] or ()), action)
    return held
