"""Partitioning: the record tables are split by a hash of their namespace, in a PostgreSQL database that is in use.

Only the five tables of records. `changes` has no namespace in its key, which PostgreSQL would demand: it is read and
trimmed by shard and position, at the two ends of one index. `idempotency` holds what was written lately and is trimmed
by age: it does not grow with the records. `head` has a row a shard.

A table cannot be split where it is: it is made anew, filled, and put in the old one's place. Writers wait meanwhile.
Readers go on until the tables are exchanged; a snapshot that is older than that would find the new tables empty, so the
head is locked first (the store's reading transactions lock it before they take their snapshot) and a new epoch begins:
whatever another reader may have made of empty tables is not believed for long.
"""

# ruff: noqa: S608 - statements are made of our own names, and of what the catalogue has quoted itself

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from memory_store.durable.changes import CHANGES, HEAD
from memory_store.errors import ConfigurationError
from memory_store.records import METADATA, RECORDS

__all__ = ["MOST_PARTITIONS", "RECORD_TABLES", "Execute", "is_partition", "partition", "partition_count"]

MOST_PARTITIONS = 1024
"""Every partition is a file, an entry in the server's caches and, for a statement that is kept, a lock."""

Execute = Callable[[str], Any]
"""Runs a statement without parameters in the caller's transaction and returns its rows."""

_RECORDS = {spec.table.name for spec in RECORDS.values()}
RECORD_TABLES = tuple(table.name for table in METADATA.sorted_tables if table.name in _RECORDS)
"""The tables that are partitioned; one comes before those that refer to it."""

_NAMES = ", ".join(f"'{name}'" for name in RECORD_TABLES)

_PARTITION = re.compile(rf"(?:{'|'.join(RECORD_TABLES)})_p[0-9]+")
_OF_PARTITION = re.compile(r"fk_\w+_episodes_[0-9]+|\w+_namespace_episode_id_fkey[0-9]*")


def is_partition(name: str | None, type_: str = "table") -> bool:
    """Return whether a name in the database belongs to a partition; Alembic must not take it for something unknown.

    Args:
        name: of the table, index, constraint.
        type_: what it is, as Alembic's `include_name` says it. PostgreSQL lists a foreign key that refers to a
            partitioned table once more for each of its partitions: with a number behind its name from 18 on, by
            names of its own before.
    """
    if name is None:
        return False
    if type_ == "foreign_key_constraint":
        return _OF_PARTITION.fullmatch(name) is not None
    return type_ == "table" and _PARTITION.fullmatch(name) is not None


def partition_count(execute: Execute) -> int:
    """Return into how many partitions each record table is split, 0 where they are not.

    Raises:
        ConfigurationError: it is no memory store, or its tables are not split alike.
    """
    found = _rows(
        execute,
        "SELECT relname::text, CASE relkind WHEN 'p' THEN (SELECT count(*) FROM pg_inherits WHERE inhparent = c.oid) "
        f"ELSE 0 END FROM pg_class c WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') "
        f"AND relname IN ({_NAMES})",
    )
    missing = sorted(_RECORDS - {name for name, _ in found})
    if missing:
        raise ConfigurationError(f"the database has no table {', '.join(missing)}: run `memory-store upgrade` first")
    counts = {int(count) for _, count in found}
    if len(counts) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in sorted(found))
        raise ConfigurationError(f"the record tables are not split alike, which is not this library's work: {listed}")
    return counts.pop()


