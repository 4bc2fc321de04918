"""Cases: a scenario, a step at which something happens, and a seed that says what and what it leaves.

- "cut": the power goes at the step. For each seed the disk is damaged its way and the database opened and checked; then
  the power goes once more, at a step of the recovery and of the writes after it, and everything is checked again.
- "kill": the process dies at the step, is started again on what the system kept, repeats what may be repeated, and the
  scenario goes on; at its end the power goes.
- "error": the step fails (I/O error or full disk, once or for longer), the client asks `resolve` where the outcome is
  unknown, the scenario goes on; a while after, or at its end, the power goes.
- "forget": as "error", every failed sync on a system that takes the data for written.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.power import templates, vfs
from tests.power.checks import powered_on
from tests.power.disk import Disk
from tests.power.ledger import Violation
from tests.power.library import CHANCE, DATABASE
from tests.power.machine import Fault, Machine, PowerCut
from tests.power.run import Run
from tests.power.scenarios import OLD_SCHEMA, SCENARIOS
from tests.power.writes import put_episode

__all__ = ["Tally", "Weakness", "run_steps", "steps_of"]


@dataclass
class Tally:
    """What came of cases."""

    cases: int = 0
    images: int = 0
    """Different disks among those that power cuts left."""
    acknowledged: int = 0
    met: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def note(self, run: Run) -> None:
        """Count what a run has met."""
        self.acknowledged += run.acknowledged
        for word in run.met:
            self.met[word] = self.met.get(word, 0) + 1


@dataclass(frozen=True)
class Weakness:
    """What is made wrong on purpose, to see that it is found.

    Args:
        synchronous: another setting than FULL.
        lies: syncs do nothing.
    """

    synchronous: str | None = None
    lies: bool = False


def _machine(name: str, faults: tuple[Fault, ...], weak: Weakness) -> Machine:
    CHANCE.state = (1_000_000, 0)
    vfs.reset_randomness()
    content = templates.old() if name in OLD_SCHEMA else templates.current()
    return Machine(Disk.holding({DATABASE: content}), faults, lies=weak.lies)


def steps_of(name: str) -> list[str]:
    """Run a scenario without a fault; return its steps by name."""
    with CHANCE.installed():
        machine = _machine(name, (), Weakness())
        run = Run(machine, 0)
        run.open()
        SCENARIOS[name](run)
        run.end()
        return machine.done


def run_steps(
    mode: str, name: str, steps: Iterable[int], seeds: Iterable[int], weak: Weakness = Weakness(), *, thorough: bool
) -> Tally:
    """Run a scenario with a fault at each of these steps, for each seed.

    Args:
        mode: see the module.
        name: the scenario.
        steps: where the fault happens; one after the last is the end of the scenario.
        seeds: what happens.
        weak: see `Weakness`.
        thorough: whether every recovery is cut once more, and a disk that looks like one already checked is not
            left out; otherwise the recovery is cut for one seed a step.
    """
    tally, seeds = Tally(), list(seeds)
    with CHANCE.installed():
        for step in steps:
            if mode == "cut":
                _cut(name, step, seeds, weak, tally, thorough)
            else:
                for seed in seeds:
                    _other(mode, name, step, seed, weak, tally, thorough)
    return tally


def _cut(name: str, step: int, seeds: list[int], weak: Weakness, tally: Tally, thorough: bool) -> None:
    machine = _machine(name, (Fault(step),), weak)
    run = Run(machine, 0, weak.synchronous)
    try:
        _play(run, name)
        _after(run, "cut", name, step, seeds, tally, thorough)
    except Violation as violation:
        tally.violations.append(_told("cut", name, step, seeds[0], run.machine, violation))
    finally:
        run.end()
        tally.note(run)


def _other(mode: str, name: str, step: int, seed: int, weak: Weakness, tally: Tally, thorough: bool) -> None:
    chance = random.Random(f"{mode} {seed}")
    machine = _machine(name, _faults(mode, step, chance), weak)
    run = Run(machine, seed, weak.synchronous)
    try:
        _play(run, name)
        _after(run, mode, name, step, [seed], tally, thorough)
    except Violation as violation:
        tally.violations.append(_told(mode, name, step, seed, run.machine, violation))
    finally:
        run.end()
        tally.note(run)


def _faults(mode: str, step: int, chance: random.Random) -> tuple[Fault, ...]:
    share = chance.choice([0.0, 0.0, 0.3, 0.9])
    if mode == "kill":
        return (Fault(step, "kill", share=share),)
    if mode == "forget":
        first = Fault(step, "io", chance.choice([1, 2, 3]), forget=True)
    else:
        first = Fault(step, chance.choice(["io", "full"]), chance.choice([1, 1, 2, 5, 1000]), share=share)
    if chance.random() < 0.5:
        return (first,)
    return first, Fault(step + first.times % 1000 + chance.randint(0, 40))


def _play(run: Run, name: str) -> None:
    try:
        run.open()
        SCENARIOS[name](run)
    except PowerCut:
        return
    run.machine.on = False


def _after(run: Run, mode: str, name: str, step: int, seeds: list[int], tally: Tally, thorough: bool) -> None:
    """Damage the disk of a machine without power each way, switch it on, check, and cut once more."""
    run.end()
    allowed, checked = run.allowed(), set()
    for seed in seeds:
        tally.cases += 1
        disk = run.machine.disk.after_power_cut(seed)
        image = disk.digest()
        if image in checked and not thorough:
            continue
        tally.images += image not in checked
        checked.add(image)
        state = CHANCE.state
        try:
            library = powered_on(Machine(disk), allowed, run._check_history, run.synchronous)
            library.die()
            if thorough or seed == seeds[step % len(seeds)]:
                _cut_again(disk, run, name, seed)
        except Violation as violation:
            tally.violations.append(_told(mode, name, step, seed, run.machine, violation))
        CHANCE.state = state


def _cut_again(disk: Disk, before: Run, name: str, seed: int) -> None:
    """Recover, go on and lose the power again, somewhere; then recover for good and go on."""
    chance = random.Random(f"again {seed} {name}")
    CHANCE.state = (2_000_000 + seed, 1000)
    machine = Machine(Disk.holding(disk.contents()), (Fault(chance.randint(1, 40)),), lies=before.machine.lies)
    again = Run(machine, seed, before.synchronous)
    again.history, again.answers = before.history, before.answers
    try:
        again.open()
        _go_on(again, "again")
        machine.on = False
    except PowerCut:
        pass
    try:
        again.cut_and_restart(chance.randrange(100))
        machine.spare()
        _go_on(again, "at last")
    finally:
        again.end()


def _go_on(run: Run, name: str) -> None:
    if run.library.revision == "0001":
        run.act(lambda library: library.run_script(templates.upgrade_statements()))
        run.restart()
    run.write(put_episode(f"{name} 1"))
    run.checkpoint()
    run.write(put_episode(f"{name} 2"), put_episode("seed"))


def _told(mode: str, name: str, step: int, seed: int, machine: Machine, violation: Violation) -> str:
    trace = "\n    ".join(machine.trace)
    return f"python -m tests.power {mode} {name} {step} {seed}: {violation}\n  the last steps before it:\n    {trace}"
