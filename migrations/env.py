"""Runs migrations, for `alembic ...` in a checkout and for the library (`memory_store.durable.schema`).

One transaction holds all steps and the new revision number, so a process that dies halfway leaves the old schema.
"""

from __future__ import annotations

import asyncio
import logging.config
import os

from alembic import context
from sqlalchemy import Connection

from memory_store.durable.engine import make_engine, parse_url
from memory_store.durable.log import begin_epoch
from memory_store.durable.schema import METADATA

config = context.config


def database_url() -> str:
    given = context.get_x_argument(as_dictionary=True).get("url")
    return given or config.attributes.get("url") or os.environ.get("MEMORY_STORE_URL") or config.get_main_option("url")


def configure(**options) -> None:
    context.configure(target_metadata=METADATA, render_as_batch=True, transactional_ddl=True, **options)


def run(connection: Connection) -> None:
    # A step that rebuilds a table drops the old one, and with foreign keys on that deletes all that refers to it. They
    # cannot be switched off inside a transaction, so this comes first; the references are checked before the commit.
    connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
    # IMMEDIATE: a deferred transaction that turns into a write fails at once when another process writes meanwhile.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    configure(connection=connection)
    with context.begin_transaction():
        before = context.get_context().get_current_revision()
        context.run_migrations()
        after = context.get_context().get_current_revision()
    # Stores that are open meanwhile, and saved caches, must not go on with rows as they were.
    if after not in (before, None):
        begin_epoch(connection.exec_driver_sql, "upgrade")
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        connection.rollback()
        raise RuntimeError(f"the migration would leave {len(broken)} rows without their episode; nothing was changed")
    connection.commit()


async def run_online() -> None:
    target = parse_url(database_url())
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
