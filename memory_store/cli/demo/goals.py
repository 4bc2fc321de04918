"""What the agent is asked: questions about the files that are there, each with the answer it will be judged by."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from memory_store import TaskType
from memory_store.cli.demo.tools import source_files

__all__ = ["Goal", "Survey", "make_goals", "pick_folder"]

_LEAST_FILES = 3
# Modules an agent may well reach for; whether they are installed here is what it has to find out.
_GUESSED_MODULES = ("attrs", "dateutil", "numpy", "pandas", "requests", "simplejson", "ujson", "yaml")
_NEVER_IMPORTED = {"antigravity", "this", "__main__"}


@dataclass(frozen=True, slots=True)
class Goal:
    """One question.

    Args:
        kind: which sort of question; decides the ways to answer it.
        text: the question in words.
        task_type: the sort of work.
        domain: the part of the checkout it is about.
        subject: a name, path or module.
        truth: the right answer, found without the agent's tools.
        path: the file it is about, where the subject is not one.
    """

    kind: str
    text: str
    task_type: TaskType
    domain: str
    subject: str
    truth: Any
    path: str = ""


@dataclass(slots=True)
class Survey:
    """What there is to ask about."""

    folder: Path
    sources: dict[str, str] = field(default_factory=dict)
    definitions: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    modules: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path) -> Survey:
        """Read and parse every Python file once."""
        survey = cls(folder)
        for path in source_files(folder):
            name = path.relative_to(folder).as_posix()
            try:
                source = path.read_text("utf-8")
                tree = ast.parse(source)
            except (OSError, ValueError, SyntaxError, RecursionError):
                continue
            survey.sources[name] = source
            for node in ast.walk(tree):
                survey._note(node, name)
        local = {Path(name).parts[0].removesuffix(".py") for name in survey.sources} | {folder.name}
        survey.modules -= local | _NEVER_IMPORTED
        return survey

    def _note(self, node: ast.AST, name: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                self.definitions[node.name].add(name)
        elif isinstance(node, ast.Import):
            self.modules.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            self.modules.add(node.module.partition(".")[0])


def pick_folder(folder: Path) -> Path:
    """Return the folder if there is something to inspect in it, else the folder of this package."""
    for count, _ in enumerate(source_files(folder), 1):
        if count == _LEAST_FILES:
            return folder
    return Path(__file__).parents[2]


def make_goals(survey: Survey, *, quick: bool = False) -> Iterator[Goal]:
    """Yield goals without end, the same ones for the same files, each kind in turn.

    Args:
        survey: what there is to ask about.
        quick: leave out the kinds that need another process.
    """
    kinds = [_definitions(survey), _mentions(survey)]
    if not quick:
        kinds += [_line_counts(survey), _excerpts(survey), _imports(survey)]
    endless = [cycle(goals) for goals in map(list, kinds) if goals]
    while True:
        for goals in endless:
            yield next(goals)


def _shuffled(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())


def _domain(path: str) -> str:
    return Path(path).parent.as_posix()


def _definitions(survey: Survey) -> Iterator[Goal]:
    for name in _shuffled(survey.definitions):
        places = survey.definitions[name]
        yield Goal("definition", f"find where {name} is defined", TaskType.ANALYSIS, _domain(min(places)), name, places)


def _mentions(survey: Survey) -> Iterator[Goal]:
    # Each file is cut into words once: searching them all for each of some thousand names took a minute.
    tests = {name: set(re.findall(r"\w+", text)) for name, text in survey.sources.items() if name.startswith("tests/")}
    for name in _shuffled(survey.definitions):
        truth = {path for path, words in tests.items() if name in words}
        domain = _domain(min(survey.definitions[name]))
        yield Goal("mentions", f"which tests mention {name}", TaskType.TESTING, domain, name, truth)


def _line_counts(survey: Survey) -> Iterator[Goal]:
    for path in _shuffled(survey.sources):
        truth = survey.sources[path].count("\n")
        yield Goal("lines", f"count the lines of {path}", TaskType.DOCUMENTATION, _domain(path), path, truth)


def _excerpts(survey: Survey) -> Iterator[Goal]:
    for path in _shuffled(survey.sources):
        lines = survey.sources[path].splitlines(keepends=True)
        excerpt = "".join(lines[len(lines) // 3 : 2 * len(lines) // 3])
        text = f"does the middle of {path} compile by itself"
        yield Goal("excerpt", text, TaskType.REFACTORING, _domain(path), excerpt, _compiles(excerpt), path)


def _imports(survey: Survey) -> Iterator[Goal]:
    for name in _shuffled(survey.modules.union(_GUESSED_MODULES)):
        truth = name in sys.builtin_module_names or importlib.util.find_spec(name) is not None
        yield Goal("import", f"does module {name} import", TaskType.DEBUGGING, "environment", name, truth)


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True
