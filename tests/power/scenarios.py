"""What the library is doing when the power goes: one function each, on a database that already holds a little."""

from __future__ import annotations

from collections.abc import Callable

from tests.power.run import Run
from tests.power.templates import upgrade_statements
from tests.power.writes import (
    append,
    delete,
    embedding,
    import_runs,
    make_episode,
    pattern,
    put,
    put_episode,
    put_once,
    update,
)

__all__ = ["OLD_SCHEMA", "SCENARIOS"]

Scenario = Callable[[Run], None]
SCENARIOS: dict[str, Scenario] = {}
OLD_SCHEMA = {"schema_upgrade"}
"""Scenarios that begin on a database of the schema before this one."""


def scenario(function: Scenario) -> Scenario:
    """Register a scenario under its function's name."""
    SCENARIOS[function.__name__] = function
    return function


@scenario
def single_put(run: Run) -> None:
    """One record, then another: an idle writer commits each alone."""
    run.write(put_episode("e1"))
    run.write(pattern("p1"))


@scenario
def batch_of_64(run: Run) -> None:
    """A group commit."""
    run.write(*(put_episode(f"e{number}") for number in range(64)))


@scenario
def batch_with_failing_writes(run: Run) -> None:
    """A group commit that has to fall back to savepoints, since the database refuses one row."""
    run.write(put_episode("e1"), append("e1", "s1", "s2"))
    # Replaced by number: the unique index refuses the second, after it passed the library's own checks.
    collides = update("step", "s2", step_number=1)
    run.write(put_episode("e2"), collides, append("absent", "s9"), put_episode("e3"))


@scenario
def update_and_compare(run: Run) -> None:
    """Updates, one of them of another revision than the stored one."""
    run.write(put_episode("e1"))
    run.write(update("episode", "e1", 1, status="completed"))
    run.write(update("episode", "e1", 1, status="failed"), update("episode", "e1", reward_score=0.5))


@scenario
def replace(run: Run) -> None:
    """Whole records written over, with images of what they were."""
    run.write(put(make_episode("e1"), make_episode("e2")))
    run.write(put_episode("e1", domain="shell"), put_episode("e2", domain="shell"))


@scenario
def delete_with_cascade(run: Run) -> None:
    """An episode, its steps and its embedding go together; a second delete finds nothing."""
    run.write(put_episode("e1"), append("e1", "s1", "s2", "s3"), embedding("v1", "e1"))
    run.write(delete("episode", "e1"), retry=True)
    run.write(delete("episode", "e1"), put_episode("e2"))


@scenario
def steps_appended(run: Run) -> None:
    """Steps, numbered as they come."""
    run.write(put_episode("e1"))
    for number in range(3):
        run.write(append("e1", f"s{number}a", f"s{number}b"))


@scenario
def transaction_of_several(run: Run) -> None:
    """A unit of work: several kinds, one commit, and a refused write that leaves no trace."""
    run.transaction(put_episode("e1"), append("e1", "s1"), append("absent", "s9"), embedding("v1", "e1"))
    run.transaction(update("episode", "e1", status="completed"), append("e1", "s2"), delete("step", "s1"))


@scenario
def big_record(run: Run) -> None:
    """A megabyte in one commit, written over by a small one."""
    run.write(put_episode("big", context={"text": "y" * 1_000_000}))
    run.write(put_episode("big", context={"text": "small"}))


@scenario
def commit_after_commit(run: Run) -> None:
    """A WAL that grows."""
    for number in range(8):
        run.write(put_episode(f"e{number}"))


@scenario
def checkpoint_between(run: Run) -> None:
    """A checkpoint between two commits, then commits on top."""
    run.write(put_episode("e1"))
    run.checkpoint()
    run.write(put_episode("e2"))


@scenario
def wal_written_over(run: Run) -> None:
    """After each checkpoint the WAL is written from its start, over frames of commits that are in the database."""
    for number in range(3):
        run.write(put_episode(f"e{number}a"), pattern(f"p{number}"))
        run.write(put_episode(f"e{number}b"))
        run.checkpoint()
    run.write(put_episode("last"))


