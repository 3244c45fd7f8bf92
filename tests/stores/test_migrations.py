"""The migrations make what the schemas say, in one line from nothing to today, and lose nothing on the way."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import delivery.schema
import delivery.store
import kitchen.schema
import kitchen.store
import order.schema
import order.store
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

STORES: dict[str, ModuleType] = {"order": order.store, "kitchen": kitchen.store, "delivery": delivery.store}
SCHEMAS: dict[str, ModuleType] = {"order": order.schema, "kitchen": kitchen.schema, "delivery": delivery.schema}
KEPT_DEFAULTS = {
    "order": [("orders", "traceparent"), ("feeds", "holder"), ("feeds", "lease_ends")],
    "kitchen": [("tickets", "traceparent"), ("portions", "since")],
    "delivery": [("deliveries", "traceparent")],
}
"""Columns with a default that schemas do not know: they came later, and the rows of before had to have a value."""
MOMENT = 1_767_225_600_123_456  # microseconds
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ID = str(uuid4())
ADDRESS = {"street": "1 Main St", "city": "Springfield", "postal_code": "é"}
CHANGE = {"sequence": 7, "update_time": MOMENT}
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "order": {
        "orders": {
            "order_id": ID,
            "customer_id": "ada ☕",
            "lines": [{"sku": "margherita", "quantity": 2}],
            "address": ADDRESS,
            "total": {"currency": "EUR", "units": 17, "nanos": 10},
            "state": "OUT_FOR_DELIVERY",
            "create_time": MOMENT,
            "update_time": MOMENT + 1,
            "failure": "none, so far",
            "step": "CHECK_DELIVERY",
            "due": MOMENT + 2,
            "attempts": 3,
            "asked_kitchen": True,
            "asked_delivery": False,
            "traceparent": TRACE,
            "fails_since": MOMENT + 3,
        },
        "order_changes": CHANGE | {"order_id": ID, "state": "OUT_FOR_DELIVERY", "failure": "none"},
        "feeds": {"feed": "kitchen", "token": "a token", "holder": ID, "lease_ends": MOMENT},
        "secret": {"key": "5" * 64},
    },
    "kitchen": {
        "tickets": {
            "ticket_id": ID,
            "items": [{"sku": "margherita", "quantity": 1}],
            "state": "COOKING",
            "portions_left": 1,
            "create_time": MOMENT,
            "update_time": MOMENT + 1,
            "traceparent": TRACE,
        },
        "portions": {
            "portion_id": 9,
            "ticket_id": ID,
            "steps": [{"name": "bake", "station": "oven", "seconds": 60.5}],
            "position": 0,
            "station": "oven",
            "since": MOMENT,
            "done_at": MOMENT + 4,
        },
        "ticket_changes": CHANGE | {"ticket_id": ID, "state": "COOKING"},
        "secret": {"key": "5" * 64},
    },
    "delivery": {
        "deliveries": {
            "number": 5,
            "delivery_id": ID,
            "address": ADDRESS,
            "state": "IN_TRANSIT",
            "arrives_at": MOMENT + 4,
            "create_time": MOMENT,
            "update_time": MOMENT + 1,
            "traceparent": TRACE,
        },
        "delivery_changes": CHANGE | {"delivery_id": ID, "state": "IN_TRANSIT"},
        "secret": {"key": "5" * 64},
    },
}
"""A row for each table of today, in which no two values are the same where that would hide a mix-up."""
LATER = {
    "traceparent": "",
    "holder": "",
    "lease_ends": 0,
    "since": 0,
    "fails_since": None,
}
"""What a row has in a column that came after it."""

Rows = dict[str, list[dict[str, Any]]]
"""The rows of each table."""


def scripts(service: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(str(STORES[service].__file__)).parent / "migrations"))
    return config


def revisions(service: str) -> list[str]:
    """All of a service's, the oldest first."""
    return [script.revision for script in ScriptDirectory.from_config(scripts(service)).walk_revisions()][::-1]


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def migrate(engine: sa.Engine, service: str, revision: str, way: Callable[[Config, str], None]) -> None:
    config = scripts(service)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        way(config, revision)


