"""The records that processes write: each carries its own token several times over, so that a mixture of two shows."""

from __future__ import annotations

import random
from typing import Any

from memory_store import Episode, Step
from tests.processes.history import domain_of

CHANGED = ("domain", "context", "reflection", "reward_score", "metadata")
"""The fields of an episode that depend on its token."""


def episode_of(id_: str, token: str, seeded: random.Random) -> Episode:
    """Return an episode that carries its token wherever something of it fits."""
    return Episode(
        id=id_,
        task_type="testing",
        domain=domain_of(token),
        context={"token": token, "filler": token * seeded.choice([1, 20, 300])},
        reflection=token,
        reward_score=float(token.partition(".")[2]),
        metadata={"token": token},
    )


def step_of(episode_id: str, id_: str, revision: int) -> Step:
    """Return a step that says in its result at which revision it is."""
    return Step(id=id_, episode_id=episode_id, action=id_, result=f"{id_}#{revision}")


def whole(record: Episode | None) -> Any:
    """Return an episode as a register's state; a mixture of versions comes out as no version's."""
    if record is None:
        return None
    token = record.context["token"]
    says = {token, record.reflection, record.metadata["token"], record.context["filler"][: len(token)]}
    if len(says) > 1 or record.domain != domain_of(token) or record.reward_score != float(token.partition(".")[2]):
        return ("torn", *sorted(map(str, says)))
    return (token, record.revision)


def parts(steps: list[Step]) -> Any:
    """Return the steps of an episode as a register's state."""
    torn = [step.id for step in steps if step.action != step.id or step.result != f"{step.id}#{step.revision}"]
    return ("torn", *torn) if torn else tuple((step.id, step.revision) for step in steps)
