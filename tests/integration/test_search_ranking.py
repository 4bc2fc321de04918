"""Ranking through the store: among many documents none is passed over, and pages lead through all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from memory_store import Embedding, Episode, MemoryStore, Step
from memory_store.durable import indexing
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import postgresql_text
from memory_store.durable.documents import corpus_of
from memory_store.durable.text_index import text_index
from memory_store.recall.selection import terms_of_hits
from memory_store.records import RECORDS
from memory_store.search import fulltext
from memory_store.search.results import Hit
from memory_store.text.documents import document_terms
from tests.unit.samples import make_episode


async def pages(store: MemoryStore, query: str, limit: int, **options: object) -> list[str]:
    """The ids on all pages, in order."""
    found: list[str] = []
    cursor = None
    while True:
        page = await store.search(query, limit=limit, cursor=cursor, **options)  # type: ignore[arg-type]
        assert page.complete
        found += [hit.id for hit in page]
        cursor = page.cursor
        if cursor is None:
            return found


async def fill(store: MemoryStore, prefix: str, context: str, count: int) -> None:
    """Put episodes that all say the same, and index them."""
    await store.episodes.put_many([make_episode(id=f"{prefix}{n:05}", context=context) for n in range(count)])
    assert (await store.search("anything", mode="text")).complete


async def test_a_reindex_tells_of_what_others_brought_in(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(store, "same", "lantern", 300)
    bring_in = indexing.Indexer.bring_in

    async def after_another(self: indexing.Indexer, namespace: str | None) -> int | None:
        await bring_in(self, namespace)
        return await bring_in(self, namespace)

    monkeypatch.setattr(indexing.Indexer, "bring_in", after_another)
    told: list[tuple[int, int]] = []
    assert await store.reindex(on_progress=lambda what, done, total: told.append((done, total))) == 300
    assert (300, 300) in told
    assert len(await pages(store, "lantern", 100, mode="text")) == 300


@pytest.mark.parametrize("limit", [7, 50, 120])
async def test_pages_lead_through_many_hits_of_one_score(store: MemoryStore, limit: int) -> None:
    """More of them than a page's search looks at: which of them it sees must not depend on the page."""
    await fill(store, "same", "lantern oil", 300)
    await fill(store, "other", "nothing of this", 400)
    found = await pages(store, "lantern", limit, mode="text")
    assert len(found) == len(set(found)) == 300


