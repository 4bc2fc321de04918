"""What a type checker must refuse, one mistake a line; each line says so, and a stale remark is an error too."""

from __future__ import annotations

from memory_store import Episode, MemoryStore, Step


async def mistakes(store: MemoryStore, episode: Episode, step: Step) -> None:
    await store.episodes.put(step)  # type: ignore[arg-type]
    await store.steps.append("e", episode)  # type: ignore[arg-type]
    await store.episodes.of("e")  # type: ignore[attr-defined]
    await store.episodes.get(5)  # type: ignore[arg-type]
    await store.episodes.get("x", freshness="eventual")  # type: ignore[arg-type]
    await store.episodes.get("x", "linearizable")  # type: ignore[call-arg]
    await store.episodes.get("x", at_least="7")  # type: ignore[arg-type]
    await store.episodes.put(episode, "key")  # type: ignore[call-arg]
    await store.resolve(7)  # type: ignore[arg-type]
    episode.position = 7  # type: ignore[misc]
    await store.episodes.list(limit="10")  # type: ignore[arg-type]
    episode.domain = "x"  # type: ignore[misc]
    print(episode.gaol)  # type: ignore[attr-defined]
    Episode(domain="x")  # type: ignore[call-arg]
    Step(action=5)  # type: ignore[arg-type]
