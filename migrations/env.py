"""Runs migrations, for `alembic ...` in a checkout and for the library (`memory_store.durable.schema`).

One transaction holds all steps and the new revision number, so a process that dies halfway leaves the old schema.
"""

from __future__ import annotations

import asyncio
import logging.config
import os

from alembic import context
from sqlalchemy import Connection

from memory_store.durable.changes import HEADS_LOCK, UPGRADE_LOCK
from memory_store.durable.documents import ON_SERVER
from memory_store.durable.engine import make_engine, parse_url
from memory_store.durable.log import begin_epoch
from memory_store.durable.partitions import is_partition
from memory_store.durable.schema import METADATA

config = context.config


def database_url() -> str:
    given = context.get_x_argument(as_dictionary=True).get("url")
    return given or config.attributes.get("url") or os.environ.get("MEMORY_STORE_URL") or config.get_main_option("url")


def configure(**options) -> None:
    context.configure(target_metadata=METADATA, transactional_ddl=True, **options)


def run(connection: Connection) -> None:
    run_on = run_on_server if connection.dialect.name == "postgresql" else run_on_sqlite
    run_on(connection)
    connection.commit()


def run_on_sqlite(connection: Connection) -> None:
    # A step that rebuilds a table drops the old one, and with foreign keys on that deletes all that refers to it. They
    # cannot be switched off inside a transaction, so this comes first; the references are checked before the commit.
    connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
    # IMMEDIATE: a deferred transaction that turns into a write fails at once when another process writes meanwhile.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    configure(connection=connection, render_as_batch=True, include_name=is_listed, include_object=is_in_files)
    if run_steps():
        begin_epoch(connection.exec_driver_sql, "upgrade")
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        connection.rollback()
        raise RuntimeError(f"the migration would leave {len(broken)} rows without their episode; nothing was changed")


def run_on_server(connection: Connection) -> None:
    # The second of two upgrades waits here, and finds the work done.
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({HEADS_LOCK})")
    # In the order in which writers lock, the head first; a migration logs nothing but its epoch.
    if connection.exec_driver_sql("SELECT to_regclass('head')").scalar() is not None:
        connection.exec_driver_sql(
            "LOCK TABLE head, episodes, steps, patterns, embeddings, spatiotemporal_index IN ACCESS EXCLUSIVE MODE"
        )
    connection.exec_driver_sql("SELECT set_config('memory_store.writing', 'on', true)")
    configure(connection=connection, include_name=is_ours)
    if run_steps():

        def execute(sql: str, parameters: tuple = ()):
            numbered = "".join(part if index == 0 else f"${index}{part}" for index, part in enumerate(sql.split("?")))
            return connection.exec_driver_sql(numbered, parameters)

        for (shard,) in execute("SELECT shard FROM head ORDER BY shard").fetchall():
            begin_epoch(execute, "upgrade", shard=shard)


def run_steps() -> bool:
    """Run what is to be run; return whether a store is there whose followers must not go on with rows as they were."""
    with context.begin_transaction():
        before = context.get_context().get_current_revision()
        context.run_migrations()
        return context.get_context().get_current_revision() not in (before, None)


def is_ours(name: str | None, kind: str, parents: dict) -> bool:
    """Return whether `alembic check` looks at something: partitions, and what they repeat, belong to their parent."""
    return not is_partition(name, kind) and (kind != "table" or name in METADATA.tables)


def is_listed(name: str | None, kind: str, parents: dict) -> bool:
    """Return whether `alembic check` looks at something of a file: the index keeps tables of its own."""
    return kind != "table" or not str(name).startswith(("documents_text", "documents_vocabulary", "documents_postings"))


def is_in_files(item: object, name: str | None, kind: str, reflected: bool, other: object) -> bool:
    """Return whether `alembic check` compares something of a file: of documents, each database has keys of its own."""
    return getattr(item, "info", {}).get("only") != ON_SERVER["only"] and name != "uq_documents_namespace_kind_id"


async def run_online() -> None:
    target = parse_url(database_url())
    if target.url.get_backend_name() == "sqlite":
        target.require_folder()
    engine = make_engine(target, timeout_s=30.0)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


if config.config_file_name is not None and not config.attributes.get("quiet"):
    logging.config.fileConfig(config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    configure(url=parse_url(database_url()).url, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(run_online())
