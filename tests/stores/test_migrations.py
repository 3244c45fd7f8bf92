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

STORES = ((order.store, order.schema), (kitchen.store, kitchen.schema), (delivery.store, delivery.schema))


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.__name__)
async def test_the_migrations_make_the_tables(store: object, database_url: str) -> None:
    """No table, column or index is missing, and none is there that the store does not know."""
    async with store.open_store(database_url):  # type: ignore[attr-defined] # one of the three modules
        engine = sa.create_engine(database_url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": False})
            assert compare_metadata(context, store.metadata) == []  # type: ignore[attr-defined] # likewise
