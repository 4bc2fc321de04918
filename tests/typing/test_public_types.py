"""Type checkers see the public API as callers are told it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import memory_store

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]


def test_mypy_agrees() -> None:
    """`--strict` warns of a remark that is no longer needed, so the mistakes are held to be mistakes as well."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml"]
    files = [str(FOLDER / "api.py"), str(FOLDER / "mistakes.py")]
    done = subprocess.run([*command, *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_agrees() -> None:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(FOLDER / "api.py")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_marker_of_typed_packages_is_there() -> None:
    assert (Path(memory_store.__file__).parent / "py.typed").is_file()


def test_the_whole_public_api_is_used() -> None:
    """Every public name that is no plain error, and every verb, stands in api.py."""
    tree = ast.parse((FOLDER / "api.py").read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    public = {name for name in memory_store.__all__ if not name.endswith("Error")}
    assert public - names <= {"Settings"}, "it is only ever made from keywords"
    has_verbs = (memory_store.Collection, memory_store.Parts, memory_store.Namespace, memory_store.MemoryStore)
    verbs = {name for cls in has_verbs for name in vars(cls) if not name.startswith("_")}
    assert verbs <= attributes
