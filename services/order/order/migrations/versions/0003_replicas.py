"""Which replica reads a feed; an index of live orders alone; room for ids that Postgres wants escaped."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

LIVE = sa.text("due IS NOT NULL")


def upgrade() -> None:
    op.add_column("feeds", sa.Column("holder", sa.String(36), nullable=False, server_default=""))
    op.add_column("feeds", sa.Column("lease_ends", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("orders_due", "orders", ["due"], sqlite_where=LIVE, postgresql_where=LIVE)
    op.drop_index("ix_orders_due", "orders")
    if op.get_bind().dialect.name == "postgresql":  # SQLite holds no text to its length
        op.alter_column("orders", "customer_id", type_=sa.Text)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("orders", "customer_id", type_=sa.String(64))
    op.create_index("ix_orders_due", "orders", ["due"])
    op.drop_index("orders_due", "orders")
    op.drop_column("feeds", "lease_ends")
    op.drop_column("feeds", "holder")
