"""Taking a rule out of the library: a piece of its own source text is replaced while something runs."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.simulation.seams import replaced

__all__ = ["Edit", "Mutant", "mutated"]


class Edit(NamedTuple):
    """A piece of a function's text, and what stands there instead."""

    owner: Any
    function: str
    old: str
    new: str


class Mutant(NamedTuple):
    """One rule taken out.

    Args:
        name: which rule.
        edits: what is changed in the library.
        gaps: whether instead the database hands out positions that become visible out of order.
        favourite: what the histories that look for it do more often, where it is rare.
        first: the first history that looks for it: where few notice it, the first known to, which need not stay so.
    """

    name: str
    edits: tuple[Edit, ...] = ()
    gaps: bool = False
    favourite: str | None = None
    first: int = 0


def _changed(edits: list[Edit]) -> Any:
    """Return a function with pieces of its text replaced, in the namespace of its module."""
    original = inspect.unwrap(getattr(edits[0].owner, edits[0].function))
    text = textwrap.dedent(inspect.getsource(original))
    for edit in edits:
        if text.count(edit.old) != 1:
            raise LookupError(
                f"{edit.function} has {text.count(edit.old)} times {edit.old!r}: bring the mutant up to date"
            )
        text = text.replace(edit.old, edit.new)
    made: dict[str, Any] = {}
    module = sys.modules[original.__module__]
    exec(compile(text, f"<mutant of {edits[0].function}>", "exec", flags=_ANNOTATIONS), vars(module), made)
    function = made[edits[0].function]
    function.__defaults__ = original.__defaults__
    return function


_ANNOTATIONS = __import__("__future__").annotations.compiler_flag


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """Run with a mutant in place of the library."""
    places: list[tuple[Any, str, Any]] = []
    functions = dict.fromkeys((edit.owner, edit.function) for edit in mutant.edits)
    for owner, name in functions:
        original = getattr(owner, name)
        changed = _changed([edit for edit in mutant.edits if (edit.owner, edit.function) == (owner, name)])
        owners = [owner] if inspect.isclass(owner) else _modules_with(name, original)
        places += [(one, name, changed) for one in owners]
    with replaced(places):
        yield


def _modules_with(name: str, function: Any) -> list[Any]:
    """Return the modules that have a function under its name: who imported it keeps it."""
    modules = [module for key, module in sys.modules.items() if key.startswith("memory_store.")]
    return [module for module in modules if vars(module).get(name) is function]
