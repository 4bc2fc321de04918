"""A folder of migrations with one more revision, and ways to run Alembic."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memory_store.cache import keeper
from memory_store.durable import examine, schema
from memory_store.durable.engine import Target

REPOSITORY = Path(__file__).parents[2]
OLD = schema.HEAD_REVISION
NEXT = "next_test"
SCRIPT = f"9999_01_01_{NEXT}.py"

ADDS_A_COLUMN = "    op.add_column('episodes', sa.Column('added', sa.Text(), server_default='filled in'))"
FAILS_HALFWAY = ADDS_A_COLUMN + "\n    op.execute('DELETE FROM steps')\n    op.execute('SELECT no_such_function()')"


def revision_of(path: str) -> str | None:
    """The revision of a database file."""
    return schema.current_revision(Target(str(path), False, {}))


def script(upgrade: str) -> str:
    """A migration that follows the newest one."""
    return f'''"""a test"""

import sys
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{OLD}"


@contextmanager
def rebuilt(table):
    """SQLite drops the triggers of a table with it, so whoever makes a table anew makes them again."""
    sql = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?"
    triggers = op.get_bind().exec_driver_sql(sql, (table,)).fetchall()
    with op.batch_alter_table(table) as batch:
        yield batch
    for (statement,) in triggers:
        op.get_bind().exec_driver_sql(statement)


def upgrade():
{upgrade}


def downgrade():
    with rebuilt("episodes") as batch:
        batch.drop_column("added")
'''


@pytest.fixture
def extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make this process a library that is one revision ahead."""

    def extend(upgrade: str = ADDS_A_COLUMN) -> Path:
        folder = tmp_path / "migrations"
        if not folder.exists():
            shutil.copytree(schema.migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / SCRIPT).write_text(script(upgrade))
        monkeypatch.setattr(schema, "migrations_folder", lambda: folder)
        for module in (schema, keeper, examine):
            monkeypatch.setattr(module, "HEAD_REVISION", NEXT)
        return folder

    return extend


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the test's database is."""
    return str(tmp_path / "agent.db")


@pytest.fixture
def alembic(path: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `alembic` in the checkout, as a user does; fails unless it succeeds."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "alembic", "-x", f"url=sqlite:///{path}", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    return run


def query(path: str, sql: str) -> list[Any]:
    """Ask a database file."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def dump(path: str) -> list[str]:
    """All of a database file, as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())
