"""What a server's catalogue says of the store's tables, against what its models and migrations make.

Columns, keys and indexes are compared with the models, to which a test holds the migrations (`alembic check` compares
neither names of keys, nor collations, nor whether an index is usable). Functions and triggers are in no model: their
statements are taken from the migrations, run in Alembic's offline mode, and compared as text. The server writes a
trigger in its own words, so both sides are reduced to what counts: no parentheses, casts or schema, events in order.
"""

# ruff: noqa: S608 - statements are made of our own names

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Column, ForeignKeyConstraint, Index, PrimaryKeyConstraint, Table, UniqueConstraint
from sqlalchemy.schema import AddConstraint

from memory_store.durable import schema
from memory_store.durable.connection import Connection
from memory_store.durable.findings import Difference
from memory_store.durable.statements import server_dialect
from memory_store.durable.vectors import VECTORS

__all__ = ["compare_catalogue", "expected_objects", "head_count"]

_Key = tuple[str, str]


class _Object(NamedTuple):
    """A table, key, index, function or trigger: the table it belongs to, what counts of it, and what makes it anew."""

    table: str
    shape: Any
    make: tuple[str, ...] | None = None


def compare_catalogue(connection: Connection) -> list[Difference]:
    """Return what is missing, changed, or hooked into our tables by somebody else. Tables of others are left alone."""
    found, expected = _found(connection), expected_objects()
    if ("table", VECTORS.name) not in found:  # nothing depends on it
        expected = {key: item for key, item in expected.items() if item.table != VECTORS.name}
    differences = list(_differences(found, expected))
    for (partition,) in connection.execute(_UNTOLD.replace("{}", _ours())):
        name = f"log_{partition.rpartition('_p')[0]}_truncate"
        of_table = expected["trigger", name].make or ()
        make = tuple(re.sub(r" ON \w+", f" ON {partition}", statement) for statement in of_table)
        differences.append(Difference("trigger", name, f"on {partition} is missing", make))
    return differences


def head_count(connection: Connection) -> int | None:
    """Return how many heads the database was made with, None where its function is not there to say so."""
    asked = "SELECT pg_get_function_sqlbody(to_regprocedure('memory_store_shard(text)'))"
    [(body,)] = connection.execute(asked).fetchall()
    found = re.search(r", (\d+)\)$", body or "")
    return None if found is None else int(found[1])


def _differences(found: dict[_Key, _Object], expected: dict[_Key, _Object]) -> Iterator[Difference]:
    for (kind, name), item in expected.items():
        ours = found.get((kind, name))
        if ours is None:
            yield Difference(kind, name, "is missing", item.make)
        elif ours.shape != item.shape:
            yield Difference(kind, name, _compared(kind, ours.shape, item.shape), item.make)
    for (kind, name), theirs in found.items():
        # An index only makes reads faster, unless it refuses rows; a trigger or rule changes what a write does.
        harmless = kind in ("function", "table") or (kind == "index" and not theirs.shape[1])
        if (kind, name) not in expected and not harmless:
            yield Difference(kind, name, f"on {theirs.table} is not of this library", None)


def _compared(kind: str, ours: Any, theirs: Any) -> str:
    if kind == "table":
        return "has other columns"
    if kind != "function" and ours[:-1] == theirs[:-1]:  # the last one says whether it does its work
        return "is switched off" if kind == "trigger" else "is not valid"
    return "is another one"


@cache
def expected_objects() -> dict[_Key, _Object]:
    """Return what a new database has, with vectors. The first call imports Alembic: 150 ms, so not on an event loop."""
    objects: dict[_Key, _Object] = {}
    keys: dict[_Key, _Object] = {}
    for table in schema.SERVER_TABLES:
        objects["table", table.name] = _Object(table.name, {c.name: _column_shape(c) for c in table.columns})
        for index in table.indexes:
            columns, rows = [c.name for c in index.columns], index.info.get("where")
            method = index.info.get("using", "btree")
            make = f"DROP INDEX IF EXISTS {index.name}", _index_text(index, columns, method, rows)
            shape = columns, bool(index.unique), method, rows, True
            objects["index", str(index.name)] = _Object(table.name, shape, make)
        for key in table.constraints:
            if isinstance(key, PrimaryKeyConstraint | UniqueConstraint | ForeignKeyConstraint):
                drop = f"ALTER TABLE {table.name} DROP CONSTRAINT IF EXISTS {key.name}"
                # Isolated from its table, the model itself would be made without it from now on.
                add = _text(AddConstraint(key, isolate_from_table=False))
                keys["key", str(key.name)] = _Object(table.name, _key_shape(table, key), (drop, add))
    functions, triggers = _from_migrations()
    # In the order in which they can be made: functions before triggers, keys before those that refer to them.
    by_reference = sorted(keys.items(), key=lambda item: item[1].shape[0] == "f")
    return {**functions, **objects, **dict(by_reference), **triggers}


