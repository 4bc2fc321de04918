"""The protocol with one of its rules taken out: the simulation must notice each.

A mutant is a change of the library's own source text, so it says exactly which rule is gone, and it fails to apply when
that text has changed.

Some rules are not here, because others make up for them: the marks that a range sets (`_raise_floor`) and that a
restart sets on single reads. What such a read would put is below the floor of its space, and so counts as absent; and a
read of a past that is none any more is refused because its commit is not known (`CacheTier.knows`). That a read's look
counts only if its run is taken: one that is not raises a doubt (`_look_or_doubt`), which takes the look away. And that
an unknown commit raises a doubt: nobody is told of it before the log was read behind it.
"""

from __future__ import annotations

from memory_store.access import TieredAccess
from memory_store.cache import reconcile
from memory_store.cache.coherence import Coherence
from memory_store.cache.keeper import CacheKeeper
from memory_store.cache.readthrough import ReadThrough
from memory_store.cache.shelf import Shelf
from memory_store.cache.tier import CacheTier
from memory_store.cache.watch import HeadWatch
from memory_store.durable import log, reader
from memory_store.durable.commits import LogWriter
from memory_store.durable.reader import Reader
from tests.simulation.mutation import Edit, Mutant

__all__ = ["MUTANTS"]


_CONNECTS = "known in (commit.follows, commit.head)"

