"""The command line: parse, call the library, print."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the `memory-store` program and exit with its code; docs/cli.md lists the codes."""
    try:
        from memory_store.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print("memory-store: the command line needs an extra: pip install 'memory-store[cli]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
