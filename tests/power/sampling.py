"""Which steps and seeds are run: all of them at length, a fair sample of them in every test run."""

from __future__ import annotations

import random

__all__ = ["MODES", "sampled", "steps_for"]

MODES = ("cut", "kill", "error", "forget")


def steps_for(mode: str, names: list[str]) -> list[int]:
    """Return the steps of a scenario at which a mode does something, and for most modes the end of it."""
    if mode == "forget":
        return [step for step, name in enumerate(names, 1) if name.startswith("sync")]
    return list(range(1, len(names) + 2))


def sampled(mode: str, names: list[str], count: int) -> list[int]:
    """Return some of those steps: half of them where something other than a write happens or has just happened."""
    steps, chance = steps_for(mode, names), random.Random(f"{mode} {len(names)}")
    if len(steps) <= count:
        return steps
    kinds = [name.split()[0] for name in names]
    around = [step for step in steps if {"write"} != {*kinds[max(step - 2, 0) : step]}]
    chosen = set(chance.sample(around, min(len(around), count // 2)))
    rest = [step for step in steps if step not in chosen]
    return sorted(chosen | set(chance.sample(rest, count - len(chosen))))