def partition(execute: Execute, partitions: int) -> bool:
    """Split the record tables into partitions by a hash of the namespace; return False where that is done already.

    Everything in one transaction, which the caller begins and commits: after an error nothing has changed. Rows,
    keys, indexes, triggers, row-level security, owners and grants stay.

    Args:
        execute: runs a statement in that transaction, such as SQLAlchemy's `Connection.exec_driver_sql`.
        partitions: how many, 2 to 1024. It cannot be changed later.

    Raises:
        ConfigurationError: they are split into another number already; or a view, a foreign key of another table or a
            publication uses them.
    """
    if not isinstance(partitions, int) or isinstance(partitions, bool):
        raise TypeError(f"partitions must be an int, got {type(partitions).__name__}")
    if not 2 <= partitions <= MOST_PARTITIONS:
        raise ConfigurationError(f"partitions must be from 2 to {MOST_PARTITIONS}, got {partitions}")
    partition_count(execute)  # are they there at all?
    # In the order of every writer, the head first. Looked at again with the lock: another process may have been faster.
    execute(f"LOCK TABLE {HEAD.name}, {', '.join(RECORD_TABLES)} IN EXCLUSIVE MODE")
    found = partition_count(execute)
    if found == partitions:
        return False
    if found:
        raise ConfigurationError(
            f"the record tables are split into {found} partitions already; into {partitions} only by `memory-store "
            "copy` to a new database"
        )
    _refuse_used(execute)
    kept = [_definition(execute, table, partitions) for table in RECORD_TABLES]
    for table in kept:
        _fill(execute, table, partitions)
    execute(f"LOCK TABLE {HEAD.name}, {', '.join(RECORD_TABLES)} IN ACCESS EXCLUSIVE MODE")
    execute(f"DROP TABLE {', '.join(RECORD_TABLES)}")
    for table in kept:
        _put_in_place(execute, table)
    for table in kept:
        for statement in table.afterwards:
            execute(statement)
    _begin_epoch(execute)
    return True


class _Definition(NamedTuple):
    """What a table is made of besides its columns."""

    name: str
    owner: str
    indexes: list[tuple[str, str]]
    """Quoted name, and the statement that makes it under the name `_new` on the new table."""
    afterwards: list[str]
    """Statements for when the table has its name: foreign keys, triggers, policies, grants."""


def _definition(execute: Execute, table: str, partitions: int) -> _Definition:
    oid = f"'{table}'::regclass"
    [(owner,)] = _rows(execute, f"SELECT quote_ident(pg_get_userbyid(relowner)) FROM pg_class WHERE oid = {oid}")
    indexes = _rows(
        execute,
        "SELECT quote_ident(conname), 'ALTER TABLE {new} ADD CONSTRAINT ' || quote_ident(conname || '_new') || ' ' || "
        f"pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = {oid} AND contype IN ('p', 'u') UNION ALL "
        "SELECT quote_ident(relname), 'CREATE ' || CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END || 'INDEX ' || "
        "quote_ident(relname || '_new') || ' ON {new}' || substring(pg_get_indexdef(oid) FROM ' USING .*') "
        f"FROM pg_class JOIN pg_index ON oid = indexrelid WHERE indrelid = {oid} "
        "AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u')) ORDER BY 1",
    )
    afterwards = [
        f"SELECT 'ALTER TABLE {table} ADD CONSTRAINT ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid) "
        f"FROM pg_constraint WHERE conrelid = {oid} AND contype = 'f' ORDER BY conname",
        f"SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = {oid} AND NOT tgisinternal ORDER BY tgname",
        f"SELECT 'ALTER TABLE {table} ' || CASE tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE "
        f"'ENABLE REPLICA' END || ' TRIGGER ' || quote_ident(tgname) FROM pg_trigger WHERE tgrelid = {oid} "
        "AND NOT tgisinternal AND tgenabled <> 'O' ORDER BY tgname",
        # Statement triggers are not inherited, and a partition can be truncated by its own name.
        f"SELECT replace(pg_get_triggerdef(oid), format(' ON %I.{table} ', current_schema()), ' ON {table}_p' || "
        f"number || ' ') FROM pg_trigger, generate_series(0, {partitions - 1}) number WHERE tgrelid = {oid} "
        "AND NOT tgisinternal AND tgtype & 32 > 0 ORDER BY tgname, number",
        f"SELECT 'CREATE POLICY ' || quote_ident(policyname) || ' ON {table} AS ' || permissive || ' FOR ' || cmd || "
        "' TO ' || (SELECT string_agg(CASE role WHEN 'public' THEN 'PUBLIC' ELSE quote_ident(role) END, ', ') FROM "
        "unnest(roles) role) || coalesce(' USING (' || qual || ')', '')"
        " || coalesce(' WITH CHECK (' || with_check || ')', '') FROM pg_policies "
        f"WHERE schemaname = current_schema() AND tablename = '{table}' ORDER BY policyname",
        f"SELECT 'ALTER TABLE {table} ENABLE ROW LEVEL SECURITY' FROM pg_class WHERE oid = {oid} AND relrowsecurity",
        f"SELECT 'ALTER TABLE {table} FORCE ROW LEVEL SECURITY' FROM pg_class "
        f"WHERE oid = {oid} AND relforcerowsecurity",
        f"SELECT 'GRANT ' || privilege_type || ' ON {table} TO ' || CASE grantee WHEN 0 THEN 'PUBLIC' ELSE "
        "quote_ident(pg_get_userbyid(grantee)) END || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END "
        f"FROM pg_class CROSS JOIN aclexplode(relacl) WHERE oid = {oid} AND grantee <> relowner ORDER BY 1",
    ]
    return _Definition(
        table,
        owner,
        [(name, make.replace("{new}", f"{table}_new")) for name, make in indexes],
        [statement for select in afterwards for (statement,) in _rows(execute, select)],
    )


