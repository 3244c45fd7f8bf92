"""What databases are asked, and how they would go about it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

SMALL = {"feeds", "secret", "alembic_version"}
"""Tables of a row or two."""

Rows = Sequence[Mapping[str, Any]]


@contextmanager
def asked(url: str) -> Iterator[dict[str, Any]]:
    """Collects the statements that a database is asked meanwhile, with the parameters of one time."""
    statements: dict[str, Any] = {}

    def note(connection: sa.Connection, _: Any, statement: str, parameters: Any, __: Any, many: bool) -> None:
        if connection.engine.url.database == sa.make_url(url).database:
            statements[statement] = parameters[0] if many else parameters

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


def fill(url: str, rows: Mapping[sa.Table, Rows]) -> None:
    """Stores rows, and has the database look how many there are of what."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for table, some in rows.items():
            connection.execute(table.insert(), some)
        if engine.dialect.name == "postgresql":  # which does so by itself, sooner or later; SQLite never does
            connection.execute(sa.text("ANALYZE"))


def tables_of(statements: Iterable[str]) -> set[str]:
    """The tables that statements read or write."""
    return set(re.findall(r"(?:FROM|JOIN|UPDATE|INTO) (\w+)", "\n".join(statements)))


def slow(url: str, statements: Mapping[str, Any]) -> list[str]:
    """Those that read a whole table, or sort all to answer some; each with its plan."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    explain, scan, sort = {
        "sqlite": ("EXPLAIN QUERY PLAN ", r"SCAN (?!CONSTANT|.* USING (COVERING )?INDEX)", "TEMP B-TREE FOR ORDER"),
        "postgresql": ("EXPLAIN ", "Seq Scan", "Sort"),
    }[engine.dialect.name]
    found = []
    with engine.connect() as connection:
        for statement, parameters in statements.items():
            if statement.startswith(("SELECT", "UPDATE", "DELETE")) and tables_of([statement]) - SMALL:
                plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters))
                if re.search(f"{scan}|{sort}" if "LIMIT" in statement else scan, plan):
                    found.append(f"{statement}\n{plan}")
    return found
