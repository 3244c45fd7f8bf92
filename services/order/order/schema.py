"""Order's tables: orders with the step that is due, every change of an order, and how far feeds were read."""

import sqlalchemy as sa
from txstore import SEQUENCE, AnyText, Instant

metadata = sa.MetaData()

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("customer_id", AnyText, nullable=False),
    sa.Column("lines", sa.JSON, nullable=False),
    sa.Column("address", sa.JSON, nullable=False),
    sa.Column("total", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("create_time", Instant, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("failure", AnyText, nullable=False),
    sa.Column("step", sa.String(20)),
    sa.Column("due", Instant),  # null once the order has ended, so that the index holds live orders alone
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("fails_since", Instant),
    sa.Column("asked_kitchen", sa.Boolean, nullable=False),
    sa.Column("asked_delivery", sa.Boolean, nullable=False),
    sa.Column("traceparent", sa.String(55), nullable=False),
    sa.Index("orders_due", "due", sqlite_where=sa.text("due IS NOT NULL"), postgresql_where=sa.text("due IS NOT NULL")),
    sa.Index("orders_of_customer", "customer_id", "create_time", "order_id"),
)
changes = sa.Table(
    "order_changes",
    metadata,
    sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("order_id", sa.ForeignKey("orders.order_id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("failure", AnyText, nullable=False),
    sa.Index("changes_of_order", "order_id", "sequence"),
)
feeds = sa.Table(
    "feeds",
    metadata,
    sa.Column("feed", sa.String(16), primary_key=True),
    sa.Column("token", AnyText, nullable=False),
    sa.Column("holder", sa.String(36), nullable=False),  # the replica that reads it
    sa.Column("lease_ends", Instant, nullable=False),
)
secret = sa.Table("secret", metadata, sa.Column("key", sa.String(64), primary_key=True))
