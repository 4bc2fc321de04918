"""`Namespace`: the collections of one namespace of a store, its transactions and its feed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from sqlalchemy.sql.elements import ColumnElement

from memory_store.access import TieredAccess
from memory_store.cache.shelf import Shelf
from memory_store.collection import Access, Collection, Parts
from memory_store.config import Settings, check_namespace
from memory_store.errors import ConfigurationError
from memory_store.feed import LoggedChange, follow
from memory_store.patterns import Patterns
from memory_store.recall.embeddings import Embeddings
from memory_store.recall.models import Models
from memory_store.recall.places import LEVELS, Asking, Level, Recall
from memory_store.recall.search import Search
from memory_store.records import RECORDS, Embedding, Episode, Pattern, SpatiotemporalEntry, Step
from memory_store.search.asked import Mode, Syntax, Where
from memory_store.search.results import SearchResults
from memory_store.telemetry import Telemetry, spanned
from memory_store.transaction import UnitOfWork

__all__ = ["Namespace", "Transaction"]


class Collections:
    """The kinds of one namespace, each as a collection."""

    episodes: Collection[Episode]
    steps: Parts[Step]
    patterns: Patterns
    spatiotemporal: Parts[SpatiotemporalEntry]

    def __init__(self, namespace: str, shelf: Shelf, access: Access) -> None:
        self.name = namespace
        made: dict[str, Any] = {}
        for kind, spec in RECORDS.items():
            make: type[Collection[Any]] = Parts if spec.parent else Collection
            made[kind] = make(spec, namespace, shelf.space(kind, namespace), access)
        space = shelf.space(Pattern.kind, namespace)
        made[Pattern.kind] = Patterns(namespace, space, access, made[Episode.kind], made[Step.kind])
        self._by_kind = made
        self.episodes, self.steps, self.patterns = made["episode"], made["step"], made["pattern"]
        self.spatiotemporal = made["spatiotemporal"]

    def collection(self, kind: str) -> Collection[Any]:
        """Return the collection of a kind by its name.

        Raises:
            ConfigurationError: there is no such kind.
        """
        if kind not in self._by_kind:
            raise ConfigurationError(f"unknown kind {kind!r:.80}; known: {', '.join(self._by_kind)}")
        found: Collection[Any] = self._by_kind[kind]
        return found


class Transaction(Collections):
    """The collections inside one transaction: their writes are made together or not at all, their reads see them."""

    def __init__(self, namespace: str, shelf: Shelf, work: UnitOfWork) -> None:
        super().__init__(namespace, shelf, work)
        self._work = work
        self.embeddings: Parts[Embedding] = self._by_kind[Embedding.kind]

    @property
    def position(self) -> int | None:
        """Position of the commit, once the block has ended and if it changed anything; see `Record.position`."""
        return self._work.position or None


class Namespace(Collections):
    """One namespace of a store; it shares the store's connections, cache and life."""

    def __init__(
        self, namespace: str, settings: Settings, shelf: Shelf, telemetry: Telemetry | None, models: Models
    ) -> None:
        self._access = TieredAccess(check_namespace(namespace), settings.limits, shelf)
        super().__init__(namespace, shelf, self._access)
        self._settings, self._shelf, self._telemetry = settings, shelf, telemetry
        self._models = models
        space = shelf.space(Embedding.kind, namespace)
        self.embeddings = Embeddings(namespace, space, self._access, models)
        self._by_kind[Embedding.kind] = self.embeddings
        self._search = Search(self._access, models)
        self._recall = Recall(self._access, self._search)

    @property
    def position(self) -> int:
        """Position of the newest commit this process has seen, its own included; see `Record.position`."""
        return self._access.position

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Make several writes one commit: `async with store.transaction() as tx: await tx.episodes.put(...)`.

        It commits at the end of the block and rolls back on any exception or cancellation. The cache sees it after the
        commit. While it is open no other write of any process goes on (on a server: to namespaces of the same head), so
        keep model calls out of it; after `transaction_timeout_s` it is rolled back. Reading the store itself inside the
        block sees what was before.

        Raises:
            DurableTimeoutError: the database stayed locked, or the block took too long; nothing was written.
            CommitUnknownError: nobody can say whether it was committed.
            ConfigurationError: this task has a transaction open already.
        """
        access, settings = self._access, self._settings
        access.require_writable()
        shard = access.shard
        with spanned(self._telemetry, "memory_store.transaction") as span:
            exclusive = await shard.writer.exclusive()
            work = UnitOfWork(exclusive, access.dialect, access.limits, settings.transaction_timeout_s)
            await work.begin()
            shard.transaction_task = asyncio.current_task()
            try:
                try:
                    yield Transaction(self.name, self._shelf, work)
                finally:
                    shard.transaction_task = None
            except BaseException:
                await work.roll_back()
                raise
            await work.commit()
            span.set(position=work.position)

    async def search(
        self,
        query: str,
        *,
        kinds: str | Iterable[str] | None = None,
        where: Where | None = None,
        mode: Mode = "hybrid",
        limit: int = 10,
        at: datetime | None = None,
        diversity: float | None = None,
        syntax: Syntax = "plain",
        vector: Iterable[float] | None = None,
        model: str | None = None,
        cursor: str | None = None,
    ) -> SearchResults:
        """Return the records that answer a query best, of this namespace, as of now: every acknowledged write counts.

        Text is searched word by word, whatever their order, endings, accents and case; identifiers by the words they
        are made of; Chinese, Japanese, Korean and Thai by pairs of neighbouring characters, so that a single character
        is found only where it stands alone. What is rare counts more. An answer is remembered for five minutes, and
        forgotten as soon as a kind it was found in changes.

        Args:
            query: what is sought, 10,000 characters at most. It is text, whatever it looks like. By text only its first
                64 different words count (of Chinese and the like: pairs); a model is given all of it.
            kinds: "episode", "step", "pattern", "embedding", or several; all of which `where` says something when
                absent.
            where: an expression such as `Episode.c.domain == "web"`, or several which must all hold. One over episodes
                also says of steps and embeddings what their episode must be like.
            mode: "text", "vector", or "hybrid" for both. Vectors find embeddings, and episodes by their embeddings.
                Without a model (`embed=` of the store) and without `vector`, hybrid is text alone.
            limit: hits wanted, 1 to 1,000.
            at: leave out what was created after this moment.
            diversity: how unlike one another the hits shall be, 0 to 1: 1 less their mean similarity. Hits are then
                chosen by maximal marginal relevance, and `results.diversity` says what was reached.
            syntax: "expert" reads `query` as an expression: words, "phrases", prefix*, AND, OR, NOT, parentheses;
                64 words at most.
            vector: to search with, where the query's own is not to be made by the store's model.
            model: whose vectors `vector` is to be compared with; the store's own when absent.
            cursor: of the results before, asked for with the same arguments.

        Raises:
            DimensionMismatchError: the vector has another size than those of its model.
            EmbedderError: the model failed; it says whether to try again.
            QuerySyntaxError: an expert query is malformed.
            ConfigurationError: an argument has a value it cannot have, or the cursor is of another search.
            DurableError: the database cannot be read.
        """
        asked = self._search.ask(
            query,
            kinds=kinds,
            where=where,
            mode=mode,
            syntax=syntax,
            limit=limit,
            at=at,
            diversity=diversity,
            vector=vector,
            model=model,
        )
        return await self._search.search(asked, cursor)

    async def recall(
        self,
        query: str,
        *,
        domain: str | None = None,
        task_type: str | None = None,
        where: Where | None = None,
        at: datetime | None = None,
        mode: Mode = "hybrid",
        limit: int = 10,
        diversity: float = 0.7,
        levels: Iterable[Level] = LEVELS,
        explain: bool = False,
        vector: Sequence[float] | None = None,
        model: str | None = None,
    ) -> SearchResults:
        """Return episodes that are like a task at hand: "have I seen this before, and what worked?".

        From coarse to fine: the domain, the task type, then the newest time clusters (weeks up to 30 days back, months
        up to 180, quarters beyond) that hold at least 200 episodes; these are searched. Their scores are weighed by how
        recent they are (a half after 30 days; 15 % of the score), and among the best those are chosen that differ.

        Args:
            query: the task, in words.
            domain: only episodes of it; None for all.
            task_type: only episodes of it; None for all.
            where: an expression over `Episode.c`, or several, that all of them must meet.
            at: the moment to look from, now when absent: what was created later is not recalled.
            mode: as in `search`.
            limit: as in `search`.
            diversity: as in `search`.
            levels: which of "domain", "task_type", "time", "recency" and "diversity" are made use of.
            explain: whether `results.explanation` is to say what each level kept.
            vector: as in `search`.
            model: as in `search`.

        Raises:
            ConfigurationError: an argument has a value it cannot have.
            EmbedderError: the model failed; it says whether to try again.
            DurableError: the database cannot be read.
        """
        given = [] if where is None else [where] if isinstance(where, ColumnElement) else list(where)
        return await self._recall.recall(
            Asking(
                query, domain, task_type, given, at, mode, limit, diversity, frozenset(levels), explain, vector, model
            )
        )

    def follow(self, *, after: str = "end") -> AsyncIterator[LoggedChange]:
        """Yield every change of this namespace, in order, at least once: `async for change in store.follow(): ...`.

        It never ends by itself. What is derived from it stays true through crashes if `change.cursor` is kept with it
        and given back as `after`. Changes of this process come at once, those of others within `staleness_s`. A read
        after a change sees it.

        Args:
            after: "end" for what is changed from now on, "start" for all the log holds, or a `cursor`.

        Raises:
            PositionLostError: the log does not lead on from the cursor (it was trimmed, or a backup was restored):
                start again from nothing.
            ConfigurationError: `after` is none of these.
            StoreClosedError: the store was closed.
        """
        return follow(self._access, after, self.name)
