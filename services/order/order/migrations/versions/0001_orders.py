"""Orders, their changes, and how far feeds were read."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("order_id", sa.String(36), primary_key=True),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("lines", sa.JSON, nullable=False),
        sa.Column("address", sa.JSON, nullable=False),
        sa.Column("total", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("failure", sa.Text, nullable=False),
        sa.Column("step", sa.String(20)),
        sa.Column("due", sa.BigInteger, index=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("asked_kitchen", sa.Boolean, nullable=False),
        sa.Column("asked_delivery", sa.Boolean, nullable=False),
        sa.Index("orders_of_customer", "customer_id", "create_time", "order_id"),
    )
    op.create_table(
        "order_changes",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("order_id", sa.String(36), sa.ForeignKey("orders.order_id"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("failure", sa.Text, nullable=False),
        sa.Index("changes_of_order", "order_id", "sequence"),
    )
    op.create_table(
        "feeds",
        sa.Column("feed", sa.String(16), primary_key=True),
        sa.Column("token", sa.Text, nullable=False),
    )
    op.create_table("secret", sa.Column("key", sa.String(64), primary_key=True))


def downgrade() -> None:
    for table in ("secret", "feeds", "order_changes", "orders"):
        op.drop_table(table)
