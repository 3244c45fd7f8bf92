"""Tickets, their portions and the feed."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "tickets",
        sa.Column("ticket_id", sa.String(36), primary_key=True),
        sa.Column("items", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("portions_left", sa.Integer, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "portions",
        sa.Column("portion_id", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("ticket_id", sa.String(36), sa.ForeignKey("tickets.ticket_id"), nullable=False, index=True),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("station", sa.String(64), nullable=False),
        sa.Column("done_at", sa.BigInteger, index=True),
        sa.Index("portions_queue", "station", "done_at", "portion_id"),
    )
    op.create_table(
        "ticket_changes",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("ticket_id", sa.String(36), sa.ForeignKey("tickets.ticket_id"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table("secret", sa.Column("key", sa.String(64), primary_key=True))


def downgrade() -> None:
    for table in ("secret", "ticket_changes", "portions", "tickets"):
        op.drop_table(table)
