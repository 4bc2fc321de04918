"""The commands: their names, arguments and help. What they do is in the modules beside this one."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from memory_store.cli import caches, copying, files, reading, schemas, searching, servers, similar, upkeep, watching
from memory_store.cli.options import DEFAULT_URL, Code, Json, Name, Url, code_of, complain
from memory_store.cli.screen import ReaderGone
from memory_store.errors import ConfigurationError, MemoryStoreError

__all__ = ["app", "cache_app", "run"]

_HELP = "The memory database for agent runtimes: records in SQLite or PostgreSQL behind a cache that is never wrong."
_CODES = (
    "Exit codes: 0 done; 1 done, but problems were found (rejected lines, no such record, a failed check); 2 wrong "
    "usage, setting or file; 3 the database is missing, unusable, locked or at another schema revision; 130 "
    "interrupted; 141 the reader of the output went away."
)
_PLAIN = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}

app = typer.Typer(help=_HELP, epilog=_CODES, **_PLAIN)  # type: ignore[arg-type]
cache_app = typer.Typer(help="Look at the saved cache, fill it anew, or empty it.", **_PLAIN)  # type: ignore[arg-type]
app.add_typer(cache_app, name="cache")

Kind = Annotated[str, typer.Argument(metavar="KIND", help="episode, step, pattern, embedding or spatiotemporal")]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Say what there is, when nothing is asked for."""
    if version:
        schemas.print_version()
        raise typer.Exit(Code.OK)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(Code.USAGE)


@app.command()
def upgrade(url: Url = DEFAULT_URL, as_json: Json = False) -> int:
    """Make the database, or bring it to this version's schema; a database that holds rows is copied first."""
    return schemas.upgrade(url, as_json)


@app.command()
def check(url: Url = DEFAULT_URL, as_json: Json = False) -> int:
    """Say whether the database is at this version's schema."""
    return schemas.check(url, as_json)


@app.command()
def history(url: Url = DEFAULT_URL, as_json: Json = False) -> int:
    """List the schema's migrations, and which of them the database has."""
    return schemas.history(url, as_json)


@app.command("import")
def import_(
    names: Annotated[list[str], typer.Argument(metavar="FILE...", help="JSON Lines files; - is standard input")],
    url: Url = DEFAULT_URL,
    namespace: Name = "default",
    on_conflict: Annotated[
        str, typer.Option(metavar="reject|skip|replace", help="What to do with records that exist with other content.")
    ] = "reject",
    timezone: Annotated[
        str, typer.Option(metavar="NAME", help="What times without a zone are in, e.g. Europe/Paris.")
    ] = "UTC",
    as_json: Json = False,
) -> int:
    """Import recorded runs or exported records. Running it again changes nothing."""
    return files.import_files(names, url, namespace, on_conflict, timezone, as_json)


@app.command()
def export(
    url: Url = DEFAULT_URL,
    namespace: Name = "default",
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="Only this kind; repeatable.")
    ] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", help="Every namespace.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="A file, written whole or not at all.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Write records as JSON Lines, from which import gives back every bit."""
    return files.export_records(url, namespace, kind, all_namespaces, output, as_json)


@app.command("list")
def list_(
    kind: Kind,
    url: Url = DEFAULT_URL,
    namespace: Name = "default",
    where: Annotated[
        str | None, typer.Option(metavar="JSON", help='A filter, e.g. \'{"domain": {"$eq": "web"}}\'.')
    ] = None,
    order_by: Annotated[str | None, typer.Option(metavar="COLUMN", help="By id when absent.")] = None,
    desc: Annotated[bool, typer.Option("--desc", help="Highest or newest first.")] = False,
    limit: Annotated[int, typer.Option(help="Records a page, 1 to 1000.")] = 50,
    cursor: Annotated[str | None, typer.Option(metavar="TEXT", help="Where the page before ended.")] = None,
    as_json: Json = False,
) -> int:
    """List the records of a kind, a page at a time."""
    return reading.list_records(url, namespace, kind, where, order_by, desc, limit, cursor, as_json)


@app.command()
def show(
    kind: Kind,
    id_: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = DEFAULT_URL,
    namespace: Name = "default",
    as_json: Json = False,
) -> int:
    """Show one record; an episode with everything that belongs to it."""
    return reading.show_record(url, namespace, kind, id_, as_json)


@app.command("similar")
def similar_(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to compare with; or --pattern")] = None,
    pattern: Annotated[str | None, typer.Option(metavar="ID", help="Compare with a stored pattern.")] = None,
    url: Url = DEFAULT_URL,
    namespace: Name = "default",
    limit: Annotated[int, typer.Option(help="At most so many, 1 to 1000.")] = 10,
    threshold: Annotated[float, typer.Option(help="The lowest similarity, 0.1 to 1.")] = 0.5,
    as_json: Json = False,
) -> int:
    """List the patterns that say nearly the same as a text or a pattern, the most similar first."""
    return similar.list_similar(url, namespace, text, pattern, limit, threshold, as_json)