@scenario
def checkpoint_by_the_library(run: Run) -> None:
    """The library checkpoints by itself, after the commit that fills the WAL."""
    for number in range(6):
        run.library.checkpointer._put_off_until = 20
        run.write(put_episode(f"e{number}"), append("seed", f"s{number}"))


@scenario
def checkpoint_under_a_reader(run: Run) -> None:
    """A reader's snapshot keeps the checkpoint from finishing and the WAL from being written over."""
    run.write(put_episode("e1"))
    run.read_on()
    run.write(put_episode("e2"))
    run.checkpoint()
    run.write(put_episode("e3"))
    run.read_off()
    run.checkpoint()
    run.write(put_episode("e4"))


@scenario
def two_checkpoints_in_a_row(run: Run) -> None:
    """A checkpoint that finds little or nothing left to move."""
    run.write(put_episode("e1"), append("e1", "s1"))
    run.checkpoint()
    run.checkpoint()
    run.write(delete("episode", "e1"), retry=True)
    run.checkpoint()


@scenario
def restart(run: Run) -> None:
    """Close (the WAL is moved and removed), open, write on."""
    run.write(put_episode("e1"))
    run.restart()
    run.write(put_episode("e2"))
    run.restart()
    run.write(put_episode("e3"))


@scenario
def killed_between(run: Run) -> None:
    """The process dies between two writes and is started again, with recovery, twice."""
    run.write(put_episode("e1"))
    run.kill()
    run.write(put_episode("e2"))
    run.kill()
    run.checkpoint()
    run.write(put_episode("e3"))


@scenario
def power_cut_before(run: Run) -> None:
    """A power cut, a recovery, and the work goes on; whatever is cut now is cut in or after a recovery."""
    run.write(put_episode("e1"))
    run.write(put_episode("e2"), append("e2", "s1"))
    run.cut_and_restart(run.choice.randrange(100))
    run.checkpoint()
    run.write(put_episode("e3"))
    run.restart()
    run.write(put_episode("e4"))


@scenario
def import_batch(run: Run) -> None:
    """Runs of agents, imported together; a second import finds them."""
    run.write(import_runs(*(f"run{number}" for number in range(12))), retry=True)
    run.write(import_runs("run0", "run99"), retry=True)


@scenario
def put_once_and_again(run: Run) -> None:
    """A put with an idempotency key, repeated as a client does that has heard nothing."""
    run.write(put_once(make_episode("e1"), "k1"), retry=True)
    run.write(put_once(make_episode("e1"), "k1"), retry=True)
    run.write(put_once(make_episode("e2"), "k2"), retry=True)


@scenario
def put_once_among_others(run: Run) -> None:
    """Keyed puts in a group commit with plain ones."""
    run.write(put_episode("e1"), put_once(make_episode("e2"), "k2"), append("seed", "s1"))
    run.kill()
    run.write(put_once(make_episode("e2"), "k2"), put_once(make_episode("e3"), "k3"), retry=True)


@scenario
def growing_and_shrinking(run: Run) -> None:
    """Records that need overflow pages, deleted and written again, over checkpoints: pages change their use."""
    run.write(put_episode("e1", reflection="r" * 20_000), embedding("v1", "e1", 1000))
    run.checkpoint()
    run.write(delete("episode", "e1"), retry=True)
    run.write(put_episode("e2", reflection="q" * 9_000))
    run.checkpoint()
    run.write(put_episode("e1", reflection="p" * 30_000))


@scenario
def schema_upgrade(run: Run) -> None:
    """The recorded statements of the newest migration, then a write of the new library."""
    if run.library.revision == "0001":
        run.act(lambda library: library.run_script(upgrade_statements()), undone=False)
    if run.machine.forgets and "failed" in run.met:
        return  # it must not be restarted now, see `Run._unknown`
    run.restart()
    if run.library.revision != "0001":  # an I/O error may have kept it
        run.write(put_episode("e1"))
