"""Bringing records in and out as JSON Lines: `import_lines`, `export_lines`, `export_file`; whole stores: `copy_store`.

    async with MemoryStore("sqlite:///agent.db") as store:
        with open("runs.jsonl", "rb") as file:
            report = await import_lines(store, bounded_lines(file), on_rejection=print)
        await export_file(store, "backup.jsonl")
    await copy_store("sqlite:///agent.db", "postgresql://user@host/agent")

docs/cli.md describes both shapes of a line and the rules of import.
"""

from __future__ import annotations

from memory_store.transfer.copying import CopyProgress, CopyReport, copy_store
from memory_store.transfer.exporting import ExportProgress, export_file, export_lines, to_json
from memory_store.transfer.importing import ImportReport, Rejection, import_lines
from memory_store.transfer.lines import MAX_LINE_BYTES, bounded_lines

__all__ = [
    "MAX_LINE_BYTES",
    "CopyProgress",
    "CopyReport",
    "ExportProgress",
    "ImportReport",
    "Rejection",
    "bounded_lines",
    "copy_store",
    "export_file",
    "export_lines",
    "import_lines",
    "to_json",
]
