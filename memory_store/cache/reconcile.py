"""Whether a saved cache can be used, and what of it has changed since.

A saved cache is an older pair of entries and watermark. It can be used if its watermark lies in this database's own
past and the log leads from there to the newest commit: then only what the log names is dropped. A backup that was put
back, a copied file, a power loss that took the last commits: each shows as another identity, a watermark in the future,
or another random number at the watermark.
"""

from __future__ import annotations

from typing import NamedTuple

from memory_store.cache.snapshot import Header
from memory_store.durable.changes import HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.log import Run, nonce_at, one_state, read_heads, read_run

__all__ = ["Changed", "reconcile"]

# Reading more log than this costs more than it saves.
_MOST_CHANGES = 100_000


class Changed(NamedTuple):
    """What the log names since a cache was saved, or why nothing of it can be used.

    Args:
        reason: why not, "" where it can.
        heads: the newest commit of each shard when they were compared.
        keys: what changed, as keys of the saved file.
        prefixes: spaces of the saved file of which everything may have changed.
    """

    reason: str
    heads: tuple[HeadState, ...] = ()
    keys: frozenset[str] = frozenset()
    prefixes: frozenset[str] = frozenset()


def reconcile(connection: Connection, saved: Header, version_key: str) -> Changed:
    """Compare a saved cache's header with the database, in one snapshot."""
    if saved.version_key != version_key:
        return Changed("the version key has changed")
    with one_state(connection):
        return _compare(connection, saved)


def _compare(connection: Connection, saved: Header) -> Changed:
    heads = read_heads(connection)
    if len(heads) != len(saved.heads):
        return Changed("the saved cache belongs to another database")
    runs: list[Run] = []
    for head, then in zip(heads, saved.heads, strict=True):
        run = _lead_on(connection, head, then)
        if isinstance(run, str):
            return Changed(run)
        runs.append(run)
    prefixes = {space: f"{number:x}/" for number, space in enumerate(saved.spaces)}
    keys: set[str] = set()
    whole: set[str] = set()
    for run in runs:
        for _, _, kind, namespace, key, parent in run.changes or ():
            prefix = prefixes.get((kind, namespace))
            touched = parent or key
            if prefix is None:
                continue
            if touched is None:
                whole.add(prefix)
            else:
                keys.add(prefix + touched)
    return Changed("", tuple(heads), frozenset(keys), frozenset(whole))


def _lead_on(connection: Connection, head: HeadState, then: HeadState) -> Run | str:
    """Return what leads from a saved watermark to its shard's head, or why nothing does."""
    if then.store_id != head.store_id:
        return "the saved cache belongs to another database"
    if then.epoch != head.epoch:
        return "the database was upgraded, restored or repaired since the cache was saved"
    if then.position > head.position:
        return "the database is older than the saved cache: it was taken back to an earlier state"
    nonce = nonce_at(connection, then.position, head)
    if nonce is None:
        return "the change log has been trimmed behind the saved cache"
    if nonce != then.nonce:
        return "the database has another past than the saved cache"
    run = read_run(connection, then, head, _MOST_CHANGES)
    if run.changes is None:
        return f"more than {_MOST_CHANGES:,} changes were made since the cache was saved"
    return run
