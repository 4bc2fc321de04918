"""The tests' end of the shim's process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.power.sampling import MODES

__all__ = ["ShimProcess"]

_REPOSITORY = Path(__file__).parents[2]


class ShimProcess:
    """A process that runs cases, one after another; use it as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.power.shim_process"],
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.steps: dict[str, list[str]] = self._ask({"ask": "scenarios"})
            """The steps of each scenario by name, when nothing goes wrong."""
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        try:
            self._process.communicate(timeout=10)  # its input ends, and so does it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def run(
        self,
        mode: str,
        scenario: str,
        steps: list[int],
        seeds: list[int],
        *,
        thorough: bool = False,
        weak: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run cases and return the fields of their `Tally`."""
        assert mode in MODES
        request = {"ask": "run", "mode": mode, "scenario": scenario, "steps": steps, "seeds": seeds}
        answer: dict[str, Any] = self._ask({**request, "thorough": thorough, "weak": weak or {}})
        return answer

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        assert line, f"the shim's process ended with {self._process.wait()} over {request}"
        said = json.loads(line)
        if "raised" in said:
            raise AssertionError(said["raised"])
        return said["answer"]
