"""Where the demo works, and what it found out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_store import MemoryStore
from memory_store.cli.demo.tools import Toolbox

__all__ = ["Check", "Paths", "Summary"]


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the demo works.

    Args:
        checkout: the folder the agent inspects.
        database: the database file.
    """

    checkout: Path
    database: Path

    @property
    def url(self) -> str:
        """The store's URL."""
        return f"sqlite:///{self.database}"

    @property
    def namespace(self) -> str:
        """Whose memory it is."""
        return "demo-agent"

    @property
    def tools(self) -> Toolbox:
        """The agent's tools in the checkout."""
        return Toolbox(self.checkout, self.scratch)

    @property
    def scratch(self) -> Path:
        """Where the tools write."""
        return self.database.parent / "scratch"

    def open(self, **settings: Any) -> MemoryStore:
        """Return the store, not opened yet."""
        return MemoryStore(self.url, namespace=self.namespace, actor="demo", **settings)


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, and whether it was kept in this run."""

    name: str
    passed: bool
    detail: str


@dataclass(slots=True)
class Summary:
    """Everything the demo found out, as `--json` prints it."""

    inspected: str
    database: str
    record: dict[str, Any] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)
    crash: dict[str, Any] = field(default_factory=dict)
    rebuild: dict[str, Any] = field(default_factory=dict)
    patterns: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)

    def check(self, name: str, passed: bool, detail: str) -> None:
        """Note a check."""
        self.checks.append(Check(name, bool(passed), detail))