@pytest.mark.parametrize(
    "query", ["lantern", '"lantern"', "lantern OR zebra*", "lantern NOT zebra", "light AND lantern"]
)
async def test_an_expert_query_ranks_the_best_of_more_than_it_looks_at(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """However old they are."""
    monkeypatch.setattr(fulltext, "_NEWEST", 40)
    best = {f"best{n:05}" for n in range(3)}
    await fill(store, "best", "lantern lantern lantern light", 3)
    await fill(store, "same", "a lantern among many other words of light", 100)
    await fill(store, "other", "nothing of this", 400)
    found = await pages(store, query, 10, mode="text", kinds="episode", syntax="expert")
    assert {*found[:3]} == best
    assert found[3] == "same00000", "of equal ones the oldest"
    assert len(found) == 40


async def test_an_expert_query_for_a_beginning_of_a_word_gives_as_many(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fulltext, "_NEWEST", 40)
    await fill(store, "same", "lantern", 100)
    found = await pages(store, "lant*", 10, mode="text", syntax="expert")
    assert len(found) == len({*found}) == 40


async def test_pages_lead_through_several_kinds_of_one_score(store: MemoryStore) -> None:
    await fill(store, "same", "lantern", 130)
    await fill(store, "other", "nothing", 400)
    await store.episodes.put(make_episode(id="parent", context="nothing"))
    await store.steps.append("parent", [Step(id=f"s{n:05}", action="lantern") for n in range(130)])
    await store.steps.append("parent", [Step(id=f"t{n:05}", action="nothing") for n in range(400)])
    found = await pages(store, "lantern", 20, mode="text")
    assert len(found) == len(set(found)) == 260


async def test_pages_go_on_when_something_was_written_in_between(store: MemoryStore) -> None:
    """Each write changes all scores a little: nothing is missed for that, though a hit may be shown again."""
    await fill(store, "same", "lantern", 60)
    await fill(store, "other", "nothing", 200)
    shown: list[str] = []
    cursor = None
    for number in range(10):
        page = await store.search("lantern", mode="text", limit=20, cursor=cursor)
        shown += [hit.id for hit in page]
        cursor = page.cursor
        if cursor is None:
            break
        if number == 0:
            await store.episodes.put(make_episode(id="new", context="lantern oil"))
        else:
            await store.episodes.delete(shown[0] if number == 1 else shown[-1])
    assert len(set(shown) - {"new"}) == 60


async def test_a_word_said_many_times_hides_no_newer_document(store: MemoryStore) -> None:
    """More places than documents: what is bounded is the documents that are read."""
    await fill(store, "old", "retry " * 60, 400)
    await fill(store, "other", "nothing of this", 600)
    await store.episodes.put(make_episode(id="newest", context="retry"))
    found = await pages(store, "retry", 401, mode="text")
    assert len(found) == 401
    assert "newest" in found


async def test_a_bulk_load_is_counted_when_it_is_ranked(store: MemoryStore) -> None:
    """Otherwise what is rare among 4,000 documents counts as common among the 200 there were."""
    await fill(store, "first", "nothing of this", 100)
    await fill(store, "filler", "some more of it", 100)
    await store.search("zebra", mode="text")
    await store.episodes.put_many([make_episode(id=f"b{n:05}", context="zebra words") for n in range(150)])
    await store.episodes.put_many([make_episode(id=f"c{n:05}", context="plain words") for n in range(1850)])
    [best, *_] = await store.search("zebra", mode="text")
    assert best.score > 1, "rare: in 150 of 2,200"


async def test_what_is_too_common_to_be_read_is_found_among_the_newest(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fulltext, "_MOST_POSTINGS", 50)
    monkeypatch.setattr(fulltext, "_NEWEST", 60)
    monkeypatch.setattr(postgresql_text, "_MOST_COUNTED", 51)
    await fill(store, "old", "often", 80)
    await fill(store, "other", "nothing of this", 300)
    await store.episodes.put(make_episode(id="z", context="zebra"))
    await store.episodes.put(make_episode(id="newest", context="often"))
    found = [hit.id for hit in await store.search("often", mode="text", limit=60)]
    assert found == [*(f"old{n:05}" for n in range(21, 80)), "newest"], "the oldest of these first"
    both = [hit.id for hit in await store.search("zebra often", mode="text", limit=61)]
    assert (both[0], both[-1], len(both)) == ("z", "newest", 61)


async def test_the_terms_of_hits_are_those_of_their_texts(store: MemoryStore) -> None:
    """Read from the index, or made of the text where the index has another revision of it."""
    for number, said in enumerate(["lantern oil oil", "lantern getUserName 東京都 caf\u00e9 'x'", "lantern"]):
        await store.episodes.put(make_episode(id=f"e{number}", context=said))
    await store.steps.append("e0", [Step(id="s", action="lantern"), Step(id="t", action="lantern ", result="")])
    hits = list(await store.search("lantern", mode="text"))
    assert len(hits) == 5
    last = next(number for number, hit in enumerate(hits) if hit.kind == "episode")
    row = list(hits[last].row)
    row[1], row[RECORDS["episode"].index("context")] = row[1] + 1, '"rewritten"'
    hits[last] = Hit("episode", row, 1.0, {})
    read = partial(terms_of_hits, namespace=store.name, hits=hits)
    found = await store._access.durable.scan.run(read)
    assert [set(terms) for terms in found] == [set(document_terms(hit.kind, hit.row)) for hit in hits]
    assert "rewritten" in found[last]


async def test_documents_that_are_behind_do_not_say_where_an_episode_belongs(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [make_episode(id=f"e{number:02}", domain="web", context="lamp") for number in range(30)]
    await store.episodes.put_many(episodes)
    assert len(await store.recall("lamp", domain="web", task_type="debugging", limit=50)) == 30
    monkeypatch.setattr(indexing, "_MOST_PIECES", 0)  # nothing is brought in by a search,
    monkeypatch.setattr(indexing, "_PAUSE_S", 3600)  # nor by itself
    await store.episodes.put_many([replace(episode, domain="cli") for episode in episodes[:20]])
    left = await store.recall("lamp", domain="web", task_type="debugging", limit=50)
    moved = await store.recall("lamp", domain="cli", task_type="debugging", limit=50)
    assert not left.complete
    assert ({hit.record.domain for hit in left}, len(left)) == ({"web"}, 10)
    assert ({hit.record.domain for hit in moved}, len(moved)) == ({"cli"}, 20)


async def test_documents_that_are_behind_do_not_say_where_a_vector_belongs(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [make_episode(id=f"e{number:02}", domain="web", context="lamp") for number in range(30)]
    vector = {"content": "", "embedding": [1.0, 0.0], "model_name": "m", "vector_dim": 2}
    await store.episodes.put_many(episodes)
    await store.embeddings.put_many([Embedding(id=f"v{one.id}", episode_id=one.id, **vector) for one in episodes])
    asked = {"task_type": "debugging", "mode": "vector", "vector": [1.0, 0.0], "model": "m", "limit": 50}
    assert len(await store.recall("lamp", domain="web", **asked)) == 30
    monkeypatch.setattr(indexing, "_MOST_PIECES", 0)
    monkeypatch.setattr(indexing, "_PAUSE_S", 3600)
    await store.episodes.put_many([replace(episode, domain="cli") for episode in episodes[:20]])
    left, moved = [await store.recall("lamp", domain=domain, **asked) for domain in ("web", "cli")]
    assert ({hit.record.domain for hit in left}, len(left)) == ({"web"}, 10)
    assert ({hit.record.domain for hit in moved}, len(moved)) == ({"cli"}, 20)


async def test_what_is_too_common_to_be_counted_on_a_server_is_estimated(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its share of a sample: counted as the bound, a word in nine of ten documents would weigh as a rare one."""
    for name, value in {"_MOST_COUNTED": 120, "_FEW_COUNTED": 20, "_MOST_AVERAGED": 500, "_OF_PART": 10}.items():
        monkeypatch.setattr(postgresql_text, name, value)
    async with MemoryStore(postgres_url) as store:
        await store.episodes.put_many(
            make_episode(
                id=f"e{n:04}", context=f"{'often ' * (n % 10 > 0)}{'half ' * (n % 2)}{'some ' * (n % 20 == 0)}x"
            )
            for n in range(1000)
        )
        await store.steps.append("e0000", [Step(id=f"s{n:04}", action="often half zebra") for n in range(500)])
        await store.episodes.put(make_episode(id="zebra", context="zebra"))
        assert (await store.search("anything", mode="text")).complete

        def count(connection: Connection) -> tuple[list[int], tuple[int, float]]:
            index, corpus = text_index(connection), corpus_of(store.name, "episode")
            asked = ["often", "half", "some", "zebra", "absent", "x"]
            counts = index.frequencies(corpus, asked, store.name, 1001)
            assert counts == index.frequencies(corpus, asked, store.name, 1001), "the same each time"
            return counts, index.statistics(corpus, store.name, "episode")

        counts, (documents, average) = await store._access.durable.scan.run(count)
        assert counts[:2] == [pytest.approx(900, rel=0.1), pytest.approx(500, rel=0.1)]
        assert counts[2:] == [50, 1, 0, pytest.approx(1000, rel=0.01)]
        assert (documents, average) == (1001, pytest.approx(4.5, abs=0.5))
        [best, *others] = await store.search("often zebra", mode="text", kinds="episode")
        assert best.id == "zebra"
        assert all(hit.score < 1e-4 for hit in others), "what nearly all have says nothing"


@pytest.mark.parametrize(
    "query",
    [
        "lantern",
        "lantern oil",
        "often lantern",
        "often",
        " ".join(["lantern", "often", *(f"absent{n}" for n in range(40))]),  # more than are read at once
    ],
)
async def test_a_server_ranks_as_a_file_does(query: str, file_url: str, server_url: str) -> None:
    """However often a term is in a document: up to three times the index says it, beyond that the document does."""
    times = [1, 2, 3, 4, 5, 9, 40, 254, 255]
    episodes = [
        make_episode(id=f"e{n}", domain=f"d{n % 2}", context=f"{'lantern ' * count}{'oil ' * (n % 4)}often {'x ' * n}")
        for n, count in enumerate(times)
    ]
    episodes += [make_episode(id=f"o{n}", domain="d0", context=f"{'often ' * (n % 5)}nothing") for n in range(60)]
    found: list[list[tuple[str, float]]] = []
    for url in (file_url, server_url):
        async with MemoryStore(url) as store:
            await store.episodes.put_many(episodes)
            for where in (None, Episode.c.domain == "d1"):
                hits = await store.search(query, mode="text", kinds="episode", where=where, limit=50)
                found.append([(hit.id, hit.score) for hit in hits])
    for here, there in zip(found[:2], found[2:], strict=True):
        assert [id_ for id_, _ in here] == [id_ for id_, _ in there]
        assert [score for _, score in here] == pytest.approx([score for _, score in there], rel=1e-6)
        assert len(here) >= len(times) // 2


async def test_what_a_server_reads_along_is_of_the_same_moment(server_url: str) -> None:
    """A search of several kinds asks for all its terms at once, and finds in each kind what is there."""
    async with MemoryStore(server_url) as store:
        await store.episodes.put(make_episode(id="e", context="lantern lantern oil"))
        await store.steps.append("e", [Step(id="s", action="oil lantern"), Step(id="t", action="lamp")])
        found = await store.search("lantern lamp +2lantern", mode="text")
        assert {(hit.kind, hit.id) for hit in found} == {("episode", "e"), ("step", "s"), ("step", "t")}
        await store.steps.delete("s")
        assert {hit.id for hit in await store.search("lantern", mode="text")} == {"e"}
        assert {hit.id for hit in await store.search("lantern*", mode="text", syntax="expert")} == {"e"}
