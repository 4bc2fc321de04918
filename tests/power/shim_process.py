"""The process that holds the shim: reads requests, one JSON object a line, and answers each with one.

Standard output belongs to the answers; whatever else is printed goes to standard error.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict
from typing import Any

from tests.power import vfs
from tests.power.cases import Weakness, run_steps, steps_of
from tests.power.scenarios import SCENARIOS

__all__ = ["answer", "main"]


def answer(request: dict[str, Any]) -> Any:
    """Return the answer to a request."""
    if request["ask"] == "scenarios":
        return {name: steps_of(name) for name in request.get("names", SCENARIOS)}
    weak = Weakness(**request.get("weak", {}))
    tally = run_steps(
        request["mode"], request["scenario"], request["steps"], request["seeds"], weak, thorough=request["thorough"]
    )
    return asdict(tally)


def main() -> None:
    """Answer until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    vfs.install()
    for line in sys.stdin:
        try:
            said: dict[str, Any] = {"answer": answer(json.loads(line))}
        except Exception:
            said = {"raised": traceback.format_exc()}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