def described(engine: sa.Engine) -> dict[tuple[str, str], Any]:
    """Columns, indexes and keys of each table, as the database itself tells of them."""
    inspector = sa.inspect(engine)
    found: dict[tuple[str, str], Any] = {}
    for table in {*inspector.get_table_names()} - {"alembic_version"}:
        for column in inspector.get_columns(table):
            found[table, column["name"]] = column | {"type": str(column["type"])}
        for index in inspector.get_indexes(table):  # a condition is an expression, which equals none but itself
            options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
            found[table, f"index {index['name']}"] = index | {"dialect_options": options}
        found[table, "primary key"] = inspector.get_pk_constraint(table)["constrained_columns"]
        found[table, "foreign keys"] = inspector.get_foreign_keys(table)
        found[table, "unique"] = inspector.get_unique_constraints(table)
    if engine.dialect.name == "sqlite":  # of which SQLAlchemy does not tell whether a number may be given twice
        with engine.connect() as connection:
            for table, sql in connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'table'")):
                if (table, "unique") in found:
                    found[table, "autoincrement"] = "AUTOINCREMENT" in sql
    return found


def tables(engine: sa.Engine) -> list[sa.Table]:
    """As they are by now, each after those that it refers to."""
    metadata = sa.MetaData()
    metadata.reflect(engine)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def stored(engine: sa.Engine) -> Rows:
    with engine.connect() as connection:
        return {
            table.name: [dict(row) for row in connection.execute(table.select()).mappings()] for table in tables(engine)
        }


def fill(engine: sa.Engine, service: str) -> Rows:
    """Stores a row in each table, as far as it has columns by now, in the place of all others."""
    there = tables(engine)
    with engine.begin() as connection:
        for table in reversed(there):
            connection.execute(table.delete())
        for table in there:
            row = ROWS[service][table.name]
            connection.execute(table.insert(), {column.name: row[column.name] for column in table.columns})
    return stored(engine)


def fitted(rows: Rows, engine: sa.Engine) -> Rows:
    """What becomes of rows in the tables as they are by now."""
    return {
        table.name: [{column.name: (LATER | row)[column.name] for column in table.columns} for row in rows[table.name]]
        for table in tables(engine)
    }


@pytest.mark.parametrize("service", STORES)
async def test_the_migrations_make_the_tables(service: str, database_url: str, engine: sa.Engine) -> None:
    """Each column with its type, length, default and room for null, each index with its condition, each key."""
    metadata = SCHEMAS[service].metadata
    metadata.create_all(engine)
    wanted = described(engine)
    metadata.drop_all(engine)
    async with STORES[service].open_store(database_url):
        pass
    migrated = described(engine)
    for table, column in KEPT_DEFAULTS[service]:
        migrated[table, column]["default"] = None
    if service == "order" and engine.dialect.name == "sqlite":  # which holds no text to its length
        assert str(migrated["orders", "customer_id"].pop("type")) == "VARCHAR(64)"
        assert str(wanted["orders", "customer_id"].pop("type")) == "TEXT"
    assert migrated == wanted


@pytest.mark.parametrize("service", STORES)
def test_the_migrations_stand_in_one_line(service: str) -> None:
    """From nothing to today, each after the one whose number comes before."""
    numbers = [f"{number:04}" for number in range(1, len(revisions(service)) + 1)]
    assert revisions(service) == numbers
    down = [script.down_revision for script in ScriptDirectory.from_config(scripts(service)).walk_revisions()]
    assert down[::-1] == [None, *numbers[:-1]]


@pytest.mark.parametrize("service", STORES)
def test_a_migration_is_taken_back(service: str, engine: sa.Engine) -> None:
    """Each one, down and up again: tables are as before, and so are rows, but for what there was no room for."""
    earlier, before = described(engine), "base"
    for revision in revisions(service):
        migrate(engine, service, revision, command.upgrade)
        later, rows = described(engine), fill(engine, service)
        migrate(engine, service, before, command.downgrade)
        assert described(engine) == earlier, revision
        assert stored(engine) == fitted(rows, engine), revision
        migrate(engine, service, revision, command.upgrade)
        assert described(engine) == later, revision
        earlier, before = later, revision


@pytest.mark.parametrize(
    ("service", "revision"), [(service, revision) for service in STORES for revision in revisions(service)]
)
async def test_an_update_keeps_what_is_stored(
    service: str, revision: str, database_url: str, engine: sa.Engine
) -> None:
    """From each revision to today, with a row in each table: values stay, new columns say that nothing is known."""
    migrate(engine, service, revision, command.upgrade)
    before = fill(engine, service)
    async with STORES[service].open_store(database_url) as store:
        await store.get(ID)
    assert stored(engine) == fitted(before, engine)
