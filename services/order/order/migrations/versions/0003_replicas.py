"""Which replica reads a feed; and room for customers' ids that Postgres needs escaped."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("feeds", sa.Column("holder", sa.String(36), nullable=False, server_default=""))
    op.add_column("feeds", sa.Column("lease_ends", sa.BigInteger, nullable=False, server_default="0"))
    if op.get_bind().dialect.name == "postgresql":  # SQLite holds no text to its length
        op.alter_column("orders", "customer_id", type_=sa.Text)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("orders", "customer_id", type_=sa.String(64))
    op.drop_column("feeds", "lease_ends")
    op.drop_column("feeds", "holder")
