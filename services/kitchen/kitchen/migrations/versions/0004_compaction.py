"""What is superseded in the feed is found by its ticket."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("changes_of_ticket", "ticket_changes", ["ticket_id", "sequence"])


def downgrade() -> None:
    op.drop_index("changes_of_ticket", "ticket_changes")
