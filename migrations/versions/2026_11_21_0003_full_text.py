"""full text: documents, their index, and what is left to be indexed

A document for each record with text. On SQLite their terms are indexed by FTS5, which keeps no text of its own: the
view `documents_terms` is its content. On PostgreSQL the terms are a tsvector with a GIN index.

The triggers that log what plain SQL changes leave the position in the backlog as well. Records that are there already
are left in the backlog by namespace, and are indexed when a store is opened.

Revision: 0003
Follows: 0002
Made: 2026-11-21
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SEARCHED = ("episodes", "steps", "patterns", "embeddings")


def migration_0002() -> ModuleType:
    """Return the migration that made the triggers which are changed here."""
    [path] = Path(__file__).parent.glob("*_0002_*.py")
    spec = importlib.util.spec_from_file_location("migration_0002", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_bytes(type_: sa.String) -> sa.String:
    return type_.with_variant(sa.Text(collation="C"), "postgresql")


def short(length: int = 256) -> sa.String:
    return by_bytes(sa.String(length))


def upgrade() -> None:
    on_server = op.get_context().dialect.name != "sqlite"
    identity = ("namespace", "kind", "id")
    own = (
        [sa.Column("key", sa.BigInteger(), sa.Identity(), nullable=False)]
        if on_server
        # Explicit: rows without such a key get other numbers by VACUUM, and the index knows them by number.
        else [
            sa.Column("key", sa.Integer(), primary_key=True, autoincrement=True),
            sa.UniqueConstraint(*identity, name="uq_documents_namespace_kind_id"),
        ]
    )
    op.create_table(
        "documents",
        *own,
        sa.Column("namespace", short(200), nullable=False),
        sa.Column("kind", short(64), nullable=False),
        sa.Column("id", short(), nullable=False),
        sa.Column("parent", short()),
        sa.Column("place", short()),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("corpus", short(16), nullable=False),
        sa.Column("terms", sa.Text().with_variant(TSVECTOR(), "postgresql"), nullable=False),
    )
    for names, last in ((["parent"], "parent"), (["place", "at"], "place")):
        present = sa.text(f"{last} IS NOT NULL")
        op.create_index(
            f"ix_documents_namespace_{'_'.join(names)}",
            "documents",
            ["namespace", *names],
            sqlite_where=present,
            postgresql_where=present,
        )
    op.create_table(
        "backlog",
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("namespace", short(200), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False, server_default=sa.text("-1")),
        sa.Column("kind", short(64), nullable=False, server_default=sa.text("''")),
        sa.Column("key", short(), nullable=False, server_default=sa.text("''")),
        sa.PrimaryKeyConstraint("namespace", "shard", "position", name="pk_backlog"),
    )
    if on_server:
        # Apart from the row, and as they are: postings are read from rows of 150 bytes, not of 2,000, of which a search
        # reads thousands; and to unpack the terms of one takes twice as long as to read them.
        op.execute("ALTER TABLE documents ALTER COLUMN terms SET STORAGE EXTERNAL")
        op.execute("ALTER TABLE documents SET (toast_tuple_target = 128)")
        op.create_index("ix_documents_namespace_key", "documents", ["namespace", "key"])
        # New entries wait in a list that every search reads, once for each term: of 4 MB, the default, four words over
        # 1,000 new documents took 30 ms, and 8 so. A record put alone takes 2.5 % longer.
        op.create_index(
            "ix_documents_terms",
            "documents",
            ["terms"],
            postgresql_using="gin",
            postgresql_with={"gin_pending_list_limit": 256},
        )
        # As the last one: see `record_table` in the first migration.
        op.create_primary_key("pk_documents", "documents", list(identity))
        log_on_server(with_backlog=True)
    else:
        op.execute(
            "CREATE VIEW documents_terms AS "
            "SELECT key, corpus || ' ' || corpus || replace(terms, ' ', ' ' || corpus) AS terms FROM documents"
        )
        # Terms come as they are to be found, letters and digits: nothing is left for the tokenizer but the spaces.
        op.execute(
            "CREATE VIRTUAL TABLE documents_text USING "
            "fts5(terms, content='documents_terms', content_rowid='key', tokenize='ascii')"
        )
        op.execute("CREATE VIRTUAL TABLE documents_vocabulary USING fts5vocab('documents_text', 'row')")
        op.execute("CREATE VIRTUAL TABLE documents_postings USING fts5vocab('documents_text', 'instance')")
        log_in_file(with_backlog=True)
    shard = "memory_store_shard(namespace)" if on_server else "0"
    found = " UNION ".join(f"SELECT namespace FROM {table}" for table in SEARCHED)
    op.execute(f"INSERT INTO backlog (shard, position, namespace) SELECT {shard}, 0, namespace FROM ({found}) AS found")


def log_in_file(*, with_backlog: bool) -> None:
    """Make the triggers again, with or without the backlog."""
    before = migration_0002()
    for table, (kind, parent) in before.PARENTS.items():
        for event in ("insert", "delete", "move", "update"):
            op.execute(f"DROP TRIGGER log_{table}_{event}")
        for statement in before.triggers(table, kind, parent):
            if with_backlog and table in SEARCHED:
                row = "OLD" if f"_{table}_delete " in statement or f"_{table}_move " in statement else "NEW"
                left = (
                    "INSERT OR IGNORE INTO backlog (shard, position, namespace) "
                    f"SELECT 0, position, {row}.namespace FROM head WHERE shard = 0; "
                )
                statement = f"{statement.removesuffix('END')}{left}END"
            op.execute(statement)


LEAVE_BEHIND = """
    IF kind IN ('episode', 'step', 'pattern', 'embedding') THEN
        INSERT INTO backlog (shard, position, namespace) VALUES (ours, commit_position, $2) ON CONFLICT DO NOTHING;
    END IF;
END $$"""
LEAVE_ALL_BEHIND = """
    INSERT INTO backlog (shard, position, namespace)
        SELECT DISTINCT memory_store_shard(namespace), 0, namespace FROM documents ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$"""


def log_on_server(*, with_backlog: bool) -> None:
    """Make the functions of the triggers again, with or without the backlog."""
    before = migration_0002()
    change, truncate = before.LOG_CHANGE, before.LOG_TRUNCATE
    if with_backlog:
        change = change.removesuffix("\nEND $$") + LEAVE_BEHIND
        truncate = truncate.removesuffix("\n    RETURN NULL;\nEND $$") + LEAVE_ALL_BEHIND
    for function, text in (
        ("memory_store_log_change(text, text, text, text, text, bigint)", change),
        ("memory_store_log_truncate()", truncate),
    ):
        op.execute(text.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
        op.execute(before.FIX_SEARCH_PATH.format(function=function))


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        log_in_file(with_backlog=False)
        for table in ("documents_postings", "documents_vocabulary", "documents_text"):
            op.execute(f"DROP TABLE {table}")
        op.execute("DROP VIEW documents_terms")
    else:
        log_on_server(with_backlog=False)
    op.drop_table("backlog")
    op.drop_table("documents")