def _fill(execute: Execute, table: _Definition, partitions: int) -> None:
    """Make the new table with its rows and indexes, which are built faster once the rows are there."""
    new, name = f"{table.name}_new", table.name
    like = f"LIKE {name} INCLUDING ALL EXCLUDING INDEXES EXCLUDING STATISTICS"
    execute(f"CREATE TABLE {new} ({like}) PARTITION BY HASH (namespace)")
    made = [f"{name}_p{number}" for number in range(partitions)]
    for number, part in enumerate(made):
        values = f"WITH (MODULUS {partitions}, REMAINDER {number})"
        execute(f"CREATE TABLE {part} PARTITION OF {new} FOR VALUES {values}")
    execute(f"INSERT INTO {new} SELECT * FROM {name}")
    for _, make in table.indexes:
        execute(make)
    for one in (new, *made):
        execute(f"ALTER TABLE {one} OWNER TO {table.owner}")
    execute(f"ANALYZE {new}")


def _put_in_place(execute: Execute, table: _Definition) -> None:
    execute(f"ALTER TABLE {table.name}_new RENAME TO {table.name}")
    for name, _ in table.indexes:
        execute(f"ALTER INDEX {_new(name)} RENAME TO {name}")


def _new(quoted: str) -> str:
    return f'{quoted[:-1]}_new"' if quoted.endswith('"') else f"{quoted}_new"


def _refuse_used(execute: Execute) -> None:
    """Refuse what would be lost, or would stand in the way of dropping a table after an hour's work."""
    ours = f"(SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname IN ({_NAMES}))"
    found = _rows(
        execute,
        "SELECT 'publication ' || pubname FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid "
        f"WHERE prrelid IN {ours} UNION SELECT 'view ' || ev_class::regclass FROM pg_depend d JOIN pg_rewrite r "
        "ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid WHERE d.refclassid = 'pg_class'::regclass "
        f"AND d.refobjid IN {ours} UNION SELECT 'foreign key of table ' || conrelid::regclass FROM pg_constraint "
        f"WHERE contype = 'f' AND confrelid IN {ours} AND conrelid NOT IN {ours} ORDER BY 1",
    )
    if found:
        raise ConfigurationError(
            f"the record tables are used by {', '.join(name for (name,) in found)}: drop that first, and make it again "
            "afterwards; nothing was changed"
        )


def _begin_epoch(execute: Execute) -> None:
    """Begin a new epoch in every shard, as `log.begin_epoch` does for one."""
    nonce = "('x' || left(gen_random_uuid()::text, 8) || right(gen_random_uuid()::text, 8))::bit(64)::bigint"
    execute(
        f"WITH begun AS (UPDATE {HEAD.name} SET position = position + 1, nonce = {nonce} & 9223372036854775807, "
        f"epoch = (SELECT max(epoch) + 1 FROM {HEAD.name}) RETURNING shard, position, nonce) "
        f"INSERT INTO {CHANGES.name} (shard, position, idx, kind, namespace, operation, actor, at, nonce) "
        "SELECT shard, position, 0, 'store', '', 'partition', '', "
        "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint, nonce FROM begun"
    )


def _rows(execute: Execute, sql: str) -> list[Any]:
    return list(execute(sql).fetchall())
