"""Delivery's tables: deliveries, and every change of one."""

import sqlalchemy as sa
from txstore import SEQUENCE, Instant

metadata = sa.MetaData()

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("number", SEQUENCE, primary_key=True, autoincrement=True),  # couriers take them in this order
    sa.Column("delivery_id", sa.String(36), nullable=False, unique=True),
    sa.Column("address", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("arrives_at", Instant),  # null unless a courier has it
    sa.Column("create_time", Instant, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("traceparent", sa.String(55), nullable=False),
    sa.Index(
        "deliveries_arriving",
        "arrives_at",
        sqlite_where=sa.text("arrives_at IS NOT NULL"),
        postgresql_where=sa.text("arrives_at IS NOT NULL"),
    ),
    sa.Index("deliveries_queue", "state", "number"),
)
changes = sa.Table(
    "delivery_changes",
    metadata,
    sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("delivery_id", sa.ForeignKey("deliveries.delivery_id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Index("changes_of_delivery", "delivery_id", "sequence"),
    sqlite_autoincrement=True,  # a number is never given twice, even after rows were deleted
)
secret = sa.Table("secret", metadata, sa.Column("key", sa.String(64), primary_key=True))
