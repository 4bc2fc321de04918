"""`copy`."""

from __future__ import annotations

from dataclasses import asdict

from memory_store.cli.options import Code, run_async
from memory_store.cli.screen import bar, print_json, print_line
from memory_store.transfer import CopyProgress, CopyReport, copy_store

__all__ = ["copy"]


def copy(source: str, target: str, as_json: bool) -> int:
    """Copy a database, and tell what was copied."""

    async def work() -> CopyReport:
        with bar() as progress:
            task = progress.add_task("copying", total=None, note="")

            def tell(now: CopyProgress) -> None:
                note = f"{now.done:,} of {now.total:,} rows"
                progress.update(task, description=now.what, completed=now.done, total=now.total, note=note)

            return await copy_store(source, target, on_progress=tell)

    done = run_async(work())
    if as_json:
        print_json(asdict(done))
    else:
        _print(done)
    return Code.OK


def _print(done: CopyReport) -> None:
    each = ", ".join(f"{count:,} {kind}" for kind, count in done.records.items())
    print_line(f"{done.source} -> {done.target}{' (begun by an earlier run)' if done.resumed else ''}")
    print_line(f"records: {each}, in {done.namespaces:,} namespaces")
    print_line(f"log: {done.changes:,} changes, positions {'kept' if done.positions_kept else 'numbered anew'}")
    print_line(f"idempotency keys: {done.idempotency:,}")
    print_line(
        f"source up to position {_listed(done.source_positions)}; target from {_listed(done.target_positions)} on"
    )
    seconds = ", ".join(f"{name} {took:.1f} s" for name, took in done.seconds.items())
    print_line(f"verified, every row; {seconds}")


def _listed(positions: list[int]) -> str:
    return ", ".join(f"{position:,}" for position in positions)
