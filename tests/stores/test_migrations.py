"""What the migrations make is what the stores say their tables are."""

import delivery.schema
import delivery.store
import kitchen.schema
import kitchen.store
import order.schema
import order.store
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

SERVICES = {
    "order": (order.store, order.schema),
    "kitchen": (kitchen.store, kitchen.schema),
    "delivery": (delivery.store, delivery.schema),
}


@pytest.mark.parametrize("service", SERVICES)
async def test_the_migrations_make_the_tables(service: str, database_url: str) -> None:
    """No table, column or index is missing, and none is there that the schema does not know."""
    store, schema = SERVICES[service]
    async with store.open_store(database_url):
        engine = sa.create_engine(database_url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": False})
            assert compare_metadata(context, schema.metadata) == []
