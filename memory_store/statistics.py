"""What one process counts: `StoreStats`, how it is gathered, and which metrics OpenTelemetry is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from memory_store.cache.entries import Counters
from memory_store.cache.shard import Shards
from memory_store.cache.shared import SharedCounters
from memory_store.clock import boot_s
from memory_store.distribution import Distribution, merged
from memory_store.instruments import Metric

__all__ = ["METRICS", "StoreStats", "collect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What one open store has counted in this process since it was opened; other processes count for themselves.

    Args:
        cache: what happened to the cache's entries, by kind.
        entries: cache entries held.
        used_bytes: memory they take, bookkeeping included.
        max_bytes: the cache's budget.
        position: newest commit this process knows of.
        lag: how many commits this process was behind when it last looked at the head.
        looked_s_ago: seconds since that look began; None before the first one, and while the next read must look.
        looks: looks at the head, without those that came with reading rows.
        applied: changes of other processes and of plain SQL, taken from the log; large runs restart the cache instead.
        restarts: how often all entries were dropped: too much had changed at once, or the log did not lead on.
        rewinds: how many of these because the database had been taken back, as by restoring a backup.
        writes: writes this process asked for, in transactions not counted; where `commits` is less, some shared one.
        commits: commits of this process that changed something, transactions included.
        commit_writes: how many writes shared a group commit (no transactions).
        commit_s: seconds a group commit took, from its begin to its end on disk, and the checkpoint if one was due.
        read_keys: how many keys were read from the database at once.
        wal_bytes: size of the write-ahead log.
        checkpoints: checkpoints made by this process.
        checkpoint_s_ago: seconds since the last of them; None before the first.
        checkpoint_failures: checkpoints that failed; they are tried again.
        failures: these, and commits the cache could not take (it was emptied instead). They fail no call; should be 0.
        feeds: change feeds being followed.
        shared: what happened at the shared cache level; None where none is set.
    """

    cache: dict[str, Counters]
    entries: int
    used_bytes: int
    max_bytes: int
    position: int
    lag: int
    looked_s_ago: float | None
    looks: int
    applied: int
    restarts: int
    rewinds: int
    writes: int
    commits: int
    commit_writes: Distribution
    commit_s: Distribution
    read_keys: Distribution
    wal_bytes: int
    checkpoints: int
    checkpoint_s_ago: float | None
    checkpoint_failures: int
    failures: int
    feeds: int
    shared: SharedCounters | None

    @property
    def invalidations(self) -> int:
        """Entries dropped because they changed, of all kinds."""
        return sum(counters.invalidations for counters in self.cache.values())

    @property
    def dirty_fills(self) -> int:
        """Rows read and not put into the cache, because they changed while they were read, of all kinds."""
        return sum(counters.dirty_fills for counters in self.cache.values())


def collect(shards: Shards, own: int) -> StoreStats:
    """Return the statistics of an open store; on any thread, since OpenTelemetry asks on its own.

    Args:
        shards: of the store.
        own: the shard of the store's own namespace, which positions and ages are given of.
    """
    shelf, checkpointer, now = shards.shelf, shards.durable.checkpointer, boot_s()
    tiers, coherences, writers = zip(*((s.tier, s.coherence, s.writer) for s in shards), strict=True)
    looked_at, checkpointed_at = coherences[own].looked_at, None if checkpointer is None else checkpointer.last_at
    failures = 0 if checkpointer is None else checkpointer.failures
    return StoreStats(
        cache={kind: replace(counters) for kind, counters in shelf.counters.items()},
        entries=len(shelf),
        used_bytes=shelf.used_bytes,
        max_bytes=shelf.max_bytes,
        position=tiers[own].position,
        lag=coherences[own].lag,
        looked_s_ago=now - looked_at if looked_at >= 0 else None,
        looks=sum(coherence.looks for coherence in coherences),
        applied=sum(tier.applied for tier in tiers),
        restarts=shards.restarts,
        rewinds=sum(coherence.rewinds for coherence in coherences),
        writes=sum(shard.writes for shard in shards),
        commits=sum(writer.commits for writer in writers),
        commit_writes=merged(writer.commit_writes for writer in writers),
        commit_s=merged(writer.commit_s for writer in writers),
        read_keys=merged(shard.reader.read_keys for shard in shards),
        wal_bytes=0 if checkpointer is None else checkpointer.wal_bytes(),
        checkpoints=0 if checkpointer is None else checkpointer.checkpoints,
        checkpoint_s_ago=None if checkpointed_at is None else now - checkpointed_at,
        checkpoint_failures=failures,
        failures=sum(tier.failures for tier in tiers) + failures,
        feeds=sum(shard.feeds for shard in shards),
        shared=shards.shared_counters(),
    )


