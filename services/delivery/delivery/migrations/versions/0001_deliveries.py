"""Deliveries and their feed."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("number", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("delivery_id", sa.String(36), nullable=False, unique=True),
        sa.Column("address", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("arrives_at", sa.BigInteger, index=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Index("deliveries_queue", "state", "number"),
    )
    op.create_table(
        "delivery_changes",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("delivery_id", sa.String(36), sa.ForeignKey("deliveries.delivery_id"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table("secret", sa.Column("key", sa.String(64), primary_key=True))


def downgrade() -> None:
    for table in ("secret", "delivery_changes", "deliveries"):
        op.drop_table(table)
