"""Notes and their feed."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("note_id", sa.String(36), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "note_changes",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("note_id", sa.String(36), sa.ForeignKey("notes.note_id"), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Index("changes_of_note", "note_id", "sequence"),
        sqlite_autoincrement=True,
    )
    op.create_table("secret", sa.Column("key", sa.String(64), primary_key=True))


def downgrade() -> None:
    for table in ("secret", "note_changes", "notes"):
        op.drop_table(table)
