"""Row-level security: a PostgreSQL role that does not own the tables sees one namespace at a time.

Which one is the setting `memory_store.namespace`: of a role (`ALTER ROLE agent SET memory_store.namespace = 'a'`), of a
session, or of a transaction. It guards against a forgotten condition and against what a program can be talked into; a
role that may run any SQL can also change the setting.

One namespace, not a list: measured on 100,000 episodes, `namespace = setting` costs nothing, since with the condition
that every statement of the store has it becomes a test made once; a list of namespaces gets into the index condition,
spoils the order of the index, and a page of 50 takes 0.3 ms instead of 0.09.
"""

# ruff: noqa: S608 - statements are made of our own names, and of what is quoted here

from __future__ import annotations

from memory_store.durable.changes import CHANGES, HEAD, IDEMPOTENCY
from memory_store.durable.documents import BACKLOG, DOCUMENTS
from memory_store.durable.partitions import RECORD_TABLES, Execute
from memory_store.durable.vectors import VECTORS
from memory_store.errors import ConfigurationError

__all__ = ["secure"]

_OWNED = (*RECORD_TABLES, IDEMPOTENCY.name, DOCUMENTS.name, BACKLOG.name)
"""The tables whose rows each belong to a namespace, in every database."""

_OURS = "namespace = nullif(current_setting('memory_store.namespace', true), '')"
# What concerns the database as a whole has no namespace; everyone must see it.
_OURS_IN_LOG = f"{_OURS} OR kind = 'store'"

_POLICIES_OF_LOG = [
    (CHANGES.name, "SELECT", f"USING ({_OURS_IN_LOG})"),
    (CHANGES.name, "INSERT", f"WITH CHECK ({_OURS} AND kind <> 'store')"),
]

# The log of a shard has gaps for who sees one namespace of several, and a gap means that a follower has to start again
# from nothing. So these show that there was a commit, without what was in it. They run as the owner, to whom the
# policies do not apply, and are no part of the schema's revision: as the policies, they are there once asked for.
_FUNCTIONS = {
    "memory_store_tail(integer, bigint, bigint, bigint)": f"""
CREATE OR REPLACE FUNCTION memory_store_tail(of_shard integer, after bigint, last bigint, most bigint)
RETURNS TABLE ("position" bigint, nonce bigint, kind text, namespace text, key text, parent text)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT c.position, c.nonce,
        CASE WHEN visible THEN c.kind ELSE '' END, CASE WHEN visible THEN c.namespace ELSE '' END,
        CASE WHEN visible THEN c.key END, CASE WHEN visible THEN c.parent END
    FROM {CHANGES.name} c, LATERAL (SELECT coalesce({_OURS_IN_LOG}, false) AS visible) v
    WHERE c.shard = of_shard AND c.position > after AND c.position <= last AND (visible OR c.idx = 0)
    ORDER BY c.position, c.idx LIMIT most
$$""",
    "memory_store_nonce(integer, bigint)": f"""
CREATE OR REPLACE FUNCTION memory_store_nonce(of_shard integer, at_position bigint)
RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT nonce FROM {CHANGES.name} WHERE shard = of_shard AND position = at_position LIMIT 1
$$""",
}

_GRANTS = [
    f"SELECT, INSERT ON {CHANGES.name}",
    # Every writer counts on; which database it is, and which life of it, is not theirs to change.
    f"SELECT, UPDATE (position, nonce, writing) ON {HEAD.name}",
    "SELECT ON alembic_version",
    "EXECUTE ON FUNCTION memory_store_shard(text)",
    "EXECUTE ON FUNCTION memory_store_log_change(text, text, text, text, text, bigint)",
    *(f"EXECUTE ON FUNCTION {function}" for function in _FUNCTIONS),
]


def secure(execute: Execute, role: str) -> None:
    """Let a role that does not own the tables read and write one namespace at a time, and no other role any.

    Policies are put on the tables of records and what belongs to them, and `changes`, once, whoever they are for; then
    the role is granted what the library needs. Safe to call again, and for several roles. In the caller's transaction,
    as the owner of the tables, whom row-level security does not concern.

    Args:
        execute: runs a statement in that transaction, such as SQLAlchemy's `Connection.exec_driver_sql`.
        role: its name, as it stands in `pg_roles`.

    Raises:
        ConfigurationError: there is no such role, or security does not apply to it: a superuser, one with BYPASSRLS,
            or one that has the owner's rights.
    """
    named = _literal(role)
    found = execute(
        f"SELECT rolsuper, rolbypassrls, pg_has_role(r.oid, c.relowner, 'USAGE') FROM pg_roles r, pg_class c "
        f"WHERE rolname = {named} AND c.oid = '{HEAD.name}'::regclass"
    ).fetchall()
    if not found:
        raise ConfigurationError(f"there is no role {role!r}: CREATE ROLE it first, with LOGIN and a password")
    for applies_not, why in zip(
        found[0], ("is a superuser", "has BYPASSRLS", "has the rights of the tables' owner"), strict=True
    ):
        if applies_not:
            raise ConfigurationError(f"the role {role!r} {why}: row-level security does not apply to it")
    owned = _owned(execute)
    _put_policies(execute, owned)
    quoted = '"' + role.replace('"', '""') + '"'
    for grant in (*(f"SELECT, INSERT, UPDATE, DELETE ON {table}" for table in owned), *_GRANTS):
        execute(f"GRANT {grant} TO {quoted}")
    [(schema,)] = execute("SELECT quote_ident(current_schema())").fetchall()
    execute(f"GRANT USAGE ON SCHEMA {schema} TO {quoted}")


def _owned(execute: Execute) -> tuple[str, ...]:
    [(with_vectors,)] = execute(f"SELECT to_regclass('{VECTORS.name}') IS NOT NULL").fetchall()
    return (*_OWNED, VECTORS.name) if with_vectors else _OWNED


def _put_policies(execute: Execute, owned: tuple[str, ...]) -> None:
    secured = {
        table
        for (table,) in execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relrowsecurity"
        ).fetchall()
    }
    tables = [*owned, CHANGES.name]
    if secured.issuperset(tables):
        return
    # The head before the others, as every writer and reader does, or one of them and this would wait for each other.
    execute(f"LOCK TABLE {HEAD.name}, {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
    of_owned = [(table, "ALL", f"USING ({_OURS}) WITH CHECK ({_OURS})") for table in owned]
    for table, command, rule in (*of_owned, *_POLICIES_OF_LOG):
        name = f"memory_store_{command.lower()}"
        execute(f"DROP POLICY IF EXISTS {name} ON {table}")
        execute(f"CREATE POLICY {name} ON {table} FOR {command} {rule}")
    for table in tables:
        execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    [(schema,)] = execute("SELECT quote_ident(current_schema())").fetchall()
    for function, create in _FUNCTIONS.items():
        execute(create)
        execute(f"ALTER FUNCTION {function} SET search_path = pg_catalog, {schema}, pg_temp")
        execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")


def _literal(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"role must be a str, got {type(text).__name__}")
    return "'" + text.replace("'", "''") + "'"
