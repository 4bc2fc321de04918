"""PostgreSQL's dialect of SQLAlchemy, and its words for the parts of JSON values that users' expressions read."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import JSON, Column, Dialect
from sqlalchemy.dialects.postgresql import asyncpg

__all__ = ["made_dialect"]

# With what stands for a NUL in text, see `escaped`. Pairs of backslashes are put aside: of `\\u0000` none is meant.
_WITHOUT_NUL = r"CAST(replace(replace(replace({0}, '\\', chr(1)), '\u0000', '\u001a0'), chr(1), '\\') AS json)"


class _Compiler(asyncpg.PGCompiler_asyncpg):
    """Reads a part of a JSON value although there is a NUL in another one.

    To find a part, PostgreSQL makes text of every string that it passes, and fails at a NUL in any of them: one record
    with one, as output of tools has, would fail every filter on that column. So a value that may hold one is read as
    if it had been stored with what stands for it in text.
    """

    def visit_json_getitem_op_binary(self, binary: Any, operator: Any, _cast_applied: Any = False, **kw: Any) -> Any:
        words = {**kw, "_cast_applied": _cast_applied, "_of_json": True}
        return super().visit_json_getitem_op_binary(binary, operator, **words)  # type: ignore[no-untyped-call]

    def visit_json_path_getitem_op_binary(
        self, binary: Any, operator: Any, _cast_applied: Any = False, **kw: Any
    ) -> Any:
        words = {**kw, "_cast_applied": _cast_applied, "_of_json": True}
        return super().visit_json_path_getitem_op_binary(binary, operator, **words)  # type: ignore[no-untyped-call]

    def visit_column(self, column: Any, *args: Any, _of_json: bool = False, **kw: Any) -> str:
        name = str(super().visit_column(column, *args, **kw))
        if not (_of_json and isinstance(column, Column) and isinstance(column.type, JSON)):
            return name
        text = f"CAST({name} AS text)"
        return rf"CASE WHEN strpos({text}, '\u0000') = 0 THEN {name} ELSE {_WITHOUT_NUL.format(text)} END"


def made_dialect(paramstyle: Literal["numeric_dollar", "qmark"]) -> Dialect:
    """Return PostgreSQL's dialect with a way to mark parameters."""
    made: Dialect = asyncpg.dialect(paramstyle=paramstyle)  # type: ignore[no-untyped-call]
    made.statement_compiler = _Compiler
    return made