MUTANTS = (
    # Those that the design names.
    Mutant(
        "no dirty mark on fills in flight",
        (Edit(CacheTier, "_touch", "watch = self._watched.get(key)", "return\n    watch = None"),),
    ),
    Mutant(
        "no tail in the write",
        (
            Edit(LogWriter, "begin", "None if head == known else read_run(connection, known, head)", "None"),
            Edit(Coherence, "publish", _CONNECTS, "commit.position > known.position"),
        ),
    ),
    Mutant(
        "no nonce in a running process",
        (Edit(log, "read_run", "nonce_at(connection, known.position, head) != known.nonce", "False"),),
    ),
    Mutant(
        "no nonce in the saved cache",
        (
            Edit(reconcile, "_lead_on", "nonce != then.nonce", "False"),
            Edit(
                reconcile, "_lead_on", "read_run(connection, then,", "read_run(connection, then._replace(nonce=nonce),"
            ),
        ),
    ),
    Mutant(
        "the watermark of the saved cache is taken after its entries",
        (
            Edit(
                CacheKeeper, "save", "Header(self._version_key, heads,", "Header(self._version_key, self._shards.heads,"
            ),
        ),
        favourite="restart",
    ),
    Mutant(
        "a joiner accepts the result of an older flight",
        (Edit(ReadThrough, "land", "head.position >= min(seen, watermark.position)", "True"),),
    ),
    Mutant("a plain sequence: positions become visible out of order", gaps=True),
    # Others.
    Mutant("floors are ignored", (Edit(Shelf, "read", "now + self.age_offset_s or rows[1] < space.floor", "now"),)),
    Mutant(
        "what others changed is not dropped",
        (Edit(CacheTier, "apply", "entry is not None and entry_as_of(entry) < position", "False"),),
    ),
    Mutant(
        "freshness counts from the end of a look",
        (Edit(Coherence, "look", "self._looked(began", "self._looked(boot_s()"),),
        favourite="slow",
        first=892,
    ),
    Mutant(
        "freshness counts from the end of a slow look",
        (
            Edit(
                Coherence,
                "_look_next",
                "await self._slow_look(known)",
                "await self._slow_look(known); began = boot_s()",
            ),
        ),
        favourite="slow",
    ),
    Mutant(
        "who joins a slow look that has begun before he asked",
        (
            Edit(Coherence, "look_soon", "look = self._next_look\n", "look = self._next_look or self._looking\n"),
            Edit(Coherence, "look_soon", "if look is None:", "if look is None or look.done():"),
        ),
        favourite="far",
    ),
    Mutant(
        "a slow look that is not taken counts as a look",
        (Edit(Coherence, "_look_next", "if self.cache.knows(run.head):", "if True:"),),
        favourite="far",
    ),
    Mutant(
        "freshness counts from the end of a read",
        (Edit(Reader, "_finish", "deliver(snapshot.run, began)", "deliver(snapshot.run, boot_s())"),),
        favourite="slow",
    ),
    Mutant(
        "nothing is in doubt where nobody can look at once",
        (Edit(Coherence, "_look_or_doubt", "self.doubt()", "pass"),),
        favourite="far",
        first=95,
    ),
    Mutant(
        "what began before a doubt takes it away",
        (Edit(Coherence, "_fresh_since", " and began > self._doubted_at", ""),),
        favourite="far",
    ),
    Mutant(
        "an older head than was known is a look",
        (Edit(Coherence, "see", "head.position >= known.position and ", ""),),
        favourite="rewind",
    ),
    Mutant(
        "a head that is not known is a look",
        (Edit(Coherence, "see", "self.cache.knows(head)", "True"),),
        favourite="far",
    ),
    Mutant(
        "freshness counts from the end of a look at all heads",
        (Edit(HeadWatch, "_seen", "began)", "boot_s())"),),
        favourite="slow",
        first=100,
    ),
    Mutant(
        "who cannot look at once is answered without a look",
        (Edit(TieredAccess, "_load_unsure", "await self.coherence.refresh_slowly(at_least)", "pass"),),
    ),
    Mutant(
        "a read that had begun before is a look for who joins it",
        (Edit(TieredAccess, "_load_unsure", " or self.shard.through.is_reading(key)", ""),),
    ),
    Mutant(
        "a look that ended because the store was closed has seen something",
        (Edit(TieredAccess, "_load_unsure", "self.require_usable()", "pass"),),
        favourite="far",
    ),
    Mutant(
        "the head is read after the rows",
        (Edit(reader, "_snapshot_at_once", "HeadState(*found[0][-_HEAD_WIDTH:])", "read_head(connection)"),),
        first=102,
    ),
    Mutant(
        "the log that is read later need not lead to the head",
        (Edit(log, "read_run", " or rows[-1][:2] != head[:2]", ""),),
        favourite="rewind",
        first=419,
    ),
    Mutant(
        "a restart lets rebuilds and loads under way pass",
        (Edit(CacheTier, "restart", "fence.floor = NEVER", "pass"),),
        favourite="rewind",
        first=265,
    ),
    Mutant(
        "a restart keeps entries from a later position",
        (Edit(CacheTier, "restart", "self.shelf.clear()", "pass"),),
    ),
    Mutant(
        "a large commit does not mark fills in flight",
        (Edit(CacheTier, "_invalidate", "self._watched.keys() & keys", "()"),),
    ),
    Mutant(
        "a large commit drops nothing",
        (Edit(CacheTier, "_invalidate", "self.shelf.contents.keys() & keys", "()"),),
    ),
    Mutant(
        "a commit is published though the watermark is past it",
        (
            Edit(Coherence, "publish", _CONNECTS, f"commit.position < known.position or {_CONNECTS}"),
            Edit(CacheTier, "publish", "self._move(commit.head)", "self._move(max(self.head, commit.head))"),
        ),
    ),
    Mutant(
        "a commit replaces what was read after it",
        (Edit(CacheTier, "_publish", "old is None or entry_as_of(old) < commit.position", "True"),),
        favourite="parts",
    ),
    Mutant(
        "a commit follows the watermark if its position is the next one",
        (Edit(Coherence, "publish", _CONNECTS, "commit.position - known.position in (0, 1)"),),
        first=1333,
    ),
    Mutant(
        "parts are appended to an entry below the floor",
        (Edit(CacheTier, "_apply", "entry_as_of(old) >= space.floor", "True"),),
        favourite="far",
    ),
    Mutant(
        "a late run need not come past the watermark",
        (Edit(log, "advance", "changes is None or not any(", "changes is None or any(() and "),),
        favourite="rewind",
        first=106,
    ),
    Mutant(
        "a log that cannot say what changed counts as no change",
        (Edit(Coherence, "_take", "self.cache.restart(run.head)", "self.cache.apply((), run.head)"),),
    ),
    Mutant(
        "more changes than are read count as read",
        (Edit(log, "read_run", "len(rows) > limit or ", ""),),
    ),
    Mutant(
        "rows are read in a later snapshot than the head",
        (Edit(reader, "snapshot_of", "with one_state(connection):", "if True:"),),
        first=155,
    ),
    Mutant(
        "a position of another process is not waited for",
        (Edit(Coherence, "refresh", "stale or (at_least or 0) > self.cache.head.position", "stale"),),
        first=444,
    ),
    Mutant(
        "linearizable reads do not look",
        (Edit(Coherence, "refresh", "stale = linearizable or ", "stale = "),),
    ),
    Mutant(
        "nothing is ever stale",
        (Edit(Coherence, "refresh", "now - self.looked_at >= self.staleness_s", "self.looked_at < 0"),),
    ),
    Mutant(
        "reads past the cache do not bring it up",
        (Edit(TieredAccess, "rows_by_id", "await self.coherence.catch_up(at_least)", "pass"),),
        favourite="rewind",
        first=176,
    ),
    Mutant(
        "a counted number outlives changes",
        (Edit(CacheTier, "read_result", "entry_as_of(entry) < reads.changed", "False"),),
        first=96,
    ),
    Mutant(
        "a saved entry is adopted though it changed meanwhile",
        (
            Edit(CacheTier, "adopt", " or not fence.lets_pass(key, entry_as_of(entry))", ""),
            Edit(CacheTier, "adopt_many", "fence.is_untouched and ", ""),
        ),
    ),
    Mutant(
        "saved entries are adopted ahead of the watermark",
        (
            Edit(CacheKeeper, "_adopt_saved", "await shard.coherence.catch_up()", "pass"),
            # Without the first, this one refuses the file: what it was compared with is not known yet.
            Edit(CacheKeeper, "_adopt_saved", "not self._shards.know(changed.heads)", "False"),
        ),
        favourite="rewind",
        first=152,
    ),
    Mutant(
        "entries newer than its watermark are saved",
        (Edit(CacheKeeper, "_collect", "[head.position for head in heads]", "[1 << 60 for _ in heads]"),),
        favourite="restart",
    ),
)
