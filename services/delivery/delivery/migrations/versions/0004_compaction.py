"""What is superseded in the feed is found by its delivery."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("changes_of_delivery", "delivery_changes", ["delivery_id", "sequence"])


def downgrade() -> None:
    op.drop_index("changes_of_delivery", "delivery_changes")
