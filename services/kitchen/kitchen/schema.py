"""The kitchen's tables: tickets, the portions still to be made, and every change of a ticket."""

import sqlalchemy as sa
from txstore import SEQUENCE, Instant

metadata = sa.MetaData()

tickets = sa.Table(
    "tickets",
    metadata,
    sa.Column("ticket_id", sa.String(36), primary_key=True),
    sa.Column("items", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("portions_left", sa.Integer, nullable=False),
    sa.Column("create_time", Instant, nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Column("traceparent", sa.String(55), nullable=False),
)
# A row for each portion that is not done yet, so that what there is to do stays small however much was done.
portions = sa.Table(
    "portions",
    metadata,
    sa.Column("portion_id", SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("ticket_id", sa.ForeignKey("tickets.ticket_id"), nullable=False, index=True),
    sa.Column("steps", sa.JSON, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("station", sa.String(64), nullable=False),
    sa.Column("since", Instant, nullable=False),
    sa.Column("done_at", Instant),  # null while it waits for its station
    sa.Index(
        "portions_done",
        "done_at",
        sqlite_where=sa.text("done_at IS NOT NULL"),
        postgresql_where=sa.text("done_at IS NOT NULL"),
    ),
    sa.Index(
        "portions_waiting",
        "station",
        "portion_id",
        sqlite_where=sa.text("done_at IS NULL"),
        postgresql_where=sa.text("done_at IS NULL"),
    ),
)
changes = sa.Table(
    "ticket_changes",
    metadata,
    sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("ticket_id", sa.ForeignKey("tickets.ticket_id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("update_time", Instant, nullable=False),
    sa.Index("changes_of_ticket", "ticket_id", "sequence"),
    sqlite_autoincrement=True,  # a number is never given twice, even after rows were deleted
)
secret = sa.Table("secret", metadata, sa.Column("key", sa.String(64), primary_key=True))