def _column_shape(column: Column[Any]) -> tuple[str, bool, str | None]:
    type_, _, collation = column.type.compile(server_dialect()).lower().partition(" collate ")
    return {"float": "double precision"}.get(type_, type_), not column.nullable, collation.strip('"').upper() or None


def _key_shape(table: Table, key: Any) -> tuple[Any, ...]:
    columns = [column.name for column in key.columns]
    if isinstance(key, ForeignKeyConstraint):
        referred = [element.column for element in key.elements]
        on_delete = {"CASCADE": "c"}.get(key.ondelete or "", "a")
        return "f", columns, referred[0].table.name, [column.name for column in referred], on_delete, True
    return "p" if isinstance(key, PrimaryKeyConstraint) else "u", columns, None, [], None, True


def _index_text(index: Index, columns: list[str], method: str, rows: str | None) -> str:
    assert not index.unique, "what must be unique is a key"
    of = "" if rows is None else f" WHERE {rows}"
    options = f" WITH ({index.info['with']})" if "with" in index.info else ""
    return f"CREATE INDEX {index.name} ON {index.table} USING {method} ({', '.join(columns)}){options}{of}"


def _text(element: Any) -> str:
    return str(element.compile(dialect=server_dialect()))


class _Statements(list[str]):
    """Takes what Alembic writes in its offline mode: a statement at a time."""

    def write(self, text: str) -> None:
        """Take one."""
        self.append(text.strip().removesuffix(";").replace("%%", "%"))

    def flush(self) -> None:
        """Do nothing."""


_CREATE = re.compile(r"CREATE (?:OR REPLACE )?(?:CONSTRAINT )?(FUNCTION|TRIGGER) (\w+)")
_ALTER_FUNCTION = re.compile(r"ALTER FUNCTION (\w+)")
_DROP = re.compile(r"DROP (FUNCTION|TRIGGER) (?:IF EXISTS )?(\w+)")
_TRIGGER_TABLE = re.compile(r" ON (\w+) ")
_RETURN = re.compile(r"RETURN .*\)$", re.MULTILINE)
_BODY = re.compile(r"AS \$\$(.*)\$\$", re.DOTALL)