def _by_kind(name: str) -> Callable[[StoreStats], dict[str, int]]:
    return lambda stats: {kind: getattr(counters, name) for kind, counters in stats.cache.items()}


def _field(name: str) -> Callable[[StoreStats], float | None]:
    return lambda stats: getattr(stats, name)


METRICS = (
    Metric("memory_store.cache.hits", "counter", "{read}", "Reads answered from the cache.", _by_kind("hits")),
    Metric("memory_store.cache.misses", "counter", "{read}", "Reads that asked the database.", _by_kind("misses")),
    Metric("memory_store.cache.fills", "counter", "{entry}", "Rows read and put into the cache.", _by_kind("fills")),
    Metric(
        "memory_store.cache.dirty_fills",
        "counter",
        "{entry}",
        "Rows read and not put, because they changed meanwhile.",
        _by_kind("dirty_fills"),
    ),
    Metric("memory_store.cache.evictions", "counter", "{entry}", "Dropped for space.", _by_kind("evictions")),
    Metric("memory_store.cache.expiries", "counter", "{entry}", "Dropped for age.", _by_kind("expiries")),
    Metric(
        "memory_store.cache.invalidations",
        "counter",
        "{entry}",
        "Dropped because they changed.",
        _by_kind("invalidations"),
    ),
    Metric("memory_store.cache.restarts", "counter", "{restart}", "All entries dropped.", _field("restarts")),
    Metric("memory_store.cache.entries", "sum", "{entry}", "Entries held.", _field("entries")),
    Metric("memory_store.cache.size", "sum", "By", "Memory they take.", _field("used_bytes")),
    Metric("memory_store.cache.limit", "sum", "By", "The cache's budget.", _field("max_bytes")),
    Metric("memory_store.position", "gauge", "{commit}", "Newest commit this process knows of.", _field("position")),
    Metric("memory_store.head.lag", "gauge", "{commit}", "Commits behind at the last look.", _field("lag")),
    Metric("memory_store.head.age", "gauge", "s", "Time since the last look.", _field("looked_s_ago")),
    Metric("memory_store.head.looks", "counter", "{look}", "Looks at the head.", _field("looks")),
    Metric("memory_store.head.rewinds", "counter", "{rewind}", "The database was taken back.", _field("rewinds")),
    Metric("memory_store.log.applied", "counter", "{change}", "Changes of others applied.", _field("applied")),
    Metric("memory_store.writes", "counter", "{write}", "Writes asked for.", _field("writes")),
    Metric("memory_store.commits", "counter", "{commit}", "Commits of this process.", _field("commits")),
    Metric("memory_store.wal.size", "gauge", "By", "Size of the write-ahead log.", _field("wal_bytes")),
    Metric("memory_store.checkpoints", "counter", "{checkpoint}", "Checkpoints made.", _field("checkpoints")),
    Metric("memory_store.checkpoint.age", "gauge", "s", "Time since the last one.", _field("checkpoint_s_ago")),
    Metric("memory_store.failures", "counter", "{failure}", "Should be 0; see StoreStats.", _field("failures")),
    Metric("memory_store.feeds", "sum", "{feed}", "Change feeds being followed.", _field("feeds")),
)
"""What is asked of each open store; distributions are told to histograms as they are recorded (see `telemetry`)."""