@app.command()
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is sought, in words.")],
    url: Url = DEFAULT_URL,
    namespace: Name = "default",
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="Only this kind; repeatable.")
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="JSON", help="A filter of the one --kind, as in list.")] = None,
    expert: Annotated[
        bool, typer.Option("--expert", help='Read QUERY as an expression: "a phrase", pre*, AND, OR, NOT, ( ).')
    ] = False,
    limit: Annotated[int, typer.Option(help="Hits a page, 1 to 1000.")] = 10,
    cursor: Annotated[str | None, typer.Option(metavar="TEXT", help="Where the page before ended.")] = None,
    as_json: Json = False,
) -> int:
    """Search episodes, steps, patterns and embeddings by their text, best first."""
    return searching.search(url, namespace, query, kind, where, expert, limit, cursor, as_json)


@app.command()
def reindex(url: Url = DEFAULT_URL, as_json: Json = False) -> int:
    """Make the full-text index anew from the records; others may search and write meanwhile."""
    return searching.reindex(url, as_json)


@app.command()
def stats(
    url: Url = DEFAULT_URL,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show what all processes do with the database, until interrupted.")
    ] = False,
    interval: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --watch: between two looks; 1 when absent.")
    ] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="With --watch: end after N looks.")] = None,
    as_json: Json = False,
) -> int:
    """Count the records of every namespace, and say how large everything is; or watch how they change."""
    if watch:
        return watching.watch_stats(url, 1.0 if interval is None else interval, count, as_json)
    if interval is not None or count is not None:
        raise ConfigurationError("--interval and --count go with --watch")
    return reading.show_stats(url, as_json)


@app.command()
def doctor(
    url: Url = DEFAULT_URL,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what follows from the rows; a copy of a file is made first.")
    ] = False,
    without_copy: Annotated[
        bool, typer.Option("--without-copy", help="Repair on a server, of which no copy is made here.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Check versions, schema, integrity, sizes and the saved cache; without --repair nothing is changed."""
    if repair:
        return upkeep.repair(url, as_json, without_copy)
    if without_copy:
        raise ConfigurationError("--without-copy goes with --repair")
    return schemas.doctor(url, as_json)


@app.command()
def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The new file.")],
    url: Url = DEFAULT_URL,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    as_json: Json = False,
) -> int:
    """Copy the database into a file while it is used: one commit's state, verified, whole or not at all."""
    return upkeep.backup(file, url, overwrite, as_json)


@app.command()
def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A backup.")],
    url: Url = DEFAULT_URL,
    force: Annotated[bool, typer.Option("--force", help="Replace also another database than the backup's.")] = False,
    as_json: Json = False,
) -> int:
    """Put a backup in the database's place, also while it is used. What was written after the backup is lost."""
    return upkeep.restore(file, url, force, as_json)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="URL of the database that is read.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="URL of an empty one, or of a file to be made.")],
    as_json: Json = False,
) -> int:
    """Copy a whole database into an empty one, SQLite or PostgreSQL, verified. Run it again to go on with it."""
    return copying.copy(source, target, as_json)


@app.command()
def partition(
    url: Url = DEFAULT_URL,
    partitions: Annotated[int, typer.Option(metavar="N", help="How many, 2 to 1024.")] = 16,
    as_json: Json = False,
) -> int:
    """Split the record tables of a PostgreSQL database by namespace, in place; writers wait meanwhile."""
    return servers.partition(url, partitions, as_json)


@app.command()
def secure(
    role: Annotated[str, typer.Option(metavar="NAME", help="A role that does not own the tables.")],
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> int:
    """Let a role of a PostgreSQL database see one namespace only, by row-level security."""
    return servers.secure(url, role, as_json)


@app.command()
def verify(url: Url = DEFAULT_URL, as_json: Json = False) -> int:
    """Check the database from end to end: pages, keys, schema, log against records, saved cache against records."""
    return upkeep.verify(url, as_json)


@app.command()
def demo(
    folder: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The checkout the demo's agent looks at.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Record a real run, read it back, survive a kill, rebuild the cache: a tour in under a minute."""
    from memory_store.cli import demo as tour

    return tour.run(folder, as_json)


@cache_app.command("status")
def cache_status(url: Url = DEFAULT_URL, as_json: Json = False) -> int:
    """Say what is in the saved cache, and whether the next start will use it."""
    return caches.status(url, as_json)


@cache_app.command("rebuild")
def cache_rebuild(url: Url = DEFAULT_URL, as_json: Json = False) -> int:
    """Fill the cache from the database, and save it."""
    return caches.rebuild(url, as_json)


@cache_app.command("clear")
def cache_clear(url: Url = DEFAULT_URL, as_json: Json = False) -> int:
    """Empty the saved cache. Never needed for correctness."""
    return caches.clear(url, as_json)


def run(arguments: Sequence[str]) -> int:
    """Run the program and return its exit code; every expected failure is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another character set is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (BrokenPipeError, ReaderGone):
        # Nobody reads any more. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.PIPE
    except OSError as error:
        complain(f"{error.filename or 'standard output'}: {error.strerror or error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.USAGE
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        return int(app(list(arguments), prog_name="memory-store", standalone_mode=False) or Code.OK)
    except SystemExit as stop:  # Typer's own answer to a reader that went away
        if isinstance(stop.__context__, BrokenPipeError):
            raise ReaderGone from stop
        raise
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return Code.INTERRUPTED
    except MemoryStoreError as error:
        complain(str(error))
        return code_of(error)
    except Exception as error:
        # Typer's own errors say how they want to be shown; where their class lives differs from version to version.
        format_message: Callable[[], str] | None = getattr(error, "format_message", None)
        if format_message is None:
            raise
        complain(f"{format_message()} (see --help)")
        return Code.USAGE