def _from_migrations() -> tuple[dict[_Key, _Object], dict[_Key, _Object]]:
    from alembic import command
    from alembic.config import Config

    written = _Statements()
    config = Config(output_buffer=written)  # type: ignore[arg-type]  # asked for nothing else
    config.set_main_option("script_location", str(schema.migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = "postgresql://nobody/nothing"  # what is written is not run anywhere
    command.upgrade(config, schema.HEAD_REVISION, sql=True)
    functions: dict[_Key, _Object] = {}
    triggers: dict[_Key, _Object] = {}
    for statement in written:
        if dropped := _DROP.match(statement):
            (functions if dropped[1] == "FUNCTION" else triggers).pop((dropped[1].lower(), dropped[2]), None)
        elif made := _CREATE.search(statement):
            kind, name = made[1].lower(), made[2]
            if kind == "function":
                functions[kind, name] = _Object("", *_function(statement, name))
            else:
                table = _TRIGGER_TABLE.search(statement)[1]  # type: ignore[index]
                make = f"DROP TRIGGER IF EXISTS {name} ON {table}", statement
                triggers[kind, name] = _Object(table, (_reduced(statement), True), make)
        elif altered := _ALTER_FUNCTION.search(statement):
            item = functions["function", altered[1]]
            functions["function", altered[1]] = item._replace(make=(*(item.make or ()), statement))
    return functions, triggers


def _function(statement: str, name: str) -> tuple[Any, tuple[str, ...]]:
    """Return what counts of a function, and what makes it; what is made by a block of code has no body as a text."""
    if statement.startswith("CREATE"):
        body = _BODY.search(statement)
        make = re.sub("^CREATE (OR REPLACE )?", "CREATE OR REPLACE ", statement)
        return " ".join(body[1].split()) if body else "", (make,)
    body = _RETURN.search(statement)
    return _expression(body[0] if body else ""), (f"DROP FUNCTION IF EXISTS {name}", statement)


def _expression(text: str) -> str:
    """Return what counts of a function that is one expression; how many heads there are is the database's own."""
    return re.sub(r", (\d+|%s)\)$", ", N)", re.sub(r"::\w+|pg_catalog\.", "", text))


def _reduced(trigger: str) -> str:
    text = re.sub(r"::\w+|[()]", " ", trigger.lower())
    text = re.sub(r" on (?:\w+|\"[^\"]*\")\.(\w+)", r" on \1", text)
    text = re.sub(
        r"(before|after) (\w+(?: or \w+)*)", lambda m: f"{m[1]} {' or '.join(sorted(m[2].split(' or ')))}", text
    )
    return " ".join(text.replace("execute function ", "execute ").replace(" , ", ", ").split())


_OURS = "c.relnamespace = current_schema()::regnamespace AND c.relname IN ({})"
_COLUMNS = (
    "SELECT c.relname::text, attname::text, format_type(atttypid, atttypmod), attnotnull, "
    "(SELECT collname::text FROM pg_collation o WHERE o.oid = attcollation) "
    "FROM pg_attribute JOIN pg_class c ON c.oid = attrelid "
    "WHERE {} AND c.relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped"
)
_NAMES = (
    "ARRAY(SELECT attname::text FROM unnest({0}) WITH ORDINALITY AS k(number, place) "
    "JOIN pg_attribute a ON a.attrelid = {1} AND a.attnum = k.number ORDER BY place)"
)
_INDEXES = (
    "SELECT i.relname::text, c.relname::text, " + _NAMES.format("indkey::int2[]", "indrelid") + ", indisunique, "
    "amname::text, btrim(pg_get_expr(indpred, indrelid), '()'), indisvalid AND indisready AND indexprs IS NULL "
    "FROM pg_index x JOIN pg_class c ON c.oid = indrelid JOIN pg_class i ON i.oid = indexrelid "
    "JOIN pg_am m ON m.oid = i.relam WHERE {} "
    "AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))"
)
_KEYS = (
    "SELECT conname::text, c.relname::text, contype::text, " + _NAMES.format("conkey", "conrelid") + ", "
    "r.relname::text, " + _NAMES.format("confkey", "confrelid") + ", nullif(confdeltype::text, ' '), convalidated "
    "AND coalesce((SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = conindid), true) "
    "FROM pg_constraint JOIN pg_class c ON c.oid = conrelid LEFT JOIN pg_class r ON r.oid = confrelid "
    "WHERE {} AND contype IN ('p', 'u', 'f', 'x') AND conparentid = 0"
)
_TRIGGERS = (
    "SELECT tgname::text, c.relname::text, pg_get_triggerdef(t.oid), tgenabled IN ('O', 'A') FROM pg_trigger t "
    "JOIN pg_class c ON c.oid = tgrelid WHERE {} AND NOT tgisinternal AND tgparentid = 0"
)
# Of a partition, which can be truncated by its own name: what is not inherited must have been made for each of them.
_UNTOLD = (
    "SELECT p.relname::text FROM pg_class p JOIN pg_inherits h ON h.inhrelid = p.oid "
    "JOIN pg_class c ON c.oid = h.inhparent WHERE {} AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = p.oid "
    "AND tgname = 'log_' || c.relname || '_truncate' AND tgenabled IN ('O', 'A')) ORDER BY 1"
)
_RULES = "SELECT rulename::text, c.relname::text FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class WHERE {}"
_FUNCTIONS = (
    "SELECT proname::text, coalesce(pg_get_function_sqlbody(oid), ''), prosrc FROM pg_proc "
    "WHERE pronamespace = current_schema()::regnamespace "
    "AND proname LIKE 'memory\\_store\\_%'"
)


def _ours() -> str:
    return _OURS.format(", ".join(f"'{table.name}'" for table in schema.SERVER_TABLES))


def _found(connection: Connection) -> dict[_Key, _Object]:
    def rows(query: str) -> list[Any]:
        return connection.execute(query.replace("{}", ours)).fetchall()

    ours = _ours()
    columns: dict[str, dict[str, tuple[str, bool, str | None]]] = {}
    for table, column, type_, required, collation in rows(_COLUMNS):
        columns.setdefault(table, {})[column] = type_, required, collation
    found: dict[_Key, _Object] = {("table", table): _Object(table, shape) for table, shape in columns.items()}
    for name, expression, body in rows(_FUNCTIONS):
        found["function", name] = _Object("", _expression(expression) or " ".join(body.split()))
    for name, table, names, unique, method, of_rows, valid in rows(_INDEXES):
        found["index", name] = _Object(table, (list(names), unique, method, of_rows, valid))
    for name, table, kind, names, referred, referred_names, on_delete, valid in rows(_KEYS):
        deletes = on_delete if kind == "f" else None
        found["key", name] = _Object(table, (kind, list(names), referred, list(referred_names), deletes, valid))
    for name, table, text, enabled in rows(_TRIGGERS):
        found["trigger", name] = _Object(table, (_reduced(text), enabled))
    for name, table in rows(_RULES):
        found["rule", name] = _Object(table, None)
    return found
